"""The exact ranking by two scores together, for any weights.

Decides: what a fused score is. For a user and an item it is

    w · s₁ / sd(s₁) + (1 - w) · s₂ / sd(s₂),

a weighted sum (Fox & Shaw 1994) of scores with zero mean and unit variance (Montague & Aslam 2001, "Relevance score
normalization for metasearch"). Each sd is that of the user's own scores over the whole catalogue. The means are left
out, since a constant for each user changes no rank. A part whose scores are all equal for a user (a blank text, say)
has sd 0 and is left out of that user's sum. A part that remains alone is ranked as it is: rounding could break its
near-ties.
Hides: that nobody holds a row of the whole catalogue. The sd of dot products is √(qᵀ C q) with C the covariance of the
item vectors, and the sum of two of them is one dot product of vectors put side by side. Sparse scores add three columns
that hold every item's base to the last bit, and the few items with an extra are counted one by one. Ranks come from the
same kernel, masks and tie rule as everyone's. Several texts of a user have no such sum, see `mixed_texts.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.errors import DataError
from rl4rec_cli.eval.fused_texts import FusedTexts
from rl4rec_cli.eval.mixed_texts import MixedTexts, TextsWithSequence
from rl4rec_cli.eval.scoring import SparseScores, VectorScores
from rl4rec_cli.eval.spreads import Spread, scales, sparse_deviations
from rl4rec_cli.ranking.ranks import ItemMatrix, best, count_at_least, pair_scores
from rl4rec_cli.retrieval.retriever import Ranking

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.eval.spreads import Weight

    Masks = Sequence[Sequence[int]] | None

_USERS = 1 << 11
"""Users whose items with an extra are held at a time."""
_PAIRS = 1 << 14
"""Users' items with an extra that are scored at a time."""


class Fused(Protocol):
    """Two scores of the same users over one catalogue. `fuse` makes it."""

    def __len__(self) -> int: ...

    def at(self, weight: Weight) -> VectorScores | MixedScores | MixedTexts:
        """Returns the fused scores.

        Args:
            weight: w, from 0 to 1; one for all users or `[B]`, one for each.

        Raises:
            DataError: a weight is not between 0 and 1.
        """

    def rankings(self, weights: Sequence[float], targets: Sequence[int], masks: Masks) -> list[Ranking]:
        """Returns what `at` gives for each of several weights."""


def fuse(first: VectorScores | FusedTexts, second: VectorScores | SparseScores, *, like: Fused | None = None) -> Fused:
    """Joins two scores of the same users and items.

    Args:
        like: the same two scores of other users, whose work on the catalogue is used again.

    Raises:
        DataError: the two have different users or items.
        EmbeddingError: a vector is not finite.
    """
    if (len(first), first.num_items) != (len(second), second.num_items):
        raise DataError(
            f"cannot fuse scores of {len(first):,} users and {first.num_items:,} items with those of "
            f"{len(second):,} users and {second.num_items:,} items",
            hint="both must score the same users and items",
        )
    if isinstance(first, FusedTexts):
        return TextsWithSequence(first, second, like=like if isinstance(like, TextsWithSequence) else None)
    if isinstance(second, SparseScores):
        return VectorsWithSparse(first, second, like=like if isinstance(like, VectorsWithSparse) else None)
    return VectorsWithVectors(first, second, like=like if isinstance(like, VectorsWithVectors) else None)


class _EachWeight:
    """Ranks anew for every weight."""

    def rankings(self: Fused, weights: Sequence[float], targets: Sequence[int], masks: Masks) -> list[Ranking]:
        return [self.at(weight).ranks(targets, masks) for weight in weights]


class VectorsWithVectors(_EachWeight):
    """Two scores that are dot products.

    Attributes:
        first_sd_B, second_sd_B: float64 `[B]`, the sd of each user's scores over the catalogue; 0 if all are equal.
    """

    def __init__(self, first: VectorScores, second: VectorScores, *, like: VectorsWithVectors | None = None) -> None:
        self._parts = (first, second)
        self._spreads: tuple[Spread, Spread] = (
            like._spreads if like is not None else (Spread(first.items), Spread(second.items))
        )
        self.first_sd_B, self.second_sd_B = (
            spread.deviations(part.queries_BD) for spread, part in zip(self._spreads, self._parts, strict=True)
        )
        self._items: ItemMatrix = like._items if like is not None else _beside(first.items, second.items.vectors_ND)

    def __len__(self) -> int:
        return len(self.first_sd_B)

    def at(self, weight: Weight) -> VectorScores:
        """Returns the fused scores, dot products of vectors put side by side. See `Fused.at`."""
        factors = scales(weight, self.first_sd_B, self.second_sd_B)
        queries = [
            (part.queries_BD.to(self._items.device).double() * scale_B[:, None].to(self._items.device)).float()
            for part, scale_B in zip(self._parts, map(torch.from_numpy, factors), strict=True)
        ]
        return VectorScores(torch.cat(queries, dim=1), self._items)


