"""Why the test split of a leave-one-out dataset is harder than its validation split: position, staleness, coverage.

    python benchmarks/split_difference.py data/beauty

Ranks the item at each of the last places of every user's sequence by `transitions`: how often it followed the item
before it, then how often it was chosen at all. History masked, ties against the target, the whole catalogue: the rules
of `rl4rec eval`, so that its figures for `transitions` stand in this table, too. Place 1 is the test split, place 2
the validation split. What the counts know is varied:

    common   every sequence without its last four items: the same for all places
    train    without the last two: what `data.fit=train` knows
    before   everything that came before the ranked item: for the test split `data.fit=train_and_validation`

For each, `seen` is the share of users whose step (item before, ranked item) the counts hold. Users with fewer than
four places and a first item are left out, the same for all rows.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from rl4rec_cli import api

PLACES = (1, 2, 3, 4)
K = 10


def counted(sequences: Sequence[Sequence[int]], items: int) -> tuple[np.ndarray, dict[int, Counter[int]]]:
    """Returns how often each item was chosen, and how often each followed each."""
    chosen, followed = np.zeros(items), defaultdict(Counter)
    for sequence in sequences:
        np.add.at(chosen, list(sequence), 1)
        for before, after in itertools.pairwise(sequence):
            followed[before][after] += 1
    return chosen, followed


def ranked(
    sequences: Sequence[Sequence[int]], place: int, chosen: np.ndarray, followed: dict[int, Counter[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each user's rank of the item at `place` from the end, and whether the counts hold its step."""
    ranks, seen = np.zeros(len(sequences)), np.zeros(len(sequences), dtype=bool)
    for row, sequence in enumerate(sequences):
        history, target = sequence[:-place], sequence[-place]
        scores = chosen / (chosen.max() + 1)  # below one step
        following = followed.get(history[-1], Counter())
        for item, count in following.items():
            scores[item] += count
        wanted = scores[target]
        scores[list(history)] = -1
        scores[target] = -1
        ranks[row] = 1 + np.count_nonzero(scores >= wanted)
        seen[row] = target in following
    return ranks, seen


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="folder of a dataset without given splits")
    args = parser.parse_args(argv)
    dataset = api.load_dataset(args.dataset)
    everybody = list(dataset.sequences)
    sequences = [s for s in everybody if len(s) > max(PLACES)]
    print(f"{len(sequences):,} of {len(everybody):,} users, {dataset.num_items:,} items")
    print(f"{'counts from':<12}{'place':>6}{'ndcg@10':>9}{'seen':>8}{'ndcg@10 of seen':>17}{'of others':>11}")
    for name in ("common", "train", "before"):
        for place in PLACES:
            without = {"common": max(PLACES), "train": 2, "before": place}[name]
            if place > without:
                continue  # the ranked item would be among the counts
            chosen, followed = counted([s[:-without] for s in everybody], dataset.num_items)
            ranks, seen = ranked(sequences, place, chosen, followed)
            gains = np.where(ranks <= K, 1 / np.log2(ranks + 1), 0)
            print(
                f"{name:<12}{place:>6}{gains.mean():>9.4f}{seen.mean():>8.3f}"
                f"{gains[seen].mean():>17.4f}{gains[~seen].mean():>11.4f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
