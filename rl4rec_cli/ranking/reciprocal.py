"""Reciprocal rank fusion: a user's queries each rank the whole catalogue, and an item gets Σ w_i / (60 + rank_i).

Decides: the rank of an item by a query is the number of unmasked items that score at least what it scores, itself
among them, so equal vectors have equal ranks; w_i is 1, or the query's weight over the user's largest. Each term is
rounded to a multiple of 2^-56, so that sums are exact in any order and equal sums tie. Hides: that float64 products
order all but the items that nearly tie, and that one query's scores of all items are held at a time (or of a few, where
the catalogue is small).

Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods",
with their constant 60.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch

from rl4rec_cli.ranking.blocks import Mask
from rl4rec_cli.ranking.exact_scores import exact_scores
from rl4rec_cli.ranking.fusing import UserQueries
from rl4rec_cli.ranking.item_matrix import ItemMatrix
from rl4rec_cli.ranking.products import double_errors, double_products
from rl4rec_cli.ranking.threads import share_out

CONSTANT = 60
UNIT = 2.0**-56
_SCORES = 1 << 19


def ranks(users: UserQueries, items: ItemMatrix, targets: np.ndarray, mask: Mask, cores: int) -> np.ndarray:
    """Ranks of the users' targets, int64 `[B]`; the mask has no target of its user."""
    ranks_B = np.zeros(len(users), dtype=np.int64)

    def rank(user: int, terms: Iterator[np.ndarray], is_counted_N: np.ndarray) -> None:
        ranks_B[user] = _rank(_sum(terms), targets[user], is_counted_N)

    _each_user(users, items, mask, cores, rank)
    return ranks_B


