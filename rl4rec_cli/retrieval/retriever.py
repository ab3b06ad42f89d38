"""The door to ranking: texts in, ranks or items out.

Decides: what a retriever offers (`Retriever`) and the rules every backend keeps:

- rank = 1 + number of other unmasked items that score at least what the target scores: ties count against the policy;
- history items are masked (unless the dataset says otherwise), the target never, even where it stands in the history;
- a text that is blank, or has no word that the embedder knows, is unscorable: worst rank, and no reward at all,
  also where the catalogue is so small that its worst rank would earn some;
- a non-finite embedding is an error.

Hides: embedding and the ranking kernel (`ranking/ranks.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from rl4rec_cli import console
from rl4rec_cli.errors import DataError, EmbeddingError
from rl4rec_cli.plan.phases import Phase, during
from rl4rec_cli.ranking.ranks import ItemMatrix, Storage, score_matrix, search, target_ranks
from rl4rec_cli.retrieval.answers import Found, Ranking, as_found
from rl4rec_cli.retrieval.embedder import Embedder
from rl4rec_cli.retrieval.embedding_rows import vectors_digest
from rl4rec_cli.retrieval.several_texts import GroupRanks, SeveralTexts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.ranking.fusing import Fusion

__all__ = [
    "Found",
    "InProcessRetriever",
    "Ranking",
    "Retriever",
    "VectorRetriever",
    "as_found",
    "catalogue_digest",
    "query_vectors",
    "rank_vectors",
    "submit_ranks",
]

MANY_TEXTS = 2_000
"""Texts from which on embedding them shows how far it is: a model on a CPU takes minutes for those of all users."""


class Retriever(Protocol):
    num_items: int

    def target_ranks(
        self, texts: Sequence[str], targets: Sequence[int], histories: Sequence[Sequence[int]]
    ) -> Ranking: ...

    def search(self, texts: Sequence[str], k: int, exclude: Sequence[Sequence[int]] | None = None) -> list[Found]: ...

    def calculate_reward(self, texts: Sequence[str]) -> NDArray[np.float32]: ...

    def fused_ranks(
        self,
        texts_of_users: Sequence[Sequence[str]],
        targets: Sequence[int],
        histories: Sequence[Sequence[int]],
        fusion: Fusion = "logsumexp",
        weights: Sequence[Sequence[float]] | None = None,
    ) -> Ranking: ...

    def group_ranks(
        self,
        texts_of_groups: Sequence[Sequence[str]],
        targets: Sequence[int],
        histories: Sequence[Sequence[int]],
        fusion: Fusion = "logsumexp",
    ) -> GroupRanks: ...

    def fused_search(
        self,
        texts_of_users: Sequence[Sequence[str]],
        k: int,
        exclude: Sequence[Sequence[int]] | None = None,
        fusion: Fusion = "logsumexp",
        weights: Sequence[Sequence[float]] | None = None,
    ) -> list[Found]: ...


class VectorRetriever(Retriever, Protocol):
    """What evaluation asks for besides: vectors, and the catalogue itself."""

    @property
    def device(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def matrix(self) -> ItemMatrix: ...

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


class InProcessRetriever(SeveralTexts):
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
        storage: Storage = "fp32",
    ) -> None:
        self.embedder = embedder
        self.matrix = ItemMatrix(vectors_ND, storage=storage, device=device)
        self.vectors_ND = self.matrix.vectors_ND
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
        ids_BK, scores_BK = search(queries_BD, self.matrix, k, exclude)
        return ids_BK.numpy(), scores_BK.numpy()

    def calculate_reward(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The full score matrix `[len(texts), num_items]`: for callers that want it; ranks never need it."""
        if not len(texts):
            return np.zeros((0, self.num_items), np.float32)
        return self.vector_scores(self.text_vectors(texts))

    @during(Phase.RANKING)
    def vector_scores(self, queries_BD: torch.Tensor) -> NDArray[np.float32]:
        """As `calculate_reward`, from query vectors."""
        return score_matrix(queries_BD, self.matrix).numpy()

    def item_vectors(self, items: Sequence[int]) -> torch.Tensor:
        """`[len(items), dim]` float32."""
        return self.vectors_ND[list(items)].to(self.device)


def catalogue_digest(vectors_ND: torch.Tensor, *, mask_history: bool) -> str:
    """SHA-256 (hex) over item vectors, and the masking rule: what `InProcessRetriever.digest` is."""
    return vectors_digest(vectors_ND.cpu()) + str(mask_history)


@during(Phase.RANKING)
def rank_vectors(
    queries_BD: torch.Tensor,
    matrix: ItemMatrix,
    targets: Sequence[int],
    masks: Sequence[Sequence[int]] | None,
) -> Ranking:
    """Ranks by the kernel; a zero vector is unscorable and ranks last."""
    scorable_B = queries_BD.ne(0).any(dim=1).cpu()
    ranks_B = target_ranks(queries_BD, matrix, torch.tensor(list(targets), dtype=torch.long), masks)
    return Ranking(torch.where(scorable_B, ranks_B, matrix.num_items).numpy(), scorable_B.numpy())


def query_vectors(embedder: Embedder, texts: Sequence[str]) -> torch.Tensor:
    """`[len(texts), dim]` on the CPU; equal texts are embedded once, as groups of samples often agree."""
    distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    if len(distinct) < MANY_TEXTS:
        vectors_UD = embedder.embed(list(distinct), query=True)
    else:
        with console.progress(len(distinct), f"Embedding {len(distinct):,} texts") as advance:
            vectors_UD = embedder.embed(list(distinct), query=True, progress=advance)
    if vectors_UD.ndim != 2 or len(vectors_UD) != len(distinct):
        raise EmbeddingError(
            f"embedder {embedder.name} returned shape {list(vectors_UD.shape)} for {len(distinct)} texts"
        )
    return vectors_UD[[distinct[text] for text in texts]]
