"""One reading of the catalogue: blocks of items, shared out over cores, and the tiles of scores they make.

Decides: how large a block is, what the scores of a tile may be wrong by (see `ranking` for why), and which pairs are
left out. Hides: storage types, and what can be kept from one tile to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.ranking.exact_scores import QUERIES, Queries, exact_scores, reaches
from rl4rec_cli.ranking.item_matrix import GRANULE, ItemMatrix
from rl4rec_cli.ranking.products import WORD, int8_pays, int8_product, long_row, product
from rl4rec_cli.ranking.threads import one_core, share_out

_TILE_SCORES = 1 << 18
_GPU_TILE_SCORES = 1 << 23
_TILE_ROWS = 1 << 10
_BLOCK_ELEMENTS = 1 << 22
# Multiplications; fewer are over in about a millisecond, threads take a tenth of one to start. To read an item costs
# about as much as to multiply it with so many queries.
_SHARED_WORK = 1 << 27
_READING = 56
# Scores; with fewer, torch shares out each product. Its threads spin for some 5 ms after their last work, that of the
# embedder say, and ours wait for the core. The comparisons, which torch's way leaves to one core, take as long for
# this many.
_SHARED_SCORES = 1 << 23

Block = tuple[int, int]
Result = TypeVar("Result")


class Mask:
    """(query, item) pairs that must not be counted, handed out block by block."""

    def __init__(self, queries: np.ndarray, items: np.ndarray) -> None:
        order = np.argsort(items, kind="stable")
        self.queries, self.items = queries[order], items[order]

    @classmethod
    def nothing(cls) -> Mask:
        none = np.zeros(0, dtype=np.int64)
        return cls(none, none)

    def apply(self, tile: Tile) -> None:
        """Set the masked pairs of a tile to -inf."""
        if not len(self.items):
            return
        low, high = np.searchsorted(self.items, [tile.start, tile.stop])
        if low == high:
            return
        column = np.searchsorted(tile.queries_B, self.queries[low:high])
        here = tile.queries_B[np.minimum(column, len(tile.queries_B) - 1)] == self.queries[low:high]
        flat = ((self.items[low:high] - tile.start) * tile.scores_NB.shape[1] + column)[here]
        tile.scores_NB.view(-1).index_fill_(0, torch.from_numpy(flat).to(tile.scores_NB.device), -math.inf)


@dataclass
class Tile:
    """Scores of items `start` to `stop` for the queries listed, in units of `units_B`, right to `margins_B`."""

    start: int
    stop: int
    scores_NB: Tensor
    queries_B: np.ndarray
    margins_B: np.ndarray
    units_B: np.ndarray

    def thresholds(self, values_B: np.ndarray, *, up: bool = False) -> np.ndarray:
        """float32 thresholds for `Flags`, never above the values (`up`: never below); none pass in the padding."""
        padded = np.full(self.scores_NB.shape[1], np.inf)
        padded[: len(values_B)] = values_B / self.units_B
        return long_row(rounded(padded, up=up), len(self.scores_NB))


def rounded(values: np.ndarray, *, up: bool = False) -> np.ndarray:
    """The nearest float32 that is not above the float64 values (`up`: not below)."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    wrong = near < values if up else near > values
    near[wrong] = np.nextafter(near[wrong], np.float32(np.inf if up else -np.inf))
    return near


class Thresholds:
    """Thresholds of a tile, made anew only where its margins, or its rows, are not those of the one before."""

    def __init__(self, make: Callable[[Tile], tuple[np.ndarray, ...]]) -> None:
        self._make = make
        self.forget()

    def forget(self) -> None:
        self._known: dict[int, tuple[np.ndarray, int, tuple[np.ndarray, ...]]] = {}

    def of(self, tile: Tile) -> tuple[np.ndarray, ...]:
        first, rows = int(tile.queries_B[0]), len(tile.scores_NB)
        margins_B, known_rows, thresholds = self._known.get(first, (None, 0, ()))
        if margins_B is not tile.margins_B or rows != known_rows:
            thresholds = self._make(tile)
            self._known[first] = tile.margins_B, rows, thresholds
        return thresholds


@contextmanager
def worker_threads(queries: int, items: ItemMatrix) -> Iterator[int]:
    """How many threads of ours take blocks; 1 where torch's own share out each product, or one core does it all."""
    work, scores = (queries + _READING) * items.num_items * items.dim, queries * items.num_items
    on_cpu = items.device.type == "cpu"
    if on_cpu and work >= _SHARED_WORK and scores < _SHARED_SCORES:
        yield 1
        return
    with one_core() as threads:
        yield threads if on_cpu and work >= _SHARED_WORK else 1


