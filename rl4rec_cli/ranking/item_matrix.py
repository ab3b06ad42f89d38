"""The catalogue's embeddings and how they are stored.

Decides: what "the vectors" are (those given, as tensor or file), how a compact copy of them is made, and how far a
copy may lie from them. Hides: storage types, memory mapping, file formats, devices.

One rule holds for every storage: results are exact with respect to *the vectors given*. A compact copy (`fp16`,
`bf16`, `int8`) only decides what is clear; whatever it leaves open is decided from the vectors given, which are kept
by reference (tensor) or memory-mapped (file). Storage therefore changes speed and memory, never a rank.
"""

from __future__ import annotations

import json
import math
import struct
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.errors import EmbeddingError

Storage = Literal["fp32", "fp16", "bf16", "int8"]

GRANULE = 256
"""Rows that share one pair of bounds."""
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
_FILE_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_STREAM_ELEMENTS = 1 << 20
_MAX_NORM = 1e19


class ItemMatrix:
    """The catalogue's embeddings, `[N, D]`. Build with `from_tensor` or `from_file`.

    Attributes:
        num_items: N.
        dim: D.
        device: where products are computed.
        storage: type of the copy that the first pass reads.
    """

    def __init__(self, given_ND: Tensor, *, storage: Storage, device: torch.device) -> None:
        if storage not in _DTYPES:
            raise EmbeddingError(f"unknown storage {storage!r}", hint=f"one of {', '.join(_DTYPES)}")
        if given_ND.ndim != 2 or 0 in given_ND.shape:
            raise EmbeddingError(f"item embeddings must be [items, dimensions], got {list(given_ND.shape)}")
        if given_ND.dtype not in _FILE_DTYPES.values():
            raise EmbeddingError(f"item embeddings must be fp32, fp16 or bf16, got {given_ND.dtype}")
        self.num_items, self.dim = given_ND.shape
        self.device = device
        self.storage: Storage = storage
        self._given_ND = given_ND
        self._scale_N: Tensor | None = None
        granules = -(-self.num_items // GRANULE)
        # Not a number = not yet looked at: a memory-mapped catalogue is checked as it is first read.
        self._norms = np.full(granules, np.nan)
        self._gaps = np.zeros(granules)
        if storage == "int8":
            self._coarse_ND = torch.empty(self.num_items, self.dim, dtype=torch.int8, device=device)
            self._scale_N = torch.empty(self.num_items, dtype=torch.float32, device=device)
            self._fill()
        elif given_ND.dtype == _DTYPES[storage] and given_ND.device == device:
            self._coarse_ND = given_ND
        else:
            self._coarse_ND = torch.empty(self.num_items, self.dim, dtype=_DTYPES[storage], device=device)
            self._fill()

    @classmethod
    def from_tensor(
        cls, vectors: Tensor, *, storage: Storage = "fp32", device: str | torch.device | None = None
    ) -> ItemMatrix:
        """Item embeddings from a tensor in memory.

        Args:
            vectors: `[N, D]`, floating point; kept by reference, so do not change it afterwards. float64 is rounded
                to float32 first, and the float32 values are "the vectors given".
            storage: type of the copy the first pass reads; no copy is made where `vectors` has it already.
            device: where to compute; that of `vectors` by default.

        Raises:
            EmbeddingError: wrong shape or type, or a row that is not finite (named).
        """
        vectors = vectors.detach()
        if vectors.dtype == torch.float64:
            vectors = vectors.float()
        if vectors.ndim == 2 and not vectors.is_contiguous():
            vectors = vectors.contiguous()
        matrix = cls(vectors, storage=storage, device=_device(device, vectors.device))
        matrix.check()
        return matrix

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        storage: Storage | None = None,
        device: str | torch.device | None = None,
        key: str | None = None,
        dtype: Literal["fp32", "fp16", "bf16"] | None = None,
        dim: int | None = None,
    ) -> ItemMatrix:
        """Item embeddings from a memory-mapped file; the catalogue may be larger than memory.

        Args:
            path: `.safetensors`, `.npy`, or any other name for raw row-major values (`dtype` and `dim` needed then).
            storage: `None` reads the file itself in every pass (nothing is copied on the CPU); another type makes
                a copy of that type in memory, and reads the file only to settle what the copy leaves open.
            device: where to compute; CPU by default. Another device always gets a copy.
            key: tensor name in a safetensors file that holds several.
            dtype: type of the values in a raw file.
            dim: dimensions in a raw file.

        Raises:
            EmbeddingError: not readable as such a file, wrong size, or (when first read) a row that is not finite.
        """
        given_ND = _map_file(Path(path), key=key, dtype=dtype, dim=dim)
        if storage is None:
            names: dict[torch.dtype, Storage] = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
            storage = names[given_ND.dtype]
        return cls(given_ND, storage=storage, device=_device(device, torch.device("cpu")))

    def check(self) -> None:
        """Read every row once.

        Raises:
            EmbeddingError: a row is not finite (named).
        """
        step = self._stream_rows()
        for start in range(0, self.num_items, step):
            self.bounds(start, min(start + step, self.num_items))

    def rows(self, ids_M: Tensor) -> Tensor:
        """The vectors given, `[M, D]`, on `device`, in their own type."""
        return self._given_ND.index_select(0, ids_M.to(self._given_ND.device)).to(self.device)

    def given(self, start: int, stop: int) -> Tensor:
        """The vectors given of items `start` to `stop`, float32, on `device`."""
        return self._given_ND[start:stop].to(self.device).float()

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
        """Upper bounds over items `start` to `stop`: their norm, and their copy's distance from the vector given.

        Raises:
            EmbeddingError: a row is not finite (named).
        """
        first, last = start // GRANULE, -(-stop // GRANULE)
        norms = self._norms[first:last]
        if np.isnan(norms).any():
            low, high = first * GRANULE, min(last * GRANULE, self.num_items)
            self._measure(low, self._coarse_ND[low:high].float())
        return float(norms.max()), float(self._gaps[first:last].max())

    def norms(self, ids_M: np.ndarray) -> np.ndarray:
        """Upper bounds of the norms of single items, float64 `[M]`."""
        for granule in np.unique(ids_M[np.isnan(self._norms[ids_M // GRANULE])] // GRANULE):
            self.bounds(int(granule) * GRANULE, int(granule) * GRANULE + 1)
        return self._norms[ids_M // GRANULE]

    def _stream_rows(self) -> int:
        return max(1, _STREAM_ELEMENTS // self.dim // GRANULE) * GRANULE

    def _measure(self, start: int, block_ND: Tensor) -> None:
        """Set norms of the granules that `block_ND` covers; `start` stands on a granule."""
        norms = np.full(-(-len(block_ND) // GRANULE) * GRANULE, 0.0)
        norms[: len(block_ND)] = torch.linalg.vector_norm(block_ND, dim=1).double().cpu().numpy()
        if not (norms <= _MAX_NORM).all():
            row = int(np.flatnonzero(~(norms <= _MAX_NORM))[0])
            what = "is not finite" if not torch.isfinite(block_ND[row]).all() else "is too long to compare in float32"
            raise EmbeddingError(f"item embedding {start + row} {what}", hint="embed the catalogue again")
        peaks = norms.reshape(-1, GRANULE).max(1)
        # Rounding of the norm, and squares that underflow.
        peaks = _rounded_up(peaks * (1 + 1e-3) + 2e-19 * math.sqrt(self.dim))
        self._norms[start // GRANULE : start // GRANULE + len(peaks)] = peaks

    def _fill(self) -> None:
        """Make the copy, block by block, and bound how far each row of it lies from the vector given."""
        step = self._stream_rows()
        for start in range(0, self.num_items, step):
            stop = min(start + step, self.num_items)
            given_ND = self.given(start, stop)
            self._measure(start, given_ND)
            if self._scale_N is not None:
                scale_N = given_ND.abs().amax(1) / 127
                # A scale below float32's normal range would not divide back.
                scale_N = torch.where(scale_N > 1e-36, scale_N, 1.0)
                self._scale_N[start:stop] = scale_N
                self._coarse_ND[start:stop] = (given_ND / scale_N[:, None]).round_().clamp_(-127, 127).to(torch.int8)
            else:
                self._coarse_ND[start:stop] = given_ND
            block_ND = self.block(start, stop)
            if not torch.isfinite(block_ND).all():
                row = int((~torch.isfinite(block_ND)).any(1).nonzero()[0])
                raise EmbeddingError(
                    f"item embedding {start + row} does not fit storage {self.storage}", hint="use fp32 or int8"
                )
            gaps = np.full(-(-len(block_ND) // GRANULE) * GRANULE, 0.0)
            gaps[: len(block_ND)] = torch.linalg.vector_norm((block_ND - given_ND).double(), dim=1).cpu().numpy()
            peaks = _rounded_up(gaps.reshape(-1, GRANULE).max(1) * (1 + 1e-6))
            first = start // GRANULE
            self._gaps[first : first + len(peaks)] = peaks
            self._norms[first : first + len(peaks)] += peaks


def _rounded_up(bounds: np.ndarray) -> np.ndarray:
    """To eight binary digits: blocks whose bounds are about the same then share what is made from them."""
    digits, exponents = np.frexp(bounds)
    return np.ldexp(np.ceil(digits * 256) / 256, exponents)


def _device(device: str | torch.device | None, default: torch.device) -> torch.device:
    if device is None:
        return default
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _map_file(path: Path, *, key: str | None, dtype: str | None, dim: int | None) -> Tensor:
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.dtype not in (np.float32, np.float16) or array.ndim != 2 or not array.flags.c_contiguous:
                raise EmbeddingError(f"{path}: need a row-major [items, dimensions] array of float32 or float16")
            return _tensor(array)
        if path.suffix == ".safetensors":
            return map_safetensors(path, key)
        if dtype is None or dim is None:
            raise EmbeddingError(f"{path}: a raw file needs its type and dimensions", hint="give dtype and dim")
        if dtype not in ("fp32", "fp16", "bf16") or dim < 1:
            raise EmbeddingError(f"{path}: cannot read values of type {dtype} and {dim} dimensions")
        size, width = path.stat().st_size, _DTYPES[dtype].itemsize * dim
        if size == 0 or size % width:
            raise EmbeddingError(f"{path}: {size} bytes are no whole number of rows of {width} bytes")
        return _map_values(path, 0, (size // width, dim), _DTYPES[dtype])
    except (OSError, ValueError) as error:
        raise EmbeddingError(f"{path}: cannot be read as embeddings: {error}") from error


def map_safetensors(path: Path, key: str | None) -> Tensor:
    """A matrix in a `.safetensors` file, memory-mapped; it can only be read.

    Args:
        key: the tensor's name, where the file holds several.

    Raises:
        EmbeddingError: it is not such a file, not whole, or holds no matrix of floats. OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 < length <= min(100_000_000, path.stat().st_size - 8):
            raise EmbeddingError(f"{path}: not a safetensors file")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise EmbeddingError(f"{path}: not a safetensors file")
    header.pop("__metadata__", None)
    if key is None and len(header) == 1:
        key = next(iter(header))
    if key not in header:
        raise EmbeddingError(f"{path}: which tensor? It holds {', '.join(sorted(header)) or 'none'}", hint="give key")
    try:
        kind, shape, (begin, end) = header[key]["dtype"], header[key]["shape"], header[key]["data_offsets"]
        rows, dim = (int(n) for n in shape)
    except (KeyError, TypeError, ValueError) as error:
        raise EmbeddingError(f"{path}: tensor {key} is no [items, dimensions] matrix") from error
    if kind not in _FILE_DTYPES:
        raise EmbeddingError(f"{path}: item embeddings must be F32, F16 or BF16, got {kind}")
    offset, need = 8 + length + begin, rows * dim * _FILE_DTYPES[kind].itemsize
    if min(rows, dim, begin + 1) < 1 or end - begin != need or offset + need > path.stat().st_size:
        raise EmbeddingError(f"{path}: truncated or damaged (tensor {key} of {need} bytes)")
    return _map_values(path, offset, (rows, dim), _FILE_DTYPES[kind])


def _map_values(path: Path, offset: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    raw = np.dtype(np.float32) if dtype == torch.float32 else np.dtype(np.int16)
    # Read-only: a writable private mapping larger than memory is refused by Linux's default overcommit rule.
    return _tensor(np.memmap(path, dtype=raw, mode="r", offset=offset, shape=shape)).view(dtype)


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # torch warns that the memory is not writable; nothing here writes to it.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
