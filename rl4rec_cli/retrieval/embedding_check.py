"""Whether item vectors that were read from a file are those of the embedder that texts will be embedded by.

Decides: that a few items, spread over the catalogue, are embedded again and compared. Their number, type and shape say
nothing of what made vectors, and with vectors of another making every rank is noise.
Hides: which items, and how near is near enough.

Our own files are not asked: they name the model that made them, a digest of the items' texts and one of the vectors,
all of which `load_embeddings` has compared by then. A bare tensor says nothing of itself.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.errors import EmbeddingError
from rl4rec_cli.retrieval.embedding import is_blank

if TYPE_CHECKING:
    from torch import Tensor

    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.retrieval.embedding import Embedder

_ITEMS = 8
NEAR = 0.98
"""Least cosine of a vector and the same item's, embedded here. Storage in 16 or 8 bits and computing in bf16 stay above
.99; another model, field or order of items is far below."""


def check_vectors(vectors_ND: Tensor, embedder: Embedder, dataset: Dataset, emb_type: str, path: Path) -> None:
    """Compare a few items' vectors with those that the embedder makes.

    Args:
        vectors_ND: `[num_items, dim]`, unit rows, as read from `path`; the embedder's vectors have as many dimensions.
        emb_type: field of the items that is embedded.

    Raises:
        EmbeddingError: they differ; which items, and their cosines.
    """
    texts = [str(item.get(emb_type, "")) for item in dataset.items]
    written = [item for item, text in enumerate(texts) if not is_blank(text)]
    if not written:
        console.log(f"{path}: no item has text, so it cannot be checked that {embedder.name} made its vectors")
        return
    count = min(_ITEMS, len(written))
    draw = random.Random(0)
    # One out of each part of the catalogue: rows that were shifted or left out half-way are noticed, too.
    chosen = [written[draw.randrange(len(written) * i // count, len(written) * (i + 1) // count)] for i in range(count)]
    cosines = (embedder.embed([texts[item] for item in chosen]) * vectors_ND[chosen].cpu()).sum(dim=1).tolist()
    apart = [(item, cosine) for item, cosine in zip(chosen, cosines, strict=True) if cosine < NEAR]
    if apart:
        shown = ", ".join(f"item {item} {cosine:.3f}" for item, cosine in apart)
        raise EmbeddingError(
            f"{path}: not made by {embedder.name} from field {emb_type!r} of dataset {dataset.name}: of {count} items "
            f"embedded anew {len(apart)} differ, by their cosines: {shown} (at least {NEAR} where it is so)",
            hint="name the model and the field it was made of (retrieval.model, retrieval.emb_type), or leave out "
            "retrieval.file and it is made anew",
        )
    console.log(f"{path}: {count} items embedded anew agree with {embedder.name}")
