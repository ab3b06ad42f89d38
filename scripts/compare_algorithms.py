"""Train by several algorithms at equal effective batch and equal rollouts; write a table and learning curves.

python scripts/compare_algorithms.py OUT -r quick-test --seeds 0,1,2
python scripts/compare_algorithms.py OUT -r beauty-cpu --dataset data/beauty --batch 128 --batches 180 --seeds 0,1,2

Each run is the `rl4rec train` command in a process of its own, so that time and memory are its own. Learning rates and
epochs are each algorithm's in the recipe; --set gives one to all. All begin with the same weights: the first of
--algorithms makes the recipe's warm start, the others take it over. Runs that are in OUT and finished are not trained
again, so that an interrupted comparison goes on; OUT/results.json holds every number of the table.

Equal effective batch: --batch texts between two generations for every algorithm (GRPO and RLOO write --group texts
for each of batch/group prompts; PPO and REINFORCE one for each of batch prompts). Equal rollouts: --batches times
that. Optimiser steps differ: PPO makes several of one batch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ALGORITHMS = ("grpo", "rloo", "ppo", "reinforce")
METRIC = "ndcg@10"
WINDOW = 10


@dataclass
class Outcome:
    """What one run came to."""

    algorithm: str
    seed: int
    before: float
    after: float
    rollouts: int
    seconds: float
    """Of reinforcement learning alone."""
    peak_mib: float
    rewards: list[float]
    """Mean reward of each batch of texts."""
    times: list[float]
    """Seconds at which each was written."""


def settings(algorithm: str, args: argparse.Namespace) -> list[str]:
    """The `--set`s that make batches and rollouts equal."""
    shared = ["logging.steps=1", "trainer.gradient_accumulation_steps=1", "trainer.num_train_epochs=100000"]
    shared.append("eval.baselines=[untrained]")
    if algorithm in ("grpo", "rloo"):
        own = [f"trainer.batch_size={args.batch // args.group}", f"trainer.num_generations={args.group}"]
        own += ["trainer.num_iterations=1", f"trainer.max_steps={args.batches}"]
    elif algorithm == "ppo":
        mini = args.batch // args.minis
        own = [f"trainer.batch_size={args.batch}", f"trainer.mini_batch_size={mini}"]
        own += [f"trainer.ppo_epochs={args.epochs}", f"trainer.max_steps={args.batches * args.minis * args.epochs}"]
    else:
        own = [f"trainer.batch_size={args.batch}", f"trainer.max_steps={args.batches}"]
    return [*shared, *own, *args.sets]


def start(algorithm: str, seed: int, args: argparse.Namespace) -> list[str]:
    """The `--set`s that make all algorithms begin with the weights the first one's warm start came to."""
    first = args.algorithms.split(",")[0]
    if algorithm == first:
        return []
    checkpoint = args.out / f"{first}-s{seed}" / "checkpoints" / "checkpoint_start"
    return [f"policy.model={checkpoint}", "trainer.warm_start=null"]


