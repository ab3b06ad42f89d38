"""The catalogue of a dataset as vectors: an embedder and the item vectors that go with it.

Decides: where item vectors come from (the file that is named, the cache, or the embedder), that vectors which may be
of another making are compared with the embedder's, and that several datasets share one embedder unless it is fitted.
Hides: the files, and which of them are asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.errors import EmbeddingError
from rl4rec_cli.retrieval.embedder import Embedder, find_embedder, open_embedder
from rl4rec_cli.retrieval.embedding import embed_items
from rl4rec_cli.retrieval.embedding_check import check_vectors, has_same_type, unsigned_file, untyped_file
from rl4rec_cli.retrieval.embedding_files import ItemVectors, embed_into_cache, hold_vectors, stored_embeddings

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RetrievalSection
    from rl4rec_cli.data.dataset import Dataset


def load_catalogues(
    section: RetrievalSection, datasets: Sequence[Dataset], *, copies: int = 1, parts: int = 1
) -> Iterator[tuple[Embedder, ItemVectors]]:
    """The embedder a configuration names, and item vectors, for each dataset; one model serves them all.

    Args:
        copies: of all this in the memory that ranks (replicas of a service).
        parts: it is cut into, each in a memory of its own.

    Raises:
        ConfigError, EmbeddingError: the embedder or an embedding file is not usable.
    """
    shared: Embedder | None = None
    items = -(-sum(dataset.num_items for dataset in datasets) // parts)
    for dataset in datasets:
        embedder, stored = _load_catalogue(section, dataset, shared, items=items, copies=copies)
        if not find_embedder(section).is_fitted:
            shared = embedder
        holding = stored.holding
        if (holding.words, section.storage, section.memory_map) != ("fp32 in memory", "auto", "auto"):
            console.log(f"Item vectors of {dataset.name}: {holding.words}: {holding.reason}")
        yield embedder, stored


def _load_catalogue(
    section: RetrievalSection, dataset: Dataset, shared: Embedder | None, *, items: int, copies: int
) -> tuple[Embedder, ItemVectors]:
    # File and texts are checked first: a bad one should not cost the loading of a model.
    stored = stored_embeddings(section, dataset, items=items, copies=copies)
    unsigned = unsigned_file(section, dataset) if stored is not None else None
    untyped = untyped_file(section, dataset) if stored is not None else None
    if stored is None:
        dataset.texts(section.emb_type)
    embedder = shared or open_embedder(section, dataset)
    if stored is None:
        stored = _embed(section, dataset, embedder, items=items, copies=copies)
    dim = embedder.embed(["dimension"]).shape[1]
    if dim != stored.vectors_ND.shape[1]:
        raise EmbeddingError(
            f"item embeddings have {stored.vectors_ND.shape[1]} dimensions, but {embedder.name} embeds texts in {dim}",
            hint="items and texts must share one model: set retrieval.model, or make the file again",
        )
    if unsigned is not None:
        check_vectors(stored.vectors_ND, embedder, dataset, section.emb_type, unsigned)
    elif untyped is not None and not has_same_type(stored.vectors_ND, embedder, dataset, section.emb_type):
        console.log(f"{untyped}: its vectors were not computed in {section.dtype}; the items are embedded again")
        stored = _embed(section, dataset, embedder, items=items, copies=copies)
    return embedder, stored


def _embed(section: RetrievalSection, dataset: Dataset, embedder: Embedder, *, items: int, copies: int) -> ItemVectors:
    """Item vectors that are made now; read back from the cache's file where they are to stay in it."""
    if find_embedder(section).is_fitted:
        vectors_ND = embed_items(dataset, embedder, section.emb_type)
    else:
        vectors_ND = embed_into_cache(dataset, embedder, section)
    holding = hold_vectors(section, items, vectors_ND.shape[1], copies=copies)
    if not holding.is_mapped:
        return ItemVectors(vectors_ND, holding)
    stored = stored_embeddings(section, dataset, items=items, copies=copies)
    if stored is not None and untyped_file(section, dataset) is None:  # else what an earlier version left there
        return stored
    why = "their file could not be written"  # for the reason that is told by now
    if section.memory_map == "on":
        raise EmbeddingError(
            f"the item vectors cannot be memory-mapped: {why}",
            hint="name a folder that has room (retrieval.emb_dir), or set retrieval.memory_map=off",
        )
    return ItemVectors(vectors_ND, hold_vectors(section, items, vectors_ND.shape[1], copies=copies, not_mapped=why))
