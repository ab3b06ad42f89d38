"""Exact ranks and top-k of the catalogue, without ever holding a `[texts, items]` matrix.

Decides: what a score is, who wins a near-tie, and what is an error. Hides: blocks, rounding, and how few items have
to be looked at twice.

**The score** of a query and an item is the dot product of the vectors given (see `item_matrix`), multiplied and added
in float64 in one fixed order (`pairs.exact_scores`). It depends on the two vectors and nothing else: not on the block,
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

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.errors import DataError
from rl4rec_cli.retrieval.cores import one_core, share_out, strict_products
from rl4rec_cli.retrieval.item_matrix import ItemMatrix, Storage
from rl4rec_cli.retrieval.pairs import QUERIES, Queries, exact_scores, reaches
from rl4rec_cli.retrieval.tiles import WORD, Flags, int8_product, product, reached_by

__all__ = ["ItemMatrix", "Storage", "count_at_least", "pair_scores", "score_matrix", "search", "target_ranks"]

_TILE_SCORES = 1 << 18
_GPU_TILE_SCORES = 1 << 23
_TILE_ROWS = 1 << 10
_BLOCK_ELEMENTS = 1 << 21
_NEAR_PAIRS = 1 << 14
# Blocks for each core that shares in a scan, at least, as long as they keep so many rows.
_TURNS = 4
_SHARED_ROWS = 1 << 9
# Products below this are over before threads have started.
_SHARED_WORK = 1 << 26
# Above one near item in so many, a product over the whole block from the vectors given is cheaper than pairs.
_CROWD = 128

Ids = Sequence[Sequence[int]]
Result = TypeVar("Result")


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
    with strict_products(), one_core() as cores:
        queries = Queries(queries_BD, items)
        targets = _one_each(targets_B, queries, items)
        goals_B = exact_scores(queries, items, np.arange(len(queries)), targets)
        # The target is counted too, as the 1: its score is the goal itself.
        rows, ids = _flatten(masks, queries, items)
        others = ids != targets[rows]
        scan = _Scan(queries, items, _Struck(rows[others], ids[others]), cores)
        return torch.from_numpy(_count_at_least(scan, goals_B))


def pair_scores(queries_BD: Tensor, items: ItemMatrix, ids_B: Tensor) -> Tensor:
    """The score proper of each query and one item of its own, float64 `[B]` on the CPU.

    Raises:
        EmbeddingError: a query is not finite (named) or has not D dimensions.
        DataError: an id outside the catalogue, or not one for each query.
    """
    with strict_products(), one_core():
        queries = Queries(queries_BD, items)
        scores_B = exact_scores(queries, items, np.arange(len(queries)), _one_each(ids_B, queries, items))
    return torch.from_numpy(np.ldexp(scores_B, queries.exponents_B))


def count_at_least(queries_BD: Tensor, items: ItemMatrix, goals_B: Tensor, masks: Ids | None = None) -> Tensor:
    """How many unmasked items score at least `goals_B`, int64 `[B]` on the CPU.

    For catalogues in shards: a target's rank is 1 + the counts of all shards for its `pair_scores`, the target itself
    masked in the shard that holds it.

    Args:
        queries_BD: `[B, D]`, finite.
        items: the catalogue or a shard of it.
        goals_B: float64 `[B]`, from `pair_scores`.
        masks: for each query the ids to leave out.

    Raises:
        EmbeddingError: a query is not finite (named) or has not D dimensions.
        DataError: an id outside the catalogue, or not one goal and one mask for each query.
    """
    with strict_products(), one_core() as cores:
        queries = Queries(queries_BD, items)
        if goals_B.shape != (len(queries),) or goals_B.dtype != torch.float64 or not torch.isfinite(goals_B).all():
            raise DataError(f"need {len(queries)} finite float64 goals, one for each query")
        goals = np.ldexp(goals_B.cpu().numpy(), -queries.exponents_B)
        scan = _Scan(queries, items, _Struck(*_flatten(masks, queries, items)), cores)
        return torch.from_numpy(_count_at_least(scan, goals))


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
    if k < 1:
        raise DataError(f"k must be at least 1, got {k}")
    with strict_products(), one_core() as cores:
        queries = Queries(queries_BD, items)
        scan = _Scan(queries, items, _Struck(*_flatten(exclude, queries, items)), cores)
        ids_BK, scores_BK = _top_k(scan, min(k, items.num_items))
    with np.errstate(over="ignore"):
        scores_BK = np.ldexp(scores_BK, queries.exponents_B[:, None]).astype(np.float32)
    return torch.from_numpy(ids_BK), torch.from_numpy(scores_BK)


def score_matrix(queries_BD: Tensor, items: ItemMatrix) -> Tensor:
    """Every score, float32 `[B, N]` on the CPU: for callers that want the matrix itself, and have the memory.

    Plain float32 products of the vectors given: near-ties may stand in another order than in `target_ranks` and
    `search`.

    Raises:
        EmbeddingError: a query is not finite (named) or has not D dimensions.
    """
    with strict_products():
        queries = Queries(queries_BD, items)
        scores_BN = torch.empty(len(queries), items.num_items)
        for start, stop in _blocks(queries, items, 1):
            items.bounds(start, stop)
            block_ND = items.given(start, stop)
            for first, last in queries.chunks():
                tile_NB = product(block_ND, queries.vectors_BD[first : first + QUERIES])
                scores_BN[first:last, start:stop] = tile_NB.T[: last - first]
        return torch.ldexp(scores_BN, torch.from_numpy(queries.exponents_B)[:, None])


class _Struck:
    """(query, item) pairs that must not be counted, handed out block by block."""

    def __init__(self, queries: np.ndarray, items: np.ndarray) -> None:
        order = np.argsort(items, kind="stable")
        self.queries, self.items = queries[order], items[order]

    def strike(self, tile: _Tile) -> None:
        """Set the struck pairs of a tile to -inf."""
        low, high = np.searchsorted(self.items, [tile.start, tile.stop])
        if low == high:
            return
        column = np.searchsorted(tile.queries_B, self.queries[low:high])
        here = tile.queries_B[np.minimum(column, len(tile.queries_B) - 1)] == self.queries[low:high]
        flat = ((self.items[low:high] - tile.start) * tile.scores_NB.shape[1] + column)[here]
        tile.scores_NB.view(-1).index_fill_(0, torch.from_numpy(flat).to(tile.scores_NB.device), -math.inf)


@dataclass
class _Tile:
    """Scores of items `start` to `stop` for the queries listed, in units of `units_B`, right to `margins_B`."""

    start: int
    stop: int
    queries_B: np.ndarray
    scores_NB: Tensor
    margins_B: np.ndarray
    units_B: np.ndarray

    def thresholds(self, values_B: np.ndarray, *, up: bool = False) -> Tensor:
        """float32 thresholds for `Flags`, never above the values (`up`: never below); none pass in the padding."""
        padded = np.full(self.scores_NB.shape[1], np.inf)
        padded[: len(values_B)] = values_B / self.units_B
        with np.errstate(over="ignore"):
            near = padded.astype(np.float32)
        wrong = near < padded if up else near > padded
        near[wrong] = np.nextafter(near[wrong], np.float32(np.inf if up else -np.inf))
        return torch.from_numpy(near).to(self.scores_NB.device)


class _Scan:
    """One reading of the catalogue: its blocks, shared out over `cores`, and the tiles of scores they make."""

    def __init__(self, queries: Queries, items: ItemMatrix, struck: _Struck, cores: int) -> None:
        self.queries, self.items, self._struck = queries, items, struck
        worth_it = items.device.type == "cpu" and len(queries) * items.num_items * items.dim >= _SHARED_WORK
        self._cores = cores if worth_it else 1
        self._codes_DB, self._scales_B, self._gaps_B = None, np.ones(len(queries)), np.zeros(len(queries))
        if len(queries) and items.codes(0, 1) is not None:
            self._codes_DB, self._scales_B, self._gaps_B = queries.int8()

    def share_out(self, work: Callable[[Iterator[_Tile]], Result]) -> list[Result]:
        """`work` on the tiles of some of the blocks, ascending, in each core's thread; each block is read once."""
        blocks = _blocks(self.queries, self.items, self._cores) if len(self.queries) else []
        return share_out(blocks, lambda mine: work(self._tiles(mine)), min(self._cores, max(1, len(blocks))))

    def _tiles(self, blocks: Iterator[tuple[int, int]]) -> Iterator[_Tile]:
        """Scores by the stored copy, struck pairs at -inf."""
        items, vectors_BD, codes_DB = self.items, self.queries.vectors_BD, self._codes_DB
        for start, stop in blocks:
            margins_B = _margins(self.queries, items, *items.bounds(start, stop), self._gaps_B)
            coded = items.codes(start, stop)
            block_ND = items.block(start, stop) if coded is None else None
            for first, last in self.queries.chunks():
                end = first + QUERIES
                if coded is not None and codes_DB is not None:
                    scores_NB = int8_product(*coded, codes_DB[:, first:end].contiguous())
                elif block_ND is not None:
                    scores_NB = product(block_ND, vectors_BD[first:end])
                chunk = np.arange(first, last)
                tile = _Tile(start, stop, chunk, scores_NB, margins_B[first:last], self._scales_B[first:last])
                self._struck.strike(tile)
                yield tile

    def sharper(self, tile: _Tile, crowded: np.ndarray) -> _Tile:
        """The columns `crowded` of a tile again, by the vectors given."""
        chosen = tile.queries_B[crowded]
        padded = torch.from_numpy(np.pad(chosen, (0, -len(chosen) % WORD))).to(self.items.device)
        scores_NB = product(self.items.given(tile.start, tile.stop), self.queries.vectors_BD[padded])
        norm, _ = self.items.bounds(tile.start, tile.stop)
        margins_B = _margins(self.queries, self.items, norm, 0.0, np.zeros(len(self.queries)))
        again = _Tile(tile.start, tile.stop, chosen, scores_NB, margins_B[chosen], np.ones(len(chosen)))
        self._struck.strike(again)
        return again