def train(algorithm: str, seed: int, args: argparse.Namespace) -> Outcome:
    """One run, or what it came to before."""
    name = f"{algorithm}-s{seed}"
    known = args.out / f"{name}.json"
    if known.is_file():
        return Outcome(**json.loads(known.read_text()))
    command = [sys.executable, "-m", "rl4rec_cli.cli.main", "train", algorithm, "-r", args.recipe]
    command += ["--output", str(args.out), "--seeds", str(seed), "--set", f"run.name={name}"]
    if args.dataset:
        command += ["--dataset", args.dataset]
    for text in [*settings(algorithm, args), *start(algorithm, seed, args)]:
        command += ["--set", text]
    folder = args.out / name
    if folder.exists():
        sys.exit(f"{folder} was begun and not finished: delete it, or go on with rl4rec train {algorithm} --resume")
    print(f"{time.strftime('%H:%M:%S')} {algorithm}, seed {seed}", file=sys.stderr, flush=True)
    with (args.out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        # Unlike subprocess's own waiting, this tells what this one process took.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{algorithm}, seed {seed} failed: see {args.out / f'{name}.log'}")
    outcome = read(folder, algorithm, seed, usage.ru_maxrss / 1024, args.batch)
    known.write_text(json.dumps(asdict(outcome)))
    return outcome


def read(folder: Path, algorithm: str, seed: int, peak_mib: float, batch: int) -> Outcome:
    """What a finished run says."""
    records = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    steps = [r for r in records if r["phase"] == algorithm and "loss" in r]
    written = [r for r in steps if r["generation_seconds"] > 0]  # the others learn from the same texts again
    results = folder / "eval" / "validation.json"
    methods = json.loads(results.read_text())["methods"]
    return Outcome(
        algorithm,
        seed,
        methods["before RL"][METRIC],
        methods["tuned policy"][METRIC],
        len(written) * batch,
        steps[-1]["seconds"],
        peak_mib,
        [r["avg_reward"] for r in written],
        [r["seconds"] for r in written],
    )


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Means over an algorithm's seeds, and how far they differ."""
    gains = np.array([o.after - o.before for o in outcomes])
    last = np.array([np.mean(o.rewards[-WINDOW:]) for o in outcomes])
    first = np.array([np.mean(o.rewards[:WINDOW]) for o in outcomes])
    seconds = np.array([o.seconds for o in outcomes])
    rollouts = np.array([o.rollouts for o in outcomes])
    return {
        "seeds": len(outcomes),
        "rollouts": int(rollouts[0]),
        "before": float(np.mean([o.before for o in outcomes])),
        "after": float(np.mean([o.after for o in outcomes])),
        "gain": float(gains.mean()),
        "gain_sd": float(gains.std(ddof=1)) if len(gains) > 1 else None,
        "gain_min": float(gains.min()),
        "reward_first": float(first.mean()),
        "reward_last": float(last.mean()),
        "gain_per_10000_rollouts": float(((last - first) / rollouts).mean() * 10_000),
        "gain_per_minute": float(((last - first) / seconds).mean() * 60),
        "seconds": float(seconds.mean()),
        "peak_mib": float(np.mean([o.peak_mib for o in outcomes])),
        "batches_to_half": float(np.mean([batches_to_half(o.rewards) for o in outcomes])),
    }


def batches_to_half(rewards: list[float]) -> int:
    """Batches until the smoothed reward has made half of its own way, from the first to its best."""
    smooth = trailing_mean(rewards)
    return int(np.argmax(smooth >= (smooth[0] + smooth.max()) / 2)) + 1


def trailing_mean(values: list[float]) -> np.ndarray:
    """Mean of the last WINDOW values, so that the curve says nothing of the future."""
    sums = np.cumsum(np.insert(np.asarray(values, float), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - WINDOW)
    return (sums[ends] - sums[starts]) / (ends - starts)


def table(found: dict[str, dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [
        f"| algorithm | {METRIC} before | after | gain, sd over seeds | least gain | reward, first and last {WINDOW} "
        "batches | reward per 10,000 texts | per minute | batches to half | seconds | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, s in found.items():
        sd = "-" if s["gain_sd"] is None else f"{s['gain_sd']:.4f}"
        lines.append(
            f"| {name} | {s['before']:.4f} | {s['after']:.4f} | {s['gain']:+.4f} ± {sd} | {s['gain_min']:+.4f} | "
            f"{s['reward_first']:.4f} → {s['reward_last']:.4f} | {s['gain_per_10000_rollouts']:+.4f} | "
            f"{s['gain_per_minute']:+.4f} | {s['batches_to_half']:.0f} | {s['seconds']:.0f} | {s['peak_mib']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def draw(by_algorithm: dict[str, list[Outcome]], picture: Path, batch: int) -> None:
    """Reward by rollouts and by seconds: each seed thin, their mean bold."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for place, (name, outcomes) in enumerate(by_algorithm.items()):
        colour = f"C{place}"
        curves = [trailing_mean(o.rewards) for o in outcomes]
        texts = batch * np.arange(1, len(curves[0]) + 1)
        for outcome, curve in zip(outcomes, curves, strict=True):
            axes[0].plot(texts, curve, color=colour, alpha=0.25, linewidth=0.8)
            axes[1].plot(outcome.times, curve, color=colour, alpha=0.25, linewidth=0.8)
        axes[0].plot(texts, np.mean(curves, axis=0), color=colour, label=name)
        axes[1].plot(np.mean([o.times for o in outcomes], axis=0), np.mean(curves, axis=0), color=colour, label=name)
    axes[0].set_xlabel("texts written")
    axes[1].set_xlabel("seconds of reinforcement learning")
    axes[0].set_ylabel(f"mean reward, of the last {WINDOW} batches")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("-r", "--recipe", default="quick-test")
    parser.add_argument("--dataset")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--batch", type=int, default=256, help="texts between two generations")
    parser.add_argument("--batches", type=int, default=70)
    parser.add_argument("--group", type=int, default=16, help="texts per prompt of grpo and rloo")
    parser.add_argument("--minis", type=int, default=2, help="mini-batches of ppo")
    parser.add_argument("--epochs", type=int, default=2, help="passes of ppo over a batch")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    if args.batch % args.group or args.batch % args.minis:
        parser.error("--group and --minis must divide --batch")
    args.out.mkdir(parents=True, exist_ok=True)
    by_algorithm: dict[str, list[Outcome]] = {name: [] for name in args.algorithms.split(",")}
    # Seed by seed: what is there after an interruption compares like with like.
    for seed in map(int, args.seeds.split(",")):
        for name, outcomes in by_algorithm.items():
            outcomes.append(train(name, seed, args))
    found = {name: summary(outcomes) for name, outcomes in by_algorithm.items()}
    (args.out / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    (args.out / "table.md").write_text(table(found))
    draw(by_algorithm, args.out / "curves.png", args.batch)
    print(table(found), end="")


if __name__ == "__main__":
    main()