class VectorsWithSparse(_EachWeight):
    """Scores that are dot products, and sparse ones.

    Attributes:
        first_sd_B, second_sd_B: as in `VectorsWithVectors`.
    """

    def __init__(self, first: VectorScores, second: SparseScores, *, like: VectorsWithSparse | None = None) -> None:
        self.vectors, self.sparse = first, second
        self._spread: Spread = like._spread if like is not None else Spread(first.items)
        self.first_sd_B, self.second_sd_B = self._spread.deviations(first.queries_BD), sparse_deviations(second)
        self.items: ItemMatrix = like.items if like is not None else _beside(first.items, _in_float32(second.base_N))

    def __len__(self) -> int:
        return len(self.first_sd_B)

    def at(self, weight: Weight) -> MixedScores:
        """Returns the fused scores. See `Fused.at`."""
        return MixedScores(self, *scales(weight, self.first_sd_B, self.second_sd_B))


class _Part(NamedTuple):
    """Some users who are ranked by both scores, and their items with an extra, E in all."""

    users: NDArray[np.int64]
    """`[P]`, their places among all users."""
    queries_PF: Tensor
    """Their queries for the matrix with the columns of the base."""
    rows_E: NDArray[np.int64]
    """Each item's user, from 0 to P - 1, in ascending order."""
    ids_E: NDArray[np.int64]
    scores_E: NDArray[np.float64]
    """Scores of the items, with their extras."""
    extras: list[dict[int, float]]
    """By user, what each item scores above its base, in the unit of the queries."""


