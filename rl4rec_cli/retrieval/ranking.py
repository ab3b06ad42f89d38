"""Exact ranks and top-k of the catalogue, without ever holding a `[texts, items]` matrix.

Decides: what a score is, who wins a near-tie, and what is an error. Hides: blocks, rounding, and how few items have
to be looked at twice.

**The score** of a query and an item is the dot product of the vectors given (see `item_matrix`), multiplied and added
in float64 in one fixed order (`_pair_scores`). It depends on the two vectors and nothing else: not on the block, batch,
shard, storage or device, nor on where in the catalogue the item stands. Equal vectors tie exactly, the target's score
is made by the same routine as its rivals', and two scores are equal only if their float64 values are: another float64
brute force gives the same ranks but for scores that differ by its own rounding, about D·2⁻⁵³ of ‖q‖‖v‖.

**How it is fast.** A float32 product over blocks of items decides all but the near-ties. Whatever order a product adds
in, it errs by at most γ‖q‖‖v‖ with γ = nu/(1-nu), u = 2⁻²⁴, n = D (Higham, *Accuracy and Stability of Numerical
Algorithms*, 2nd ed., §3.1). With a compact copy v̂ of v, and a copy q̂ of q in an int8 product, the distance of the
copies adds at most ‖q‖‖v-v̂‖ + ‖q-q̂‖‖v̂‖ (Cauchy-Schwarz). Outside this margin the comparison is proven right; inside
it the pair is scored again as above.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.errors import DataError, EmbeddingError
from rl4rec_cli.retrieval.item_matrix import ItemMatrix, Storage
from rl4rec_cli.retrieval.tiles import WORD, Flags, int8_product, one_core, product, strict_products

__all__ = ["ItemMatrix", "Storage", "count_at_least", "pair_scores", "score_matrix", "search", "target_ranks"]

_TILE_SCORES = 1 << 18
_GPU_TILE_SCORES = 1 << 23
_TILE_ROWS = 1 << 10
_BLOCK_ELEMENTS = 1 << 21
_QUERIES = 1 << 10
_PAIR_ELEMENTS = 1 << 17
_NEAR_PAIRS = 1 << 14
# Above one near item in so many, a product over the whole block from the vectors given is cheaper than pairs.
_CROWD = 128

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
    with strict_products():
        queries = _Queries(queries_BD, items)
        targets = _one_each(targets_B, queries, items)
        every = np.arange(len(queries))
        goals_B = _pair_scores(queries, items, every, targets)
        # Masked items and the target itself are struck from each tile of scores; the target then counts as the 1.
        struck = _Struck(*_flatten(masks, queries, items), every, targets)
        return torch.from_numpy(1 + _count_at_least(queries, items, goals_B, struck))


def pair_scores(queries_BD: Tensor, items: ItemMatrix, ids_B: Tensor) -> Tensor:
    """The score proper of each query and one item of its own, float64 `[B]` on the CPU.

    Raises:
        EmbeddingError: a query is not finite (named) or has not D dimensions.
        DataError: an id outside the catalogue, or not one for each query.
    """
    with strict_products():
        queries = _Queries(queries_BD, items)
        scores_B = _pair_scores(queries, items, np.arange(len(queries)), _one_each(ids_B, queries, items))
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
    with strict_products():
        queries = _Queries(queries_BD, items)
        if goals_B.shape != (len(queries),) or goals_B.dtype != torch.float64 or not torch.isfinite(goals_B).all():
            raise DataError(f"need {len(queries)} finite float64 goals, one for each query")
        goals = np.ldexp(goals_B.cpu().numpy(), -queries.exponents_B)
        return torch.from_numpy(_count_at_least(queries, items, goals, _Struck(*_flatten(masks, queries, items))))


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
    with strict_products():
        queries = _Queries(queries_BD, items)
        struck = _Struck(*_flatten(exclude, queries, items))
        ids_BK, scores_BK = _top_k(queries, items, min(k, items.num_items), struck)
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
        queries = _Queries(queries_BD, items)
        scores_BN = torch.empty(len(queries), items.num_items)
        for start, stop in _blocks(queries, items):
            items.bounds(start, stop)
            block_ND = items.given(start, stop)
            for first, last in queries.chunks():
                tile_NB = product(block_ND, queries.vectors_BD[first : first + _QUERIES])
                scores_BN[first:last, start:stop] = tile_NB.T[: last - first]
        return torch.ldexp(scores_BN, torch.from_numpy(queries.exponents_B)[:, None])


class _Queries:
    """Queries brought to norm [1/2, 1) by a power of two, which changes no comparison and keeps products in range.

    `vectors_BD` ends in rows of zeros that make its length a multiple of `WORD`.
    """

    @one_core()
    def __init__(self, queries_BD: Tensor, items: ItemMatrix) -> None:
        if queries_BD.ndim != 2 or queries_BD.shape[1] != items.dim:
            raise EmbeddingError(f"queries must be [texts, {items.dim}] like the items, got {list(queries_BD.shape)}")
        if not queries_BD.is_floating_point():
            raise EmbeddingError(f"queries must be floating point, got {queries_BD.dtype}")
        count = len(queries_BD)
        self.vectors_BD = torch.zeros(count + -count % WORD, items.dim, device=items.device)
        self.exponents_B = np.zeros(count, dtype=np.int32)
        self.norms_B = np.zeros(count)
        for first in range(0, count, _QUERIES):
            self._take(queries_BD[first : first + _QUERIES].detach().to(items.device), first)

    def _take(self, some_BD: Tensor, first: int) -> None:
        for values, problem in ((some_BD, "is not finite"), (some_BD.float(), "does not fit float32")):
            finite_B = torch.isfinite(values).all(1).cpu()
            if not finite_B.all():
                row = first + int((~finite_B).nonzero()[0])
                raise EmbeddingError(f"embedding of text {row} {problem}", hint="check the embedder's output")
        wide_BD = some_BD.float().double()
        norms_B = torch.linalg.vector_norm(wide_BD, dim=1)
        exponents_B = torch.frexp(norms_B)[1]
        last = first + len(some_BD)
        self.vectors_BD[first:last] = torch.ldexp(wide_BD, -exponents_B[:, None])
        self.exponents_B[first:last] = exponents_B.cpu().numpy()
        # A little more than the norm, for the rounding of the norm itself.
        self.norms_B[first:last] = np.ldexp(norms_B.cpu().numpy(), -self.exponents_B[first:last]) * (1 + 1e-6)

    def __len__(self) -> int:
        return len(self.norms_B)

    def chunks(self) -> Iterator[tuple[int, int]]:
        for first in range(0, len(self), _QUERIES):
            yield first, min(first + _QUERIES, len(self))

    def int8(self) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Codes int8 `[D, B]`, the scale of each query, and its distance from what the codes stand for."""
        scale_B = self.vectors_BD.abs().amax(1).clamp(min=2.0**-60) / 127
        codes_BD = (self.vectors_BD / scale_B[:, None]).round_().clamp_(-127, 127)
        copies_BD = codes_BD.double() * scale_B.double()[:, None]
        gaps_B = torch.linalg.vector_norm(self.vectors_BD.double() - copies_BD, dim=1)
        count = len(self)
        codes_DB = codes_BD.to(torch.int8).T.contiguous()
        return codes_DB, scale_B[:count].double().numpy(), gaps_B[:count].numpy() * (1 + 1e-6)


