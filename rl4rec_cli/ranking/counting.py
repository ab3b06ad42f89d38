"""How many items reach each query's goal: by tiles of scores, or on a GPU by a kernel that keeps none.

Decides: which of the two counts, what is settled by the error bound (see `ranking`) and what is scored again. Both give
the same counts, to the last one: on a GPU each size of work is done by both once, and from then on by the quicker.
Hides: `count_kernel`, Triton.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import torch

from rl4rec_cli import console
from rl4rec_cli.errors import Rl4RecError
from rl4rec_cli.ranking.blocks import Block, Mask, Scan, Thresholds, Tile, blocks_of, error_bounds, rounded
from rl4rec_cli.ranking.exact_scores import reaches
from rl4rec_cli.ranking.item_matrix import GRANULE, ItemMatrix
from rl4rec_cli.ranking.products import Flags

_NEAR_PAIRS = 1 << 14
# Above one near item in so many, a product over the whole block from the vectors given is cheaper than pairs.
_CROWD = 128
# Scores of a call of the kernel, and near pairs that it may list: more than a crowd of every text.
_RANGE_SCORES, _ROOM = 1 << 26, 1 << 20
# Scores; with fewer nothing is to be won that is worth compiling a kernel, or timing it.
_WORTH = 1 << 22

_quicker: dict[tuple[object, ...], bool] = {}
"""By size of work and device, whether the kernel is."""


def count(scan: Scan, target_scores_B: np.ndarray) -> np.ndarray:
    """How many unmasked items score at least `target_scores_B`, int64 `[B]`."""
    kernel = _kernel(scan.items, len(target_scores_B))
    if kernel is None:
        return count_by_tiles(scan, target_scores_B)
    # Texts of a batch differ a little from step to step (repeated texts are ranked once).
    work = (
        scan.items.device,
        scan.items.storage,
        scan.items.num_items,
        scan.items.dim,
        len(target_scores_B).bit_length(),
    )
    if work not in _quicker:
        _quicker[work] = _try_both(kernel, scan, target_scores_B)
    return _fused(kernel, scan, target_scores_B) if _quicker[work] else count_by_tiles(scan, target_scores_B)


def count_by_tiles(scan: Scan, target_scores_B: np.ndarray) -> np.ndarray:
    """As `count`, by tiles of scores, whatever the device."""
    counts_B = np.zeros(len(target_scores_B), dtype=np.int64)
    for some_B in scan.share_out(lambda blocks: _count_tiles(scan, blocks, target_scores_B)):
        counts_B += some_B
    return counts_B


def _count_tiles(scan: Scan, blocks: Iterator[Block], target_scores_B: np.ndarray) -> np.ndarray:
    counter = _Counter(scan, target_scores_B)
    for tile in scan.tiles(blocks):
        crowded = counter.add(tile, may_leave=scan.items.is_lossy)
        if len(crowded):
            counter.add(scan.sharper(tile.start, tile.stop, crowded), may_leave=False)
    return counter.counts()


class _Counter:
    """Adds up what tiles hold; near-ties wait until they are many."""

    def __init__(self, scan: Scan, target_scores_B: np.ndarray) -> None:
        self._scan, self._target_scores_B = scan, target_scores_B
        self._counts_B = np.zeros(len(target_scores_B), dtype=np.int64)
        self._near: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting = 0
        self._thresholds = Thresholds(
            lambda tile: (
                # Above the upper threshold an item surely reaches the goal, below the lower one it surely does not.
                tile.thresholds(target_scores_B[tile.queries_B] - tile.margins_B),
                tile.thresholds(target_scores_B[tile.queries_B] + tile.margins_B, up=True),
            )
        )

    def add(self, tile: Tile, *, may_leave: bool) -> np.ndarray:
        """Count a tile.

        Args:
            may_leave: leave out queries that have too many near items.

        Returns:
            The queries left out.
        """
        low, high = self._thresholds.of(tile)
        maybe, sure = Flags(tile.scores_NB, low), Flags(tile.scores_NB, high)
        width = len(tile.queries_B)
        sure_B = sure.counts()[:width]
        crowded = np.zeros(width, dtype=bool)
        if may_leave:
            crowded = (maybe.counts()[:width] - sure_B) * _CROWD > tile.stop - tile.start
            sure_B[crowded] = 0
        self._counts_B[tile.queries_B] += sure_B
        rows, column = maybe.where(but=sure)
        if may_leave:
            keep = ~crowded[column]
            rows, column = rows[keep], column[keep]
        self.settle(tile.queries_B[column], rows + tile.start)
        return tile.queries_B[crowded]

    def settle(self, queries: np.ndarray, ids: np.ndarray) -> None:
        """Score single pairs, now or later, and count those that reach the goal."""
        self._near.append((queries, ids))
        self._waiting += len(ids)
        if self._waiting > _NEAR_PAIRS:
            self._settle_all()

    def _settle_all(self) -> None:
        queries, ids = (np.concatenate(part) for part in zip(*self._near, strict=True))
        reached = self._scan.reaches(queries, ids, self._target_scores_B[queries])
        np.add.at(self._counts_B, queries, reached)
        self._near.clear()
        self._waiting = 0

    def counts(self) -> np.ndarray:
        if self._near:
            self._settle_all()
        return self._counts_B


def _kernel(items: ItemMatrix, texts: int) -> ModuleType | None:
    """The kernel's module, where it may run and the work is worth it."""
    if items.device.type != "cuda" or texts * items.num_items < _WORTH or importlib.util.find_spec("triton") is None:
        return None
    # Triton 3.7.1 cannot compile it for this generation but with float32.
    if torch.cuda.get_device_capability(items.device)[0] == 10 and items.storage != "fp32":
        return None
    from rl4rec_cli.ranking import triton_count

    return triton_count


