"""The files that item vectors are kept in.

Decides: how they are named, what stands in them, and which are refused: of other items, another model, or damaged.
Hides: safetensors, torch's own format.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rl4rec_cli import console
from rl4rec_cli.errors import EmbeddingError, first_line
from rl4rec_cli.files.kinds import ZIP, recognise_file
from rl4rec_cli.files.names import file_name
from rl4rec_cli.files.parts import part_of
from rl4rec_cli.files.writing import check_writable, replacing, why_unwritable
from rl4rec_cli.models.devices import resolve_device
from rl4rec_cli.plan.catalogue import Holding, hold_catalogue, why_not_mapped
from rl4rec_cli.plan.machine import free_bytes
from rl4rec_cli.retrieval.embedder import find_embedder, open_embedder
from rl4rec_cli.retrieval.embedders.models import own_vectors, typed_identity
from rl4rec_cli.retrieval.embedding import embed_items
from rl4rec_cli.retrieval.embedding_parts import embed_in_parts
from rl4rec_cli.retrieval.embedding_rows import UnmappableError, map_rows, usable_rows, vectors_digest
from rl4rec_cli.shell import rl4rec

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RetrievalSection
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.retrieval.embedder import Embedder

FORMAT = "rl4rec-embeddings-1"


class _DamagedError(EmbeddingError):
    """A file of ours that is not as it was written."""


def embedding_path(section: RetrievalSection, dataset: Dataset) -> Path:
    """`{emb_dir}/{dataset}_{emb_type}_{embedder}.safetensors`, with the type before the dot where it is not fp32."""
    parts = (dataset.name, section.emb_type, find_embedder(section).label)
    own_type = () if section.dtype == "fp32" else (section.dtype,)
    return Path(section.emb_dir) / f"{'_'.join(map(file_name, (*parts, *own_type)))}.safetensors"


def stored_path(section: RetrievalSection, dataset: Dataset) -> Path:
    """The file that item vectors are read from: the one named, the trained retriever's own, or the one in `emb_dir`."""
    if section.file is not None:
        return Path(section.file)
    own = own_vectors(find_embedder(section).model)
    if own is not None and read_safetensors(own)[1].get("items_digest") == dataset.items_digest(section.emb_type):
        return own
    return embedding_path(section, dataset)


class ItemVectors(NamedTuple):
    """Item vectors, and how they are held."""

    vectors_ND: Tensor
    """`[num_items, dim]` float32, unit rows. In `file`, which can only be read, or in memory."""
    holding: Holding
    file: Path | None = None