class _Struck:
    """(query, item) pairs that must not be counted, handed out block by block."""

    def __init__(self, *pairs: np.ndarray) -> None:
        queries = np.concatenate(pairs[0::2])
        items = np.concatenate(pairs[1::2])
        order = np.argsort(items, kind="stable")
        self.queries, self.items = queries[order], items[order]

    def strike(self, scores_NB: Tensor, start: int, columns: np.ndarray) -> None:
        """Set the struck pairs to -inf in scores of items from `start` on; `columns` of each query, -1 = absent."""
        low, high = np.searchsorted(self.items, [start, start + len(scores_NB)])
        column = columns[self.queries[low:high]]
        flat = (self.items[low:high] - start) * scores_NB.shape[1] + column
        flat = flat[column >= 0]
        if len(flat):
            scores_NB.view(-1)[torch.from_numpy(flat).to(scores_NB.device)] = -math.inf


@dataclass
class _Tile:
    """Scores of items `start` to `stop` for the queries listed, in units of `units_B`, right to `margins_B`."""

    start: int
    stop: int
    queries_B: np.ndarray
    scores_NB: Tensor
    margins_B: np.ndarray
    units_B: np.ndarray | float

    def thresholds(self, values_B: np.ndarray, *, up: bool = False) -> Tensor:
        """float32 thresholds for `Flags`, never above the values (`up`: never below); none pass in the padding."""
        padded = np.full(self.scores_NB.shape[1], np.inf)
        padded[: len(values_B)] = values_B / self.units_B
        with np.errstate(over="ignore"):
            near = padded.astype(np.float32)
        wrong = near < padded if up else near > padded
        near[wrong] = np.nextafter(near[wrong], np.float32(np.inf if up else -np.inf))
        return torch.from_numpy(near).to(self.scores_NB.device)


