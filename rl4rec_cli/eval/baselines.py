"""Baselines that need no language model, ranked by the same kernel with the same masks and tie rule.

Decides: what each baseline knows (the training part and the example's history, nothing later).
Hides: how each becomes query vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from rl4rec_cli.retrieval import ranking
from rl4rec_cli.retrieval.retriever import InProcessRetriever, Ranking

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.data.dataset import Dataset, Example


def training_counts(dataset: Dataset) -> NDArray[np.int64]:
    """`[num_items]` how often each item stands in the training part of all users."""
    items = [item for sequence in dataset.sequences for item in sequence[:-2]]
    return np.bincount(np.asarray(items, np.int64), minlength=dataset.num_items)


def popularity(dataset: Dataset, examples: Sequence[Example]) -> Ranking:
    """Items by how often they stand in the training part of all users.

    Counts are ranked as one-dimensional vectors: ties count against the target, history is masked, as for everyone.
    """
    items_N1 = torch.from_numpy(training_counts(dataset)).float().unsqueeze(1)
    ranks_B = ranking.target_ranks(
        torch.ones(len(examples), 1),
        ranking.ItemMatrix.from_tensor(items_N1),
        torch.tensor([e.target for e in examples], dtype=torch.long),
        [e.history for e in examples] if dataset.mask_history else None,
    )
    return Ranking(ranks_B.numpy(), np.ones(len(examples), np.bool_))


def last_item(retriever: InProcessRetriever, examples: Sequence[Example]) -> Ranking:
    """Items most like the last one of the history."""
    queries_BD = retriever.item_vectors([e.history[-1] for e in examples])
    return _ranked(retriever, queries_BD, examples)


def history_mean(retriever: InProcessRetriever, examples: Sequence[Example]) -> Ranking:
    """Items most like the mean of the history's vectors."""
    queries_BD = torch.stack([retriever.item_vectors(e.history).mean(dim=0) for e in examples])
    return _ranked(retriever, queries_BD, examples)


def _ranked(retriever: InProcessRetriever, queries_BD: torch.Tensor, examples: Sequence[Example]) -> Ranking:
    return retriever.vector_ranks(queries_BD, [e.target for e in examples], [e.history for e in examples])


def baseline_ranking(
    name: str, dataset: Dataset, retriever: InProcessRetriever, examples: Sequence[Example]
) -> Ranking:
    """A baseline by name: `popularity`, `last_item` or `history_mean`."""
    if name == "popularity":
        return popularity(dataset, examples)
    functions = {"last_item": last_item, "history_mean": history_mean}
    return functions[name](retriever, examples)
