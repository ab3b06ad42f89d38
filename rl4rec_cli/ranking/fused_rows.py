"""Every item's fused score, for a few users at a time: for scores that are made of fused ones and of others.

Decides: how near the scores handed out are to the fused score proper (`fusing`), which `Rows.exact` gives for single
items. Hides: blocks of items, and which users share a reading of the catalogue.

A hybrid needs all items' scores of a user: their deviation is its unit. No more than half a million of them are held at
a time, or one user's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from rl4rec_cli.ranking.blocks import Mask, worker_threads
from rl4rec_cli.ranking.fusing import FLOAT64, SCALE, Fusion, UserQueries
from rl4rec_cli.ranking.item_matrix import ItemMatrix
from rl4rec_cli.ranking.ranks import Ids, flatten
from rl4rec_cli.ranking.reciprocal import UNIT, Masked, parts_of, sums
from rl4rec_cli.ranking.threads import share_out, strict_products

_PRODUCTS = 1 << 20
_BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Rows:
    """Users `first` to `last`, U of them, and all their scores.

    Attributes:
        scores_UN: float64, no farther from the fused score proper than `margins_U`.
        exact: returns the fused scores proper of one user (counted from 0 within these) and items `[M]`.
    """

    first: int
    last: int
    scores_UN: np.ndarray
    margins_U: np.ndarray
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
) -> None:
    """Calls `use` with the scores of some users, until every user has come once; perhaps from several threads.

    Args:
        queries_QD, counts_B, items, fusion, scale, log_weights_Q: as `fused.fused_target_ranks` takes them.
        masks: for each user the item ids to leave out. Only `rrf` asks: it counts the items before another.

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
                    use(_reciprocal(users, items, masked, first, last))
                else:
                    use(_fused(users, items, norm, first, last))

        parts = parts_of(users, items.num_items)
        share_out(parts, work, max(1, min(cores, len(parts))))


def _reciprocal(users: UserQueries, items: ItemMatrix, masked: Masked, first: int, last: int) -> Rows:
    scores_UN = np.stack([sums_N * UNIT for _, sums_N, _ in sums(users, items, masked, first, last)])
    return Rows(first, last, scores_UN, np.zeros(last - first), lambda user, ids: scores_UN[user, ids])


def _fused(users: UserQueries, items: ItemMatrix, norm: float, first: int, last: int) -> Rows:
    starts = users.starts_B[first:last] - users.starts_B[first]
    rows = slice(int(users.starts_B[first]), int(users.starts_B[last - 1] + users.counts_B[last - 1]))
    queries_RD = users.queries.vectors_BD[rows].double()
    scores_UN = np.empty((last - first, items.num_items))
    step = max(1, min(_PRODUCTS // len(queries_RD), _BLOCK_ELEMENTS // items.dim))
    for start in range(0, items.num_items, step):
        stop = min(start + step, items.num_items)
        products_RN = (queries_RD @ items.given(start, stop).double().T).cpu().numpy()
        for user, row in enumerate(starts):
            own = slice(int(row), int(row + users.counts_B[first + user]))
            scores_UN[user, start:stop] = users.fused_products(first + user, products_RN[own])
    # Twice the bound of a product in float64, whose exact counterpart errs by less; D and some for the rest.
    lengths_U = np.maximum.reduceat(users.lengths_Q[rows], starts)
    margins_U = 2 * (items.dim + 8) * FLOAT64 * lengths_U * norm + items.dim * 2.0**-1000
    margins_U = margins_U + 2 * users.slack(FLOAT64, norm)[first:last]

    def exact(user: int, ids: np.ndarray) -> np.ndarray:
        return users.fused(np.full(len(ids), first + user), ids, items)

    return Rows(first, last, scores_UN, margins_U, exact)