def _blocks(queries: _Queries, items: ItemMatrix) -> Iterator[tuple[int, int]]:
    width = max(1, min(len(queries), _QUERIES))
    tile = _TILE_SCORES if items.device.type == "cpu" else _GPU_TILE_SCORES
    rows = max(min(_TILE_ROWS, tile), tile // width)
    rows = max(1, min(rows, _BLOCK_ELEMENTS // items.dim if items.device.type == "cpu" else rows))
    rows = 1 << (rows.bit_length() - 1)
    for start in range(0, items.num_items, rows):
        yield start, min(start + rows, items.num_items)


def _margins(queries: _Queries, items: ItemMatrix, norm: float, gap: float, query_gaps_B: np.ndarray) -> np.ndarray:
    # n: the D of the bound, and a few for the scales of an int8 product and the arithmetic of the margin itself.
    n = items.dim + 8
    gamma = n * 2.0**-24 / (1 - n * 2.0**-24)
    # The last term covers products below float32's normal range, flushed to zero or not.
    margins_B = queries.norms_B * (gamma * norm + gap) + query_gaps_B * norm + n * 2.0**-124
    return np.where(queries.norms_B == 0, 0.0, margins_B)


def _tiles(queries: _Queries, items: ItemMatrix, struck: _Struck) -> Iterator[_Tile]:
    """Scores by the stored copy, struck pairs at -inf, in ascending order of items; each block is read once."""
    if not len(queries):
        return
    codes_DB, scales_B, query_gaps_B = None, np.ones(len(queries)), np.zeros(len(queries))
    if items.codes(0, 1) is not None:
        codes_DB, scales_B, query_gaps_B = queries.int8()
    for start, stop in _blocks(queries, items):
        margins_B = _margins(queries, items, *items.bounds(start, stop), query_gaps_B)
        coded = items.codes(start, stop)
        block_ND = items.block(start, stop) if coded is None else None
        for first, last in queries.chunks():
            end = first + _QUERIES
            if coded is not None and codes_DB is not None:
                scores_NB = int8_product(*coded, codes_DB[:, first:end].contiguous())
            elif block_ND is not None:
                scores_NB = product(block_ND, queries.vectors_BD[first:end])
            columns = np.full(len(queries), -1)
            columns[first:last] = np.arange(last - first)
            struck.strike(scores_NB, start, columns)
            yield _Tile(start, stop, np.arange(first, last), scores_NB, margins_B[first:last], scales_B[first:last])


def _sharper(tile: _Tile, crowded: np.ndarray, queries: _Queries, items: ItemMatrix, struck: _Struck) -> _Tile:
    """The columns `crowded` of a tile again, by the vectors given."""
    chosen = tile.queries_B[crowded]
    some_BD = queries.vectors_BD[torch.from_numpy(np.pad(chosen, (0, -len(chosen) % WORD))).to(items.device)]
    scores_NB = product(items.given(tile.start, tile.stop), some_BD)
    columns = np.full(len(queries), -1)
    columns[chosen] = np.arange(len(chosen))
    struck.strike(scores_NB, tile.start, columns)
    norm, _ = items.bounds(tile.start, tile.stop)
    margins_B = _margins(queries, items, norm, 0.0, np.zeros(len(queries)))
    return _Tile(tile.start, tile.stop, chosen, scores_NB, margins_B[chosen], 1.0)


def _count_at_least(queries: _Queries, items: ItemMatrix, goals_B: np.ndarray, struck: _Struck) -> np.ndarray:
    """How many items that are not struck score at least `goals_B`, int64 `[B]`."""
    counts_B = np.zeros(len(queries), dtype=np.int64)
    near: list[tuple[np.ndarray, np.ndarray]] = []
    waiting, lossy = 0, items.is_lossy

    def settle() -> None:
        rows, ids = (np.concatenate(part) for part in zip(*near, strict=True))
        np.add.at(counts_B, rows, _reaches(queries, items, rows, ids, goals_B[rows]))

    for tile in _tiles(queries, items, struck):
        for again in (True, False):
            goals = goals_B[tile.queries_B]
            # Above the upper threshold an item surely reaches the goal, below the lower one it surely does not.
            maybe = Flags(tile.scores_NB, tile.thresholds(goals - tile.margins_B))
            sure = Flags(tile.scores_NB, tile.thresholds(goals + tile.margins_B, up=True))
            width = len(tile.queries_B)
            sure_B = sure.counts()[:width]
            open_B = maybe.counts()[:width] - sure_B
            crowded = open_B * _CROWD > tile.stop - tile.start
            if not (again and lossy and crowded.any()):
                crowded = np.zeros(width, dtype=bool)
            counts_B[tile.queries_B] += np.where(crowded, 0, sure_B)
            if open_B.any():
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
            tile = _sharper(tile, crowded, queries, items, struck)
    if near:
        settle()
    return counts_B


def _top_k(queries: _Queries, items: ItemMatrix, k: int, struck: _Struck) -> tuple[np.ndarray, np.ndarray]:
    """Ids and float64 scores `[B, k]` of the best items that are not struck."""
    best_BK = np.full((len(queries), k), -np.inf)
    ids_BK = np.full((len(queries), k), -1, dtype=np.int64)
    for tile in _tiles(queries, items, struck):
        width, rows = len(tile.queries_B), tile.stop - tile.start
        # Blocks come in order of id, so an item that only ties with the k-th best so far loses to it: strictly above.
        bar_B = tile.thresholds(best_BK[tile.queries_B, -1] - tile.margins_B)
        bar_B = torch.nextafter(bar_B, torch.full_like(bar_B, math.inf))
        flags = Flags(tile.scores_NB, bar_B)
        if k < rows and flags.total() > 2 * k * width:
            # k items of this block score at least the k-th of its scores here less the margin.
            kth_B = torch.topk(tile.scores_NB.T[:width], k, dim=1).values[:, -1].double().cpu().numpy()
            floor_B = tile.thresholds(kth_B * tile.units_B - 2 * tile.margins_B)
            flags = Flags(tile.scores_NB, torch.maximum(bar_B, floor_B))
        found, column = flags.where()
        if not len(found):
            continue
        order = np.argsort(column, kind="stable")
        line, found = tile.queries_B[column[order]], found[order] + tile.start
        scores = _pair_scores(queries, items, line, found)
        # Candidates of each query side by side, behind its best so far; a stable sort then keeps lower ids first.
        touched, begin, count = np.unique(line, return_index=True, return_counts=True)
        place = (np.repeat(np.arange(len(touched)), count), np.arange(len(line)) - np.repeat(begin, count))
        new = np.full((len(touched), int(count.max())), -np.inf)
        new_ids = np.full(new.shape, -1, dtype=np.int64)
        new[place], new_ids[place] = scores, found
        new = np.concatenate([best_BK[touched], new], axis=1)
        new_ids = np.concatenate([ids_BK[touched], new_ids], axis=1)
        order = np.argsort(-new, axis=1, kind="stable")[:, :k]
        best_BK[touched] = np.take_along_axis(new, order, axis=1)
        ids_BK[touched] = np.take_along_axis(new_ids, order, axis=1)
    return ids_BK, best_BK


@one_core()
def _reaches(queries: _Queries, items: ItemMatrix, rows: np.ndarray, ids: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Whether the score proper of query `rows[i]` and item `ids[i]` is at least `goals[i]`, bool `[M]`.

    float32 products added in float64 settle nearly all; their margin is D times narrower than the tile's.
    """
    sums = np.empty(len(rows))
    step = max(1, _PAIR_ELEMENTS // items.dim)
    for i in range(0, len(rows), step):
        products_MD = items.rows(torch.from_numpy(ids[i : i + step])).float()
        products_MD *= queries.vectors_BD.index_select(0, torch.from_numpy(rows[i : i + step]).to(items.device))
        sums[i : i + step] = products_MD.sum(1, dtype=torch.float64).cpu().numpy()
    margins = queries.norms_B[rows] * items.norms(ids) * (2.0**-24 + items.dim * 2.0**-50) + items.dim * 2.0**-124
    reached = sums >= goals
    unsure = np.flatnonzero(np.abs(sums - goals) <= margins)
    if len(unsure):
        reached[unsure] = _pair_scores(queries, items, rows[unsure], ids[unsure]) >= goals[unsure]
    return reached


@one_core()
def _pair_scores(queries: _Queries, items: ItemMatrix, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The score proper of query `rows[i]` and item `ids[i]`, float64 `[M]`.

    Products are added by halves: x[:h] + x[h:], again and again. Separate element-wise operations in IEEE float64
    give the same bits on every device and for every M; a library's sum or product does not.
    """
    scores = np.empty(len(rows))
    step = max(1, _PAIR_ELEMENTS // items.dim)
    for i in range(0, len(rows), step):
        products_MD = items.rows(torch.from_numpy(ids[i : i + step])).double()
        products_MD *= queries.vectors_BD.index_select(0, torch.from_numpy(rows[i : i + step]).to(items.device))
        width = items.dim
        while width > 1:
            half = width // 2
            products_MD[:, :half] += products_MD[:, width - half : width]
            width -= half
        scores[i : i + step] = products_MD[:, 0].cpu().numpy()
    return scores


def _ids(values: Tensor | Sequence[int], items: ItemMatrix, what: str) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(f"{what} ids must be a list of integers, got {array.dtype} of shape {list(array.shape)}")
    outside = (array < 0) | (array >= items.num_items)
    if outside.any():
        raise DataError(f"{what} id {array[outside][0]} is outside the catalogue of {items.num_items} items")
    return array.astype(np.int64)


def _one_each(values: Tensor, queries: _Queries, items: ItemMatrix) -> np.ndarray:
    ids = _ids(values, items, "target")
    if len(ids) != len(queries):
        raise DataError(f"{len(ids)} targets for {len(queries)} queries")
    return ids


def _flatten(lists: Ids | None, queries: _Queries, items: ItemMatrix) -> tuple[np.ndarray, np.ndarray]:
    if lists is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if len(lists) != len(queries):
        raise DataError(f"{len(lists)} lists of masked items for {len(queries)} queries")
    ids = _ids(list(chain.from_iterable(lists)), items, "masked item")
    return np.repeat(np.arange(len(queries)), [len(one) for one in lists]), ids