class Scan:
    """One reading of the catalogue: its blocks, shared out over `cores`, and the tiles of scores they make."""

    def __init__(self, queries: Queries, items: ItemMatrix, mask: Mask, cores: int) -> None:
        self.queries, self.items, self.mask, self._cores = queries, items, mask, cores
        self._codes_DB, self._scales_B, self._gaps_B = None, np.ones(len(queries)), np.zeros(len(queries))
        if len(queries) and items.codes(0, 1) is not None and int8_pays():
            self._codes_DB, self._scales_B, self._gaps_B = queries.int8()

    def __len__(self) -> int:
        """How many columns its tiles have: queries, or users whose queries are fused."""
        return len(self.queries)

    def exact(self, columns: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The scores proper of single pairs, float64 `[M]`."""
        return exact_scores(self.queries, self.items, columns, ids)

    def reaches(self, columns: np.ndarray, ids: np.ndarray, target_scores: np.ndarray) -> np.ndarray:
        """Whether the scores proper of single pairs are at least `target_scores`, bool `[M]`."""
        return reaches(self.queries, self.items, columns, ids, target_scores)

    def share_out(self, work: Callable[[Iterator[Block]], Result]) -> list[Result]:
        """`work` in each core's thread, on some of the blocks, ascending; each block goes to one of them."""
        blocks = blocks_of(self.queries, self.items, self._cores) if len(self.queries) else []
        return share_out(blocks, work, min(self._cores, max(1, len(blocks))))

    def tiles(self, blocks: Iterator[Block]) -> Iterator[Tile]:
        """Scores by the stored copy, masked pairs at -inf; each block is read once for all queries."""
        items, vectors_BD, codes_DB = self.items, self.queries.vectors_BD, self._codes_DB
        known: tuple[float, float] | None = None
        for start, stop in blocks:
            bounds = items.bounds(start, stop)
            if bounds != known:
                known, margins_B = bounds, error_bounds(self.queries, items, *bounds, self._gaps_B)
                columns = [
                    (np.arange(*c), margins_B[slice(*c)], self._scales_B[slice(*c)]) for c in self.queries.chunks()
                ]
            coded = items.codes(start, stop) if codes_DB is not None else None
            block_ND = items.block(start, stop) if coded is None else None
            for chunk in columns:
                first = int(chunk[0][0])
                if coded is not None and codes_DB is not None:
                    scores_NB = int8_product(*coded, codes_DB[:, first : first + QUERIES].contiguous())
                elif block_ND is not None:
                    scores_NB = product(block_ND, vectors_BD[first : first + QUERIES])
                tile = Tile(start, stop, scores_NB, *chunk)
                self.mask.apply(tile)
                yield tile
            block_ND = None  # a copy where the storage is none of fp32; the next would be made beside it

    def sharper(self, start: int, stop: int, chosen: np.ndarray) -> Tile:
        """Items `start` to `stop` for the queries `chosen`, by the vectors given."""
        padded = torch.from_numpy(np.pad(chosen, (0, -len(chosen) % WORD))).to(self.items.device)
        scores_NB = product(self.items.given(start, stop), self.queries.vectors_BD[padded])
        norm, _ = self.items.bounds(start, stop)
        margins_B = error_bounds(self.queries, self.items, norm, 0.0, np.zeros(len(self.queries)))
        again = Tile(start, stop, scores_NB, chosen, margins_B[chosen], np.ones(len(chosen)))
        self.mask.apply(again)
        return again


def blocks_of(queries: Queries, items: ItemMatrix, cores: int, within: Block | None = None) -> list[Block]:
    """First item, and the one behind the last, of each block (of those `within`)."""
    width = max(1, min(len(queries), QUERIES))
    on_cpu = items.device.type == "cpu"
    tile = _TILE_SCORES if on_cpu else _GPU_TILE_SCORES
    rows = max(min(_TILE_ROWS, tile), tile // width)
    rows = max(1, min(rows, _BLOCK_ELEMENTS // items.dim if on_cpu else rows))
    rows = 1 << (rows.bit_length() - 1)
    if cores > 1:
        # As many blocks for each core, of about one size, and at least two, lest a slow core keep the others waiting.
        turns = max(2, -(-items.num_items // (rows * cores)))
        rows = min(rows, -(-items.num_items // (turns * cores * GRANULE)) * GRANULE)
    first, last = (0, items.num_items) if within is None else within
    return [(start, min(start + rows, last)) for start in range(first, last, rows)]


def error_bounds(queries: Queries, items: ItemMatrix, norm: float, gap: float, query_gaps_B: np.ndarray) -> np.ndarray:
    """What a score may be wrong by (see `ranking`), float64 `[B]`.

    Args:
        norm: at least that of every item.
        gap: at least every item's distance of the stored copy from the vector given.
        query_gaps_B: the same of the queries, where an int8 product takes a copy of them.
    """
    # n: the D of the bound, and a few for the scales of an int8 product and the arithmetic of the margin itself.
    n = items.dim + 8
    gamma = n * 2.0**-24 / (1 - n * 2.0**-24)
    # The last term covers products below float32's normal range, flushed to zero or not.
    margins_B = queries.norms_B * (gamma * norm + gap) + query_gaps_B * norm + n * 2.0**-124
    return np.where(queries.norms_B == 0, 0.0, margins_B)
