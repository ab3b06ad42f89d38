"""Groups without variance kept, left out or refilled: how many texts a sparse reward takes to be learnt.

    python benchmarks/zero_variance.py OUT [--seeds 0,1,2] [--betas 0,0.2] [--reward 0.5]

The quick test's data and tiny policy, warm-started (once for each seed) to copy the last item's title, and a reward
that is 1 where the text names one brand of the catalogue and 0 elsewhere. The policy begins as a good copier: the
texts of a prompt are nearly always all of that brand or all of another, and hardly a group of 4 has any variance.

Every setting draws the same number of prompts for a step; texts of refilled groups are counted. A reward is reached
when the mean of it over the last 320 texts of the prompts first drawn for their steps is: whether others are drawn
depends on how those did. Since `refill` writes up to three times as many, this window costs it the most; the table has
the ratio for a window of 64 texts, too.

The runs are made one after another in this process; what is finished in OUT is not run again. OUT/table.md has the
figures, OUT/curves.png the picture.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tiny policy is no faster with more

import numpy as np

from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.files.logs import read_jsonl

HOW = ("keep", "leave_out", "refill")
BRAND = "Tamsel"
WINDOW, SHORT = 320, 64
GROUP = 4
SETTINGS = (
    *("reward.rank_shaping=0", "logging.steps=1", "logging.rollouts=0", "logging.save_steps=100000"),
    *("eval.ks=[10]", "eval.baselines=[]", "eval.cache_dir=null", "eval.steps=null", "eval.users=1"),
)
GRPO = (
    *(f"trainer.num_generations={GROUP}", "trainer.gradient_accumulation_steps=1"),
    *("trainer.num_train_epochs=1000", "trainer.lr_scheduler_type=constant", "trainer.warm_start=null"),
)


@dataclass
class Outcome:
    """What one run came to; one entry for each step."""

    texts: list[int]
    """Written up to the end of the step, those of refilled groups included."""
    rewards: list[float]
    """Mean over the texts of the prompts that were first drawn for the step."""
    empty: list[float]
    """Share of those prompts whose texts all have one reward."""
    seconds: float
    """Of reinforcement learning."""
    drawn: int = 16 * GROUP
    """Texts of the prompts first drawn for a step."""


def names_the_brand(texts: list[str], targets: list[int], histories: list[list[int]], **_: Any) -> list[float]:
    """1 where a text names the brand, else 0."""
    return [float(BRAND in text) for text in texts]


def run(how: str, beta: float, seed: int, start: Path, args: argparse.Namespace) -> Outcome:
    """Train, or what came of it before."""
    name = f"{how}-b{beta:g}-s{seed}"
    known = args.out / f"{name}.json"
    if known.is_file():
        return Outcome(**json.loads(known.read_text()))
    own = [f"trainer.zero_variance={how}", f"trainer.beta={beta}", f"trainer.learning_rate={args.lr}"]
    own += [f"trainer.max_steps={args.steps}", f"policy.model={start}", f"trainer.batch_size={args.prompts}"]
    folder = _train("grpo", name, seed, [*GRPO, *own], args.out)
    records = read_jsonl(folder / "training_log.jsonl")
    records = [r for r in records if "avg_reward" in r]
    groups = np.array([args.prompts + r.get("groups/drawn", 0) for r in records])
    outcome = Outcome(
        (GROUP * groups).cumsum().astype(int).tolist(),
        [next(value for key, value in r.items() if key.startswith("reward/")) for r in records],
        [r["zero_variance_share"] for r in records],
        records[-1]["seconds"],
        GROUP * args.prompts,
    )
    known.write_text(json.dumps(asdict(outcome)) + "\n")
    return outcome


def warm_start(seed: int, args: argparse.Namespace) -> Path:
    """The quick test's own warm start, which the runs of a seed share."""
    name = f"start-s{seed}"
    policy = args.out / name / "checkpoints" / "checkpoint_final"
    if not policy.is_dir():
        _train("sft", name, seed, ["trainer.target=last", "trainer.max_steps=180"], args.out)
    return Path(policy)


def _train(algorithm: str, name: str, seed: int, own: list[str], out: Path) -> Path:
    flags = {"run.output_dir": str(out), "run.name": name}
    flags["reward.functions"] = {f"{Path(__file__).resolve()}:names_the_brand": 1.0}
    config = load_config(algorithm=algorithm, recipes=["quick-test"], flags=flags, sets=[*SETTINGS, *own])
    print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
    with (out / f"{name}.log").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        return train(config, (seed,))[0].run.folder


