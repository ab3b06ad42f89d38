"""Whether item vectors that were read from a file are those of the embedder that texts will be embedded by.

Decides: that a few items, spread over the catalogue, are embedded again and compared. Their number, type and shape say
nothing of what made vectors, and with vectors of another making every rank is noise.
Hides: which items, and how near is near enough.

Our own files are not asked: they name the model that made them and the type it computed in, a digest of the items'
texts and one of the vectors, all of which `load_embeddings` has compared by then. A bare tensor says nothing of itself,
and our own files of earlier versions say nothing of the type.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.errors import EmbeddingError
from rl4rec_cli.retrieval.embedders.models import OWN_VECTORS
from rl4rec_cli.retrieval.embedding import is_blank
from rl4rec_cli.retrieval.embedding_files import FORMAT, read_safetensors, stored_path

if TYPE_CHECKING:
    from torch import Tensor

    from rl4rec_cli.config.sections import RetrievalSection
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.retrieval.embedder import Embedder

_ITEMS = 8
NEAR = 0.98
"""Least cosine of a vector and the same item's, embedded here. Storage in 16 or 8 bits and computing in bf16 stay above
.99; another model, field or order of items is far below."""
_SAME = 2e-4
"""Largest distance of two vectors of one text that were both computed in fp32. Batches of other lengths move them by
5e-7, vLLM by less than 1e-4; fp16 moves them by 1e-3, bf16 by 7e-3 (all-MiniLM-L6-v2, saved in the half type)."""


def check_vectors(vectors_ND: Tensor, embedder: Embedder, dataset: Dataset, emb_type: str, path: Path) -> None:
    """Compare a few items' vectors with those that the embedder makes.

    Args:
        vectors_ND: `[num_items, dim]`, unit rows, as read from `path`; the embedder's vectors have as many dimensions.
        emb_type: field of the items that is embedded.

    Raises:
        EmbeddingError: they differ; which items, and their cosines.
    """
    texts = _draw(dataset, emb_type)
    if not texts:
        console.log(f"{path}: no item has text, so it cannot be checked that {embedder.name} made its vectors")
        return
    chosen, count = list(texts), len(texts)
    cosines = (embedder.embed(list(texts.values())) * vectors_ND[chosen].cpu()).sum(dim=1).tolist()
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


def has_same_type(vectors_ND: Tensor, embedder: Embedder, dataset: Dataset, emb_type: str) -> bool:
    """Whether the embedder's model made these vectors computing in the type that it computes in now.

    Args:
        vectors_ND: as of `check_vectors`, by the same model.
    """
    texts = _draw(dataset, emb_type)
    apart = (embedder.embed(list(texts.values())) - vectors_ND[list(texts)].cpu()).norm(dim=1)
    return bool((apart <= _SAME).all())


def _draw(dataset: Dataset, emb_type: str) -> dict[int, str]:
    """A few items that have text, and their texts."""
    texts = [str(item.get(emb_type, "")) for item in dataset.items]
    written = [item for item, text in enumerate(texts) if not is_blank(text)]
    count = min(_ITEMS, len(written))
    draw = random.Random(0)
    # One out of each part of the catalogue: rows that were shifted or left out half-way are noticed, too.
    chosen = [written[draw.randrange(len(written) * i // count, len(written) * (i + 1) // count)] for i in range(count)]
    return {item: texts[item] for item in chosen}


def unsigned_file(section: RetrievalSection, dataset: Dataset) -> Path | None:
    """The file that `stored_embeddings` reads, where it does not say what made it, of which items, and its checksum."""
    path = stored_path(section, dataset)
    metadata = read_safetensors(path)[1] if path.suffix == ".safetensors" else {}
    # The vectors in a trained retriever's own folder are not those of the items' texts alone.
    maker = set() if path.name == OWN_VECTORS else {"model"}
    is_signed = metadata.get("format") == FORMAT and {"items_digest", "sha256", *maker} <= metadata.keys()
    return None if is_signed else path


def untyped_file(section: RetrievalSection, dataset: Dataset) -> Path | None:
    """The cache's file that `stored_embeddings` reads, where it does not say in which type its vectors were computed.

    Earlier versions wrote none, and computed in the type of the model's files.
    """
    if section.file is not None:
        return None
    path = stored_path(section, dataset)
    return None if "dtype" in read_safetensors(path)[1] else path
