"""Texts to vectors: what holds for the vectors of every embedder.

Decides: that vectors are finite and of unit length, that a blank text is a zero row, which ties with every item, and
that equal texts have equal vectors. Each embedder has a module of its own (`embedders/`).
Hides: nothing.

A matrix is `[num_items, dim]` float32.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rl4rec_cli import console
from rl4rec_cli.errors import EmbeddingError

if TYPE_CHECKING:
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.retrieval.embedder import Embedder

# Vectors this near to unit length are left as they are: dividing again would move their last bits.
_UNIT = 1e-6


def unit_rows(vectors_ND: Tensor, texts: Sequence[str], name: str) -> Tensor:
    """Normalised rows; zero where the text is blank.

    Raises:
        EmbeddingError: a row is not finite.
    """
    vectors_ND = vectors_ND.to("cpu", torch.float32)
    bad_N = ~torch.isfinite(vectors_ND).all(dim=1)
    if bad_N.any():
        row = int(bad_N.nonzero()[0])
        raise EmbeddingError(
            f"embedder {name} returned a non-finite vector for text {row} of {len(texts)}: {texts[row][:80]!r}",
            hint="half precision can overflow: where retrieval.dtype is fp16 or bf16, set fp32; else use another model",
        )
    vectors_ND = normalised(vectors_ND)
    vectors_ND[torch.tensor([is_blank(t) for t in texts], dtype=torch.bool)] = 0.0
    return vectors_ND


def normalised(vectors_ND: Tensor) -> Tensor:
    """Rows of unit length, zero rows as they are. A row that is one already keeps every bit."""
    # float64: squares of large and of small float32 values leave float32's range.
    norms_N1 = vectors_ND.double().norm(dim=1, keepdim=True)
    norms_N1[((norms_N1 - 1).abs() < _UNIT) | (norms_N1 == 0)] = 1.0
    return (vectors_ND.double() / norms_N1).float()


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
    counts = distinct(texts)
    order = list(counts)
    parts: list[Tensor] = []
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        parts.append(embed(batch).to("cpu", torch.float32))
        if progress is not None:
            progress(sum(counts[text] for text in batch))
    if not parts:
        return torch.zeros(0, embed(["dimension"]).shape[1])
    row = {text: i for i, text in enumerate(order)}
    return unit_rows(torch.cat(parts)[[row[text] for text in texts]], texts, name)


def distinct(texts: Sequence[str]) -> dict[str, int]:
    """Each distinct text and how often it stands there, shortest first: the order in which texts are embedded."""
    counts = Counter(texts)
    return {text: counts[text] for text in sorted(counts, key=len)}


def embed_items(dataset: Dataset, embedder: Embedder, emb_type: str) -> Tensor:
    """Item vectors `[num_items, dim]`, with progress on the terminal."""
    texts = dataset.texts(emb_type)
    with console.progress(len(texts), f"Embedding {len(texts):,} items") as advance:
        return embedder.embed(texts, progress=advance)
