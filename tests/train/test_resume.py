"""A run that was interrupted and goes on is the run that was not: to the last digit, on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rl4rec_cli.config import RunConfig
from rl4rec_cli.layering import load_config
from rl4rec_cli.runs import open_run
from rl4rec_cli.train import resumable
from rl4rec_cli.train.session import train

SMALL = (
    *("data.synthetic.users=24", "data.synthetic.items=20", "data.train_targets=last"),
    *("prompt.max_history=2", "prompt.max_prompt_length=48", "generation.max_completion_length=5"),
    *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=400"),
    *("trainer.batch_size=4", "trainer.max_steps=8", "trainer.learning_rate=0.01", "trainer.num_train_epochs=99"),
    *("eval.users=6", "eval.baselines=[untrained]", "logging.steps=1", "logging.rollouts=1000"),
    *("logging.save_steps=1", "logging.save_total_limit=2"),
)
GROUPS = ("trainer.num_generations=4", "trainer.warm_start=null")
# What an algorithm is tried with: 24 users are 6 batches of 4, so that 8 steps cross an epoch.
VARIANTS = {
    "sft": ("sft", ()),
    "sft, accumulated, logged every third step": (
        "sft",
        ("trainer.gradient_accumulation_steps=2", "logging.steps=3"),
    ),
    "grpo": ("grpo", GROUPS),
    "grpo, two updates from a batch": ("grpo", (*GROUPS, "trainer.num_iterations=2")),
    "grpo, accumulated, three updates, logged every third step": (
        "grpo",
        (*GROUPS, "trainer.gradient_accumulation_steps=2", "trainer.num_iterations=3", "logging.steps=3"),
    ),
    "grpo with a reference": ("grpo", (*GROUPS, "trainer.beta=0.1", "trainer.lr_scheduler_type=cosine")),
}
TIMES = ("seconds", "step_seconds", "generation_seconds", "reward_seconds")


class Killed(BaseException):
    """The process is gone: nothing of what would be done after it is done."""


def recipe(folder: Path, algorithm: str, *sets: str) -> RunConfig:
    return load_config(
        algorithm=algorithm,
        recipes=["quick-test"],
        flags={"run.output_dir": str(folder)},
        sets=[*SMALL, "run.name=run", "eval.cache_dir=null", *sets],
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in json.loads(line).items() if k not in TIMES} for line in path.read_text().splitlines() if line
    ]


def outcome(folder: Path) -> tuple[list[Any], list[Any], dict[str, Any], list[Any]]:
    """Log, texts, results and the final weights of a run."""
    weights = load_file(next((folder / "checkpoints" / "checkpoint_final").glob("*model.safetensors")))
    users = folder / "eval" / "validation_users.jsonl"
    log, texts = folder / "training_log.jsonl", folder / "rollouts.jsonl"
    return lines(log), lines(texts) if texts.is_file() else [], {k: weights[k] for k in sorted(weights)}, lines(users)


def assert_same(one: Path, other: Path) -> None:
    for ours, theirs in zip(outcome(one), outcome(other), strict=True):
        if isinstance(ours, dict):
            assert ours.keys() == theirs.keys()
            assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
        else:
            assert ours == theirs


def go_on(folder: Path, *sets: str, allow_partial: bool = False) -> None:
    run = open_run(folder)
    config = load_config(algorithm=run.config.trainer.algorithm, recipes=[str(folder / "config.yaml")], sets=sets)
    train(config, (config.run.seed,), resume=folder, allow_partial=allow_partial)


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the process die while step `at + 1` of a phase is made, the given number of phases from now."""

    def arrange(at: int, *, phase: int = 0) -> None:
        left = [phase]
        step = resumable.Resumable.training_step

        def dying(self: Any, *args: Any, **options: Any) -> Any:
            loss = step(self, *args, **options)
            if self.state.global_step == at and left[0] == 0:
                monkeypatch.undo()
                monkeypatch.setattr(resumable.Keeper, "_keep_last", lambda self: None)
                raise Killed
            return loss

        begin = resumable.Keeper.on_train_end

        def ended(self: Any, *args: Any, **options: Any) -> None:
            left[0] -= 1
            begin(self, *args, **options)

        monkeypatch.setattr(resumable.Resumable, "training_step", dying)
        monkeypatch.setattr(resumable.Keeper, "on_train_end", ended)

    return arrange


whole_runs: dict[str, Path] = {}


def whole(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run of a variant, made once."""
    if name not in whole_runs:
        algorithm, sets = VARIANTS[name]
        folder = tmp_path_factory.mktemp("whole")
        train(recipe(folder, algorithm, *sets), (3,))
        whole_runs[name] = folder / "run"
    return whole_runs[name]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("at", [1, 5, 6, 7])
def test_killed_at_a_step(
    name: str, at: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, kill: Callable[..., None]
) -> None:
    algorithm, sets = VARIANTS[name]
    kill(at)
    with pytest.raises(Killed):
        train(recipe(tmp_path, algorithm, *sets), (3,))
    assert not (tmp_path / "run" / "checkpoints" / "checkpoint_final").exists()
    go_on(tmp_path / "run")
    assert_same(whole(name, tmp_path_factory), tmp_path / "run")
