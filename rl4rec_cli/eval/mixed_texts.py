"""The exact ranking by several texts of a user and a sequence model together, for any weights.

Decides: the score, w · s₁ / sd(s₁) + (1 - w) · s₂ / sd(s₂) as in `fused_scores.py`, with s₁ the one score that the
texts have together (`ranking/fusing.py`) and s₂ that of the sequence model. Either is the score proper of its kernel,
and their sum is that of two float64 numbers: equal items tie exactly. With reciprocal ranks s₁ leaves the user's mask
out as it does without a sequence model, and so does its deviation.
Hides: that a fused score has no deviation in closed form. All items' scores are made in float64, of some users at a
time; every weight reads the same ones, and what is too near to the target is scored again, properly. So does each set
of the texts that lacks one of them (`TextsWithSequence.leave_one_out`), whose deviation is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from rl4rec_cli.eval.scoring import SparseScores, VectorScores
from rl4rec_cli.eval.spreads import Spread, scales, sparse_deviations
from rl4rec_cli.ranking.fused_rows import Rows, each_rows
from rl4rec_cli.ranking.products import double_errors, double_products
from rl4rec_cli.ranking.ranks import pair_scores
from rl4rec_cli.retrieval.answers import Ranking

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.eval.fused_texts import FusedTexts
    from rl4rec_cli.eval.spreads import Weight

    Masks = Sequence[Sequence[int]] | None
    Numbers = NDArray[np.float64]

_ROUNDING = 8 * 2.0**-53
"""What two products and a sum get wrong, relative to their sizes, on both sides of a comparison."""


class _Row(NamedTuple):
    """One user's scores of all items, by the texts, or all but one, and by the sequence model."""

    user: int
    without: int
    """The text that is left out; -1: none."""
    scores: tuple[Numbers, Numbers]
    """float64 `[N]` each, near the scores proper."""
    margins: tuple[float, float]
    """What they may be off by."""
    exact: tuple[Callable[[NDArray[np.int64]], Numbers], Callable[[NDArray[np.int64]], Numbers]]
    """Ids of items to scores proper."""
    deviation: float
    """Of the texts' scores; 0 if all are equal."""
    can_rank: tuple[bool, bool]
    """Whether each part is scorable."""

    def mixed(self, shares: tuple[float, float]) -> tuple[Numbers, float]:
        """Returns the mixed scores `[N]`, and what two of them may be off by together."""
        (first, second), (own, other) = self.scores, shares
        sizes = own * np.abs(first).max() + other * np.abs(second).max()
        margin = 2 * (own * self.margins[0] + other * self.margins[1]) + _ROUNDING * sizes
        return own * first + other * second, float(margin)

    def is_scorable(self, shares: tuple[float, float]) -> bool:
        """Returns whether a part that counts is scorable."""
        return any(share > 0 and can for share, can in zip(shares, self.can_rank, strict=True))

    def rank(self, shares: tuple[float, float], target: int, is_rival_N: NDArray[np.bool_]) -> int:
        """Returns the rank of an item among its rivals."""
        scores_N, margin = self.mixed(shares)
        goal = scores_N[target]
        above = int(np.count_nonzero(is_rival_N & (scores_N > goal + margin)))
        unsure = np.flatnonzero(is_rival_N & (np.abs(scores_N - goal) <= margin))
        if len(unsure):
            proper = self.proper(shares, np.append(unsure, target))
            above += int(np.count_nonzero(proper[:-1] >= proper[-1]))
        return 1 + above

    def proper(self, shares: tuple[float, float], ids: NDArray[np.int64]) -> Numbers:
        """Returns the mixed scores proper of some items."""
        return shares[0] * self.exact[0](ids) + shares[1] * self.exact[1](ids)