class MixedScores:
    """Fused scores of `VectorsWithSparse` for certain weights, divided by the scale of the dot product.

    That scale is positive where both parts count. It changes no rank, and a query stays what it was. The score of an
    item is its float64 dot product with the query and the columns of the base, plus its extra.

    Args:
        vector_scale_B, sparse_scale_B: float64 `[B]`, from 0 up; 1 and 0 where one part remains alone.
    """

    def __init__(
        self, fused: VectorsWithSparse, vector_scale_B: NDArray[np.float64], sparse_scale_B: NDArray[np.float64]
    ) -> None:
        self._fused, self._vector_scale_B, self._sparse_scale_B = fused, vector_scale_B, sparse_scale_B
        has_vectors_B, has_sparse_B = vector_scale_B > 0, sparse_scale_B > 0
        self._both = np.flatnonzero(has_vectors_B & has_sparse_B)
        only_vectors, only_sparse = (
            np.flatnonzero(one_B & ~other_B)
            for one_B, other_B in ((has_vectors_B, has_sparse_B), (has_sparse_B, has_vectors_B))
        )
        # Users with neither are unscorable.
        self._alone: list[tuple[NDArray[np.int64], VectorScores | SparseScores]] = [
            (only_vectors, fused.vectors.of(only_vectors)),
            (only_sparse, fused.sparse.of(only_sparse)),
        ]

    def ranks(self, targets: Sequence[int], masks: Masks) -> Ranking:
        ranks_B = np.full(len(self._fused), self._fused.items.num_items)
        scorable_B = np.zeros(len(self._fused), np.bool_)
        for users, alone in self._alone:
            if len(users):
                ranks_B[users], scorable_B[users] = alone.ranks(*_some(users, targets, masks))
        for part in self._parts():
            ranks_B[part.users] = self._ranks(part, *_some(part.users, targets, masks))
            scorable_B[part.users] = True
        return Ranking(ranks_B, scorable_B)

    def top(self, k: int, masks: Masks) -> NDArray[np.int64]:
        return self.best(k, masks)[0]

    def best(self, k: int, masks: Masks) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns the ids of the best items as `top` does, and their scores, -inf where no item is left."""
        k = min(k, self._fused.items.num_items)
        ids_BK, scores_BK = np.full((len(self._fused), k), -1, np.int64), np.full((len(self._fused), k), -np.inf)
        for users, alone in self._alone:
            if len(users):
                ids_BK[users], scores_BK[users] = alone.best(k, masks and [masks[user] for user in users])
        for part in self._parts():
            own_masks = [masks[user] for user in part.users] if masks is not None else [()] * len(part.users)
            left_out = [[*mask, *extra] for mask, extra in zip(own_masks, part.extras, strict=True)]
            found = best(part.queries_PF, self._fused.items, k, left_out)
            plain_PK, plain_scores_PK = (tensor.numpy() for tensor in found)
            starts = np.searchsorted(part.rows_E, np.arange(len(part.users) + 1))
            for row, user in enumerate(part.users):
                own = slice(starts[row], starts[row + 1])
                is_open = ~np.isin(part.ids_E[own], own_masks[row])
                ids = np.concatenate([plain_PK[row], part.ids_E[own][is_open]])
                scores = np.concatenate([plain_scores_PK[row], part.scores_E[own][is_open]])
                order = np.lexsort((ids, -scores))[:k]  # equal scores by lower id, as in the kernel
                ids_BK[user], scores_BK[user] = ids[order], scores[order] * self._vector_scale_B[user]
        return ids_BK, scores_BK

    def _ranks(self, part: _Part, targets: Sequence[int], masks: Masks) -> NDArray[np.int64]:
        items, targets_P = self._fused.items, np.asarray(targets, np.int64)
        goals_P = pair_scores(part.queries_PF, items, torch.from_numpy(targets_P)).numpy()
        goals_P = goals_P + [extra.get(target, 0.0) for target, extra in zip(targets, part.extras, strict=True)]
        masks = masks if masks is not None else [()] * len(targets)
        left_out = [[target, *mask, *extra] for target, mask, extra in zip(targets, masks, part.extras, strict=True)]
        plain_P = count_at_least(part.queries_PF, items, torch.from_numpy(goals_P), left_out).numpy()
        masked = [set(mask) | {target} for target, mask in zip(targets, masks, strict=True)]
        reaching_E = np.flatnonzero(part.scores_E >= goals_P[part.rows_E])
        is_rival = [int(part.ids_E[e]) not in masked[part.rows_E[e]] for e in reaching_E]
        with_extra_P = np.bincount(part.rows_E[reaching_E[is_rival]], minlength=len(targets))
        ranks_P: NDArray[np.int64] = 1 + plain_P + with_extra_P
        return ranks_P

    def _parts(self) -> Iterator[_Part]:
        """Yields the users who are ranked by both scores, some at a time."""
        fused = self._fused
        for start in range(0, len(self._both), _USERS):
            users = self._both[start : start + _USERS]
            share_P = (self._sparse_scale_B[users] / self._vector_scale_B[users]).astype(np.float32)
            queries_PD = fused.vectors.queries_BD[torch.from_numpy(users)].float()
            shares_P3 = torch.from_numpy(share_P)[:, None].expand(-1, 3).to(queries_PD.device)
            queries_PF = torch.cat([queries_PD, shares_P3], dim=1)
            pairs = [fused.sparse.extra(int(user)) for user in users]
            rows_E = np.repeat(np.arange(len(users)), [len(ids) for ids, _ in pairs])
            ids_E = np.concatenate([ids for ids, _ in pairs])
            extras_E = np.concatenate([more for _, more in pairs]) * share_P.astype(np.float64)[rows_E]
            scores_E = extras_E + _pair_scores(queries_PF, fused.items, rows_E, ids_E)
            extras: list[dict[int, float]] = [{} for _ in users]
            for row, item, extra in zip(rows_E.tolist(), ids_E.tolist(), extras_E.tolist(), strict=True):
                extras[row][item] = extra
            yield _Part(users, queries_PF, rows_E, ids_E, scores_E, extras)


def _pair_scores(
    queries_PF: Tensor, items: ItemMatrix, rows_E: NDArray[np.int64], ids_E: NDArray[np.int64]
) -> NDArray[np.float64]:
    scores = [np.zeros(0)]
    for start in range(0, len(rows_E), _PAIRS):
        rows, ids = (torch.from_numpy(ends[start : start + _PAIRS]) for ends in (rows_E, ids_E))
        scores.append(pair_scores(queries_PF[rows.to(queries_PF.device)], items, ids).numpy())
    return np.concatenate(scores)


def _some(users: NDArray[np.int64], targets: Sequence[int], masks: Masks) -> tuple[list[int], Masks]:
    return [int(targets[user]) for user in users], None if masks is None else [masks[user] for user in users]


def _beside(items: ItemMatrix, more_NE: Tensor) -> ItemMatrix:
    """Returns the items' vectors with more columns."""
    given_ND = items.vectors_ND
    return ItemMatrix(torch.cat([given_ND, more_NE.to(given_ND.device)], dim=1), device=items.device)


def _in_float32(base_N: NDArray[np.float64]) -> Tensor:
    """Returns three columns `[N, 3]` whose sum is each number, to the last bit."""
    columns, rest_N = [], base_N.astype(np.float64)
    for _ in range(3):
        column_N = rest_N.astype(np.float32)
        columns.append(column_N)
        rest_N = rest_N - column_N
    return torch.from_numpy(np.stack(columns, axis=1))
