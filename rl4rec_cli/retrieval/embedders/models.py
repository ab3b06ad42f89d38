"""Embedding models: what all embedders that load one have in common.

Decides: what a model is known by, which models are refused before and while they are loaded, and that only queries get
a prompt.
Hides: the files of a model, and the Hub.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rl4rec_cli.errors import ConfigError, EmbeddingError, first_line
from rl4rec_cli.files.digests import sha256, sha256_of_file
from rl4rec_cli.files.kinds import odd_file
from rl4rec_cli.files.paths import expand
from rl4rec_cli.models import hub
from rl4rec_cli.models.devices import resolve_device
from rl4rec_cli.models.vocabulary import RESIZE, describe_extra, extra_tokens
from rl4rec_cli.retrieval.embedder import EmbedderKind, find_embedder

if TYPE_CHECKING:
    from torch import Tensor

    from rl4rec_cli.config.sections import RetrievalSection

# What a model computes with; not its README.
_MODEL_FILES = (".json", ".txt", ".safetensors", ".bin", ".model", ".onnx", ".jinja")
OWN_VECTORS = "item_vectors.safetensors"
"""In a trained retriever's folder: the vectors of the items that it was trained on."""


class ModelKind(EmbedderKind):
    """An embedder that runs the model `retrieval.model`."""

    settings: ClassVar[tuple[str, ...]] = ("model",)
    dtypes: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16")

    @property
    def identity(self) -> str:
        return typed_identity(self.section.model, self.section.dtype)

    @property
    def label(self) -> str:
        path = Path(self.section.model)
        # Every run's checkpoint has the same name.
        run = path.resolve().parent.parent.name if path.name.startswith("checkpoint_") else ""
        return f"{run}_{path.name}" if run else path.name or "model"

    @property
    def model(self) -> str:
        return self.section.model

    def check(self) -> None:
        if expand(self.model).is_dir():
            check_model(self.model)

    def arguments(self) -> dict[str, Any]:
        """Those of a `ModelEmbedder`, of this configuration.

        Raises:
            ConfigError: there is no such device.
        """
        section = self.section
        return {
            "model": section.model,
            "device": resolve_device(section.device, "retrieval.device"),
            "batch_size": section.batch_size,
            "query_prompt": section.query_prompt,
            "dtype": section.dtype,
        }


