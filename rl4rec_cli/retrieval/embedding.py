"""Texts to vectors, and the files item vectors are kept in.

Decides: how texts are embedded (`Embedder`), how item embeddings are named, checked and cached.
Hides: sentence-transformers, scikit-learn, safetensors.

A matrix is `[num_items, dim]` float32 with unit rows; a blank text is a zero row, which ties with every item.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli import console
from rl4rec_cli.errors import EmbeddingError

if TYPE_CHECKING:
    from rl4rec_cli.config import RetrievalSection
    from rl4rec_cli.data.dataset import Dataset

FORMAT = "rl4rec-embeddings-1"
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
            hint="half-precision models can overflow: embed in float32, or use another model",
        )
    vectors_ND = _normalised(vectors_ND)
    vectors_ND[torch.tensor([is_blank(t) for t in texts], dtype=torch.bool)] = 0.0
    return vectors_ND


def _normalised(vectors_ND: Tensor) -> Tensor:
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
    """

    def __init__(self, model: str, *, device: str, batch_size: int, query_prompt: str = "") -> None:
        console.quiet_libraries()
        from sentence_transformers import SentenceTransformer

        self.name = model_identity(model)
        self.query_prompt = query_prompt
        self._batch_size = batch_size
        try:
            self._model = SentenceTransformer(model, device=device)
        except Exception as error:
            # Each broken file of a model folder gives an error class of its own, some of them Rust's.
            raise EmbeddingError(
                f"cannot load the embedding model {model!r}: {_reason(error)}",
                hint="give a sentence-transformers model name or folder, or set retrieval.embedder=lsa (no download)",
            ) from error

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
    counts = Counter(texts)
    order = sorted(counts, key=len)
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


class LsaEmbedder:
    """Latent semantic analysis: TF-IDF and truncated SVD, fitted on the catalogue's texts.

    Deerwester et al. 1990. No download; a text without any word of the catalogue is a zero vector.
    """

    def __init__(self, catalogue: Sequence[str], *, dim: int) -> None:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from threadpoolctl import threadpool_limits

        self.name = f"lsa-{dim}"
        try:
            self._tfidf = TfidfVectorizer(sublinear_tf=True)
            matrix = self._tfidf.fit_transform(catalogue)
        except ValueError as error:
            raise EmbeddingError(
                f"lsa cannot be fitted on this catalogue: {error}", hint="its texts have no words"
            ) from error
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
        "device": resolve_device(section.device),
        "batch_size": section.batch_size,
        "query_prompt": section.query_prompt,
    }
    if section.embedder == "vllm":
        from rl4rec_cli.retrieval.vllm_embedder import VllmEmbedder

        return VllmEmbedder(section.model, memory_share=section.memory_share, **settings)
    return SentenceTransformerEmbedder(section.model, **settings)


def resolve_device(device: str) -> str:
    """`auto` → `cuda` where there is a GPU, else `cpu`."""
    if device != "auto":
        try:
            torch.device(device)
        except RuntimeError as error:
            raise EmbeddingError(f"{device!r} is no device", hint="auto, cpu, cuda, cuda:1 …") from error
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise EmbeddingError(f"device {device!r} was asked for, but torch sees no GPU", hint="use device=auto")
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def embedding_path(section: RetrievalSection, dataset: Dataset) -> Path:
    """`{emb_dir}/{dataset}_{emb_type}_{model}.safetensors`."""
    model = f"lsa-{section.lsa_dim}" if section.embedder == "lsa" else section.model
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name).strip("-") or "model"
    name, field = (re.sub(r"[^A-Za-z0-9._-]+", "-", part) for part in (dataset.name, section.emb_type))
    return Path(section.emb_dir) / f"{name}_{field}_{slug}.safetensors"