def _blocks(queries: Queries, items: ItemMatrix, cores: int) -> list[tuple[int, int]]:
    width = max(1, min(len(queries), QUERIES))
    on_cpu = items.device.type == "cpu"
    tile = _TILE_SCORES if on_cpu else _GPU_TILE_SCORES
    rows = max(min(_TILE_ROWS, tile), tile // width)
    rows = max(1, min(rows, _BLOCK_ELEMENTS // items.dim if on_cpu else rows))
    rows = 1 << (rows.bit_length() - 1)
    if cores > 1:
        # The last blocks keep some cores waiting for others.
        while rows > _SHARED_ROWS and rows * cores * _TURNS > items.num_items:
            rows //= 2
    return [(start, min(start + rows, items.num_items)) for start in range(0, items.num_items, rows)]


def _margins(queries: Queries, items: ItemMatrix, norm: float, gap: float, query_gaps_B: np.ndarray) -> np.ndarray:
    # n: the D of the bound, and a few for the scales of an int8 product and the arithmetic of the margin itself.
    n = items.dim + 8
    gamma = n * 2.0**-24 / (1 - n * 2.0**-24)
    # The last term covers products below float32's normal range, flushed to zero or not.
    margins_B = queries.norms_B * (gamma * norm + gap) + query_gaps_B * norm + n * 2.0**-124
    return np.where(queries.norms_B == 0, 0.0, margins_B)


def _count_at_least(scan: _Scan, goals_B: np.ndarray) -> np.ndarray:
    """How many items that are not struck score at least `goals_B`, int64 `[B]`."""
    counts_B = np.zeros(len(goals_B), dtype=np.int64)
    for some_B in scan.share_out(lambda tiles: _count_some(scan, tiles, goals_B)):
        counts_B += some_B
    return counts_B


def _count_some(scan: _Scan, tiles: Iterator[_Tile], goals_B: np.ndarray) -> np.ndarray:
    counts_B = np.zeros(len(goals_B), dtype=np.int64)
    near: list[tuple[np.ndarray, np.ndarray]] = []
    waiting, lossy = 0, scan.items.is_lossy

    def settle() -> None:
        rows, ids = (np.concatenate(part) for part in zip(*near, strict=True))
        np.add.at(counts_B, rows, reaches(scan.queries, scan.items, rows, ids, goals_B[rows]))

    for tile in tiles:
        for again in (True, False):
            goals = goals_B[tile.queries_B]
            # Above the upper threshold an item surely reaches the goal, below the lower one it surely does not.
            maybe = Flags(tile.scores_NB, tile.thresholds(goals - tile.margins_B))
            sure = Flags(tile.scores_NB, tile.thresholds(goals + tile.margins_B, up=True))
            width = len(tile.queries_B)
            sure_B = sure.counts()[:width]
            crowded = np.zeros(width, dtype=bool)
            if again and lossy:
                crowded = (maybe.counts()[:width] - sure_B) * _CROWD > tile.stop - tile.start
            counts_B[tile.queries_B] += np.where(crowded, 0, sure_B)
            found, column = maybe.where(but=sure)
            keep = ~crowded[column]
            near.append((tile.queries_B[column[keep]], found[keep] + tile.start))
            waiting += len(near[-1][0])
            if waiting > _NEAR_PAIRS:
                settle()
                near.clear()
                waiting = 0
            if not crowded.any():
                break
            tile = scan.sharper(tile, crowded)
    if near:
        settle()
    return counts_B


def _top_k(scan: _Scan, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and float64 scores `[B, k]` of the best items that are not struck."""
    found = _Candidates.joined(scan.share_out(lambda tiles: _top_some(scan, tiles, k)))
    place = found.sort()
    found, place = found[place < k], place[place < k]
    ids_BK = np.full((len(scan.queries), k), -1, dtype=np.int64)
    scores_BK = np.full(ids_BK.shape, -np.inf)
    ids_BK[found.queries, place], scores_BK[found.queries, place] = found.ids, found.low
    return ids_BK, scores_BK


def _top_some(scan: _Scan, tiles: Iterator[_Tile], k: int) -> _Candidates:
    """What may be among the k best of the tiles, scored."""
    # What k items of the tiles before surely score. They come in order of id, so an item that only ties with it loses.
    bar_B = np.full(len(scan.queries), -np.inf)
    waiting: list[_Candidates] = []
    patience = 0
    for tile in tiles:
        width, rows = len(tile.queries_B), tile.stop - tile.start
        low_B = tile.thresholds(bar_B[tile.queries_B] - tile.margins_B)
        low_B = torch.nextafter(low_B, torch.full_like(low_B, math.inf))
        flags = Flags(tile.scores_NB, low_B)
        if k < rows and flags.total() > 2 * k * width:
            # k items of this block surely score this less the margin.
            reached_B = reached_by(tile.scores_NB, k)[:width].double().cpu().numpy()
            floor_B = tile.thresholds(reached_B * tile.units_B - 2 * tile.margins_B)
            flags = Flags(tile.scores_NB, torch.maximum(low_B, floor_B))
        found, column = flags.where()
        if not len(found):
            continue
        scores = tile.scores_NB[torch.from_numpy(found), torch.from_numpy(column)].double().cpu().numpy()
        scores *= tile.units_B[column]
        margins = tile.margins_B[column]
        new = _Candidates(tile.queries_B[column], found + tile.start, scores - margins, scores + margins)
        waiting.append(new)
        patience -= len(found)
        if patience < 0:
            waiting = [_thinned(scan, waiting, k, bar_B, exact=scan.items.is_lossy)]
            patience = k * len(scan.queries)
    return _thinned(scan, waiting, k, bar_B, exact=True)


def _thinned(scan: _Scan, some: Sequence[_Candidates], k: int, bar_B: np.ndarray, *, exact: bool) -> _Candidates:
    """The candidates that may still be among the k best (`exact`: those that are, scored); `bar_B` is raised."""
    left = _Candidates.joined(some)
    place = left.sort()
    bar_B[left.queries[place == k - 1]] = left.low[place == k - 1]
    left = left[left.high >= bar_B[left.queries]]
    if exact or len(left) > max(_NEAR_PAIRS, 2 * k * len(bar_B)):
        unsure = left.low < left.high
        left.low[unsure] = exact_scores(scan.queries, scan.items, left.queries[unsure], left.ids[unsure])
        left.high[unsure] = left.low[unsure]
        place = left.sort()
        bar_B[left.queries[place == k - 1]] = left.low[place == k - 1]
        left = left[place < k]
    return left


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

    def sort(self) -> np.ndarray:
        """By query, then best first, then lower id; gives each its place among its query's, from 0."""
        order = np.lexsort((self.ids, -self.low, self.queries))
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name)[order])
        return np.arange(len(self)) - np.searchsorted(self.queries, self.queries)


def _ids(values: Tensor | Sequence[int], items: ItemMatrix, what: str) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(f"{what} ids must be a list of integers, got {array.dtype} of shape {list(array.shape)}")
    outside = (array < 0) | (array >= items.num_items)
    if outside.any():
        raise DataError(f"{what} id {array[outside][0]} is outside the catalogue of {items.num_items} items")
    return array.astype(np.int64)


def _one_each(values: Tensor, queries: Queries, items: ItemMatrix) -> np.ndarray:
    ids = _ids(values, items, "target")
    if len(ids) != len(queries):
        raise DataError(f"{len(ids)} targets for {len(queries)} queries")
    return ids


def _flatten(lists: Ids | None, queries: Queries, items: ItemMatrix) -> tuple[np.ndarray, np.ndarray]:
    if lists is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if len(lists) != len(queries):
        raise DataError(f"{len(lists)} lists of masked items for {len(queries)} queries")
    ids = _ids(list(chain.from_iterable(lists)), items, "masked item")
    return np.repeat(np.arange(len(queries)), [len(one) for one in lists]), ids
