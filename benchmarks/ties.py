"""What the order of rows of one time does: `--ties file` beside `shuffle:SEED`, measured by transitions and SASRec.

    python benchmarks/ties.py OUT [--movielens data/ml-latest-small] [--seeds 0,1,2,3,4] [--only transitions]

Made-up users choose in sessions, each on a day of its own, and what they choose is often the follower of what they
chose before: the order is planted. The same rows are written as three files: with exact times, with days in the order
of the events, and with days in the order of item ids, as Amazon publishes its reviews of 2014. MovieLens has seconds,
and rows of one second in the order of movie ids.

Test split, full ranking, history masked. Every tie seed has a SASRec with that seed of training; the order of the file
is trained with each of them, too. Differences are paired by user, and their intervals hold for other users and other
seeds (`seeds_difference`). What is finished in OUT is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from rl4rec_cli.data.dataset import Dataset, build_examples
from rl4rec_cli.data.importers.importing import import_files
from rl4rec_cli.data.importers.options import ImportOptions

K = 10
USERS, ITEMS, GROUPS = 2000, 400, 20
FOLLOWS = 0.5
"""Chance that a choice is the follower of the one before, if that is new to the user."""
DAY = 86_400


def make(folder: Path, seed: int = 0) -> None:
    """Writes the made-up rows as `exact.csv`, `days.csv` (order of events) and `days-by-id.csv`."""
    rng = np.random.default_rng(seed)
    group_of = rng.permutation(ITEMS) % GROUPS
    members = [np.flatnonzero(group_of == group) for group in range(GROUPS)]
    follower = np.empty(ITEMS, np.int64)
    for group in members:
        circle = rng.permutation(group)
        follower[circle] = np.roll(circle, -1)
    rows: list[tuple[int, int, int]] = []
    for user in range(USERS):
        liked = np.concatenate([members[group] for group in rng.choice(GROUPS, 2, replace=False)])
        chosen: list[int] = []
        for day in np.sort(rng.choice(1000, rng.integers(3, 7), replace=False)):
            for nth in range(rng.integers(1, 5)):
                item = int(follower[chosen[-1]]) if chosen and rng.random() < FOLLOWS else int(rng.choice(liked))
                if item not in chosen:
                    chosen.append(item)
                    rows.append((user, item, 1_400_000_000 // DAY * DAY + int(day) * DAY + 3600 * nth))
    days = [(user, item, moment // DAY * DAY) for user, item, moment in rows]
    for name, table in {"exact": rows, "days": days, "days-by-id": sorted(days, key=lambda r: r[:2])}.items():
        lines = [f"u{user},{item},{moment}" for user, item, moment in table]
        (folder / f"{name}.csv").write_text("\n".join(["user,item,time", *lines]) + "\n")


@dataclass(frozen=True)
class Order:
    """Sequences of one data set, as `data import` makes them of a file with one rule for ties."""

    label: str
    source: str
    file: Path
    ties: str

    def dataset(self) -> Dataset:
        options = ImportOptions(ties=self.ties, title_from="item" if self.source == "csv" else None)
        return import_files(self.source, [self.file], options, name=self.label.replace(" ", "-")).dataset


def measure(order: Order, method: str, seed: int, out: Path) -> dict[str, Any]:
    """NDCG@10 of every test user, or what was measured before."""
    from rl4rec_cli.config.sections import RetrievalSection
    from rl4rec_cli.eval.baseline import measure_baselines
    from rl4rec_cli.eval.metrics import per_user
    from rl4rec_cli.eval.scoring import Task
    from rl4rec_cli.retrieval.opening import open_retriever

    known = out / f"{order.label} {order.ties} {method} {seed}.json".replace(" ", "_").replace(":", "-")
    if known.is_file():
        return dict(json.loads(known.read_text()))
    started = time.monotonic()
    dataset = order.dataset()
    # A task has item vectors, which neither method reads.
    retriever = open_retriever(RetrievalSection(embedder="lsa", emb_dir=str(out / "emb")), dataset, [])
    task = Task(dataset, retriever, build_examples(dataset, "test"), seed=seed, cache=out / "cache")
    [measured] = measure_baselines([method], task, "test")
    result = {
        "users": list(dataset.users),
        "targets": [str(dataset.items[e.target]["source_id"]) for e in task.examples],
        "ties": dataset.time_ties(),
        "items": dataset.num_items,
        "ndcg": per_user(measured.ranking, [K])[f"ndcg@{K}"].tolist(),
        "notes": measured.notes,
    }
    known.write_text(json.dumps(result) + "\n")
    print(f"{known.stem}: {np.mean(result['ndcg']):.4f}, {time.monotonic() - started:.0f} s", file=sys.stderr)
    return result


def compare(first: Order, second: list[Order], method: str, seeds: list[int], out: Path) -> list[str]:
    """A row of the table: a file's order against `second`, an order for each seed or the same for all."""
    from rl4rec_cli.eval.statistics import seeds_difference

    is_trained = method == "sasrec"
    firsts = [measure(first, method, seed if is_trained else 0, out) for seed in seeds]
    seconds = [
        measure(order, method, seed if is_trained else 0, out) for seed, order in zip(seeds, second, strict=True)
    ]
    if any(one["users"] != firsts[0]["users"] for one in (*firsts, *seconds)):
        raise SystemExit(f"{first.label}: not the same users")
    ours, theirs = (np.array([one["ndcg"] for one in each]) for each in (firsts, seconds))
    others = [sum(a != b for a, b in zip(firsts[0]["targets"], one["targets"], strict=True)) for one in seconds]
    over = seeds_difference(ours, theirs)
    spread = [
        f"{each.mean(axis=1).std(ddof=1):.4f}" if len(set(each.mean(axis=1))) > 1 else "-" for each in (ours, theirs)
    ]
    name = second[0].ties.partition(":")[0] if len(set(second)) > 1 else second[0].label
    # Where nothing varies from seed to seed, the interval is that of the users.
    low, high = (over.users_low, over.users_high) if np.ptp(over.seed_means) == 0 else (over.low, over.high)
    return [
        *(f"{first.label}, {first.ties}", name, method),
        f"{np.mean(others) / len(firsts[0]['users']):.0%}",
        *(f"{each.mean():.4f} ({std})" for each, std in zip((ours, theirs), spread, strict=True)),
        f"{over.mean:+.4f} [{low:+.4f}, {high:+.4f}]",
        f"{over.users_p_value if np.ptp(over.seed_means) == 0 else over.p_value:.4f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--movielens", type=Path, default=Path("data/ml-latest-small"))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--only", choices=["transitions", "sasrec"])
    parser.add_argument("--made-up-only", action="store_true")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    make(out)

    def shuffled(order: Order) -> list[Order]:
        return [Order(order.label, order.source, order.file, f"shuffle:{seed}") for seed in seeds]

    exact, days, by_id = (Order(name, "csv", out / f"{name}.csv", "file") for name in ("exact", "days", "days-by-id"))
    pairs = [
        (exact, shuffled(days)),
        (by_id, shuffled(days)),
        (by_id, [exact] * len(seeds)),
    ]
    if not options.made_up_only:
        movielens = Order("MovieLens", "movielens", options.movielens, "file")
        pairs.append((movielens, shuffled(movielens)))
    header = "order | against | method | other test targets | NDCG@10 | against | difference | p"
    print(f"| {header} |\n|{' --- |' * 8}")
    for method in [options.only] if options.only else ["transitions", "sasrec"]:
        for first, second in pairs:
            print("| " + " | ".join(compare(first, second, method, seeds, out)) + " |", flush=True)


if __name__ == "__main__":
    main()