class TextsWithSequence:
    """Several texts of each user as one, and the scores of a sequence model.

    Args:
        like: the same two scores of other users, whose work on the catalogue is used again.

    Attributes:
        second_sd_B: float64 `[B]`, the sd of the sequence model's scores over the catalogue; 0 if all are equal.
    """

    def __init__(
        self, first: FusedTexts, second: VectorScores | SparseScores, *, like: TextsWithSequence | None = None
    ) -> None:
        self.texts, self._second = first, second
        self._own: Spread = like._own if like is not None else Spread(first.items)
        self._theirs: Spread | None = like._theirs if like is not None else None
        if isinstance(second, SparseScores):
            self.second_sd_B = sparse_deviations(second)
            return
        if self._theirs is None:
            self._theirs = Spread(second.items)
        self.second_sd_B = self._theirs.deviations(second.queries_BD)

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, weight: Weight) -> MixedTexts:
        """Returns the fused scores. See `fused_scores.Fused`."""
        return MixedTexts(self, np.broadcast_to(np.asarray(weight, np.float64), (len(self),)))

    def rankings(self, weights: Sequence[float], targets: Sequence[int], masks: Masks) -> list[Ranking]:
        """Returns the rankings for each of several weights, from the same scores of all items."""
        return self.rank([np.full(len(self), weight) for weight in weights], targets, masks)

    def rank(self, weights: Sequence[Numbers], targets: Sequence[int], masks: Masks) -> list[Ranking]:
        """Ranks the targets by each of several weights `[B]`.

        Raises:
            DataError: a weight is not between 0 and 1.
        """
        for weight_B in weights:
            scales(weight_B, np.ones(len(self)), np.ones(len(self)))  # all are checked before the catalogue is read
        ranks_WB = np.full((len(weights), len(self)), self.texts.num_items)
        scorable_WB = np.zeros((len(weights), len(self)), np.bool_)
        # The target has its rank by a text though it stands in the history.
        others = masks and [[i for i in mask if i != target] for mask, target in zip(masks, targets, strict=True)]

        def rank_user(row: _Row) -> None:
            is_rival_N = self._rivals(row, targets, others)
            for place, weight_B in enumerate(weights):
                shares = self._shares(row, float(weight_B[row.user]))
                if row.is_scorable(shares):
                    ranks_WB[place, row.user] = row.rank(shares, int(targets[row.user]), is_rival_N)
                    scorable_WB[place, row.user] = True

        self._each(others, rank_user)
        return [Ranking(*pair) for pair in zip(ranks_WB, scorable_WB, strict=True)]

    def leave_one_out(
        self, weight: float, targets: Sequence[int], masks: Masks
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ranks the targets by all texts of a user, and by all but each one, together with the sequence model.

        Without an unscorable text, which is left out anyway, the rank is that of all. So it is without a user's only
        scorable text: what that is worth the caller decides.

        Returns:
            ranks `[B]`, and ranks without each text `[Q]`.

        Raises:
            DataError: the weight is not between 0 and 1.
        """
        scales(weight, np.ones(len(self)), np.ones(len(self)))
        others = masks and [[i for i in mask if i != target] for mask, target in zip(masks, targets, strict=True)]
        whole_B = np.full(len(self), self.texts.num_items)
        without_Q = np.full(len(self.texts.queries_QD), -1)

        def rank_set(row: _Row) -> None:
            shares = self._shares(row, weight)
            if row.is_scorable(shares):
                rank = row.rank(shares, int(targets[row.user]), self._rivals(row, targets, others))
                if row.without < 0:
                    whole_B[row.user] = rank
                else:
                    without_Q[row.without] = rank

        self._each(others, rank_set, leave_one_out=True)
        return whole_B, np.where(without_Q < 0, np.repeat(whole_B, self.texts.users.counts), without_Q)

    def _rivals(self, row: _Row, targets: Sequence[int], others: Masks) -> NDArray[np.bool_]:
        """Returns which items a user's target is compared with, `[N]`."""
        is_rival_N = np.ones(self.texts.num_items, np.bool_)
        is_rival_N[int(targets[row.user])] = False
        if others is not None:
            is_rival_N[list(others[row.user])] = False
        return is_rival_N

    def best(self, weight_B: Numbers, k: int, masks: Masks) -> tuple[NDArray[np.int64], Numbers]:
        """Returns the ids of the best items and their scores, see `MixedTexts.best`."""
        k = min(k, self.texts.num_items)
        ids_BK, scores_BK = np.full((len(self), k), -1, np.int64), np.full((len(self), k), -np.inf)

        def choose(row: _Row) -> None:
            shares = self._shares(row, float(weight_B[row.user]))
            scores_N, margin = row.mixed(shares)
            is_open_N = np.ones(len(scores_N), np.bool_)
            if masks is not None:
                is_open_N[list(masks[row.user])] = False
            ids = np.flatnonzero(is_open_N)
            if len(ids) > k:
                least = np.partition(scores_N[ids], len(ids) - k)[len(ids) - k]
                ids = ids[scores_N[ids] >= least - margin]
            # By reciprocal ranks even unscorable texts would give all items one score above 0.
            proper = row.proper(shares, ids) if row.is_scorable(shares) else np.zeros(len(ids))
            order = np.lexsort((ids, -proper))[:k]  # equal scores by lower id, as in the kernel
            ids_BK[row.user, : len(order)], scores_BK[row.user, : len(order)] = ids[order], proper[order]

        self._each(masks, choose)
        return ids_BK, scores_BK

    def _shares(self, row: _Row, weight: float) -> tuple[float, float]:
        own, other = scales(weight, np.array([row.deviation]), self.second_sd_B[row.user : row.user + 1])
        return float(own[0]), float(other[0])

    def _each(self, masks: Masks, use: Callable[[_Row], None], *, leave_one_out: bool = False) -> None:
        """Calls `use` for every user, or for every set of a user's texts; perhaps from several threads."""
        texts, first_text = self.texts, 0
        for part, some, queries_QD in texts.parts():

            def use_rows(rows: Rows, start: int = part.start, first_text: int = first_text) -> None:
                first = start + int(rows.users_R[0])
                seconds_UN, margins_U, second_can_U = self._second_rows(range(first, start + int(rows.users_R[-1]) + 1))
                for row, user in enumerate((start + rows.users_R).tolist()):
                    scores_N, longest = rows.scores_RN[row], float(rows.longest_R[row])
                    variance = float(np.var(scores_N)) if np.ptp(scores_N) > 0 else 0.0
                    if texts.fusion != "rrf" and variance <= self._own.nothing * longest**2:
                        variance = 0.0
                    without = int(rows.without_R[row])
                    use(
                        _Row(
                            user,
                            without + first_text if without >= 0 else -1,
                            (scores_N, seconds_UN[user - first]),
                            (float(rows.margins_R[row]), float(margins_U[user - first])),
                            (_of_user(rows.exact, row), _of_user(self._second_exact, user)),
                            variance**0.5,
                            (longest > 0, bool(second_can_U[user - first])),
                        )
                    )

            own_masks = masks and masks[part]
            each_rows(
                queries_QD,
                some.counts,
                texts.items,
                use_rows,
                own_masks,
                fusion=texts.fusion,
                log_weights_Q=some.log_weights,
                leave_one_out=leave_one_out,
            )
            first_text += len(some.texts)

    def _second_rows(self, users: range) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
        """Returns the sequence model's scores of some users, float64 `[U, N]`.

        And what they may be off by, and whether they are scorable, `[U]`.
        """
        second = self._second
        if isinstance(second, SparseScores):
            rows_UN = np.stack([second.row(user) for user in users])
            can_rank_U: NDArray[np.bool_] = np.any(rows_UN, axis=1)
            return rows_UN, np.zeros(len(users)), can_rank_U
        items = second.items
        queries_UD = second.queries_BD[users.start : users.stop].to(items.device).float().double()
        rows_UN = np.empty((len(users), items.num_items))
        for block, products_UM in double_products(queries_UD, items):
            rows_UN[:, block] = products_UM
        lengths_U = torch.linalg.vector_norm(queries_UD, dim=1).cpu().numpy()
        return rows_UN, double_errors(lengths_U, items), lengths_U > 0

    def _second_exact(self, user: int, ids: NDArray[np.int64]) -> Numbers:
        second = self._second
        if isinstance(second, SparseScores):
            return self._second_rows(range(user, user + 1))[0][0, ids]
        queries_MD = second.queries_BD[user : user + 1].expand(len(ids), -1)
        scores: Numbers = pair_scores(queries_MD, second.items, torch.from_numpy(ids)).numpy()
        return scores


def _of_user(exact: Callable[[int, NDArray[np.int64]], Numbers], user: int) -> Callable[[NDArray[np.int64]], Numbers]:
    return lambda ids: exact(user, ids)


class MixedTexts:
    """Scores of `TextsWithSequence` for certain weights.

    Args:
        weight_B: `[B]`, of the texts.

    Attributes:
        notes: how many texts each user has, and the rule.
    """

    def __init__(self, fused: TextsWithSequence, weight_B: Numbers) -> None:
        scales(weight_B, np.ones(len(weight_B)), np.ones(len(weight_B)))
        self._fused, self._weight_B = fused, weight_B
        self.notes = dict(fused.texts.notes)

    def ranks(self, targets: Sequence[int], masks: Masks) -> Ranking:
        return self._fused.rank([self._weight_B], targets, masks)[0]

    def top(self, k: int, masks: Masks) -> NDArray[np.int64]:
        return self.best(k, masks)[0]

    def best(self, k: int, masks: Masks) -> tuple[NDArray[np.int64], Numbers]:
        """Returns the ids of the best items as `top` does, and their scores, -inf where no item is left."""
        return self._fused.best(self._weight_B, k, masks)
