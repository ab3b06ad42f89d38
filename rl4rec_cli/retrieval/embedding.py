"""Texts to vectors: what holds for the vectors of every embedder.

Decides: that vectors are finite and of unit length, that a blank text is a zero row, which ties with every item, and
that equal texts have equal vectors. Each embedder has a module of its own (`embedders/`).
Hides: nothing.

A matrix is `[num_items, dim]` float32.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli import console
from rl4rec_cli.errors import EmbeddingError

if TYPE_CHECKING:
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.retrieval.embedder import Embedder

# Vectors this near to unit length are left as they are: dividing again would move their last bits.
_UNIT = 1e-6
# Numbers of a block of rows. What is made of one takes some ten times as many bytes, which a processor's cache holds.
_BLOCK = 1 << 18


def unit_rows(vectors_ND: Tensor, texts: Sequence[str], name: str) -> Tensor:
    """Normalised rows on the CPU, float32; zero where the text is blank.

    Vectors that are float32 on the CPU already are changed in place: a second matrix of a large catalogue is memory
    that a machine may not have.

    Raises:
        EmbeddingError: a row is not finite.
    """
    vectors_ND = vectors_ND.to("cpu", torch.float32)
    for start, block_MD in row_blocks(vectors_ND):
        bad_M = ~torch.isfinite(block_MD).all(dim=1)
        if bad_M.any():
            row = start + int(bad_M.nonzero()[0])
            raise EmbeddingError(
                f"embedder {name} returned a non-finite vector for text {row} of {len(texts)}: {texts[row][:80]!r}",
                hint="half precision can overflow: where retrieval.dtype is fp16 or bf16, set fp32; "
                "else use another model",
            )
        block_MD.copy_(normalised(block_MD))
    vectors_ND[torch.tensor([is_blank(t) for t in texts], dtype=torch.bool)] = 0.0
    return vectors_ND


def normalised(vectors_ND: Tensor) -> Tensor:
    """Rows of unit length, zero rows as they are. A row that is one already keeps every bit.

    Takes about six times the memory of the rows: give it a block of many (`row_blocks`).
    """
    # float64: squares of large and of small float32 values leave float32's range.
    norms_N1 = vectors_ND.double().norm(dim=1, keepdim=True)
    norms_N1[((norms_N1 - 1).abs() < _UNIT) | (norms_N1 == 0)] = 1.0
    return (vectors_ND.double() / norms_N1).float()


def row_blocks(vectors_ND: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Number of the first row, and a view of the rows of a block."""
    step = max(1, _BLOCK // max(1, vectors_ND.shape[1]))
    for start in range(0, len(vectors_ND), step):
        yield start, vectors_ND[start : start + step]


def is_blank(text: str) -> bool:
    """Whether a text has nothing to read: only blanks, control and zero-width characters."""
    return all(c.isspace() or unicodedata.category(c)[0] in "CZ" for c in text)


def each_once(
    texts: Sequence[str],
    embed: Callable[[Sequence[str]], Tensor],
    name: str,
    *,
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> Tensor:
    """Vectors as an `Embedder` gives them, by a model that takes batches.

    Each distinct text once: padding moves the last bits, and items of one text must tie exactly. Ordered by length so
    that a batch holds texts of like length: padding is what costs.

    Raises:
        EmbeddingError: a vector is not finite.
    """
    texts = list(texts)
    rows = TextRows(texts)
    for start in range(0, len(rows.order), batch_size):
        count = rows.fill(start, embed(rows.order[start : start + batch_size]))
        if progress is not None:
            progress(count)
    if rows.vectors_ND is None:
        return torch.zeros(0, embed(["dimension"]).shape[1])
    return unit_rows(rows.vectors_ND, texts, name)


class TextRows:
    """The matrix of many texts, of which each distinct one is embedded once.

    It is allocated once, and rows go to their places as they come: a list of batches, joined and then put in order,
    would be three matrices at its end.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counts = Counter(texts)
        self.order = sorted(counts, key=len)
        """Each distinct text, shortest first: the order in which they are embedded."""
        self.vectors_ND: Tensor | None = None
        """`[len(texts), dim]` float32; None until the first rows tell `dim`."""
        number = {text: i for i, text in enumerate(self.order)}
        self._numbers = torch.from_numpy(np.fromiter((number[text] for text in texts), np.int64, len(texts)))
        self._places = torch.argsort(self._numbers, stable=True)
        self._ends = list(accumulate((counts[text] for text in self.order), initial=0))

    def fill(self, start: int, vectors_MD: Tensor) -> int:
        """Take the vectors of `order[start : start + M]`; returns how many texts they are of."""
        if self.vectors_ND is None:
            self.vectors_ND = torch.empty(len(self._numbers), vectors_MD.shape[1])
        places = self._places[self._ends[start] : self._ends[start + len(vectors_MD)]]
        self.vectors_ND[places] = vectors_MD.to("cpu", torch.float32)[self._numbers[places] - start]
        return len(places)


def embed_items(dataset: Dataset, embedder: Embedder, emb_type: str) -> Tensor:
    """Item vectors `[num_items, dim]`, with progress on the terminal."""
    texts = dataset.texts(emb_type)
    with console.progress(len(texts), f"Embedding {len(texts):,} items") as advance:
        return embedder.embed(texts, progress=advance)
