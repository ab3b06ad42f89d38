"""Figures about a dataset.

Decides: what is counted, and that leave-one-out (`build_examples`) is what "training part" and "target" mean.
Hides: the counting. The result is plain JSON types, in the order to show them.
"""

from __future__ import annotations

import statistics
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from rl4rec_cli.data.dataset import Dataset, build_examples, count_train_examples


def dataset_stats(dataset: Dataset) -> dict[str, Any]:
    """Counts users, items, interactions, lengths, repeats, targets and texts.

    Per-split figures are `{"validation": …, "test": …}`. A target is unseen if it is in nobody's training part.
    """
    counts = Counter(item for sequence in (*dataset.sequences, *dataset.training_only) for item in sequence)
    in_training = {item for part in (*(s[:-2] for s in dataset.sequences), *dataset.training_only) for item in part}
    lengths = [len(sequence) for sequence in dataset.sequences]
    item_counts = [counts[i] for i in range(dataset.num_items)]
    words = [len(text.split()) for text in dataset.texts()]
    splits = {split: build_examples(dataset, split) for split in ("validation", "test")}
    train = {how: sum(count_train_examples(dataset, how)) for how in ("last", "all")}
    interactions = sum(item_counts)
    return {
        "name": dataset.name,
        "users": len(dataset.users),
        "items": dataset.num_items,
        "interactions": interactions,
        **({"users_who_only_train": len(dataset.training_only)} if dataset.training_only else {}),
        "density": interactions / (len(dataset.training_users) * dataset.num_items),
        "sequence_length": {**_spread(lengths), "mean": round(statistics.fmean(lengths), 4)},
        "item_count": _spread(item_counts),
        "items_never_seen": item_counts.count(0),
        "users_with_repeats": sum(len(set(sequence)) < len(sequence) for sequence in dataset.sequences),
        "targets_in_history": {
            split: sum(e.target in e.history for e in examples) for split, examples in splits.items()
        },
        "targets_unseen_in_training": {
            split: sum(e.target not in in_training for e in examples) for split, examples in splits.items()
        },
        **_times(dataset),
        "text_words": {"median": statistics.median(words), "max": max(words)},
        "distinct_titles": len(set(dataset.texts("title"))),
        "distinct_texts": len(set(dataset.texts())),
        "train_examples": train,
        "prompts": len(dataset.prompts),
        "mask_history": dataset.mask_history,
        "digest": dataset.digest,
    }


def _times(dataset: Dataset) -> dict[str, Any]:
    """Returns when the first and the last item were chosen, and how many targets tie with the item before."""
    if dataset.times is None:
        return {}
    first, last = min(times[0] for times in dataset.times), max(times[-1] for times in dataset.times)
    days = {name: datetime.fromtimestamp(time, UTC).isoformat(" ") for name, time in (("first", first), ("last", last))}
    return {"times": days, "targets_tied_in_time": dataset.time_ties()}


def _spread(values: list[int]) -> dict[str, Any]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
