"""What rl4rec adds to a GRPO step: the same steps through `rl4rec train grpo` and through bare TRL.

Both train the same start policy on the same prompts with the same Scorer as the reward and the same settings, in
turns, in one process. Bare TRL is `GRPOTrainer` with its own tokenisation and generation and a plain reward function.

    python benchmarks/step_overhead.py [--rounds 6] [--steps 10]

Prints the median time from one logged step to the next for both, and the ratio. Claim: at most 1.05.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tiny policy is no faster with more, and the times are steadier

from transformers import PrinterCallback, TrainerCallback

from rl4rec_cli import console
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.data.dataset import build_examples
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.data.prompts import PromptBuilder
from rl4rec_cli.files.logs import JsonLines
from rl4rec_cli.policy.loading import load_policy
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.rewards.scorer import Scorer
from rl4rec_cli.runs.making import create_run
from rl4rec_cli.train.algorithms.grpo import grpo_arguments
from rl4rec_cli.train.environments import Environment
from rl4rec_cli.train.parts import Lesson, TrainerParts
from rl4rec_cli.train.phase import train_phase

CLAIM = 1.05


class Clock(TrainerCallback):
    """When each step was logged."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.times.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours, bare = measure(Path(folder), args.rounds, args.steps)
    ratio = statistics.median(ours) / statistics.median(bare)
    print(f"{'':<10}{'median ms':>10}{'lowest ms':>11}{'steps':>7}")
    for name, times in (("rl4rec", ours), ("bare TRL", bare)):
        print(f"{name:<10}{1e3 * statistics.median(times):>10.1f}{1e3 * min(times):>11.1f}{len(times):>7}")
    print(f"\nratio of medians {ratio:.3f}, claim: at most {CLAIM}")
    sys.exit(ratio > CLAIM)


def measure(folder: Path, rounds: int, steps: int) -> tuple[list[float], list[float]]:
    """Seconds per step, ours and bare, from alternating rounds; the first two steps of a round warm it up."""
    settings = [f"trainer.max_steps={steps + 2}", "logging.steps=1", f"run.output_dir={folder}"]
    config = load_config(algorithm="grpo", recipes=["quick-test"], sets=settings)
    dataset = open_dataset(config.data)
    console.quiet_libraries()
    retriever = open_retriever(config.retrieval, dataset)
    examples = build_examples(dataset, "train")
    ours: list[float] = []
    bare: list[float] = []
    for number in range(rounds):
        for take, times in ((_ours, ours), (_bare, bare)) if number % 2 else ((_bare, bare), (_ours, ours)):
            policy = load_policy(config.policy, dataset=dataset, seed=0, trainable=True)
            builder = PromptBuilder(config.prompt, dataset, policy.tokenizer)
            environment = Environment(dataset, retriever, Scorer(retriever, config.reward), builder, examples)
            with contextlib.redirect_stderr(None):
                marks = take(config, policy, environment, f"round-{number}")
            times.extend(later - earlier for earlier, later in itertools.pairwise(marks[1:]))
    return ours, bare


def _ours(config: Any, policy: Any, environment: Environment, name: str) -> list[float]:
    run = create_run(
        config.model_copy(update={"run": config.run.model_copy(update={"name": name})}), dataset="benchmark"
    )
    log, rollouts = JsonLines(run.folder / "training_log.jsonl"), JsonLines(run.folder / "rollouts.jsonl")
    train_phase(config.trainer, run, policy, [environment], log, rollouts)
    log.close()
    rollouts.close()
    lines = (run.folder / "training_log.jsonl").read_text().splitlines()
    return [record["seconds"] for record in map(json.loads, lines) if "seconds" in record]


def _bare(config: Any, policy: Any, environment: Environment, name: str) -> list[float]:
    from datasets import Dataset
    from trl import GRPOTrainer

    rows = [
        {"prompt": environment.builder.build(e.user, e.history).text, "target": e.target, "history": list(e.history)}
        for e in environment.examples
    ]

    def reward(completions: list[str], target: list[int], history: list[list[int]], **_: Any) -> list[float]:
        return environment.scorer.score([text.strip() for text in completions], target, history).rewards.tolist()

    lesson = Lesson(Dataset.from_list(rows), config.generation.max_completion_length, dict)
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = GRPOTrainer(
            model=policy.model,
            args=grpo_arguments(
                TrainerParts(config.trainer, config, policy, config.trainer.max_steps, Path(scratch), lesson)
            ),
            train_dataset=lesson.rows,
            processing_class=policy.tokenizer,
            reward_funcs=reward,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.times


if __name__ == "__main__":
    main()
