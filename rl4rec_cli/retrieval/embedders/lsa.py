"""Texts to vectors by latent semantic analysis, fitted on the catalogue: no model, no download.

Decides: what vectors by lsa are known by, and that two fits on one catalogue are equal to the last bit.
Hides: scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from rl4rec_cli import console
from rl4rec_cli.data.words import LEAST_SHARED, WORDS_VERSION, share_with_common_words, words
from rl4rec_cli.errors import EmbeddingError
from rl4rec_cli.retrieval.embedder import EmbedderKind

if TYPE_CHECKING:
    from torch import Tensor

    from rl4rec_cli.data.dataset import Texts


class Lsa(EmbedderKind):
    """`retrieval.embedder=lsa`."""

    is_fitted: ClassVar[bool] = True
    in_batches: ClassVar[bool] = False
    settings: ClassVar[tuple[str, ...]] = ("lsa_dim",)

    @property
    def identity(self) -> str:
        return lsa_name(self.section.lsa_dim)

    @property
    def dim(self) -> int:
        return self.section.lsa_dim

    def open(self, dataset: Texts) -> LsaEmbedder:
        return LsaEmbedder(dataset.texts(self.section.emb_type), dim=self.section.lsa_dim)


def lsa_name(dim: int) -> str:
    """What vectors by lsa are known by."""
    return f"lsa-{dim}-words-{WORDS_VERSION}"


class LsaEmbedder:
    """Latent semantic analysis: TF-IDF and truncated SVD, fitted on the catalogue's texts.

    Deerwester et al. 1990. No download; a text without any word of the catalogue is a zero vector. Where hardly any
    texts have words in common, which is said, no text is near another.
    """

    def __init__(self, catalogue: Sequence[str], *, dim: int) -> None:
        import numpy as np
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from threadpoolctl import threadpool_limits

        self.name = lsa_name(dim)
        try:
            self._tfidf = TfidfVectorizer(sublinear_tf=True, analyzer=words)
            matrix = self._tfidf.fit_transform(catalogue)
        except ValueError as error:
            raise EmbeddingError(
                f"lsa cannot be fitted on this catalogue: {error}", hint="its texts have no words"
            ) from error
        share = share_with_common_words([words(text) for text in catalogue])
        if share < LEAST_SHARED:
            console.log(f"warning: lsa knows next to nothing here: {share:.0%} of the items share a word with another")
        features = matrix.shape[1]
        # The SVD needs fewer components than features; a small catalogue has as many dimensions as it can fill.
        components = min(dim, features - 1, len(catalogue))
        self._svd = None
        if components >= 1:
            # One thread: with another number of them BLAS adds in another order, and a retrieval service and a trainer
            # would fit vectors whose last bits differ.
            with np.errstate(invalid="ignore"), threadpool_limits(1):  # equal texts have no variance to explain
                self._svd = TruncatedSVD(n_components=components, random_state=0).fit(matrix)

    def embed(
        self, texts: Sequence[str], *, query: bool = False, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        import torch

        from rl4rec_cli.retrieval.embedding import unit_rows

        matrix = self._tfidf.transform(list(texts))
        vectors = self._svd.transform(matrix) if self._svd is not None else matrix.toarray()
        # What is left of a text (of length 1) that lies outside the kept dimensions is rounding, no direction.
        vectors[(vectors**2).sum(axis=1) < 1e-12] = 0.0
        if progress is not None:
            progress(len(texts))
        return unit_rows(torch.from_numpy(vectors.astype("float32")), texts, self.name)
