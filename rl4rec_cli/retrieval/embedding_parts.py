"""Item vectors that are made in pieces and kept as they come, so that a job that was ended goes on where it stood.

Decides: what a part file holds and when its vectors may be used: only of the same texts in the same order, by the same
model computing in the same type, in batches of the same size, each piece with its own digest. The result is that of a
job that was never ended, to the last bit. What cannot be kept costs time, not the result.
Hides: the file.

The file is a line of JSON that says what it is of, then for each piece a line of JSON (`start`, `rows`, `dim`,
`sha256`) and its rows as float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli import console
from rl4rec_cli.errors import Rl4RecError
from rl4rec_cli.files.digests import sha256
from rl4rec_cli.files.parts import held
from rl4rec_cli.retrieval.embedding import TextRows

if TYPE_CHECKING:
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.retrieval.embedder import Embedder

_FORMAT = "rl4rec-embeddings-1"
_BEGIN = f'{{"part_of": "{_FORMAT}", '.encode()
_LONGEST_LINE = 4096


def embed_in_parts(
    dataset: Dataset,
    embedder: Embedder,
    emb_type: str,
    part: Path,
    *,
    batch_size: int,
    dtype: str,
    store: Callable[[Tensor], bool],
) -> Tensor:
    """Item vectors `[num_items, dim]`, with progress on the terminal; `part` keeps what is done until all is stored.

    Args:
        batch_size: the embedder's: pieces are its batches, in its order, so that the bits do not depend on the pieces.
        dtype: what the embedder computes in. Earlier versions did not write it, and took the type of the model's files.
        store: keeps the vectors; false where it could not, and then `part` stays.
    """
    texts = dataset.texts(emb_type)
    rows = TextRows(texts)
    about = {
        "part_of": _FORMAT,
        "items_digest": dataset.items_digest(emb_type),
        "model": embedder.name,
        "batch_size": batch_size,
        "dtype": dtype,
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    with ExitStack() as stack:
        kept = _open(part, json.dumps(about).encode() + b"\n", rows, stack)
        begin, there = (0, 0) if kept is None else (kept.rows, kept.texts)
        if there:
            console.log(f"{part}: {there:,} of {len(texts):,} items are embedded already")
        try:
            with console.progress(len(texts) - there, f"Embedding {len(texts) - there:,} items") as advance:
                for start in range(begin, len(rows.order), batch_size):
                    piece_MD = embedder.embed(rows.order[start : start + batch_size]).to("cpu", torch.float32)
                    if kept is not None and not kept.add(start, piece_MD.numpy()):
                        kept = None
                    items = rows.fill(start, piece_MD)
                    there += items
                    advance(items)
        except BaseException:
            if kept is not None and there:
                console.log(f"{part} keeps {there:,} of {len(texts):,} items: the same command goes on from there")
            raise
        vectors_ND = embedder.embed([]) if rows.vectors_ND is None else rows.vectors_ND
        if store(vectors_ND) and kept is not None:
            part.unlink()
    return vectors_ND


def _open(part: Path, begin: bytes, rows: TextRows, stack: ExitStack) -> _Kept | None:
    """The part file, ready for the next piece; None where nothing can be kept, which is said."""
    try:
        stack.enter_context(held(part))
        with part.open("rb") as file:
            head = file.read(len(_BEGIN))
        if not _BEGIN.startswith(head):
            console.log(f"{part} is none of ours and is left alone: nothing is kept if this is interrupted")
            return None
        kept = _Kept(part, begin, rows)
    except (Rl4RecError, OSError) as error:
        reason = error.message if isinstance(error, Rl4RecError) else f"{part}: {error.strerror or error}"
        console.log(f"{reason}: nothing is kept if this is interrupted")
        return None
    stack.callback(kept.close)
    return kept


class _Kept:
    """A part file that is held.

    Args:
        begin: the line that says what it is of.
        rows: the matrix that takes its pieces.

    Raises:
        OSError: it cannot be read or written.
    """

    def __init__(self, part: Path, begin: bytes, rows: TextRows) -> None:
        self._part = part
        self.rows, self.texts = 0, 0
        """Rows that it had, and how many texts they are of."""
        end = 0
        with part.open("rb") as file:
            head = file.readline(_LONGEST_LINE)
            if head == begin:
                end = self._read(file, rows)
            elif head:
                console.log(f"{part} was of other items, another model or type, or other batches: begun anew")
        self._file = part.open("r+b", buffering=0)  # what a full disk refuses must not be tried again at the end
        # What was being written when a job was ended goes.
        self._file.truncate(end)
        self._file.seek(end)
        if not end:
            self._write(begin)

    def _read(self, file: IO[bytes], rows: TextRows) -> int:
        """Take the whole pieces until the first that is not; returns the offset behind them."""
        end = file.tell()
        while line := file.readline(_LONGEST_LINE):
            try:
                about = json.loads(line)
                count, dim = int(about["rows"]), int(about["dim"])
                data = memoryview(bytearray(file.read(max(0, count * dim * 4))))
                whole = about["start"] == self.rows and about["sha256"] == sha256(data)
                piece_MD = torch.from_numpy(np.frombuffer(data, np.float32).reshape(count, dim))
            except (ValueError, KeyError, TypeError, OverflowError, MemoryError):
                break
            fits = self.rows + count <= len(rows.order)
            if not (whole and fits) or (rows.vectors_ND is not None and dim != rows.vectors_ND.shape[1]):
                break
            self.texts += rows.fill(self.rows, piece_MD)
            self.rows, end = self.rows + count, file.tell()
        return end

    def add(self, start: int, piece_ND: np.ndarray[Any, np.dtype[np.float32]]) -> bool:
        """Append a piece; false where it cannot be kept, and then nothing is: what was kept takes the room."""
        data = np.ascontiguousarray(piece_ND).tobytes()
        rows, dim = piece_ND.shape
        about = {"start": start, "rows": rows, "dim": dim, "sha256": sha256(data)}
        try:
            self._write(json.dumps(about).encode() + b"\n" + data)
        except OSError as error:
            console.log(f"{self._part}: {error.strerror or error}: nothing is kept if this is interrupted")
            with suppress(OSError):
                self._file.truncate(0)
            return False
        return True

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) or 0 :]

    def close(self) -> None:
        self._file.close()