def leave_one_out_ranks(
    users: UserQueries, items: ItemMatrix, targets: np.ndarray, mask: Mask, cores: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the users' targets by all their queries, int64 `[B]`, and without each query, `[Q]`.

    A user's terms of all items are held together, 8 bytes each.
    """
    whole_B, without_Q = np.zeros(len(users), dtype=np.int64), np.zeros(len(users.queries), dtype=np.int64)

    def rank(user: int, terms: Iterator[np.ndarray], is_counted_N: np.ndarray) -> None:
        each = list(terms)
        sums_N = _sum(iter(each))
        whole_B[user] = _rank(sums_N, targets[user], is_counted_N)
        for turn, terms_N in enumerate(each):
            without_Q[users.starts_B[user] + turn] = _rank(sums_N - terms_N, targets[user], is_counted_N)

    _each_user(users, items, mask, cores, rank)
    return whole_B, without_Q


def best(users: UserQueries, items: ItemMatrix, k: int, mask: Mask, cores: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and float64 scores `[B, k]` of the best unmasked items."""
    ids_BK = np.full((len(users), k), -1, dtype=np.int64)
    scores_BK = np.full((len(users), k), -np.inf)

    def choose(user: int, terms: Iterator[np.ndarray], is_counted_N: np.ndarray) -> None:
        sums_N = _sum(terms)
        ids = np.flatnonzero(is_counted_N)
        ids = ids[np.argsort(-sums_N[ids], kind="stable")[:k]]
        ids_BK[user, : len(ids)], scores_BK[user, : len(ids)] = ids, sums_N[ids] * UNIT

    _each_user(users, items, mask, cores, choose)
    return ids_BK, scores_BK


def _each_user(
    users: UserQueries,
    items: ItemMatrix,
    mask: Mask,
    cores: int,
    use: Callable[[int, Iterator[np.ndarray], np.ndarray], None],
) -> None:
    """Calls `use` for each user with the queries' terms of all items, and which items are not masked.

    Terms are int64 in units of 2^-56. `use` must take all of them.
    """
    masked = Masked(mask, len(users))

    def work(parts: Iterator[tuple[int, int]]) -> None:
        for first, last in parts:
            for user, terms, is_counted_N in _user_terms(users, items, masked, first, last):
                use(user, terms, is_counted_N)

    parts = parts_of(users, items.num_items)
    share_out(parts, work, max(1, min(cores, len(parts))))


class Masked:
    """A mask by users.

    Args:
        users: how many there are.
    """

    def __init__(self, mask: Mask, users: int) -> None:
        order = np.argsort(mask.queries, kind="stable")
        self._items, self._edges = mask.items[order], np.searchsorted(mask.queries[order], np.arange(users + 1))

    def counted(self, user: int, num_items: int) -> np.ndarray:
        """Which items are not masked for a user, bool `[N]`."""
        is_counted_N = np.ones(num_items, dtype=bool)
        is_counted_N[self._items[self._edges[user] : self._edges[user + 1]]] = False
        return is_counted_N


def sums(
    users: UserQueries, items: ItemMatrix, masked: Masked, first: int, last: int, *, leave_one_out: bool = False
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Users `first` to `last`, each with -1 and all items' sums, int64 in units of 2^-56.

    Args:
        leave_one_out: a user of several queries comes again without each of them, with its turn, from 0.
    """
    for user, terms, _ in _user_terms(users, items, masked, first, last):
        each = list(terms) if leave_one_out else []
        sums_N = _sum(iter(each) if leave_one_out else terms)
        yield user, -1, sums_N
        for turn, terms_N in enumerate(each if len(each) > 1 else []):
            yield user, turn, sums_N - terms_N


def _user_terms(
    users: UserQueries, items: ItemMatrix, masked: Masked, first: int, last: int
) -> Iterator[tuple[int, Iterator[np.ndarray], np.ndarray]]:
    """Users `first` to `last`, each with what `_each_user` hands out."""
    rows = _scored_rows(users, items, users.starts_B[first], users.starts_B[last - 1] + users.counts_B[last - 1])
    for user in range(first, last):
        is_counted_N = masked.counted(user, items.num_items)
        own = islice(rows, int(users.counts_B[user]))
        yield user, _terms(users, items, own, is_counted_N), is_counted_N


def _terms(
    users: UserQueries, items: ItemMatrix, scored: Iterator[tuple[int, np.ndarray]], is_counted_N: np.ndarray
) -> Iterator[np.ndarray]:
    """What each query adds to every item's sum."""
    for row, scores_N in scored:
        ranks_N = _all_ranks(users, items, row, scores_N, is_counted_N)
        yield _term(ranks_N, users.weights_Q[row])


def reciprocal_terms(scores_N: np.ndarray, is_counted_N: np.ndarray, weight: float) -> np.ndarray:
    """What a query adds to every item's sum, int64 in units of 2^-56, where `scores_N` are its scores proper."""
    return _term(_ranks(scores_N, np.argsort(scores_N), is_counted_N), weight)


def _term(ranks_N: np.ndarray, weight: float) -> np.ndarray:
    return np.rint(weight / UNIT / (CONSTANT + ranks_N)).astype(np.int64)


def _sum(terms: Iterator[np.ndarray]) -> np.ndarray:
    sums_N = next(terms).copy()
    for terms_N in terms:
        sums_N += terms_N
    return sums_N


def _rank(sums_N: np.ndarray, target: int, is_counted_N: np.ndarray) -> int:
    return int(np.count_nonzero(sums_N[is_counted_N] >= sums_N[target]))


def parts_of(users: UserQueries, num_items: int) -> list[tuple[int, int]]:
    """Users whose scores of all items are made together: few readings of the catalogue, little memory."""
    parts, first, most = [], 0, max(1, _SCORES // num_items)
    ends_B = users.starts_B + users.counts_B
    while first < len(users):
        last = max(first + 1, int(np.searchsorted(ends_B, users.starts_B[first] + most, side="right")))
        parts.append((first, last))
        first = last
    return parts


def _scored_rows(users: UserQueries, items: ItemMatrix, first: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
    """Queries `first` to `last`, each with its float64 scores of all items, `[N]`."""
    step = max(1, _SCORES // items.num_items)
    for start in range(first, last, step):
        rows = np.arange(start, min(start + step, last))
        yield from zip(rows.tolist(), near_products(users, items, rows), strict=True)


def near_products(users: UserQueries, items: ItemMatrix, rows: np.ndarray) -> np.ndarray:
    """float64 products of some queries with all items, `[R, N]`, each query brought to norm [1/2, 1)."""
    queries_RD = users.queries.vectors_BD[torch.from_numpy(rows).to(items.device)].double()
    scores_RN = np.empty((len(rows), items.num_items))
    for block, products_RM in double_products(queries_RD, items):
        scores_RN[:, block] = products_RM
    return scores_RN


def _all_ranks(
    users: UserQueries, items: ItemMatrix, row: int, scores_N: np.ndarray, is_counted_N: np.ndarray
) -> np.ndarray:
    """Rank of every item by one query; `scores_N` is overwritten where items nearly tie."""
    margin = double_errors(users.queries.norms_B[row], items)
    order = np.argsort(scores_N)
    close = np.diff(scores_N[order]) <= 2 * margin
    if close.any() and users.queries.norms_B[row] > 0:
        ids = order[np.append(close, False) | np.insert(close, 0, False)]
        scores_N[ids] = exact_scores(users.queries, items, np.full(len(ids), row), ids)
        order = np.argsort(scores_N)
    return _ranks(scores_N, order, is_counted_N)


def _ranks(scores_N: np.ndarray, order: np.ndarray, is_counted_N: np.ndarray) -> np.ndarray:
    """The number of counted items that score at least what each item scores; `order` sorts the scores."""
    ascending_N, counted_N = scores_N[order], is_counted_N[order]
    # Counted items before the first of those that tie with it.
    before_N = np.cumsum(counted_N) - counted_N
    starts_N = np.maximum.accumulate(np.where(np.diff(ascending_N, prepend=-np.inf) > 0, np.arange(len(order)), 0))
    ranks_N = np.empty(len(order), dtype=np.int64)
    ranks_N[order] = np.count_nonzero(is_counted_N) - before_N[starts_N]
    return ranks_N
