"""Which examples a run trains on, before any screening.

Decides: that `data.train_users` draws among the users that have examples, by the run's seed.
Hides: counting without making them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rl4rec_cli.data.dataset import build_examples, count_train_examples

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import DataSection
    from rl4rec_cli.data.dataset import Dataset, Example


def _training_users(section: DataSection, dataset: Dataset, seed: int) -> set[str] | None:
    """Draws the users to train on, or returns None for all."""
    counts = count_train_examples(dataset, section.train_targets)
    users = sorted(user for user, count in zip(dataset.training_users, counts, strict=True) if count)
    limit = section.train_users
    if limit is None or limit >= len(users):
        return None
    return set(np.random.default_rng(seed).choice(users, limit, replace=False).tolist())


def training_examples(section: DataSection, dataset: Dataset, *, seed: int) -> list[Example]:
    """Returns every training example of the users to train on.

    Args:
        seed: the run's.
    """
    training_users = _training_users(section, dataset, seed)
    examples = build_examples(dataset, "train", train_targets=section.train_targets)
    return examples if training_users is None else [e for e in examples if e.user in training_users]


def number_of_training_examples(section: DataSection, dataset: Dataset, *, seed: int) -> int:
    """Counts those examples without making them."""
    training_users = _training_users(section, dataset, seed)
    counts = count_train_examples(dataset, section.train_targets)
    return sum(
        n
        for user, n in zip(dataset.training_users, counts, strict=True)
        if training_users is None or user in training_users
    )
