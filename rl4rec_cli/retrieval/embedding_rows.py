"""Item vectors as they come from a file: each row checked and brought to length one, in blocks, or left in the file.

Decides: what may be memory-mapped: float32 rows of unit length in a `.safetensors` file, for these are ranked as they
are, and every rank is that of the vectors held in memory, to the last bit.
Hides: the mapping. What is mapped can only be read: writing to such a tensor ends the process.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.errors import EmbeddingError
from rl4rec_cli.files.digests import sha256
from rl4rec_cli.retrieval.embedding import is_blank, normalised, row_blocks

if TYPE_CHECKING:
    from rl4rec_cli.data.dataset import Dataset


class UnmappableError(EmbeddingError):
    """A whole file whose vectors cannot be ranked as they lie in it."""


def vectors_digest(vectors_ND: Tensor) -> str:
    """SHA-256 (hex) of the values, which are not copied."""
    values = vectors_ND.contiguous().view(torch.uint8).numpy()
    return sha256(values.data if values.size else b"")


def usable_rows(
    vectors_ND: Tensor, dataset: Dataset, emb_type: str, path: Path, remake: str, *, mapped: bool
) -> Tensor:
    """Rows of unit length, float32; zero rows, of blank texts, as they are.

    Args:
        vectors_ND: of any floating type, a row for each item.
        path, remake: for messages.
        mapped: they lie in a file and are to stay there.

    Raises:
        EmbeddingError: rows are not finite, or zero where the item has text.
        UnmappableError: `mapped`, and a row has not length one.
    """
    bad, zero = list[int](), list[int]()
    is_unit = True
    made_ND = None if mapped else torch.empty(vectors_ND.shape, dtype=torch.float32)
    for start, block_MD in row_blocks(vectors_ND):
        block_MD = block_MD.float()
        finite_M = torch.isfinite(block_MD).all(dim=1)
        bad += ((~finite_M).nonzero().flatten() + start).tolist()
        zero += (block_MD.eq(0).all(dim=1).nonzero().flatten() + start).tolist()
        unit_MD = normalised(block_MD)
        if made_ND is None:
            is_unit = is_unit and torch.equal(unit_MD, block_MD)
        else:
            made_ND[start : start + len(unit_MD)] = unit_MD
    if bad:
        raise EmbeddingError(f"{path}: {len(bad)} rows are not finite, first row {bad[0]} (item {bad[0]})", hint=remake)
    if len(zero) == len(vectors_ND):
        raise EmbeddingError(f"{path}: every row is zero", hint=remake)
    wrong = [row for row in zero if not is_blank(str(dataset.items[row].get(emb_type, "")))]
    if wrong:
        raise EmbeddingError(
            f"{path}: {len(wrong)} rows are zero although the item has text, first row {wrong[0]} (item {wrong[0]})",
            hint=remake,
        )
    if not is_unit:
        raise UnmappableError(
            f"{path}: cannot be memory-mapped: its rows have not length one, and what is ranked are rows that have",
            hint=f"write them as unit rows, {remake}, or set retrieval.memory_map=off",
        )
    return vectors_ND if made_ND is None else made_ND


def map_rows(path: Path, key: str) -> Tensor:
    """The float32 values of a `.safetensors` file that the library reads, memory-mapped: no memory of this process.

    Raises:
        UnmappableError: they are of another type.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        about = json.loads(file.read(length))[key]
    if about["dtype"] != "F32":
        raise UnmappableError(
            f"{path}: cannot be memory-mapped: its values are {about['dtype']}, and what is ranked are unit rows of "
            "float32",
            hint="make it again with `rl4rec embed DATASET`, or set retrieval.memory_map=off",
        )
    # Read-only: Linux's default overcommit rule refuses a writable private mapping that is larger than memory.
    offset, shape = 8 + length + about["data_offsets"][0], tuple(about["shape"])
    values = np.memmap(path, dtype=np.float32, mode="r", offset=offset, shape=shape)
    with warnings.catch_warnings(action="ignore"):  # torch warns that the memory is not writable
        return torch.from_numpy(values)