def model_identity(model: str) -> str:
    """What an embedding file says it was made by: a Hub name as it is, a folder by its name and its files' contents.

    A folder's path would not do: the same model has another one in every clone, and relative paths change with the
    working directory.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    hasher = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.suffix in _MODEL_FILES):
        hasher.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode())
        with file.open("rb") as opened:
            hasher.update(hashlib.file_digest(opened, "sha256").digest())
    return f"{folder.resolve().name}@{hasher.hexdigest()[:16]}"


def _digest(vectors_ND: Tensor) -> str:
    return hashlib.sha256(vectors_ND.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _reason(error: BaseException) -> str:
    """An error's first line, or what it is where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def save_embeddings(path: Path, vectors_ND: Tensor, *, model: str, emb_type: str, dataset: Dataset) -> None:
    """Write item vectors; `.safetensors` with metadata or `.pt` (a bare tensor). Written aside, then renamed.

    Raises:
        EmbeddingError: the file cannot be written; one that was there before is untouched.
    """
    if path.suffix not in (".safetensors", ".pt"):
        raise EmbeddingError(
            f"{path}: embeddings are written as .safetensors or .pt, not {path.suffix or 'without an ending'!r}",
            hint=f"name it {path.stem}.safetensors",
        )
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    vectors_ND = vectors_ND.to("cpu", torch.float32).contiguous()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pt":
            torch.save(vectors_ND, temporary)
        else:
            metadata = {
                "format": FORMAT,
                "model": model,
                "emb_type": emb_type,
                "dataset": dataset.name,
                "items_digest": dataset.items_digest(emb_type),
                "num_items": str(vectors_ND.shape[0]),
                "dim": str(vectors_ND.shape[1]),
                "sha256": _digest(vectors_ND),
            }
            save_file({"embeddings": vectors_ND}, temporary, metadata=metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # torch and safetensors each have their own for a full disk
        reason = (isinstance(error, OSError) and error.strerror) or _reason(error)
        raise EmbeddingError(
            f"{path}: cannot write {vectors_ND.numel() * 4:,} bytes of embeddings: {reason}"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_embeddings(path: Path, *, dataset: Dataset, emb_type: str, model: str | None = None) -> Tensor:
    """Item vectors `[num_items, dim]` float32, checked against the dataset.

    Args:
        path: `.safetensors` written by `save_embeddings`, or `.pt` holding one tensor.
        model: the embedder's name; when given, a file that says it comes from another model is refused.

    Raises:
        EmbeddingError: the file is unreadable, truncated, of the wrong type or shape, holds a non-finite or zero
            row where the item has text, or was made from other items or by another model.
    """
    if not path.is_file():
        raise EmbeddingError(f"{path}: no such embedding file", hint="make it with `rl4rec embed DATASET`")
    vectors, metadata = _read_pt(path) if path.suffix == ".pt" else _read_safetensors(path)
    vectors = vectors.detach()
    source = f" --model {model}" if model is not None else ""
    remake = f"make it again: rl4rec embed DATASET --emb-type {emb_type}{source} --out {path}"
    if vectors.ndim != 2 or vectors.shape[1] < 1:
        raise EmbeddingError(f"{path}: shape {list(vectors.shape)}, expected [num_items, dim]", hint=remake)
    if not vectors.dtype.is_floating_point or vectors.layout != torch.strided or vectors.is_meta:
        kind = vectors.dtype if vectors.layout == torch.strided and not vectors.is_meta else "without dense values"
        raise EmbeddingError(f"{path}: type {kind}, expected floating point", hint=remake)
    if vectors.shape[0] != dataset.num_items:
        raise EmbeddingError(
            f"{path}: {vectors.shape[0]} rows, but dataset {dataset.name} has {dataset.num_items} items", hint=remake
        )
    digest = metadata.get("items_digest")
    if digest is not None and digest != dataset.items_digest(emb_type):
        raise EmbeddingError(
            f"{path}: made from other items: its digest {digest[:12]}… is not that of field {emb_type!r} "
            f"of dataset {dataset.name}",
            hint=remake,
        )
    wanted = model_identity(model) if model is not None else None
    if wanted is not None and metadata.get("model", wanted) != wanted:
        raise EmbeddingError(
            f"{path}: made by {metadata['model']!r}, but texts will be embedded by {wanted!r}",
            hint="texts and items must share one model: set retrieval.model, or make the file again",
        )
    # safetensors does not notice a flipped byte, and most flipped bytes leave a finite, wrong number.
    if "sha256" in metadata and metadata["sha256"] != _digest(vectors):
        raise EmbeddingError(f"{path}: damaged: its content does not match its checksum", hint=remake)
    vectors = vectors.to(torch.float32)
    bad_N = ~torch.isfinite(vectors).all(dim=1)
    if bad_N.any():
        rows = bad_N.nonzero().flatten().tolist()
        raise EmbeddingError(
            f"{path}: {len(rows)} rows are not finite, first row {rows[0]} (item {rows[0]})", hint=remake
        )
    zero_N = vectors.eq(0).all(dim=1)
    if bool(zero_N.all()):
        raise EmbeddingError(f"{path}: every row is zero", hint=remake)
    rows = [
        row for row in zero_N.nonzero().flatten().tolist() if not is_blank(str(dataset.items[row].get(emb_type, "")))
    ]
    if rows:
        raise EmbeddingError(
            f"{path}: {len(rows)} rows are zero although the item has text, first row {rows[0]} (item {rows[0]})",
            hint=remake,
        )
    return _normalised(vectors)


def _read_safetensors(path: Path) -> tuple[Tensor, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if "embeddings" not in names and len(names) != 1:
                raise EmbeddingError(f"{path}: holds tensors {names}, expected one named 'embeddings'")
            name = "embeddings" if "embeddings" in names else names[0]
            return file.get_tensor(name), dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise EmbeddingError(
            f"{path}: not a whole .safetensors file: {error}", hint="make it again with `rl4rec embed DATASET`"
        ) from error


def _read_pt(path: Path) -> tuple[Tensor, dict[str, str]]:
    try:
        # weights_only: a pickle can run code, a tensor cannot.
        with warnings.catch_warnings(action="ignore"):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle stops its reader in any way there is
        raise EmbeddingError(
            f"{path}: not a whole .pt file with one tensor: {_reason(error)}",
            hint="save a bare tensor: torch.save(embeddings, path)",
        ) from error
    if not isinstance(loaded, Tensor):
        raise EmbeddingError(f"{path}: holds a {type(loaded).__name__}, expected one tensor [num_items, dim]")
    return loaded, {}


def embed_items(dataset: Dataset, embedder: Embedder, emb_type: str) -> Tensor:
    """Item vectors `[num_items, dim]`, with progress on the terminal."""
    texts = dataset.texts(emb_type)
    with console.progress(len(texts), f"Embedding {len(texts):,} items") as advance:
        return embedder.embed(texts, progress=advance)


def stored_embeddings(section: RetrievalSection, dataset: Dataset) -> Tensor | None:
    """Item vectors from the file the configuration names, or from the cache; None where they must be made.

    `lsa` is fitted anew in every process and so are its vectors: those of another fit may be rotated.
    """
    if section.embedder == "lsa":
        if section.file is not None:
            raise EmbeddingError("retrieval.file cannot be used with embedder lsa, which is fitted anew each time")
        return None
    path = embedding_path(section, dataset) if section.file is None else Path(section.file)
    if section.file is None and not path.is_file():
        return None
    return load_embeddings(path, dataset=dataset, emb_type=section.emb_type, model=section.model)


def embed_dataset(dataset: Dataset, section: RetrievalSection, out: str | None) -> Path:
    """Embed a dataset's items and write the file; returns its path.

    Raises:
        DataError: the items have no such field. EmbeddingError: the model cannot be loaded or the file not written.
    """
    path = Path(out) if out is not None else embedding_path(section, dataset)
    if path.suffix not in (".safetensors", ".pt"):
        raise EmbeddingError(f"{path}: embeddings are written as .safetensors or .pt", hint="change the ending")
    dataset.texts(section.emb_type)  # a missing field should not cost the loading of a model
    _check_writable(path)
    embedder = open_embedder(section, dataset)
    vectors = embed_items(dataset, embedder, section.emb_type)
    save_embeddings(path, vectors, model=embedder.name, emb_type=section.emb_type, dataset=dataset)
    return path


def _check_writable(path: Path) -> None:
    """Found out before the minutes that embedding takes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddingError(f"{path}: cannot be written: {error.strerror or error}") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise EmbeddingError(f"{path}: cannot be written", hint="give another file with --out")
