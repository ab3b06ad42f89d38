"""Scores by the words of several texts of each user as one.

Decides: that they are fused as vectors are (`ranking/fusing.py`, `ranking/reciprocal.py`), but by log-sum-exp at scale
1: BM25 scores are no cosines, and a point of theirs is much. A text without a known word is left out.
Hides: that a user's scores of all items are held, a row for each text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec_cli.ranking.fusing import Fusion, fuse_columns
from rl4rec_cli.ranking.reciprocal import reciprocal_terms
from rl4rec_cli.retrieval.answers import Ranking

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.eval.scoring import SparseScores
    from rl4rec_cli.retrieval.several_texts import UserTexts

    Masks = Sequence[Sequence[int]] | None

SCALE = 1.0
"""What log-sum-exp multiplies scores with, and log-probabilities are divided by."""


class FusedWords:
    """The scores of several texts of each example as one.

    Args:
        scores: of all texts, user by user.
        users: the different texts.
        fusion: the rule.
    """

    def __init__(self, scores: SparseScores, users: UserTexts, fusion: Fusion) -> None:
        self._scores, self._users, self._fusion = scores, users, fusion

    def ranks(self, targets: Sequence[int], masks: Masks) -> Ranking:
        count = len(self._users.counts)
        ranks_B, scorable_B = np.full(count, self._scores.num_items), np.zeros(count, np.bool_)
        # The target has its rank by a text though it stands in the history.
        others = masks and [[i for i in mask if i != target] for mask, target in zip(masks, targets, strict=True)]
        for user, scores_N, is_counted_N in self._each(others):
            ranks_B[user] = np.count_nonzero(scores_N[is_counted_N] >= scores_N[targets[user]])
            scorable_B[user] = True
        return Ranking(ranks_B, scorable_B)

    def top(self, k: int, masks: Masks) -> NDArray[np.int64]:
        ids_BK = np.full((len(self._users.counts), min(k, self._scores.num_items)), -1, np.int64)
        for user, scores_N, is_counted_N in self._each(masks):
            ids = np.flatnonzero(is_counted_N)
            ids = ids[np.argsort(-scores_N[ids], kind="stable")[:k]]  # equal scores by lower id, as in the kernel
            ids_BK[user, : len(ids)] = ids
        return ids_BK

    def _each(self, masks: Masks) -> Iterator[tuple[int, NDArray[Any], NDArray[np.bool_]]]:
        """Yields the users with a scorable text, all items' fused scores, and which items are not masked."""
        counts_B = self._users.counts
        for user, first in enumerate(np.cumsum(counts_B) - counts_B):
            rows = {text: self._scores.row(text) for text in range(first, first + counts_B[user])}
            known = {text: row_N for text, row_N in rows.items() if row_N.any()}
            if not known:
                continue
            is_counted_N = np.ones(self._scores.num_items, np.bool_)
            if masks is not None:
                is_counted_N[list(masks[user])] = False
            yield user, self._fused(known, is_counted_N), is_counted_N

    def _fused(self, rows: Mapping[int, NDArray[np.float64]], is_counted_N: NDArray[np.bool_]) -> NDArray[Any]:
        """Returns the fused scores of a user, whose texts have these rows."""
        rows_SN, log_weights_S1 = np.stack(list(rows.values())), np.zeros((len(rows), 1))
        if self._users.log_weights is not None:
            log_weights_S1[:, 0] = self._users.log_weights[list(rows)]
            log_weights_S1 -= log_weights_S1.max()
        weights_S1 = np.exp(log_weights_S1)
        if self._fusion == "rrf":
            terms = (
                reciprocal_terms(row_N, is_counted_N, float(weight))
                for row_N, weight in zip(rows_SN, weights_S1[:, 0], strict=True)
            )
            return np.sum(list(terms), axis=0)  # whole numbers, which float64 may not hold
        return fuse_columns(rows_SN, self._fusion, SCALE, weights=weights_S1, log_weights=log_weights_S1)
