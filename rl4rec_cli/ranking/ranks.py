"""Exact ranks and top-k of the catalogue, without ever holding a `[texts, items]` matrix.

Decides: what a score is, who wins a near-tie, and what is an error. Hides: blocks, rounding, and how few items have
to be looked at twice.

**The score** of a query and an item is the dot product of the vectors given (see `item_matrix`), multiplied and added
in float64 in one fixed order (`exact_scores`). It depends on the two vectors and nothing else: not on the block,
batch, shard, storage, device or number of threads, nor on where in the catalogue the item stands. Equal vectors tie
exactly, the target's score is made by the same routine as its rivals', and two scores are equal only if their float64
values are: another float64 brute force gives the same ranks but for scores that differ by its own rounding, about
D·2⁻⁵³ of ‖q‖‖v‖.

**How it is fast.** A float32 product over blocks of items decides all but the near-ties. Whatever order a product adds
in, it errs by at most γ‖q‖‖v‖ with γ = nu/(1-nu), u = 2⁻²⁴, n = D (Higham, *Accuracy and Stability of Numerical
Algorithms*, 2nd ed., §3.1). With a compact copy v̂ of v, and a copy q̂ of q in an int8 product, the distance of the
copies adds at most ‖q‖‖v-v̂‖ + ‖q-q̂‖‖v̂‖ (Cauchy-Schwarz). Outside this margin the comparison is proven right; inside
it the pair is scored again as above.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.errors import DataError
from rl4rec_cli.ranking.blocks import Block, Mask, Scan, Thresholds, Tile, worker_threads
from rl4rec_cli.ranking.counting import count
from rl4rec_cli.ranking.exact_scores import QUERIES, Queries, exact_scores
from rl4rec_cli.ranking.item_matrix import ItemMatrix, Storage
from rl4rec_cli.ranking.products import Flags, product, reached_by
from rl4rec_cli.ranking.threads import one_core, strict_products

__all__ = ["ItemMatrix", "Storage", "best", "count_at_least", "pair_scores", "score_matrix", "search", "target_ranks"]

_NEAR_PAIRS = 1 << 14

Ids = Sequence[Sequence[int]]


def target_ranks(queries_BD: Tensor, items: ItemMatrix, targets_B: Tensor, masks: Ids | None = None) -> Tensor:
    """Rank of each query's target in the whole catalogue.

    rank = 1 + number of unmasked items other than the target that score at least as high as it: ties count against
    the target. A zero query ties with every item, hence ranks last. Near-ties are decided by the float64 score (see
    the module); equal vectors tie exactly.

    Args:
        queries_BD: `[B, D]`, finite. One call for a large batch reads the catalogue once.
        items: the catalogue, N items.
        targets_B: `[B]`, item ids.
        masks: for each query the item ids to leave out (its history), in any order; the target stays in even if
            it is listed.

    Returns:
        int64 `[B]` on the CPU, from 1 to N.

    Raises:
        EmbeddingError: a query is not finite (named) or has not D dimensions.
        DataError: an id outside the catalogue, or not one target and one mask for each query.
    """
    with strict_products(), worker_threads(len(queries_BD), items) as cores:
        queries = Queries(queries_BD, items)
        targets = one_each(targets_B, queries, items)
        target_scores_B = exact_scores(queries, items, np.arange(len(queries)), targets)
        # The target is counted too, as the 1: its score is the goal itself.
        rows, ids = flatten(masks, queries, items)
        others = ids != targets[rows]
        scan = Scan(queries, items, Mask(rows[others], ids[others]), cores)
        return torch.from_numpy(count(scan, target_scores_B))


def pair_scores(queries_BD: Tensor, items: ItemMatrix, ids_B: Tensor) -> Tensor:
    """The score proper of each query and one item of its own, float64 `[B]` on the CPU.

    Raises:
        EmbeddingError: a query is not finite (named) or has not D dimensions.
        DataError: an id outside the catalogue, or not one for each query.
    """
    with strict_products(), one_core():
        queries = Queries(queries_BD, items)
        scores_B = exact_scores(queries, items, np.arange(len(queries)), one_each(ids_B, queries, items))
    return torch.from_numpy(np.ldexp(scores_B, queries.exponents_B))


def count_at_least(queries_BD: Tensor, items: ItemMatrix, target_scores_B: Tensor, masks: Ids | None = None) -> Tensor:
    """How many unmasked items score at least `target_scores_B`, int64 `[B]` on the CPU.

    For catalogues in shards: a target's rank is 1 + the counts of all shards for its `pair_scores`, the target itself
    masked in the shard that holds it.

    Args:
        queries_BD: `[B, D]`, finite.
        items: the catalogue or a shard of it.
        target_scores_B: float64 `[B]`, from `pair_scores`.
        masks: for each query the ids to leave out.

    Raises:
        EmbeddingError: a query is not finite (named) or has not D dimensions.
        DataError: an id outside the catalogue, or not one goal and one mask for each query.
    """
    with strict_products(), worker_threads(len(queries_BD), items) as cores:
        queries = Queries(queries_BD, items)
        if (
            target_scores_B.shape != (len(queries),)
            or target_scores_B.dtype != torch.float64
            or not torch.isfinite(target_scores_B).all()
        ):
            raise DataError(f"need {len(queries)} finite float64 target scores, one for each query")
        target_scores = np.ldexp(target_scores_B.cpu().numpy(), -queries.exponents_B)
        scan = Scan(queries, items, Mask(*flatten(masks, queries, items)), cores)
        return torch.from_numpy(count(scan, target_scores))


def search(queries_BD: Tensor, items: ItemMatrix, k: int, exclude: Ids | None = None) -> tuple[Tensor, Tensor]:
    """The k best items of each query.

    Args:
        queries_BD: `[B, D]`, finite.
        items: the catalogue, N items.
        k: how many, at least 1.
        exclude: for each query the item ids to leave out.

    Returns:
        ids, int64 `[B, min(k, N)]`, best first, equal scores by lower id, -1 where too few items remain; and their
        scores, float32, -inf there. Both on the CPU. The order is that of the float64 scores, before rounding.

    Raises:
        EmbeddingError: a query is not finite (named) or has not D dimensions.
        DataError: k < 1, an id outside the catalogue, or not one list for each query.
    """
    ids_BK, scores_BK = best(queries_BD, items, k, exclude)
    return ids_BK, scores_BK.float()


def best(queries_BD: Tensor, items: ItemMatrix, k: int, exclude: Ids | None = None) -> tuple[Tensor, Tensor]:
    """As `search`, with the scores proper, float64: for catalogues in shards, whose finds are put in one order."""
    if k < 1:
        raise DataError(f"k must be at least 1, got {k}")
    with strict_products(), worker_threads(len(queries_BD), items) as cores:
        queries = Queries(queries_BD, items)
        scan = Scan(queries, items, Mask(*flatten(exclude, queries, items)), cores)
        ids_BK, scores_BK = top_k(scan, min(k, items.num_items))
    return torch.from_numpy(ids_BK), torch.from_numpy(np.ldexp(scores_BK, queries.exponents_B[:, None]))


def score_matrix(queries_BD: Tensor, items: ItemMatrix) -> Tensor:
    """Every score, float32 `[B, N]` on the CPU: for callers that want the matrix itself, and have the memory.

    Plain float32 products of the vectors given: near-ties may stand in another order than in `target_ranks` and
    `search`.

    Raises:
        EmbeddingError: a query is not finite (named) or has not D dimensions.
    """
    with strict_products(), worker_threads(len(queries_BD), items) as cores:
        queries = Queries(queries_BD, items)
        exponents_B = torch.from_numpy(queries.exponents_B)
        scores_BN = torch.empty(len(queries), items.num_items)

        def fill(blocks: Iterator[Block]) -> None:
            for start, stop in blocks:
                block_ND = items.given(start, stop)
                for first, last in queries.chunks():
                    tile_BN = product(block_ND, queries.vectors_BD[first : first + QUERIES]).T[: last - first].cpu()
                    scores_BN[first:last, start:stop] = torch.ldexp(tile_BN, exponents_B[first:last, None])

        Scan(queries, items, Mask(*flatten(None, queries, items)), cores).share_out(fill)
        return scores_BN


def top_k(scan: Scan, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and float64 scores `[B, k]` of the best unmasked items."""
    floor = _Floor(len(scan))
    parts = scan.share_out(lambda blocks: _top_some(scan, blocks, k, floor))
    candidates = _Candidates.joined(parts)
    if len(parts) > 1:
        candidates = candidates[np.argsort(candidates.ids, kind="stable")]
    order, place = candidates.order()
    order, place = order[place < k], place[place < k]
    candidates = candidates[order]
    ids_BK = np.full((len(scan), k), -1, dtype=np.int64)
    scores_BK = np.full(ids_BK.shape, -np.inf)
    ids_BK[candidates.queries, place], scores_BK[candidates.queries, place] = candidates.ids, candidates.low
    return ids_BK, scores_BK


