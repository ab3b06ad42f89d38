"""Chooses the users to measure.

Decides: which users, where not all are measured: the same for every run, model and baseline.
"""

from __future__ import annotations

import numpy as np

from rl4rec_cli.data.dataset import Dataset, Example, Split, build_examples
from rl4rec_cli.errors import DataError

EVAL_SEED = 20_010
"""Draws the users to measure where the split has more than `eval.users`."""


def choose_examples(dataset: Dataset, split: Split, users: int | None) -> list[Example]:
    """Returns the split's examples, or a fixed draw of `users` of them, in file order.

    Raises:
        DataError: the split is empty.
    """
    examples = build_examples(dataset, split)
    if not examples:
        raise DataError(f"dataset {dataset.name} has no {split} examples", hint="see `rl4rec data stats`")
    if users is None or users >= len(examples):
        return examples
    rows = np.random.default_rng(EVAL_SEED).choice(len(examples), users, replace=False)
    return [examples[i] for i in sorted(rows)]