def smooth(outcome: Outcome, window: int = WINDOW) -> tuple[list[int], np.ndarray]:
    """Texts written, and the mean reward of the last `window` texts; none before there are so many."""
    steps = max(1, window // outcome.drawn)
    sums = np.cumsum(np.insert(np.asarray(outcome.rewards, float), 0, 0.0))
    return outcome.texts[steps - 1 :], np.asarray((sums[steps:] - sums[:-steps]) / steps)


def reached(outcome: Outcome, reward: float, window: int = WINDOW) -> tuple[int, int] | None:
    """Texts and steps until the reward was reached; None where it was not."""
    texts, means = smooth(outcome, window)
    found = np.flatnonzero(means >= reward)
    if not len(found):
        return None
    return texts[found[0]], len(outcome.texts) - len(texts) + int(found[0]) + 1


def after(outcome: Outcome, count: int) -> float:
    """Mean reward of the last WINDOW texts once `count` texts were written."""
    texts, means = smooth(outcome)
    return float(means[np.searchsorted(texts, count, side="right") - 1])


def ratios(runs: dict[int, Outcome], kept: dict[int, Outcome], reward: float, window: int) -> list[float]:
    """Texts of each seed by those of `keep`, where both reached the reward."""
    pairs = [(reached(o, reward, window), reached(kept[seed], reward, window)) for seed, o in runs.items()]
    return [ours[0] / theirs[0] for ours, theirs in pairs if ours and theirs]


def table(outcomes: dict[tuple[float, str], dict[int, Outcome]], reward: float) -> str:
    """As Markdown: texts by seed, and each setting's ratio to `keep`."""
    seeds = list(next(iter(outcomes.values())))
    lines = [
        [
            *("beta", "zero_variance", *(f"seed {s}: texts (steps)" for s in seeds)),
            *("texts by those of keep", "median", f"the same, window of {SHORT}"),
            *("reward after as many texts", "groups of one reward, first 10 steps"),
        ]
    ]
    lines.append(["---"] * len(lines[0]))
    for (beta, how), runs in outcomes.items():
        came = [reached(o, reward) for o in runs.values()]
        of_keep, single = (ratios(runs, outcomes[beta, "keep"], reward, window) for window in (WINDOW, SHORT))
        empty = statistics.mean(float(np.mean(o.empty[:10])) for o in runs.values())
        cells = [f"{beta:g}", how, *(f"{c[0]:,} ({c[1]})" if c else "not reached" for c in came)]
        cells += [" ".join(f"{r:.2f}" for r in of_keep) or "-", f"{statistics.median(of_keep):.2f}" if of_keep else "-"]
        count = min(o.texts[-1] for (b, _), each in outcomes.items() if b == beta for o in each.values())
        ends = " ".join(f"{after(o, count):.2f}" for o in runs.values())
        cells += [f"{statistics.median(single):.2f}" if single else "-", f"{count:,}: {ends}", f"{empty:.0%}"]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def draw(outcomes: dict[tuple[float, str], dict[int, Outcome]], reward: float, picture: Path) -> None:
    """Reward by texts written: every seed a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    betas = list(dict.fromkeys(beta for beta, _ in outcomes))
    figure, axes = plt.subplots(1, len(betas), figsize=(5.2 * len(betas), 3.8), sharey=True, squeeze=False)
    for axis, beta in zip(axes[0], betas, strict=True):
        for place, how in enumerate(how for b, how in outcomes if b == beta):
            for number, outcome in enumerate(outcomes[beta, how].values()):
                label = how if number == 0 else None
                axis.plot(*smooth(outcome), color=f"C{place}", label=label)
        axis.axhline(reward, color="black", linewidth=0.8, linestyle=":")
        axis.set_title(f"beta {beta:g}")
        axis.set_xlabel("texts written")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"reward, mean of {WINDOW} texts")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--betas", default="0,0.2", help="weights of the KL penalty")
    parser.add_argument("--how", default=",".join(HOW))
    parser.add_argument("--reward", type=float, default=0.5, help="what is to be reached")
    parser.add_argument("--prompts", type=int, default=16, help="prompts first drawn for a step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    outcomes: dict[tuple[float, str], dict[int, Outcome]] = {}
    # Seed by seed: what is there after an interruption compares like with like.
    for seed in map(int, args.seeds.split(",")):
        start = warm_start(seed, args)
        for beta in map(float, args.betas.split(",")):
            for how in args.how.split(","):
                outcomes.setdefault((beta, how), {})[seed] = run(how, beta, seed, start, args)
    (args.out / "table.md").write_text(table(outcomes, args.reward))
    draw(outcomes, args.reward, args.out / "curves.png")
    print(table(outcomes, args.reward), end="")
    print(f"seconds of each run: {', '.join(f'{o.seconds:.0f}' for runs in outcomes.values() for o in runs.values())}")


if __name__ == "__main__":
    main()