class _Floor:
    """What k items surely score, for each query, as far as any thread knows."""

    def __init__(self, queries: int) -> None:
        self._known_B, self._lock = np.full(queries, -np.inf), threading.Lock()

    def raised(self, by_B: np.ndarray) -> np.ndarray:
        with self._lock:
            np.maximum(self._known_B, by_B, out=self._known_B)
            return self._known_B.copy()


def _top_some(scan: Scan, blocks: Iterator[Block], k: int, floor: _Floor) -> _Candidates:
    """What may be among the k best of the catalogue, of these tiles, scored."""
    # What k items surely score: of all tiles, and of those before in this thread. These come in order of id: an item
    # that only ties with them loses, against items of other threads it may win.
    own_B = np.full(len(scan), -np.inf)
    floor_B = floor.raised(own_B)

    def lowest(tile: Tile) -> tuple[np.ndarray]:
        some = tile.queries_B
        above = np.nextafter(tile.thresholds(own_B[some] - tile.margins_B), np.float32(np.inf))
        if np.array_equal(own_B, floor_B):
            return (above,)
        return (np.maximum(above, tile.thresholds(floor_B[some] - tile.margins_B)),)

    def thinned(*, exact: bool) -> _Candidates:
        """What may still be among the k best (`exact`: scored, and at most k of each query), in order of id."""
        nonlocal own_B, floor_B
        left = _Candidates.joined(waiting)
        order, place = left.order()
        own_B = left.raised(own_B, order[place == k - 1])
        floor_B = floor.raised(own_B)
        left = left[left.high >= floor_B[left.queries]]
        if exact or len(left) > max(_NEAR_PAIRS, 2 * k * len(own_B)):
            unsure = left.low < left.high
            left.low[unsure] = scan.exact(left.queries[unsure], left.ids[unsure])
            left.high[unsure] = left.low[unsure]
            order, place = left.order()
            own_B = left.raised(own_B, order[place == k - 1])
            floor_B = floor.raised(own_B)
            left = left[np.sort(order[place < k])]
        return left

    thresholds = Thresholds(lowest)
    waiting: list[_Candidates] = []
    patience = 0
    for tile in scan.tiles(blocks):
        width, rows = len(tile.queries_B), tile.stop - tile.start
        (low,) = thresholds.of(tile)
        flags = Flags(tile.scores_NB, low)
        if k < rows and flags.total() > 2 * k * width:
            # k items of this block surely score this less the margin.
            reached_B = reached_by(tile.scores_NB, k)[:width].double().cpu().numpy()
            local = tile.thresholds(reached_B * tile.units_B - 2 * tile.margins_B)
            flags = Flags(tile.scores_NB, np.maximum(low, local))
        item_rows, column = flags.where()
        if not len(item_rows):
            continue
        place = torch.from_numpy(item_rows * tile.scores_NB.shape[1] + column).to(tile.scores_NB.device)
        scores = tile.scores_NB.view(-1).index_select(0, place).double().cpu().numpy() * tile.units_B[column]
        margins = tile.margins_B[column]
        waiting.append(_Candidates(tile.queries_B[column], item_rows + tile.start, scores - margins, scores + margins))
        patience -= len(item_rows)
        if patience < 0:
            waiting = [thinned(exact=scan.items.is_lossy)]
            thresholds.forget()
            patience = k * len(own_B)
    return thinned(exact=True)


