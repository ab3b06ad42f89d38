"""A new algorithm takes its section, its module and its line: everything else asks the section."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up import copy_package, insert_after, run_commands

from rl4rec_cli.config.algorithms import ALGORITHMS, EXAMPLES
from rl4rec_cli.config.trainer import trainer_sections

LINE = '    "madeup": Algorithm("MadeUpSection", "madeup", "groups", "RL that nobody has heard of (MADEUP)."),\n'
SECTION = '''

class MadeUpSection(GroupSection):
    """A made-up algorithm."""

    like: ClassVar[str | None] = "grpo"

    algorithm: Literal["madeup"] = "madeup"
    loss_type: Literal["dapo"] = "dapo"
    """How token losses are averaged."""
    shift: float = 0.5
    """What no other algorithm has."""

    @property
    def holds_reference(self) -> bool:
        return True
'''
MODULE = """
import sys

from rl4rec_cli.train.algorithms.grpo import make_trainer as make_grpo, open_lesson


def make_trainer(parts):
    print(f"made up, shifted by {parts.section.shift}", file=sys.stderr)
    return make_grpo(parts)
"""
SMALL = [
    *("trainer.max_steps=3", "trainer.warm_start.max_steps=2", "trainer.batch_size=4", "trainer.num_generations=4"),
    *("data.synthetic.users=60", "data.synthetic.items=40", "logging.steps=1", "eval.steps=null", "eval.users=8"),
    *("eval.baselines=[last_item,untrained]", "eval.cache_dir=null", "policy.tiny.hidden_size=32"),
]


def add_madeup(package: Path) -> None:
    """The three places, as a person would fill them in."""
    registry, sections = package / "config" / "algorithms.py", package / "config" / "trainer.py"
    insert_after(registry, "ALGORITHMS: dict[str, Algorithm] = {\n", LINE)
    sections.write_text(sections.read_text(encoding="utf-8") + SECTION, encoding="utf-8")
    (package / "train" / "algorithms" / "madeup.py").write_text(MODULE, encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the made-up algorithm in it."""
    package = copy_package(tmp_path_factory.mktemp("source"))
    add_madeup(package)
    return package


@pytest.mark.slow
def test_a_made_up_algorithm_is_planned_shown_and_trained(source: Path, tmp_path: Path) -> None:
    sets = [word for text in SMALL for word in ("--set", text)]
    (helped, planned, shown, trained, reported), errors = run_commands(
        *(source, tmp_path),
        ["train", "madeup", "--help"],
        ["plan", "--algorithm", "madeup", "-r", "quick-test", "--json", *sets],
        ["train", "madeup", "--quick-test", "--dry-run", "--set", "trainer.shift=0.25"],
        ["train", "madeup", "--quick-test", *sets, "--run-name", "new"],
        ["report", "runs/new"],
    )
    assert [code for code, _ in (helped, planned, shown, trained, reported)] == [0] * 5, errors
    assert "Reinforcement learning that nobody has heard of (MADEUP)." in helped[1]
    assert "--num-generations" in helped[1]
    assert "rl4rec train madeup --quick-test" in helped[1]

    plan = json.loads(planned[1])
    assert plan["choices"]["batch"]["value"] == "4 prompts × 4 completions × 1"
    assert {"warm start: learning", "learning", "writing"} <= plan["phases"].keys()

    assert "algorithm: madeup" in shown[1]
    assert "shift: 0.25" in shown[1]
    assert "learning_rate: 0.002" in shown[1]  # of the recipe's block for grpo, which it is like

    assert "made up, shifted by 0.5" in errors
    folder = tmp_path / "runs" / "new"
    records = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    assert [(r["phase"], r["step"]) for r in records if "loss" in r] == [("madeup", n) for n in (1, 2, 3)]
    assert (folder / "warm_start_log.jsonl").is_file()
    assert (folder / "checkpoints" / "checkpoint_final").is_dir()
    assert "before RL" in trained[1]
    assert "madeup on" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_configuration_knows_a_made_up_algorithm(source: Path, tmp_path: Path) -> None:
    (settings, wrong), errors = run_commands(
        *(source, tmp_path),
        ["settings", "shift"],
        ["train", "grpo", "--set", "trainer.shift=1", "--dry-run"],
    )
    assert "of madeup" in settings[1]
    assert wrong[0] == 2
    assert "trainer.shift: belongs to madeup, not to grpo" in errors


def test_the_lines_agree_with_the_sections() -> None:
    for name, section in trainer_sections().items():
        trainer = section.model_validate({})
        assert trainer.algorithm == name
        kind = "supervised" if trainer.trains_policy else "retriever"
        if trainer.compares_answers:
            kind = "pairs"
        if trainer.learns_from_rewards:
            kind = "groups" if trainer.has_groups else "single"
        assert ALGORITHMS[name].kind == kind
        assert section.like is None or section.like in ALGORITHMS
    assert EXAMPLES.keys() <= ALGORITHMS.keys()