class ModelEmbedder(ABC):
    """A model of sentence-transformers' kind, whatever runs it.

    Args:
        model: Hub name or folder.
        batch_size: texts that go to it at once.
        query_prompt: text put before queries, not before items.
        dtype: `fp32`, `bf16` or `fp16`: what it computes in.

    Raises:
        EmbeddingError: a file of the folder is not what its name says.
    """

    def __init__(self, model: str, *, batch_size: int, query_prompt: str, dtype: str) -> None:
        self.name = typed_identity(model, dtype)
        self.query_prompt = query_prompt
        self._batch_size = batch_size
        check_files(model)

    @abstractmethod
    def _embed(self, texts: list[str], *, query: bool) -> Tensor:
        """Vectors `[len(texts), dim]` of one batch as the model gives them.

        Args:
            query: they are queries, for models that have a way for these and another for items.
        """

    def embed(
        self, texts: Sequence[str], *, query: bool = False, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        from rl4rec_cli.retrieval.embedding import each_once

        before = self.query_prompt if query else ""
        return each_once(
            texts,
            lambda batch: self._embed([before + text for text in batch], query=query),
            self.name,
            batch_size=self._batch_size,
            progress=progress,
        )


def own_vectors(model: str | None) -> Path | None:
    """The item vectors in a trained retriever's folder; None for any other model."""
    path = expand(model or "") / OWN_VECTORS
    return path if model is not None and path.is_file() else None


def has_ways(model: str) -> bool:
    """Whether a folder of sentence-transformers has a way for queries and another for items, as trained retrievers."""
    path = expand(model) / "modules.json"
    return path.is_file() and "router.Router" in path.read_text(encoding="utf-8", errors="replace")


def check_files(model: str) -> None:
    """Refuse an embedding model's folder in which a file is not what its name says.

    Raises:
        EmbeddingError: so it is.
    """
    try:
        odd = odd_file(expand(model))
    except OSError as error:
        raise EmbeddingError(f"{error.filename or model}: cannot be read: {error.strerror or error}") from error
    if odd is not None:
        path, what, way_out = odd
        raise EmbeddingError(f"{path} is {what}", hint=way_out)


def cannot_load(model: str, error: Exception) -> EmbeddingError:
    """The error of a library that reads embedding models, in one line."""
    if (told := hub.explain(error, model)) is not None:
        message, hint = told
        return EmbeddingError(
            f"cannot load the embedding model: {message}", hint=f"{hint}; retrieval.embedder=lsa needs none"
        )
    return EmbeddingError(
        f"cannot load the embedding model {model!r}: {first_line(error)}",
        hint="give a sentence-transformers model name or folder, or set retrieval.embedder=lsa (no download)",
    )


def check_model(model: str) -> None:
    """Look at an embedding model's folder and its tokenizer, without its weights.

    Raises:
        EmbeddingError: it cannot be used.
    """
    check_files(model)
    folder = expand(model)
    if not (folder / "config.json").is_file():  # of several parts, or a name of the Hub
        return
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = getattr(AutoConfig.from_pretrained(folder).get_text_config(), "vocab_size", None)
    except Exception as error:  # as many kinds as there are libraries that read it
        raise cannot_load(model, error) from error
    check_tokens(tokenizer, rows if isinstance(rows, int) else len(tokenizer), model)


def check_tokens(tokenizer: Any, rows: int, name: str) -> None:
    """Refuse a model that could not pad texts to one length, or has no row for a token that it would read.

    Raises:
        EmbeddingError: so it is.
    """
    if tokenizer.pad_token_id is None:
        raise EmbeddingError(
            f"the embedding model {name!r} cannot be used: its tokenizer has no padding token",
            hint="give it one and save it there: tokenizer.pad_token = tokenizer.eos_token; "
            "tokenizer.save_pretrained(…); or name a model that was made to embed",
        )
    extra = extra_tokens(tokenizer, rows)
    extra += [tokenizer.pad_token] if tokenizer.pad_token_id >= rows else []
    if extra:
        raise EmbeddingError(
            f"the embedding model {name!r} cannot be used: {describe_extra(tokenizer, rows, extra)}", hint=RESIZE
        )


def model_identity(model: str) -> str:
    """What an embedding file says it was made by: a Hub name as it is, a folder by its name and its files' contents.

    A folder's path would not do: the same model has another one in every clone, and relative paths change with the
    working directory.
    """
    folder = expand(model)
    if not folder.is_dir():
        return model
    pieces: list[bytes] = []
    for file in sorted(f for f in folder.rglob("*") if f.suffix in _MODEL_FILES):
        pieces += [f"{file.relative_to(folder)} {file.stat().st_size}\n".encode(), bytes.fromhex(sha256_of_file(file))]
    return f"{folder.resolve().name}@{sha256(*pieces)[:16]}"


def typed_identity(model: str, dtype: str) -> str:
    """A model's identity with the type it computes in; fp32 goes without saying: so files and caches have it."""
    return model_identity(model) if dtype == "fp32" else f"{model_identity(model)} in {dtype}"


def check_tunable(retrieval: RetrievalSection) -> None:
    """Refuses an encoder that cannot be tuned, without loading it.

    Raises:
        ConfigError: the embedder is no model. EmbeddingError: it has a way for queries and another for items.
    """
    if find_embedder(retrieval).model is None:
        raise ConfigError(
            f"embedder {retrieval.embedder} is no model, of which weights could be trained",
            hint="name a model of sentence-transformers (retrieval.embedder=sentence-transformers, retrieval.model), "
            "or train a projection of its vectors: trainer.kind=projection",
        )
    if has_ways(retrieval.model):
        raise EmbeddingError(
            f"{retrieval.model}: has a way for queries and another for items, as the projections of `rl4rec train "
            "retriever`",
            hint="tune the encoder that it was made of, and train a projection of the tuned one's vectors",
        )