@dataclass
class _Candidates:
    """Items that may be among the best of a query, and the bounds of their scores."""

    queries: np.ndarray
    ids: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[_Candidates]) -> _Candidates:
        none = np.zeros(0, dtype=np.int64)
        every = [cls(none, none, np.zeros(0), np.zeros(0)), *parts]
        return cls(*(np.concatenate([getattr(part, f.name) for part in every]) for f in fields(cls)))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, chosen: np.ndarray) -> _Candidates:
        return _Candidates(self.queries[chosen], self.ids[chosen], self.low[chosen], self.high[chosen])

    def order(self) -> tuple[np.ndarray, np.ndarray]:
        """By query, then best first, equal ones as they stand; and the place of each among its query's, from 0."""
        order = np.argsort(-self.low, kind="stable")
        queries = self.queries[order]
        # Numbers of 16 bits are sorted by radix.
        narrow = queries.astype(np.int16) if len(queries) and self.queries.max() < 1 << 15 else queries
        by_query = np.argsort(narrow, kind="stable")
        order, queries = order[by_query], queries[by_query]
        first = np.flatnonzero(np.diff(queries, prepend=-1))
        counts = np.diff(first, append=len(queries))
        return order, np.arange(len(queries)) - np.repeat(first, counts)

    def raised(self, bar_B: np.ndarray, last: np.ndarray) -> np.ndarray:
        """`bar_B`, or the lower bound of the query's k-th best candidate (`last`) where that is higher."""
        raised_B = bar_B.copy()
        raised_B[self.queries[last]] = np.maximum(bar_B[self.queries[last]], self.low[last])
        return raised_B


def _ids(values: Tensor | Sequence[int], items: ItemMatrix, what: str) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(f"{what} ids must be a list of integers, got {array.dtype} of shape {list(array.shape)}")
    outside = (array < 0) | (array >= items.num_items)
    if outside.any():
        raise DataError(f"{what} id {array[outside][0]} is outside the catalogue of {items.num_items} items")
    return array.astype(np.int64)


def one_each(values: Tensor, queries: Sized, items: ItemMatrix) -> np.ndarray:
    """Item ids, one for each query, int64 `[B]`.

    Raises:
        DataError: another number of them, or an id outside the catalogue.
    """
    ids = _ids(values, items, "target")
    if len(ids) != len(queries):
        raise DataError(f"{len(ids)} targets for {len(queries)} queries")
    return ids


def flatten(lists: Ids | None, queries: Sized, items: ItemMatrix) -> tuple[np.ndarray, np.ndarray]:
    """Lists of item ids, one for each query, as (query, item) pairs.

    Raises:
        DataError: another number of lists, or an id outside the catalogue.
    """
    if lists is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if len(lists) != len(queries):
        raise DataError(f"{len(lists)} lists of masked items for {len(queries)} queries")
    ids = _ids(list(chain.from_iterable(lists)), items, "masked item")
    return np.repeat(np.arange(len(queries)), [len(one) for one in lists]), ids
