"""The door to ranking: texts in, ranks or items out.

Decides: what a retriever offers (`Retriever`) and the rules every backend keeps:

- rank = 1 + number of other unmasked items that score at least what the target scores: ties count against the policy;
- history items are masked (unless the dataset says otherwise), the target never, even where it stands in the history;
- a text that says nothing (blank, or no word the embedder knows) is not `scorable`: worst rank, and no reward at all,
  also where the catalogue is so small that its worst rank would earn some;
- a non-finite embedding is an error.

Hides: embedding and the ranking kernel (`ranking/ranks.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from rl4rec_cli import console
from rl4rec_cli.errors import DataError, EmbeddingError, Rl4RecError
from rl4rec_cli.models.devices import resolve_device
from rl4rec_cli.plan.phases import Phase, during
from rl4rec_cli.ranking import ranks as ranking
from rl4rec_cli.retrieval.embedding import Embedder, embed_items, open_embedder
from rl4rec_cli.retrieval.embedding_check import check_vectors, has_same_type
from rl4rec_cli.retrieval.embedding_files import (
    ItemVectors,
    embed_into_cache,
    hold_vectors,
    stored_embeddings,
    unsigned_file,
    untyped_file,
)
from rl4rec_cli.retrieval.embedding_rows import vectors_digest
from rl4rec_cli.retrieval.service import cluster

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.config.sections import RetrievalSection
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.retrieval.service.client import RayRetriever

FIRST_WAIT = 2.0
"""Seconds that a command which somebody sits before waits for a service: a run may have been trained by one that ended
long ago."""


class Ranking(NamedTuple):
    ranks: NDArray[np.int64]
    """`[B]`, 1-based rank of each target in the whole catalogue."""
    scorable: NDArray[np.bool_]
    """`[B]`, false where the text says nothing."""


class Found(NamedTuple):
    items: list[int]
    """Item ids, best first."""
    scores: list[float]
    """Their cosine similarities."""


class Retriever(Protocol):
    num_items: int

    def target_ranks(
        self, texts: Sequence[str], targets: Sequence[int], histories: Sequence[Sequence[int]]
    ) -> Ranking: ...

    def search(self, texts: Sequence[str], k: int, exclude: Sequence[Sequence[int]] | None = None) -> list[Found]: ...

    def calculate_reward(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


class VectorRetriever(Retriever, Protocol):
    """What evaluation asks for besides: vectors, and the catalogue itself."""

    @property
    def device(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def matrix(self) -> ranking.ItemMatrix: ...

    @property
    def vectors_ND(self) -> torch.Tensor: ...

    def text_vectors(self, texts: Sequence[str]) -> torch.Tensor: ...

    def item_vectors(self, items: Sequence[int]) -> torch.Tensor: ...

    def vector_ranks(
        self, queries_BD: torch.Tensor, targets: Sequence[int], histories: Sequence[Sequence[int]]
    ) -> Ranking: ...


def submit_ranks(
    retriever: Retriever, texts: Sequence[str], targets: Sequence[int], histories: Sequence[Sequence[int]]
) -> Callable[[], Ranking]:
    """`target_ranks` in two halves: a service works between them, another backend does it all in the second."""
    if (submit := getattr(retriever, "submit_ranks", None)) is not None:
        return submit(texts, targets, histories).result
    return lambda: retriever.target_ranks(texts, targets, histories)


class InProcessRetriever:
    """Embeds and ranks in this process.

    Args:
        embedder: turns texts into vectors.
        vectors_ND: item vectors `[num_items, dim]` float32.
        mask_history: leave history items out of the ranking.
        device: where the item matrix lives and products run.
        storage: what ranking reads first; no rank depends on it. Beside a copy the vectors stay where they are, be it a
            memory-mapped file.
    """

    def __init__(
        self,
        embedder: Embedder,
        vectors_ND: torch.Tensor,
        *,
        mask_history: bool = True,
        device: str = "cpu",
        storage: ranking.Storage = "fp32",
    ) -> None:
        self.embedder = embedder
        self.vectors_ND = vectors_ND.to(device) if storage == "fp32" else vectors_ND
        self.matrix = ranking.ItemMatrix.from_tensor(self.vectors_ND, storage=storage, device=device)
        self.num_items = vectors_ND.shape[0]
        self.mask_history = mask_history
        self.device = device

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the item vectors and the masking rule: what ranks depend on besides the queries."""
        return catalogue_digest(self.vectors_ND, mask_history=self.mask_history)

    @during(Phase.RANKING)
    def text_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """`[len(texts), dim]`, as `query_vectors`."""
        return query_vectors(self.embedder, texts).to(self.device)

    def target_ranks(self, texts: Sequence[str], targets: Sequence[int], histories: Sequence[Sequence[int]]) -> Ranking:
        """Rank of each text's target in the whole catalogue.

        Args:
            texts: `[B]` generated texts.
            targets: `[B]` item ids.
            histories: `[B]` item ids already chosen.

        Raises:
            DataError: lengths differ or an id is not in the catalogue.
            EmbeddingError: the embedder returned something that is not finite.
        """
        if not len(texts) == len(targets) == len(histories):
            raise DataError(f"{len(texts)} texts, {len(targets)} targets and {len(histories)} histories: not one each")
        if not len(texts):
            return Ranking(np.zeros(0, np.int64), np.zeros(0, np.bool_))
        return self.vector_ranks(self.text_vectors(texts), targets, histories)

    def vector_ranks(
        self, queries_BD: torch.Tensor, targets: Sequence[int], histories: Sequence[Sequence[int]]
    ) -> Ranking:
        """As `target_ranks`, from query vectors: what baselines without a text use."""
        return rank_vectors(queries_BD, self.matrix, targets, histories if self.mask_history else None)

    def search(self, texts: Sequence[str], k: int, exclude: Sequence[Sequence[int]] | None = None) -> list[Found]:
        """The `k` best items for each text, best first, without those excluded; fewer where fewer are left."""
        return as_found(*self.vector_search(self.text_vectors(texts), k, exclude)) if len(texts) else []

    @during(Phase.RANKING)
    def vector_search(
        self, queries_BD: torch.Tensor, k: int, exclude: Sequence[Sequence[int]] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As `search`, from query vectors: ids and scores `[B, min(k, num_items)]`, id -1 where too few are left."""
        ids_BK, scores_BK = ranking.search(queries_BD, self.matrix, k, exclude)
        return ids_BK.numpy(), scores_BK.numpy()

    def calculate_reward(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The full score matrix `[len(texts), num_items]`: for callers that want it; ranks never need it."""
        if not len(texts):
            return np.zeros((0, self.num_items), np.float32)
        return self.vector_scores(self.text_vectors(texts))

    @during(Phase.RANKING)
    def vector_scores(self, queries_BD: torch.Tensor) -> NDArray[np.float32]:
        """As `calculate_reward`, from query vectors."""
        return ranking.score_matrix(queries_BD, self.matrix).numpy()

    def item_vectors(self, items: Sequence[int]) -> torch.Tensor:
        """`[len(items), dim]` float32."""
        return self.vectors_ND[list(items)].to(self.device)


def catalogue_digest(vectors_ND: torch.Tensor, *, mask_history: bool) -> str:
    """SHA-256 (hex) over item vectors, and the masking rule: what `InProcessRetriever.digest` is."""
    return vectors_digest(vectors_ND.cpu()) + str(mask_history)


@during(Phase.RANKING)
def rank_vectors(
    queries_BD: torch.Tensor,
    matrix: ranking.ItemMatrix,
    targets: Sequence[int],
    masks: Sequence[Sequence[int]] | None,
) -> Ranking:
    """Ranks by the kernel; a zero vector says nothing and ranks last."""
    scorable_B = queries_BD.ne(0).any(dim=1).cpu()
    ranks_B = ranking.target_ranks(queries_BD, matrix, torch.tensor(list(targets), dtype=torch.long), masks)
    return Ranking(torch.where(scorable_B, ranks_B, matrix.num_items).numpy(), scorable_B.numpy())


def query_vectors(embedder: Embedder, texts: Sequence[str]) -> torch.Tensor:
    """`[len(texts), dim]` on the CPU; equal texts are embedded once, as groups of samples often agree."""
    distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    vectors_UD = embedder.embed(list(distinct), query=True)
    if vectors_UD.ndim != 2 or len(vectors_UD) != len(distinct):
        raise EmbeddingError(
            f"embedder {embedder.name} returned shape {list(vectors_UD.shape)} for {len(distinct)} texts"
        )
    return vectors_UD[[distinct[text] for text in texts]]


def as_found(ids_BK: NDArray[np.int64], scores_BK: NDArray[np.float32]) -> list[Found]:
    """The items of a search, without the places where none was left."""
    found = []
    for ids, scores in zip(ids_BK.tolist(), scores_BK.tolist(), strict=True):
        kept = [(i, s) for i, s in zip(ids, scores, strict=True) if i >= 0]
        found.append(Found([i for i, _ in kept], [s for _, s in kept]))
    return found


def open_retriever(
    section: RetrievalSection, dataset: Dataset, folders: Sequence[str] = (), *, first_wait: float | None = None
) -> InProcessRetriever | RayRetriever:
    """The retriever a configuration names, with the dataset's item vectors loaded or made.

    Args:
        folders: the dataset's, for the command that starts a service where there is none.
        first_wait: seconds to wait for a service; None: as configured.

    Raises:
        EmbeddingError: the embedder or the embedding file is not usable.
        ServiceError: backend `ray`, and the service is not there or serves something else.
    """
    return open_retrievers(section, [dataset], folders, first_wait=first_wait)[0]


def open_retrievers(
    section: RetrievalSection,
    datasets: Sequence[Dataset],
    folders: Sequence[str] = (),
    *,
    first_wait: float | None = None,
) -> list[InProcessRetriever] | list[RayRetriever]:
    """A retriever for each dataset, all of one backend; in this process they share one embedder, unless it is fitted.

    Args:
        folders: the datasets', as `open_retriever`.
        first_wait: likewise.

    Raises:
        EmbeddingError: the embedder or an embedding file is not usable.
        ServiceError: backend `ray`, and the service is not there or serves something else.
    """
    if section.backend == "ray":
        from rl4rec_cli.retrieval.service.client import RayRetriever

        remote = [RayRetriever.open(section, dataset, folders=folders, first_wait=first_wait) for dataset in datasets]
        console.log(f"Retrieval by {_by(section)}")
        return remote
    if section.backend == "auto" and (offered := offered_retrievers(section, datasets, folders)) is not None:
        return offered
    device = resolve_device(section.device, "retrieval.device")
    return [
        InProcessRetriever(
            embedder,
            stored.vectors_ND,
            mask_history=dataset.mask_history,
            device=device,
            storage=stored.holding.storage,
        )
        for dataset, (embedder, stored) in zip(datasets, load_catalogues(section, datasets), strict=True)
    ]


def offered_retrievers(
    section: RetrievalSection, datasets: Sequence[Dataset], folders: Sequence[str] = ()
) -> list[RayRetriever] | None:
    """The retrievers of a service that runs on this machine; None where there is none, or not one of these datasets.

    Which of them, and why not, is logged.
    """
    if not cluster.is_offered(section.service):
        return None
    from rl4rec_cli.retrieval.service.client import RayRetriever

    try:
        found = [RayRetriever.open(section, dataset, folders=folders) for dataset in datasets]
    except Rl4RecError as error:
        console.log(f"Retrieval in this process, not by {_by(section)}, which runs here: {error.message}")
        return None
    console.log(f"Retrieval by {_by(section)}, which runs here")
    return found


def _by(section: RetrievalSection) -> str:
    return f"{section.service.name} in Ray's namespace {section.service.namespace}"


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
        if section.embedder != "lsa":  # which is fitted on the catalogue
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
    if section.embedder == "lsa":
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
