"""Texts to vectors by a model of sentence-transformers, in this process.

Decides: that a model computes in the type that is asked for.
Hides: sentence-transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rl4rec_cli import console
from rl4rec_cli.models.devices import TYPE_NAMES
from rl4rec_cli.retrieval.embedders.models import ModelEmbedder, ModelKind, cannot_load, check_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from rl4rec_cli.data.dataset import Texts


class SentenceTransformers(ModelKind):
    """`retrieval.embedder=sentence-transformers`."""

    libraries: ClassVar[tuple[str, ...]] = ("sentence_transformers",)

    def open(self, dataset: Texts) -> SentenceTransformerEmbedder:
        return SentenceTransformerEmbedder(**self.arguments())


class SentenceTransformerEmbedder(ModelEmbedder):
    """A sentence-transformers model.

    Args:
        device: torch device.
        model, batch_size, query_prompt, dtype: as of `ModelEmbedder`. Left to itself the library computes in the type
            of the model's files.

    Raises:
        EmbeddingError: there is no such model, or it cannot be used.
    """

    def __init__(
        self, model: str, *, device: str, batch_size: int, query_prompt: str = "", dtype: str = "fp32"
    ) -> None:
        super().__init__(model, batch_size=batch_size, query_prompt=query_prompt, dtype=dtype)
        self._model = open_model(model, device=device, dtype=dtype)
        ways = {name for module in self._model for name in getattr(module, "sub_modules", ())}
        self._has_ways = {"query", "document"} <= ways
        tokenizer = getattr(self._model[0], "tokenizer", None)
        network: Any = getattr(self._model[0], "auto_model", None) or getattr(self._model[0], "model", None)
        if tokenizer is not None and hasattr(network, "get_input_embeddings"):  # else as one of static vectors
            check_tokens(tokenizer, network.get_input_embeddings().weight.shape[0], model)

    def _embed(self, texts: list[str], *, query: bool) -> Tensor:
        task = {"task": "query" if query else "document"} if self._has_ways else {}
        return encode(self._model, texts, self._batch_size, **task)


def encode(model: Any, texts: list[str], batch_size: int, **options: Any) -> Tensor:
    """Returns a model's vectors `[len(texts), dim]` of texts as they are."""
    vectors_ND: Tensor = model.encode(
        texts,
        prompt="",  # else a model's own default prompt is put before items and queries alike
        batch_size=batch_size,
        convert_to_tensor=True,
        show_progress_bar=False,
        **options,
    )
    return vectors_ND


def open_model(model: str, *, device: str, dtype: str = "fp32") -> Any:
    """Loads a model of sentence-transformers, which then computes in `dtype`.

    Raises:
        EmbeddingError: it cannot be loaded.
    """
    console.quiet_libraries()
    import torch
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(model, device=device, model_kwargs={"dtype": getattr(torch, TYPE_NAMES[dtype])})
    except Exception as error:
        # Each broken file of a model folder gives an error class of its own, some of them Rust's.
        raise cannot_load(model, error) from error
