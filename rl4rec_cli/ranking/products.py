"""Tiles of scores: the products that fill them and the comparisons that read them.

Decides: which library multiplies, and how a tile is compared with one threshold for each column. Hides: oneDNN, int8
products, float64 ones by blocks of items, counting eight flags at a time. Nothing here decides a rank: a product may
add in any order, and what it gets wrong is bounded in `ranking`, so a faster product may be put in at will.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.ranking.item_matrix import ItemMatrix
from rl4rec_cli.ranking.threads import FEW

WORD = 8
"""Widths of tiles are multiples of this: flags are counted and searched eight at a time."""
_ROW_FLAGS = 4096
_DOUBLES, _WIDENED = 1 << 20, 1 << 20
"""float64 products, and numbers of item vectors widened to float64, that are held at a time."""


@cache
def _has_onednn() -> bool:
    try:
        one = torch.ones(1, 1)
        return float(torch.ops.mkldnn._linear_pointwise(one, one, None, "none", [], "")) == 1.0
    except (AttributeError, RuntimeError):
        return False


def product(block_ND: Tensor, queries_BD: Tensor) -> Tensor:
    """float32 scores `[N, B]`.

    oneDNN where it is there: the library behind `torch.matmul` on the CPU is half as fast on AMD processors.
    """
    if block_ND.device.type == "cpu" and _has_onednn():
        scores_NB: Tensor = torch.ops.mkldnn._linear_pointwise(block_ND, queries_BD, None, "none", [], "")
        return scores_NB
    return block_ND @ queries_BD.T


def double_products(queries_QD: Tensor, items: ItemMatrix) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields blocks of items and their float64 products with the queries, `[Q, M]`.

    Args:
        queries_QD: float64.
    """
    step = max(1, min(_DOUBLES // max(1, len(queries_QD)), _WIDENED // items.dim))
    for start in range(0, items.num_items, step):
        block = slice(start, min(start + step, items.num_items))
        yield block, (queries_QD @ items.given(block.start, block.stop).double().T).cpu().numpy()


def double_errors(lengths_Q: np.ndarray, items: ItemMatrix) -> np.ndarray:
    """What `double_products` may be off the scores proper, by the queries' lengths."""
    # Twice the bound of a product in float64, whose exact counterpart errs by less; D and some for the rest.
    norm, _ = items.bounds(0, items.num_items)
    errors_Q: np.ndarray = 2 * (items.dim + 8) * 2.0**-53 * lengths_Q * norm + items.dim * 2.0**-1000
    return errors_Q


@cache
def int8_pays() -> bool:
    """Whether products of int8 codes are quick on this processor, and exact.

    Without VNNI torch multiplies number by number (pytorch/pytorch#136942). Where oneDNN is held to older instructions
    (`ONEDNN_MAX_CPU_ISA`), which torch does not notice, it adds in 16 bits, and large sums are cut.
    """
    if not torch.cpu._is_vnni_supported():
        return False
    largest_ND = torch.full((64, 64), 127, dtype=torch.int8)
    return bool(torch._int_mm(largest_ND, largest_ND).eq(64 * 127 * 127).all())


def int8_product(codes_ND: Tensor, scale_N: Tensor, codes_DB: Tensor) -> Tensor:
    """Products of int8 codes, exact in int32, times `scale_N`: float32 `[N, B]`."""
    return torch._int_mm(codes_ND, codes_DB).float().mul_(scale_N[:, None])


def reached_by(scores_NB: Tensor, k: int) -> Tensor:
    """A score that at least k of the N > k rows reach, near the k-th best, in each column: float32 `[B]`.

    The k-th best of the maxima of some 8 k groups of rows: one reading of the tile, where a selection takes many.
    """
    size = max(1, len(scores_NB) // (8 * k))
    groups = len(scores_NB) // size
    peaks_GB = scores_NB[: groups * size].view(size, groups, -1).amax(0)
    return torch.topk(peaks_GB, k, dim=0).values[-1]


def long_row(thresholds_B: np.ndarray, rows: int) -> np.ndarray:
    """Thresholds repeated for as many of the rows as `Flags` compares at once.

    A comparison row by row of a narrow tile spends its time on starting rows.
    """
    fold = 1
    while rows % (2 * fold) == 0 and 2 * fold * len(thresholds_B) <= _ROW_FLAGS:
        fold *= 2
    return np.tile(thresholds_B, fold)


class Flags:
    """Which scores of a tile `[N, B]` reach their column's threshold (`long_row` of B thresholds; both float32)."""

    def __init__(self, scores_NB: Tensor, thresholds: np.ndarray) -> None:
        self._width = scores_NB.shape[1]
        # Eight flags, one byte each, are one int64. numpy compares and counts faster than torch does on one core.
        self._words: np.ndarray | Tensor
        if scores_NB.device.type == "cpu" and torch.get_num_threads() <= FEW:
            self._words = np.greater_equal(scores_NB.numpy().reshape(-1, len(thresholds)), thresholds).view(np.int64)
        else:
            wide = scores_NB.view(-1, len(thresholds))
            self._words = (wide >= torch.from_numpy(thresholds).to(wide.device)).view(torch.int64)

    def total(self) -> int:
        """Flags set."""
        if isinstance(self._words, np.ndarray):
            return int(np.count_nonzero(self._words.view(np.bool_)))
        return int(self._words.view(torch.bool).sum())

    def counts(self) -> np.ndarray:
        """Flags set in each column, int64 `[B]`."""
        # Up to 255 words add up without a carry from byte to byte.
        if isinstance(self._words, np.ndarray):
            words = self._words
            parts = [words[i : i + 255].sum(0).view(np.uint8) for i in range(0, len(words), 255)]
            return np.concatenate(parts).reshape(-1, self._width).sum(0, dtype=np.int64)
        sums = [some.sum(0).view(torch.uint8) for some in self._words.split(255)]
        total_B: np.ndarray = torch.cat(sums).view(-1, self._width).sum(0).cpu().numpy()
        return total_B

    def where(self, but: Flags | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the flags set here and not in `but` (whose flags are all set here too)."""
        words = self._words if but is None else self._words ^ but._words
        if isinstance(words, np.ndarray) or words.device.type == "cpu":
            words = np.asarray(words).reshape(-1)
            # numpy skips zeros of a bool array many at a time, those of other types one by one.
            places = np.flatnonzero(words != 0)
            hits = words[places]
        else:
            nonzero = words.view(-1).nonzero()[:, 0]
            places, hits = nonzero.cpu().numpy(), words.view(-1)[nonzero].cpu().numpy()
        word, byte = np.nonzero(hits.view(np.bool_).reshape(-1, WORD))
        return np.divmod(places[word] * WORD + byte, self._width)
