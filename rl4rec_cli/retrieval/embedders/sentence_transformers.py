"""Texts to vectors by a model of sentence-transformers, in this process.

Decides: that a model computes in the type that is asked for, and that only queries get a prompt.
Hides: sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rl4rec_cli import console
from rl4rec_cli.retrieval.embedders.models import ModelKind, cannot_load, check_files, check_tokens, typed_identity

if TYPE_CHECKING:
    from torch import Tensor

    from rl4rec_cli.data.dataset import Dataset

_TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class SentenceTransformers(ModelKind):
    """`retrieval.embedder=sentence-transformers`."""

    libraries: ClassVar[tuple[str, ...]] = ("sentence_transformers",)

    def open(self, dataset: Dataset) -> SentenceTransformerEmbedder:
        from rl4rec_cli.models.devices import resolve_device

        section = self.section
        return SentenceTransformerEmbedder(
            section.model,
            device=resolve_device(section.device, "retrieval.device"),
            batch_size=section.batch_size,
            query_prompt=section.query_prompt,
            dtype=section.dtype,
        )


class SentenceTransformerEmbedder:
    """A sentence-transformers model.

    Args:
        model: Hub name or folder.
        device: torch device.
        batch_size: texts per forward pass.
        query_prompt: text put before queries, not before items.
        dtype: `fp32`, `bf16` or `fp16`: what it computes in. Left to itself the library takes the type of the files.
    """

    def __init__(
        self, model: str, *, device: str, batch_size: int, query_prompt: str = "", dtype: str = "fp32"
    ) -> None:
        console.quiet_libraries()
        import torch
        from sentence_transformers import SentenceTransformer

        self.name = typed_identity(model, dtype)
        self.query_prompt = query_prompt
        self._batch_size = batch_size
        check_files(model)
        options = {"dtype": getattr(torch, _TYPES[dtype])}
        try:
            self._model = SentenceTransformer(model, device=device, model_kwargs=options)
        except Exception as error:
            # Each broken file of a model folder gives an error class of its own, some of them Rust's.
            raise cannot_load(model, error) from error
        tokenizer = getattr(self._model[0], "tokenizer", None)
        network: Any = getattr(self._model[0], "auto_model", None) or getattr(self._model[0], "model", None)
        if tokenizer is not None and hasattr(network, "get_input_embeddings"):  # else as one of static vectors
            check_tokens(tokenizer, network.get_input_embeddings().weight.shape[0], model)

    def embed(
        self, texts: Sequence[str], *, query: bool = False, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        from rl4rec_cli.retrieval.embedding import each_once

        before = self.query_prompt if query else ""

        def embed(batch: Sequence[str]) -> Tensor:
            return self._model.encode(
                [before + text for text in batch],
                prompt="",  # else a model's own default prompt is put before items and queries alike
                batch_size=self._batch_size,
                convert_to_tensor=True,
                show_progress_bar=False,
            )

        return each_once(texts, embed, self.name, batch_size=self._batch_size, progress=progress)
