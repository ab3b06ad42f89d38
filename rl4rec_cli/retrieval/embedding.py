"""Texts to vectors.

Decides: how texts are embedded (`Embedder`), and what a model is known by. `embedding_files.py` keeps the vectors.
Hides: sentence-transformers, scikit-learn.

A matrix is `[num_items, dim]` float32 with unit rows; a blank text is a zero row, which ties with every item.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli import console
from rl4rec_cli.data.words import LEAST_SHARED, share_with_common_words, words
from rl4rec_cli.errors import EmbeddingError, first_line
from rl4rec_cli.files.digests import sha256, sha256_of_file
from rl4rec_cli.files.kinds import odd_file
from rl4rec_cli.models import hub
from rl4rec_cli.models.devices import resolve_device
from rl4rec_cli.models.vocabulary import RESIZE, describe_extra, extra_tokens

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RetrievalSection
    from rl4rec_cli.data.dataset import Dataset

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Vectors this near to unit length are left as they are: dividing again would move their last bits.
_UNIT = 1e-6
# What a model computes with; not its README.
_MODEL_FILES = (".json", ".txt", ".safetensors", ".bin", ".model", ".onnx", ".jinja")


class Embedder(Protocol):
    """Turns texts into `[len(texts), dim]` float32 vectors on the CPU, unit length, zero for blank texts."""

    name: str
    """Identity that goes into file names and metadata."""

    def embed(
        self, texts: Sequence[str], *, query: bool = False, progress: Callable[[int], None] | None = None
    ) -> Tensor: ...


def _unit_rows(vectors_ND: Tensor, texts: Sequence[str], name: str) -> Tensor:
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
            hint="half precision can overflow: set retrieval.dtype=fp32, or use another model",
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
        from sentence_transformers import SentenceTransformer

        self.name = typed_identity(model, dtype)
        self.query_prompt = query_prompt
        self._batch_size = batch_size
        check_files(model)
        try:
            self._model = SentenceTransformer(model, device=device, model_kwargs={"dtype": _TYPES[dtype]})
        except Exception as error:
            # Each broken file of a model folder gives an error class of its own, some of them Rust's.
            raise cannot_load(model, error) from error
        tokenizer = getattr(self._model[0], "tokenizer", None)
        network: Any = getattr(self._model[0], "auto_model", None) or getattr(self._model[0], "model", None)
        if tokenizer is not None and hasattr(network, "get_input_embeddings"):  # else as one of static vectors
            _check_tokens(tokenizer, network.get_input_embeddings().weight.shape[0], model)

    def embed(
        self, texts: Sequence[str], *, query: bool = False, progress: Callable[[int], None] | None = None
    ) -> Tensor:
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


def check_files(model: str) -> None:
    """Refuse an embedding model's folder in which a file is not what its name says.

    Raises:
        EmbeddingError: so it is.
    """
    try:
        odd = odd_file(Path(model).expanduser())
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


def check_embedder(model: str) -> None:
    """Look at an embedding model's folder and its tokenizer, without its weights.

    Raises:
        EmbeddingError: it cannot be used.
    """
    check_files(model)
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():  # of several parts, or a name of the Hub
        return
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = getattr(AutoConfig.from_pretrained(folder).get_text_config(), "vocab_size", None)
    except Exception as error:  # as many kinds as there are libraries that read it
        raise cannot_load(model, error) from error
    _check_tokens(tokenizer, rows if isinstance(rows, int) else len(tokenizer), model)


def _check_tokens(tokenizer: Any, rows: int, name: str) -> None:
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
    return _unit_rows(torch.cat(parts)[[row[text] for text in texts]], texts, name)


def distinct(texts: Sequence[str]) -> dict[str, int]:
    """Each distinct text and how often it stands there, shortest first: the order in which texts are embedded."""
    counts = Counter(texts)
    return {text: counts[text] for text in sorted(counts, key=len)}


def lsa_name(dim: int) -> str:
    """What vectors by lsa are known by; it changes with what `words` reads of a text."""
    return f"lsa-{dim}-words-2"


class LsaEmbedder:
    """Latent semantic analysis: TF-IDF and truncated SVD, fitted on the catalogue's texts.

    Deerwester et al. 1990. No download; a text without any word of the catalogue is a zero vector. Where hardly any
    texts have words in common, which is said, no text is near another.
    """

    def __init__(self, catalogue: Sequence[str], *, dim: int) -> None:
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
        matrix = self._tfidf.transform(list(texts))
        vectors = self._svd.transform(matrix) if self._svd is not None else matrix.toarray()
        # What is left of a text (of length 1) that lies outside the kept dimensions is rounding, no direction.
        vectors[(vectors**2).sum(axis=1) < 1e-12] = 0.0
        if progress is not None:
            progress(len(texts))
        return _unit_rows(torch.from_numpy(vectors.astype("float32")), texts, self.name)


def open_embedder(section: RetrievalSection, dataset: Dataset) -> Embedder:
    """The embedder a configuration names."""
    if section.embedder == "lsa":
        return LsaEmbedder(dataset.texts(section.emb_type), dim=section.lsa_dim)
    settings: dict[str, Any] = {
        "device": resolve_device(section.device, "retrieval.device"),
        "batch_size": section.batch_size,
        "query_prompt": section.query_prompt,
        "dtype": section.dtype,
    }
    if section.embedder == "vllm":
        from rl4rec_cli.retrieval.vllm_embedder import VllmEmbedder

        return VllmEmbedder(section.model, memory_share=section.memory_share, **settings)
    return SentenceTransformerEmbedder(section.model, **settings)


def model_identity(model: str) -> str:
    """What an embedding file says it was made by: a Hub name as it is, a folder by its name and its files' contents.

    A folder's path would not do: the same model has another one in every clone, and relative paths change with the
    working directory.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    pieces: list[bytes] = []
    for file in sorted(f for f in folder.rglob("*") if f.suffix in _MODEL_FILES):
        pieces += [f"{file.relative_to(folder)} {file.stat().st_size}\n".encode(), bytes.fromhex(sha256_of_file(file))]
    return f"{folder.resolve().name}@{sha256(*pieces)[:16]}"


def typed_identity(model: str, dtype: str) -> str:
    """A model's identity with the type it computes in; fp32 goes without saying: so files and caches have it."""
    return model_identity(model) if dtype == "fp32" else f"{model_identity(model)} in {dtype}"


def embedder_identity(section: RetrievalSection) -> str:
    """The name of the embedder that a configuration names, without loading it."""
    if section.embedder == "lsa":
        return lsa_name(section.lsa_dim)
    return typed_identity(section.model, section.dtype)


def embed_items(dataset: Dataset, embedder: Embedder, emb_type: str) -> Tensor:
    """Item vectors `[num_items, dim]`, with progress on the terminal."""
    texts = dataset.texts(emb_type)
    with console.progress(len(texts), f"Embedding {len(texts):,} items") as advance:
        return embedder.embed(texts, progress=advance)
