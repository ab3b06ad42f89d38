"""Every item's fused score, for a few users at a time: for scores that are made of fused ones and of others.

Decides: how near the scores handed out are to the fused score proper (`fusing`), which `Rows.exact` gives for single
items. Hides: blocks of items, and which users share a reading of the catalogue.

A hybrid needs all items' scores of a user: their deviation is its unit. No more than about a million of them are held
at a time, or one user's; where each query is left out in turn, one user's without each query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from rl4rec_cli.ranking.blocks import Mask, worker_threads
from rl4rec_cli.ranking.fusing import FLOAT64, SCALE, Fusion, UserQueries
from rl4rec_cli.ranking.item_matrix import ItemMatrix
from rl4rec_cli.ranking.products import double_errors, double_products
from rl4rec_cli.ranking.ranks import Ids, flatten
from rl4rec_cli.ranking.reciprocal import UNIT, Masked, parts_of, sums
from rl4rec_cli.ranking.threads import share_out, strict_products


@dataclass(frozen=True)
class Rows:
    """All scores of R sets of queries. A set is all queries of a user, or all but one.

    Attributes:
        users_R: whose set it is, ascending.
        without_R: the query of all those given that the set lacks; -1: none.
        longest_R: the norm of the set's longest query.
        scores_RN: float64, no farther from the fused score proper than `margins_R`.
        exact: returns the fused scores proper of one row and of items `[M]`.
    """

    users_R: np.ndarray
    without_R: np.ndarray
    longest_R: np.ndarray
    scores_RN: np.ndarray
    margins_R: np.ndarray
    exact: Callable[[int, np.ndarray], np.ndarray]


def each_rows(
    queries_QD: Tensor,
    counts_B: Sequence[int] | np.ndarray,
    items: ItemMatrix,
    use: Callable[[Rows], None],
    masks: Ids | None = None,
    *,
    fusion: Fusion = "logsumexp",
    scale: float = SCALE,
    log_weights_Q: Tensor | Sequence[float] | np.ndarray | None = None,
    leave_one_out: bool = False,
) -> None:
    """Calls `use` with the scores of some users, until every user has come once; perhaps from several threads.

    Args:
        queries_QD, counts_B, items, fusion, scale, log_weights_Q: as `fused.fused_target_ranks` takes them.
        masks: for each user the item ids to leave out. Only `rrf` asks: it counts the items before another.
        leave_one_out: a user of several queries that are not zero comes with the sets that lack one of these, too. One
            product with the catalogue for each query serves all sets. Queries weigh alike.

    Raises:
        EmbeddingError, DataError: as `fused.fused_target_ranks`.
    """
    with strict_products(), worker_threads(len(queries_QD), items) as cores:
        users = UserQueries(queries_QD, counts_B, items, fusion=fusion, scale=scale, log_weights_Q=log_weights_Q)
        masked = Masked(Mask(*flatten(masks, users, items)), len(users))
        norm, _ = items.bounds(0, items.num_items)

        def work(parts: Iterator[tuple[int, int]]) -> None:
            for first, last in parts:
                if users.fusion == "rrf":
                    use(_reciprocal(users, items, masked, first, last, leave_one_out=leave_one_out))
                else:
                    use(_fused(users, items, norm, first, last, leave_one_out=leave_one_out))

        parts = parts_of(users, items.num_items)
        share_out(parts, work, max(1, min(cores, len(parts))))


def _sets(users: UserQueries, first: int, last: int, *, leave_one_out: bool) -> list[tuple[int, int]]:
    """Returns the sets of users `first` to `last`: a user, and the turn of the query that is left out, or -1."""
    sets = []
    for user in range(first, last):
        count = int(users.counts_B[user])
        sets += [(user, turn) for turn in range(-1, count if leave_one_out and count > 1 else 0)]
    return sets


def _rows(
    users: UserQueries,
    sets: Sequence[tuple[int, int]],
    scores_RN: np.ndarray,
    margins_R: np.ndarray,
    exact: Callable[[int, np.ndarray], np.ndarray],
) -> Rows:
    longest, without = [], []
    for user, turn in sets:
        start = int(users.starts_B[user])
        lengths_S = users.lengths_Q[start : start + int(users.counts_B[user])]
        longest.append((np.delete(lengths_S, turn) if turn >= 0 else lengths_S).max())
        without.append(users.rows_Q[start + turn] if turn >= 0 else -1)
    of_users = np.array([user for user, _ in sets])
    return Rows(of_users, np.array(without), np.array(longest), scores_RN, margins_R, exact)


def _reciprocal(
    users: UserQueries, items: ItemMatrix, masked: Masked, first: int, last: int, *, leave_one_out: bool
) -> Rows:
    sets, scores = [], []
    for user, turn, sums_N in sums(users, items, masked, first, last, leave_one_out=leave_one_out):
        sets.append((user, turn))
        scores.append(sums_N * UNIT)
    scores_RN = np.stack(scores)
    return _rows(users, sets, scores_RN, np.zeros(len(sets)), lambda row, ids: scores_RN[row, ids])


def _fused(users: UserQueries, items: ItemMatrix, norm: float, first: int, last: int, *, leave_one_out: bool) -> Rows:
    starts = users.starts_B[first:last] - users.starts_B[first]
    rows = slice(int(users.starts_B[first]), int(users.starts_B[last - 1] + users.counts_B[last - 1]))
    queries_QD = users.queries.vectors_BD[rows].double()
    sets = _sets(users, first, last, leave_one_out=leave_one_out)
    scores_RN = np.empty((len(sets), items.num_items))
    for block, products_QM in double_products(queries_QD, items):
        for row, (user, turn) in enumerate(sets):
            own = int(starts[user - first])
            products_SM = products_QM[own : own + int(users.counts_B[user])]
            scores_RN[row, block] = users.fused_products(user, products_SM, turn)
    lengths_U = np.maximum.reduceat(users.lengths_Q[rows], starts)
    margins_U = double_errors(lengths_U, items) + 2 * users.slack(FLOAT64, norm)[first:last]

    def exact(row: int, ids: np.ndarray) -> np.ndarray:
        user, turn = sets[row]
        return users.fused(np.full(len(ids), user), ids, items, np.full(len(ids), turn))

    return _rows(users, sets, scores_RN, margins_U[[user - first for user, _ in sets]], exact)
