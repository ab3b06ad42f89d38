"""The catalogue's vectors and the copy of them that ranking reads first.

Decides: how a compact copy of the vectors is made, and how far it may lie from them. Hides: storage types, devices.

One rule holds for every storage: results are exact with respect to *the vectors given*, as float32. A compact copy
(`fp16`, `int8`) decides only what is clear. The vectors given decide the rest: they are kept by reference, in memory or
in a memory-mapped file. Storage therefore changes speed and memory, never a rank.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.errors import EmbeddingError

Storage = Literal["fp32", "fp16", "int8"]

GRANULE = 256
"""Rows that share one pair of bounds."""
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8}
_STREAM_ELEMENTS = 1 << 20
_MAX_NORM = 1e19


class ItemMatrix:
    """The catalogue's vectors, `[N, D]`.

    Args:
        vectors_ND: floating point, rounded to float32. Kept by reference, so do not change them afterwards.
        storage: type of the copy that ranking reads first; `fp32` makes no copy on the device of the vectors.
        device: where products are computed; that of the vectors by default.

    Attributes:
        num_items: N.
        dim: D.
        vectors_ND: float32; with `fp32` on `device`, else where they were.

    Raises:
        EmbeddingError: wrong shape or type, or a row that is not finite or does not fit the storage (named).
    """

    def __init__(
        self, vectors_ND: Tensor, *, storage: Storage = "fp32", device: str | torch.device | None = None
    ) -> None:
        if storage not in _DTYPES:
            raise EmbeddingError(f"unknown storage {storage!r}", hint=f"one of {', '.join(_DTYPES)}")
        if vectors_ND.ndim != 2 or 0 in vectors_ND.shape:
            raise EmbeddingError(f"item embeddings must be [items, dimensions], got {list(vectors_ND.shape)}")
        if not vectors_ND.is_floating_point():
            raise EmbeddingError(f"item embeddings must be floating point, got {vectors_ND.dtype}")
        self.num_items, self.dim = vectors_ND.shape
        # With its index: the current device of another thread may be another one.
        self.device = torch.empty(0, device=device or vectors_ND.device).device
        self.storage: Storage = storage
        vectors_ND = vectors_ND.detach().float().contiguous()
        self.vectors_ND = vectors_ND.to(self.device) if storage == "fp32" else vectors_ND
        self._coarse_ND, self._scale_N = self.vectors_ND, None
        if storage != "fp32":
            self._coarse_ND = torch.empty(self.num_items, self.dim, dtype=_DTYPES[storage], device=self.device)
        if storage == "int8":
            self._scale_N = torch.empty(self.num_items, dtype=torch.float32, device=self.device)
        granules = -(-self.num_items // GRANULE)
        self._norms, self._gaps = np.zeros(granules), np.zeros(granules)
        step = max(1, _STREAM_ELEMENTS // self.dim // GRANULE) * GRANULE
        for start in range(0, self.num_items, step):
            self._take(start, min(start + step, self.num_items))

    def rows(self, ids_M: Tensor) -> Tensor:
        """The vectors given, `[M, D]` float32, on `device`."""
        return self.vectors_ND.index_select(0, ids_M.to(self.vectors_ND.device)).to(self.device)

    def given(self, start: int, stop: int) -> Tensor:
        """The vectors given of items `start` to `stop`, float32, on `device`."""
        return self.vectors_ND[start:stop].to(self.device)

    def codes(self, start: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """int8 codes of items `start` to `stop` and the scale of each, where there are some that can be multiplied."""
        # Trap: `torch._int_mm` of one dimension takes strides (1, 1) for another layout and reads beyond its input.
        if self._scale_N is None or self.device.type != "cpu" or self.dim < 8:
            return None
        return self._coarse_ND[start:stop], self._scale_N[start:stop]

    def block(self, start: int, stop: int) -> Tensor:
        """The stored copy of items `start` to `stop`, float32, on `device`."""
        block_ND = self._coarse_ND[start:stop].float()
        if self._scale_N is not None:
            block_ND *= self._scale_N[start:stop, None]
        return block_ND

    def stored(self) -> tuple[Tensor, Tensor | None]:
        """The stored copy, `[N, D]` on `device`, and what the codes of int8 are multiplied with, float32 `[N]`."""
        return self._coarse_ND, self._scale_N

    @property
    def is_lossy(self) -> bool:
        """Whether the stored copy differs from the vectors given."""
        return bool(self._gaps.any())

    def bounds(self, start: int, stop: int) -> tuple[float, float]:
        """Upper bounds over items `start` to `stop`: their norm, and their copy's distance from the vector given."""
        first, last = start // GRANULE, -(-stop // GRANULE)
        return float(self._norms[first:last].max()), float(self._gaps[first:last].max())

    def norms(self, ids_M: np.ndarray) -> np.ndarray:
        """Upper bounds of the norms of single items, float64 `[M]`."""
        return self._norms[ids_M // GRANULE]

    def _take(self, start: int, stop: int) -> None:
        """Check items `start` to `stop`, copy them, and bound their norms and how far the copy lies from them."""
        given_ND = self.given(start, stop)
        lengths = torch.linalg.vector_norm(given_ND, dim=1).double().cpu().numpy()
        if not (lengths <= _MAX_NORM).all():
            row = int(np.flatnonzero(~(lengths <= _MAX_NORM))[0])
            what = "is not finite" if not torch.isfinite(given_ND[row]).all() else "is too long to compare in float32"
            raise EmbeddingError(f"item embedding {start + row} {what}", hint="embed the catalogue again")
        # Rounding of the norm, and squares that underflow.
        norms = _rounded_up(_peaks(lengths) * (1 + 1e-3) + 2e-19 * math.sqrt(self.dim))
        granules = slice(start // GRANULE, start // GRANULE + len(norms))
        self._norms[granules] = norms
        if self.storage == "fp32":
            return
        if self._scale_N is None:
            self._coarse_ND[start:stop] = given_ND
        else:
            scale_N = given_ND.abs().amax(1) / 127
            # A scale below float32's normal range would not divide back.
            scale_N = torch.where(scale_N > 1e-36, scale_N, 1.0)
            self._scale_N[start:stop] = scale_N
            self._coarse_ND[start:stop] = (given_ND / scale_N[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        block_ND = self.block(start, stop)
        if not torch.isfinite(block_ND).all():
            row = int((~torch.isfinite(block_ND)).any(1).nonzero()[0])
            raise EmbeddingError(
                f"item embedding {start + row} does not fit storage {self.storage}", hint="use fp32 or int8"
            )
        gaps = torch.linalg.vector_norm((block_ND - given_ND).double(), dim=1).cpu().numpy()
        self._gaps[granules] = _rounded_up(_peaks(gaps) * (1 + 1e-6))
        self._norms[granules] += self._gaps[granules]


def _peaks(values_N: np.ndarray) -> np.ndarray:
    """The largest value of each granule; the first value is the first of one."""
    return np.maximum.reduceat(values_N, np.arange(0, len(values_N), GRANULE))


def _rounded_up(bounds: np.ndarray) -> np.ndarray:
    """To eight binary digits: blocks whose bounds are about the same then share what is made from them."""
    digits, exponents = np.frexp(bounds)
    return np.ldexp(np.ceil(digits * 256) / 256, exponents)