def save_embeddings(
    path: Path, vectors_ND: Tensor, *, model: str | None, emb_type: str, dataset: Dataset, dtype: str = "fp32"
) -> None:
    """Write item vectors; `.safetensors` with metadata or `.pt` (a bare tensor). Written aside, then renamed.

    Args:
        model: the embedder's name; None: the file lies in the model's own folder. dtype: what it computes in.

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

    vectors_ND = vectors_ND.to("cpu", torch.float32).contiguous()
    try:
        with replacing(path) as temporary:
            if path.suffix == ".pt":
                torch.save(vectors_ND, temporary)
            else:
                metadata = {
                    "format": FORMAT,
                    **({} if model is None else {"model": model}),
                    "dtype": dtype,
                    "emb_type": emb_type,
                    "dataset": dataset.name,
                    "items_digest": dataset.items_digest(emb_type),
                    "num_items": str(vectors_ND.shape[0]),
                    "dim": str(vectors_ND.shape[1]),
                    "sha256": vectors_digest(vectors_ND),
                }
                save_file({"embeddings": vectors_ND}, temporary, metadata=metadata)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # torch and safetensors each have their own for a full disk
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise EmbeddingError(
            f"{path}: cannot write {vectors_ND.numel() * 4:,} bytes of embeddings: {reason}"
        ) from error


def load_embeddings(
    path: Path,
    *,
    dataset: Dataset,
    emb_type: str,
    model: str | None = None,
    dtype: str = "fp32",
    identity: str | None = None,
    mapped: bool = False,
) -> Tensor:
    """Item vectors `[num_items, dim]` float32, checked against the dataset.

    Args:
        path: `.safetensors` written by `save_embeddings`, or `.pt` holding one tensor.
        model: the embedding model; when given, a file that says it comes from another one, or from this one computing
            in another type than `dtype`, is refused.
        identity: the embedder's name; None: that of `model`.
        mapped: leave the vectors in the file, a `.safetensors`: what is returned can only be read.

    Raises:
        EmbeddingError: the file is unreadable, truncated, of the wrong type or shape, holds a non-finite or zero
            row where the item has text, or was made from other items or by another model.
        UnmappableError: `mapped`, and the file holds no unit rows of float32.
    """
    if not path.is_file():
        raise EmbeddingError(f"{path}: no such embedding file", hint="make it with `rl4rec embed DATASET`")
    try:
        odd = recognise_file(path, expected=(ZIP,) if path.suffix == ".pt" else ())  # torch.save writes a zip archive
    except OSError as error:
        raise EmbeddingError(f"{path}: cannot be read: {error.strerror or error}") from error
    if odd is not None:
        hint = "what torch.save wrote is named .pt" if odd == ZIP else odd.way_out(path)
        raise EmbeddingError(f"{path} is {odd.what}", hint=hint)
    vectors, metadata = _read_pt(path) if path.suffix == ".pt" else read_safetensors(path, mapped=mapped)
    vectors = vectors.detach()
    source = [] if model is None else ["--model", model]
    source += [] if dtype == "fp32" else ["--dtype", dtype]
    remake = f"make it again: {rl4rec('embed', 'DATASET', '--emb-type', emb_type, *source, '--out', path)}"
    if vectors.is_nested:  # which has no shape to tell
        raise EmbeddingError(f"{path}: a nested tensor, expected [num_items, dim]", hint=remake)
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
    wanted = typed_identity(model, dtype) if model is not None and identity is None else identity
    if wanted is not None and metadata.get("model", wanted) != wanted:
        raise EmbeddingError(
            f"{path}: made by {metadata['model']!r}, but texts will be embedded by {wanted!r}",
            hint="texts and items must share one model, in one type: set retrieval.model and retrieval.dtype, or make "
            "the file again",
        )
    # safetensors does not notice a flipped byte, and most flipped bytes leave a finite, wrong number.
    if "sha256" in metadata and metadata["sha256"] != vectors_digest(vectors):
        raise _DamagedError(f"{path}: damaged: its content does not match its checksum", hint=remake)
    return usable_rows(vectors, dataset, emb_type, path, remake, mapped=mapped)


def read_safetensors(path: Path, *, mapped: bool = False) -> tuple[Tensor, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if "embeddings" not in names and len(names) != 1:
                raise EmbeddingError(f"{path}: holds tensors {names}, expected one named 'embeddings'")
            name = "embeddings" if "embeddings" in names else names[0]
            vectors = map_rows(path, name) if mapped else file.get_tensor(name)
            return vectors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _DamagedError(
            f"{path}: not a whole .safetensors file: {error}", hint="make it again with `rl4rec embed DATASET`"
        ) from error


def map_named(path: Path, sha256: str) -> Tensor:
    """The vectors in a `.safetensors` file that was checked elsewhere, memory-mapped.

    Args:
        sha256: what the file must say its checksum is; it is not computed again.

    Raises:
        EmbeddingError: it is not there, not whole, or another one.
    """
    hint = "every machine of a retrieval service must see the same files; or set retrieval.memory_map=off"
    if not path.is_file():
        raise EmbeddingError(f"{path}: no such embedding file on this machine", hint=hint)
    vectors_ND, metadata = read_safetensors(path, mapped=True)
    if metadata.get("sha256", "") != sha256:
        raise EmbeddingError(f"{path}: not the file that the retrieval service has loaded", hint=hint)
    return vectors_ND


def file_checksum(path: Path) -> str:
    """What a `.safetensors` file says its checksum is; empty where it says nothing."""
    return read_safetensors(path, mapped=True)[1].get("sha256", "")


def _read_pt(path: Path) -> tuple[Tensor, dict[str, str]]:
    try:
        # weights_only: a pickle can run code, a tensor cannot.
        with warnings.catch_warnings(action="ignore"):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle stops its reader in any way there is
        raise EmbeddingError(
            f"{path}: not a whole .pt file with one tensor: {first_line(error)}",
            hint="save a bare tensor: torch.save(embeddings, path)",
        ) from error
    if not isinstance(loaded, Tensor):
        raise EmbeddingError(f"{path}: holds a {type(loaded).__name__}, expected one tensor [num_items, dim]")
    return loaded, {}


def stored_embeddings(
    section: RetrievalSection, dataset: Dataset, *, items: int | None = None, copies: int = 1
) -> ItemVectors | None:
    """Item vectors from the file the configuration names, or from the cache; None where they must be made.

    Args:
        items, copies: as of `hold_vectors`.

    Raises:
        ConfigError, EmbeddingError: the file cannot be used, or not in the way that is asked for; or the embedder is
            fitted, and none can be.
    """
    kind = find_embedder(section)
    if kind.is_fitted:
        if section.file is not None:
            raise EmbeddingError(
                f"retrieval.file cannot be used with embedder {section.embedder}, which is fitted anew each time"
            )
        why_not_mapped(section)
        return None
    path, own = stored_path(section, dataset), own_vectors(find_embedder(section).model)
    if own is not None and path != own and section.file is None:
        console.log(f"{own}: of other items than those of {dataset.name}, which are embedded by their texts alone")
    if section.file is None and not path.is_file():
        return None
    holding: Holding | None = None
    try:
        if path.suffix == ".safetensors" and path.is_file() and len(shape := _shape(path)) == 2:
            holding = hold_vectors(section, items or shape[0], shape[1], copies=copies)
        return _load(section, dataset, path, holding, items=items, copies=copies)
    except _DamagedError as error:
        if section.file is not None:
            raise
        console.log(f"{error.message}; the items are embedded again")
        return None


def _load(
    section: RetrievalSection, dataset: Dataset, path: Path, holding: Holding | None, *, items: int | None, copies: int
) -> ItemVectors:
    mapped = holding is not None and holding.is_mapped
    kind = find_embedder(section)
    of = {
        **{"dataset": dataset, "emb_type": section.emb_type},
        **{"model": kind.model, "dtype": section.dtype, "identity": kind.identity},
    }
    why = None
    try:
        vectors_ND = load_embeddings(path, **of, mapped=mapped)  # type: ignore[arg-type]
    except UnmappableError as error:
        if section.memory_map == "on":
            raise
        why = error.message
        vectors_ND, mapped = load_embeddings(path, **of), False  # type: ignore[arg-type]
    if holding is None or why is not None:
        holding = hold_vectors(section, items or len(vectors_ND), vectors_ND.shape[1], copies=copies, not_mapped=why)
    return ItemVectors(vectors_ND, holding, path if mapped else None)


def hold_vectors(
    section: RetrievalSection, items: int, dim: int, *, copies: int = 1, not_mapped: str | None = None
) -> Holding:
    """How to hold item vectors on the device that ranks, by what is free there now.

    Args:
        items: of all catalogues that this process holds.
        copies: of them in that memory.
        not_mapped: why they cannot stay in their file, beside what the settings say.

    Raises:
        ConfigError: they should stay in a file, and there is none.
    """
    device, why = resolve_device(section.device, "retrieval.device"), why_not_mapped(section)
    free, on_gpu = free_bytes(device), device.startswith("cuda")
    return hold_catalogue(section, items, dim, free, on_gpu=on_gpu, not_mapped=not_mapped or why, copies=copies)


def _shape(path: Path) -> list[int]:
    """Of the matrix in a `.safetensors` file; empty where that cannot be told, which `load_embeddings` says better."""
    from safetensors import SafetensorError, safe_open

    with suppress(SafetensorError, OSError), safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return list(file.get_slice("embeddings" if "embeddings" in names else names[0]).get_shape()) if names else []
    return []


def embed_dataset(dataset: Dataset, section: RetrievalSection, out: str | None) -> Path:
    """Embed a dataset's items and write the file; returns its path. Ended half-way, the same command goes on.

    Raises:
        DataError: the items have no such field. ConfigError: there is no place for the file.
        EmbeddingError: the model cannot be loaded or the file not written.
    """
    path = Path(out) if out is not None else embedding_path(section, dataset)
    if path.suffix not in (".safetensors", ".pt"):
        raise EmbeddingError(f"{path}: embeddings are written as .safetensors or .pt", hint="change the ending")
    dataset.texts(section.emb_type)  # a missing field should not cost the loading of a model
    check_writable(path)
    embedder = open_embedder(section, dataset)

    def store(vectors_ND: Tensor) -> bool:
        _save(path, vectors_ND, embedder, section, dataset)
        return True

    _embed(dataset, embedder, section, path, store)
    return path


def embed_into_cache(dataset: Dataset, embedder: Embedder, section: RetrievalSection) -> Tensor:
    """Item vectors `[num_items, dim]`, kept in the file that `embedding_path` names.

    A file that cannot be written costs time, not the result: it is said.
    """
    path = embedding_path(section, dataset)
    anew = "they are embedded anew next time"
    if (reason := why_unwritable(path)) is not None:
        console.log(f"{path}: item vectors cannot be kept ({reason}): {anew}")
        return embed_items(dataset, embedder, section.emb_type)

    def store(vectors_ND: Tensor) -> bool:
        try:
            _save(path, vectors_ND, embedder, section, dataset)
        except EmbeddingError as error:
            console.log(f"{error.message}: {anew}")
            return False
        return True

    return _embed(dataset, embedder, section, path, store)


def _save(path: Path, vectors_ND: Tensor, embedder: Embedder, section: RetrievalSection, dataset: Dataset) -> None:
    save_embeddings(
        path, vectors_ND, model=embedder.name, emb_type=section.emb_type, dataset=dataset, dtype=section.dtype
    )


def _embed(
    dataset: Dataset, embedder: Embedder, section: RetrievalSection, path: Path, store: Callable[[Tensor], bool]
) -> Tensor:
    if not find_embedder(section).in_batches:
        vectors_ND = embed_items(dataset, embedder, section.emb_type)
        store(vectors_ND)
        return vectors_ND
    return embed_in_parts(
        dataset,
        embedder,
        section.emb_type,
        part_of(path),
        batch_size=section.batch_size,
        dtype=section.dtype,
        store=store,
    )
