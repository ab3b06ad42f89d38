"""Tiles of scores: the products that fill them and the comparisons that read them.

Decides: which library multiplies, and how a tile is compared with one threshold for each column. Hides: oneDNN, int8
products, counting eight flags at a time. Nothing here decides a rank: a product may add in any order, and what it gets
wrong is bounded in `ranking`, so a faster product may be put in at will.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

WORD = 8
"""Widths of tiles are multiples of this: flags are counted and searched eight at a time."""
_ROW_FLAGS = 4096
_FEW_THREADS = 4


@contextmanager
def strict_products() -> Iterator[None]:
    """No autograd, no autocast, no TF32 or bf16 inside float32 products: the error bound counts on it.

    The precision setting is global to the process; it is put back afterwards.
    """
    # The per-backend settings: the older `get_float32_matmul_precision` raises once a caller has used the newer ones.
    mkldnn: Any = torch.backends.mkldnn
    backends = (mkldnn.matmul, torch.backends.cuda.matmul)
    before = [backend.fp32_precision for backend in backends]
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        try:
            for backend in backends:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, value in zip(backends, before, strict=True):
                backend.fp32_precision = value


@contextmanager
def one_core() -> Iterator[None]:
    """Small operations on one core where there are few.

    Shared out over two cores they gain little, and where other work keeps one core busy each of them waits for a turn
    on it (8 ms were measured, for microseconds of work).
    """
    threads = torch.get_num_threads()
    if 1 < threads <= _FEW_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if 1 < threads <= _FEW_THREADS:
            torch.set_num_threads(threads)


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


def int8_product(codes_ND: Tensor, scale_N: Tensor, codes_DB: Tensor) -> Tensor:
    """Products of int8 codes, exact in int32, times `scale_N`: float32 `[N, B]`."""
    products_NB = torch._int_mm(codes_ND, codes_DB)
    with one_core():
        return products_NB.float().mul_(scale_N[:, None])


class Flags:
    """Which scores of a tile `[N, B]` reach their column's threshold (`[B]`; both float32)."""

    def __init__(self, scores_NB: Tensor, thresholds_B: Tensor) -> None:
        rows, width = scores_NB.shape
        # Long rows: a comparison row by row of a narrow tile spends its time on starting rows.
        fold = 1
        while rows % (2 * fold) == 0 and 2 * fold * width <= _ROW_FLAGS:
            fold *= 2
        self._width = width
        wide, thresholds = scores_NB.view(rows // fold, fold * width), thresholds_B.repeat(fold)
        # One core reads a tile about as fast as a few together, and never waits for one that is busy elsewhere.
        self._alone = scores_NB.device.type == "cpu" and torch.get_num_threads() <= _FEW_THREADS
        if self._alone:
            flags = torch.from_numpy(np.greater_equal(wide.numpy(), thresholds.numpy()))
        else:
            flags = wide >= thresholds
        # Eight flags, one byte each, are one int64.
        self._words = flags.view(torch.int64)

    def total(self) -> int:
        """Flags set."""
        if self._alone:
            return int(np.count_nonzero(self._words.numpy().view(np.bool_)))
        return int(self._words.view(torch.bool).sum())

    def counts(self) -> np.ndarray:
        """Flags set in each column, int64 `[B]`."""
        # Up to 255 words add up without a carry from byte to byte.
        if self._alone:
            words = self._words.numpy()
            parts = [words[i : i + 255].sum(0).view(np.uint8) for i in range(0, len(words), 255)]
            return np.concatenate(parts).reshape(-1, self._width).sum(0, dtype=np.int64)
        sums = [some.sum(0).view(torch.uint8) for some in self._words.split(255)]
        total_B: np.ndarray = torch.cat(sums).view(-1, self._width).sum(0).cpu().numpy()
        return total_B

    def where(self, but: Flags | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the flags set here and not in `but` (whose flags are all set here too)."""
        if self._words.device.type == "cpu":
            words = self._words.numpy().reshape(-1)
            if but is not None:
                words = words ^ but._words.numpy().reshape(-1)
            found = np.flatnonzero(words)
            hits = words[found]
        else:
            on_device = (self._words if but is None else self._words ^ but._words).reshape(-1)
            nonzero = on_device.nonzero()[:, 0]
            found, hits = nonzero.cpu().numpy(), on_device[nonzero].cpu().numpy()
        word, byte = np.nonzero(hits.view(np.uint8).reshape(-1, WORD))
        place = found[word] * WORD + byte
        return place // self._width, place % self._width
