"""What the fused score of a user and an item is, when several queries of the user are ranked as one.

Decides: the fused score, to the last bit (`UserQueries.fused`), how a tile of float32 products becomes a tile of fused
scores, and what that may be wrong by. Hides: numpy's and torch's ways to add up columns.

**The score.** Let s_i be the score proper of the user's i-th query and the item (see `exact_scores`), and w_i ≤ 0 the
query's log-weight less the largest one of the user; without weights every w_i is 0. In float64, over the user's queries
in the order given:

- `logsumexp`: m + ln(Σ exp(c (a_i - m))) / c, with a_i = s_i + w_i / c, m the largest a_i, and c the `scale`;
- `max`: m;
- `mean`: Σ p_i s_i, with p_i = exp(w_i) / Σ exp(w_j). This is the definition, and not the product with a mean vector,
  which it equals up to rounding;
- `rrf`: see `reciprocal`, it is made of ranks.

A zero query is unscorable and left out. A user whose queries are all zero has one zero query, with which every item
ties. With one query each rule gives s_1 itself, and so its very ranks.

numpy's exp and ln are the only steps that IEEE arithmetic does not fix: on another kind of processor a log-sum-exp may
differ in its last bits, and so may the order of two items that are that near to each other.

**The margin.** Each rule is a mean or a maximum of sorts: where no s_i moves by more than e, neither does the fused
score (its slopes are at least 0 and add up to 1). So the error bound of a tile is the largest one of the user's
products, and what the rule's own arithmetic gets wrong (`slack`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.errors import DataError, EmbeddingError
from rl4rec_cli.ranking.exact_scores import Queries, exact_scores, near_scores
from rl4rec_cli.ranking.item_matrix import ItemMatrix
from rl4rec_cli.ranking.threads import FEW

Fusion = Literal["logsumexp", "max", "mean", "rrf"]

SCALE = 10.0
"""What `logsumexp` multiplies scores with: cosines are too alike for their exponentials to tell them apart."""
FLOAT32, FLOAT64 = 2.0**-24, 2.0**-53
"""Unit roundoffs."""
_PAIR_SCORES = 1 << 15
# So that the fused tile is made of float32 numbers far from its limits.
_SHORTEST, _LONGEST = 2.0**-40, 2.0**40


class UserQueries:
    """The queries of users, without those that are zero.

    Args:
        queries_QD: `[Q, D]`, user by user.
        counts_B: how many of them each user has, at least 1.
        items: the catalogue.
        fusion: the rule.
        scale: the c of `logsumexp`.
        log_weights_Q: float64 `[Q]`, log-probabilities say; None weighs all alike.

    Attributes:
        queries: those that are left, in the same order.
        rows_Q: which of the queries given they are.
        starts_B, counts_B: where a user's queries begin among them, and their number.
        log_weights_Q: less the largest one of the user, or None.
        shares_Q: the p_i of `mean`.

    Raises:
        EmbeddingError: a query is not finite (named), has not D dimensions, or is no length to be fused at this scale.
        DataError: counts, weights, rule or scale are out of place.
    """

    def __init__(
        self,
        queries_QD: Tensor,
        counts_B: Sequence[int] | np.ndarray,
        items: ItemMatrix,
        *,
        fusion: Fusion,
        scale: float,
        log_weights_Q: Tensor | Sequence[float] | np.ndarray | None,
    ) -> None:
        if fusion not in get_args(Fusion):
            raise DataError(f"unknown fusion {fusion!r}", hint=f"one of {', '.join(get_args(Fusion))}")
        if not 0 < scale < np.inf:
            raise DataError(f"scale of a fusion must be above 0 and finite, got {scale:g}")
        self.fusion, self.scale = fusion, float(scale)
        every = Queries(queries_QD, items)
        counts = _counts(counts_B, len(every))
        users_Q = np.repeat(np.arange(len(counts)), counts)
        keeps_Q = every.norms_B > 0
        has_none_B = np.bincount(users_Q[keeps_Q], minlength=len(counts)) == 0
        keeps_Q[(np.cumsum(counts) - counts)[has_none_B]] = True
        chosen = self.rows_Q = np.flatnonzero(keeps_Q)
        rows = torch.from_numpy(chosen).to(queries_QD.device)
        self.queries = every if len(chosen) == len(every) else Queries(queries_QD.index_select(0, rows), items)
        self.counts_B: np.ndarray = np.bincount(users_Q[chosen], minlength=len(counts))
        self.starts_B = np.cumsum(self.counts_B) - self.counts_B
        self.log_weights_Q: np.ndarray | None = None
        weights_Q = np.ones(len(chosen))
        if log_weights_Q is not None:
            self.log_weights_Q = self._less_the_largest(_weights(log_weights_Q, len(every))[chosen])
            weights_Q = np.exp(self.log_weights_Q)
        sums_B = np.zeros(len(counts))
        np.add.at(sums_B, users_Q[chosen], weights_Q)
        self.weights_Q, self.shares_Q = weights_Q, weights_Q / sums_B[users_Q[chosen]]
        self.lengths_Q = np.ldexp(self.queries.norms_B, self.queries.exponents_B)
        if fusion == "logsumexp":
            self._check_lengths(chosen)

    def __len__(self) -> int:
        return len(self.counts_B)

    def _less_the_largest(self, weights_Q: np.ndarray) -> np.ndarray:
        if not len(weights_Q):
            return weights_Q
        return weights_Q - np.repeat(np.maximum.reduceat(weights_Q, self.starts_B), self.counts_B)

    def _check_lengths(self, chosen: np.ndarray) -> None:
        lengths_Q = self.scale * self.lengths_Q
        is_odd_Q = (lengths_Q > 0) & ~((lengths_Q >= _SHORTEST) & (lengths_Q <= _LONGEST))
        if is_odd_Q.any():
            row = int(np.flatnonzero(is_odd_Q)[0])
            raise EmbeddingError(
                f"embedding of text {chosen[row]} has norm {self.lengths_Q[row]:.3g}, which log-sum-exp at scale "
                f"{self.scale:g} cannot take",
                hint="give vectors of about unit length, or fuse by max, mean or rrf",
            )

    def fused(
        self, users: np.ndarray, ids: np.ndarray, items: ItemMatrix, without_M: np.ndarray | None = None
    ) -> np.ndarray:
        """The fused score proper of user `users[i]` and item `ids[i]`, float64 `[M]`.

        Args:
            without_M: which of the user's queries is left out, from 0; -1: none. A query must remain.
        """
        scores = np.empty(len(users))
        for some, rows_SM, has_SM in self._slots(users, without_M):
            pair_ids = np.broadcast_to(ids[some], rows_SM.shape)[has_SM]
            rows = rows_SM[has_SM]
            scores[some] = self._fuse(rows_SM, has_SM, exact_scores(self.queries, items, rows, pair_ids))
        return scores

    def near_fused(
        self, users: np.ndarray, ids: np.ndarray, items: ItemMatrix, without_M: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `fused` but for rounding of single products, and what it may be off by, float64 `[M]` each."""
        scores, margins = np.empty(len(users)), np.empty(len(users))
        for some, rows_SM, has_SM in self._slots(users, without_M):
            pair_ids = np.broadcast_to(ids[some], rows_SM.shape)[has_SM]
            rows = rows_SM[has_SM]
            sums, errors = near_scores(self.queries, items, rows, pair_ids)
            scores[some] = self._fuse(rows_SM, has_SM, sums)
            errors_SM = np.zeros(rows_SM.shape)
            errors_SM[has_SM] = np.ldexp(errors, self.queries.exponents_B[rows])
            margins[some] = errors_SM.max(0)
        return scores, margins + 2 * self.slack(FLOAT64, float(items.norms(ids).max(initial=0.0)))[users]

    def fused_products(self, user: int, products_SM: np.ndarray, without: int = -1) -> np.ndarray:
        """The fused scores of one user, float64 `[M]`, where the products of the user's queries with M items are known.

        Args:
            products_SM: float64, of `queries`, which are brought to norm [1/2, 1).
            without: which of the queries is left out, from 0; -1: none. A query must remain.
        """
        first = self.starts_B[user]
        turns_S = np.flatnonzero(np.arange(self.counts_B[user]) != without)
        chosen_SM = products_SM[turns_S] if without >= 0 else products_SM
        rows_SM = np.broadcast_to(first + turns_S[:, None], chosen_SM.shape)
        return self._fuse(rows_SM, np.ones(rows_SM.shape, dtype=bool), chosen_SM.reshape(-1))

    def slack(self, unit: float, norm: float) -> np.ndarray:
        """What the arithmetic of the rule gets wrong at a unit roundoff, for items of up to this norm, `[B]`.

        n terms of at most 1, one of them 1, are summed with an error of n units; exp errs by up to 3 in the last place
        and the argument of exp by a unit of its size, which a term of e^-d weighs with d e^-d < 1; ln errs by up to 4
        in the last place.
        """
        if not len(self):
            return np.zeros(0)
        counts_B, bounds_B = self.counts_B, np.maximum.reduceat(self.lengths_Q, self.starts_B) * norm
        slack_B = (2 * counts_B + 9) * bounds_B
        if self.fusion == "logsumexp":
            slack_B = slack_B + (3 * counts_B + 32 + 9 * np.log(counts_B)) / self.scale
        return unit * slack_B

    def _slots(self, users: np.ndarray, without_M: np.ndarray | None) -> list[tuple[slice, np.ndarray, np.ndarray]]:
        """Pairs, some at a time: the queries of each, `[S, M]` by their turn, and which of them there are."""
        step = max(1, _PAIR_SCORES // int(self.counts_B.max(initial=1)))
        parts = []
        for first in range(0, len(users), step):
            some = slice(first, first + step)
            counts_M, starts_M = self.counts_B[users[some]], self.starts_B[users[some]]
            turns_S1 = np.arange(counts_M.max())[:, None]
            has_SM = turns_S1 < counts_M
            if without_M is not None:
                has_SM &= turns_S1 != without_M[some]
            parts.append((some, np.where(has_SM, starts_M + turns_S1, 0), has_SM))
        return parts

    def _fuse(self, rows_SM: np.ndarray, has_SM: np.ndarray, scores: np.ndarray) -> np.ndarray:
        scores_SM = np.zeros(rows_SM.shape)
        scores_SM[has_SM] = np.ldexp(scores, self.queries.exponents_B[rows_SM[has_SM]])
        if self.fusion == "mean":
            weights_SM = np.where(has_SM, self.weights_Q[rows_SM], 0.0)
            return fuse_columns(scores_SM, self.fusion, self.scale, weights=weights_SM)
        log_weights_SM = None if self.log_weights_Q is None else self.log_weights_Q[rows_SM]
        return fuse_columns(scores_SM, self.fusion, self.scale, has=has_SM, log_weights=log_weights_SM)


def fuse_columns(
    scores_SM: np.ndarray,
    fusion: Fusion,
    scale: float,
    *,
    has: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    log_weights: np.ndarray | None = None,
) -> np.ndarray:
    """The fused score of every column by any rule but `rrf`, float64 `[M]`; `scores_SM` is overwritten.

    Args:
        has: which scores there are; None: all. For `mean`, those with a weight.
        weights: for `mean`, the exp(w_i), of the same shape or `[S, 1]`.
        log_weights: for the others, the w_i; None: 0.
    """
    fused_M = np.zeros(scores_SM.shape[1])
    if fusion == "mean" and weights is not None:
        sums_M = np.zeros_like(fused_M)
        for weights_M in weights:
            sums_M += weights_M
        for scores_M, weights_M in zip(scores_SM, weights, strict=True):
            fused_M += weights_M / sums_M * scores_M
        return fused_M
    if log_weights is not None:
        scores_SM += log_weights / scale
    if has is not None:
        scores_SM[~has] = -np.inf
    peaks_M: np.ndarray = scores_SM.max(0)
    if fusion == "max":
        return peaks_M
    for scores_M in scores_SM:
        fused_M += np.exp(scale * (scores_M - peaks_M))
    return peaks_M + np.log(fused_M) / scale


def _counts(counts_B: Sequence[int] | np.ndarray, queries: int) -> np.ndarray:
    counts = np.asarray(counts_B)
    if counts.ndim != 1 or (counts.size and counts.dtype.kind not in "iu"):
        raise DataError(f"texts of each user must be counts, got {counts.dtype} of shape {list(counts.shape)}")
    if (counts < 1).any():
        raise DataError(f"user {int(np.flatnonzero(counts < 1)[0])} has no text", hint="give every user at least one")
    if counts.sum() != queries:
        raise DataError(f"users have {int(counts.sum())} texts by their counts, and {queries} queries")
    return counts.astype(np.int64)


def _weights(log_weights_Q: Tensor | Sequence[float] | np.ndarray, queries: int) -> np.ndarray:
    array = log_weights_Q.detach().cpu().numpy() if isinstance(log_weights_Q, Tensor) else np.asarray(log_weights_Q)
    weights: np.ndarray = array.astype(np.float64)
    if weights.shape != (queries,):
        raise DataError(f"{list(weights.shape)} log-weights for {queries} queries: not one each")
    if not np.isfinite(weights).all():
        row = int(np.flatnonzero(~np.isfinite(weights))[0])
        raise DataError(f"log-weight {weights[row]} of text {row} is not finite")
    return weights


def peaks(tile_NC: Tensor, width: int) -> Tensor:
    """The largest of every `width`-th column, float32 `[N, width]`; the tile is overwritten."""
    return _by_halves(tile_NC, width, "maximum")


def log_sums(tile_NC: Tensor, width: int, *, is_small: bool) -> Tensor:
    """ln Σ exp over every `width`-th column, float32 `[N, width]`; the tile is overwritten.

    Args:
        is_small: no exponential leaves float32's range, nor does a sum of them: they need not be shifted.
    """
    if not is_small:
        peaks_NU = peaks(tile_NC.clone(), width)
        tile_NC.view(len(tile_NC), -1, width).sub_(peaks_NU[:, None])
    exponentials(tile_NC)
    sums_NU = _by_halves(tile_NC, width, "add")
    logarithms(sums_NU)
    return sums_NU if is_small else sums_NU.add_(peaks_NU)


def exponentials(tile_NC: Tensor) -> None:
    """exp of a tile, in place."""
    if _is_for_numpy(tile_NC):  # takes half as long as torch's
        with np.errstate(under="ignore"):
            np.exp(tile_NC.numpy(), out=tile_NC.numpy())
    else:
        tile_NC.exp_()


def logarithms(tile_NC: Tensor) -> None:
    """ln of a tile, in place."""
    if _is_for_numpy(tile_NC):
        np.log(tile_NC.numpy(), out=tile_NC.numpy())
    else:
        tile_NC.log_()


def _by_halves(tile_NC: Tensor, width: int, operation: Literal["add", "maximum"]) -> Tensor:
    """The left half of the columns joined with the right half, again and again: long rows, few calls."""
    slots = tile_NC.shape[1] // width
    while slots > 1:
        half = slots // 2
        left_NC, right_NC = tile_NC[:, : half * width], tile_NC[:, (slots - half) * width : slots * width]
        if _is_for_numpy(tile_NC):
            getattr(np, operation)(left_NC.numpy(), right_NC.numpy(), out=left_NC.numpy())
        else:
            getattr(torch, operation)(left_NC, right_NC, out=left_NC)
        slots -= half
    return tile_NC[:, :width]


def _is_for_numpy(tile_NC: Tensor) -> bool:
    return tile_NC.device.type == "cpu" and torch.get_num_threads() <= FEW
