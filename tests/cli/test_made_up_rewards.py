"""A reward and a baseline are added by one line each, or by an installed package, and all commands know them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_lines import DRIVER, log_of, said

# The one line that registers each, as in `config/registries.py`.
LINES = """
from rl4rec_cli.config.registries import BASELINES, REWARDS
REWARDS.built_in["halved"] = "made_up:HALVED"
BASELINES.built_in["rarest"] = "made_up:rarest"
"""
MADE_UP = """
import numpy as np
from rl4rec_cli.eval.baseline import scores
from rl4rec_cli.eval.baselines import training_counts
from rl4rec_cli.eval.scoring import SparseScores
from rl4rec_cli.rewards.functions import RankReward, ndcg

HALVED = RankReward(lambda ranks_B, section: ndcg(ranks_B, section.k) / 2)

@scores(label="the rarest", reads_vectors=False)
def rarest(task):
    nothing = np.zeros(0, np.int64), np.zeros(0)
    counts_N = 1.0 / (1 + training_counts(task.dataset))
    return SparseScores(len(task.examples), counts_N, lambda row: nothing)
"""
PACKAGE = """
import made_up

def wordy(texts, targets, histories, **kwargs):
    return [len(text.split()) / 100 for text in texts]

def upside_down(task):
    return made_up.rarest.score(task)
"""
ENTRY_POINTS = """
[rl4rec.rewards]
wordy = shop_extras:wordy
ndcg = shop_extras:wordy
gone = shop_extras_gone:reward

[rl4rec.baselines]
upside_down = shop_extras:upside_down
"""
SETS = (
    *("data.synthetic.users=40", "data.synthetic.items=30", "policy.tiny.hidden_size=32", "policy.tiny.heads=2"),
    *("generation.max_completion_length=6", "prompt.max_history=2", "trainer.batch_size=4", "logging.steps=1"),
    *("trainer.num_generations=4", "trainer.max_steps=3", "trainer.warm_start=null", "eval.steps=null", "run.name=r"),
    *("eval.users=10", "eval.cache_dir=cache", "eval.baselines=[rarest, upside_down]", "eval.probes=false"),
    *("reward.functions={halved: 1, wordy: 0.5}",),
)


def write_package(place: Path) -> None:
    """A small installed package: its metadata and one module."""
    info = place / "shop_extras-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-extras\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (place / "shop_extras.py").write_text(PACKAGE)
    (place / "made_up.py").write_text(MADE_UP)


def run(place: Path, program: str, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(place), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", program, *args], cwd=place, env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all commands were run, in one process."""
    place = tmp_path_factory.mktemp("registered")
    write_package(place)
    sets = [part for text in SETS for part in ("--set", text)]
    plan = ["plan", "-r", "quick-test", *sets]
    train = ["train", "grpo", "--quick-test", *sets]
    commands = {
        "plan": plan,
        "dry": [*train, "--dry-run"],
        "train": train,
        "eval": ["eval", "runs/r", "--json"],
        "doctor": ["doctor", "--json"],
    }
    (place / "commands.json").write_text(json.dumps(commands))
    done = run(place, LINES + DRIVER, "commands.json")
    assert done.returncode == 0, done.stderr[-3000:]
    return place


def test_a_made_up_reward_and_a_plugins_are_planned_and_trained_with(place: Path) -> None:
    said(place, "plan")
    assert "halved" in said(place, "dry")["out"]
    trained = said(place, "train")["err"]
    assert "Reward wordy: running code of shop-extras 0.3, an installed plug-in" in trained
    assert "Reward halved" not in trained, "rl4rec's own"
    steps = log_of(place, "r")
    assert len(steps) == 3
    for record in steps:
        assert record["avg_reward"] == pytest.approx(record["reward/halved"] + 0.5 * record["reward/wordy"], abs=0.3)
        assert 0 <= record["reward/halved"] <= 0.5


def test_a_made_up_baseline_and_a_plugins_are_measured(place: Path) -> None:
    trained = json.loads((place / "runs" / "r" / "eval" / "validation.json").read_text())
    evaluated: dict[str, Any] = json.loads(said(place, "eval")["out"])
    for result in (trained, evaluated):
        assert {"the rarest", "upside down"} <= set(result["methods"])
        assert result["methods"]["the rarest"] == result["methods"]["upside down"], "the same scores"
        assert result["kinds"]["upside down"] == "baseline"


def test_doctor_lists_plugins_with_their_package_and_what_is_never_used(place: Path) -> None:
    checks = {check["name"]: check for check in json.loads(said(place, "doctor")["out"])["checks"]}
    assert checks["reward wordy"]["found"] == "of shop-extras 0.3: shop_extras:wordy"
    assert checks["baseline upside_down"]["state"] == "ok"
    assert checks["reward ndcg"]["state"] == "note"
    assert "reward ndcg is rl4rec's own" in checks["reward ndcg"]["found"]


def test_a_run_opens_without_the_package_and_says_so_where_its_code_is_needed(tmp_path: Path, place: Path) -> None:
    program = """
import sys
from pathlib import Path
from rl4rec_cli.cli.main import main
from rl4rec_cli.runs.making import open_run
print(list(open_run(sys.argv[1]).config.reward.functions))
sys.exit(main(["eval", sys.argv[1]]))
"""
    done = run(tmp_path, program, str(place / "runs" / "r"))
    assert done.stdout.startswith("['halved', 'wordy']"), done.stderr[-2000:]
    assert done.returncode == 2
    assert "unknown baseline 'rarest'" in done.stderr


def test_a_broken_plugin_is_named_with_its_package_and_cause(tmp_path: Path) -> None:
    write_package(tmp_path)
    program = "from rl4rec_cli.rewards.custom import load_reward; load_reward('gone')"
    done = run(tmp_path, program)
    assert "PluginError: plug-in gone of shop-extras 0.3: rl4rec.rewards entry point" in done.stderr
    assert "No module named 'shop_extras_gone'" in done.stderr