def _fused(kernel: ModuleType, scan: Scan, target_scores_B: np.ndarray) -> np.ndarray:
    """By the kernel; masked items are counted first, and then taken off by their own scores."""
    items, queries, texts = scan.items, scan.queries, len(target_scores_B)
    whole = Scan(queries, items, Mask.nothing(), 1)
    counter, counts_B = _Counter(whole, target_scores_B), np.zeros(texts, dtype=np.int64)
    for start, stop in _ranges(items, texts):
        margins_B = error_bounds(queries, items, *items.bounds(start, stop), np.zeros(texts))
        thresholds = (rounded(target_scores_B - margins_B), rounded(target_scores_B + margins_B, up=True))
        low_B, high_B = (torch.from_numpy(row).to(items.device) for row in thresholds)
        counted = kernel.count_range(
            *items.stored(), queries.vectors_BD, low_B, high_B, start=start, stop=stop, room=_ROOM
        )
        if counted.pairs_M is None:  # ties everywhere
            counts_B += _count_tiles(whole, iter(blocks_of(queries, items, 1, (start, stop))), target_scores_B)
            continue
        sure_B, near_B = (part.cpu().numpy().astype(np.int64) for part in (counted.sure_B, counted.near_B))
        crowded = items.is_lossy & (near_B * _CROWD > stop - start)
        counts_B += np.where(crowded, 0, sure_B)
        row, column = np.divmod(counted.pairs_M.cpu().numpy(), texts)
        keep = ~crowded[column]
        counter.settle(column[keep], row[keep] + start)
        if crowded.any():
            for block in blocks_of(queries, items, 1, (start, stop)):
                counter.add(whole.sharper(*block, np.flatnonzero(crowded)), may_leave=False)
    counts_B += counter.counts()
    # An item may be listed twice.
    rows_M, ids_M = np.unique(np.stack([scan.mask.queries, scan.mask.items]), axis=1)
    np.subtract.at(counts_B, rows_M, reaches(queries, items, rows_M, ids_M, target_scores_B[rows_M]))
    return counts_B


def _ranges(items: ItemMatrix, texts: int) -> list[Block]:
    rows = max(GRANULE, _RANGE_SCORES // max(1, texts) // GRANULE * GRANULE)
    return [(start, min(start + rows, items.num_items)) for start in range(0, items.num_items, rows)]


def _try_both(kernel: ModuleType, scan: Scan, target_scores_B: np.ndarray) -> bool:
    """Whether the kernel is quicker at this work, on this device; said once."""
    items = scan.items
    work = f"{len(target_scores_B):,} texts x {items.num_items:,} items x {items.dim} dimensions, {items.storage}"

    def seconds(way: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
        counts_B = way()  # compiles, and wakes libraries
        torch.cuda.synchronize(items.device)
        begin = time.perf_counter()
        way()
        torch.cuda.synchronize(items.device)
        return time.perf_counter() - begin, counts_B

    try:
        fused, ours_B = seconds(lambda: _fused(kernel, scan, target_scores_B))
    except Rl4RecError:
        raise
    except Exception as error:  # whatever Triton lacks here: a compiler, a driver, support of this GPU
        reason = " ".join(str(error).split())[:200]
        console.log(
            f"Ranking by tiles of scores: the fused kernel does not run here ({type(error).__name__}: {reason})"
        )
        return False
    tiles, theirs_B = seconds(lambda: count_by_tiles(scan, target_scores_B))
    if not np.array_equal(ours_B, theirs_B):
        console.log(f"Ranking by tiles of scores: the fused kernel counts otherwise ({work}); please report it")
        return False
    chosen = "the fused kernel" if fused < tiles else "tiles"
    console.log(f"Ranking {work}: {chosen} (fused kernel {fused * 1e3:.1f} ms, tiles {tiles * 1e3:.1f} ms)")
    return fused < tiles
