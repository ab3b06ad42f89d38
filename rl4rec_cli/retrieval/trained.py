"""The trained retriever: what every kind of it answers, and its files.

Decides: what a checkpoint says of itself, and that one made for another catalogue or encoder is refused.
Hides: nothing. `projection.py` and `tuned_encoder.py` are the kinds, `trained_opening.py` opens them.

A checkpoint holds weights and `retriever.json`. The final one is a whole folder of sentence-transformers besides, with
`item_vectors.safetensors`, the vectors of the catalogue's items. `retrieval.model=FOLDER` reads both.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rl4rec_cli.errors import RunError
from rl4rec_cli.files.digests import sha256_of_json, sha256_of_tensors
from rl4rec_cli.files.folders import write_folder
from rl4rec_cli.files.reading import read_object
from rl4rec_cli.plan.phases import Phase, during
from rl4rec_cli.ranking.item_matrix import ItemMatrix
from rl4rec_cli.ranking.ranks import search
from rl4rec_cli.retrieval.embedder import find_embedder
from rl4rec_cli.retrieval.embedders.models import OWN_VECTORS
from rl4rec_cli.retrieval.embedding_files import save_embeddings
from rl4rec_cli.retrieval.retriever import Found, as_found

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RetrievalSection
    from rl4rec_cli.data.dataset import Dataset

WEIGHTS, FACTS = "retriever.safetensors", "retriever.json"


class TrainedRetriever(ABC):
    """A network that is trained, or was, with the catalogue that it ranks.

    Args:
        retrieval: names the encoder.
        dataset: its items' texts and its training part.
    """

    name = "retriever"
    engine = None
    """It generates nothing."""
    model: Any
    """The network."""
    facts: dict[str, Any]
    """What its weights were trained for, as a checkpoint says it."""

    def __init__(self, retrieval: RetrievalSection, dataset: Dataset) -> None:
        self._retrieval, self._dataset = retrieval, dataset
        self._matrix: tuple[int, ItemMatrix] | None = None
        """The items' vectors, and the passes that the network had made in training."""

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @property
    @abstractmethod
    def about(self) -> str:
        """What is trained, in a few words for the log."""

    @property
    def has_model(self) -> bool:
        """Whether the encoder is a model, so that a folder of sentence-transformers can be made."""
        return find_embedder(self._retrieval).model is not None

    @property
    def texts(self) -> list[str]:
        """The items' texts that the encoder read."""
        return self._dataset.texts(self._retrieval.emb_type)

    @property
    def reads(self) -> dict[str, Any]:
        """Settings that its queries depend on, besides its weights."""
        return {}

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of its weights, of what they were trained on, and of how it reads histories."""
        reads = [self.reads] if self.reads else []
        return sha256_of_json([self.facts, sha256_of_tensors(self._weights()), *reads])

    def close(self) -> None:  # noqa: B027
        """Does nothing, as nothing is open; policies are closed."""

    @property
    @abstractmethod
    def _passes(self) -> int:
        """Passes of the network in training mode: weights change after one, and by `load`.

        An optimiser leaves no other trace: fused kernels do not raise a tensor's version.
        """

    @abstractmethod
    def _item_vectors(self) -> Tensor:
        """Returns the items' vectors by the weights as they are."""

    def items(self) -> Tensor:
        """Returns the items' vectors, unit `[num_items, dim]`; do not change them."""
        return self.matrix.vectors_ND

    @property
    def matrix(self) -> ItemMatrix:
        """The items' vectors as the kernel reads them, made once for the same weights: an answer costs its history."""
        if self._matrix is None or self._matrix[0] != self._passes:
            self._matrix = None  # before the next one is made: two may not fit
            is_in_step = self.model.training
            made = self._passes, ItemMatrix(self._item_vectors(), device=str(self.device))
            if is_in_step:  # the weights may change without another pass
                return made[1]
            self._matrix = made
        return self._matrix[1]

    @abstractmethod
    def queries(self, histories: Sequence[Sequence[int]]) -> Tensor:
        """Returns the query after each history, unit `[len(histories), dim]`; a history is not empty.

        Batching moves a query by rounding only.
        """

    def search(
        self, histories: Sequence[Sequence[int]], k: int, exclude: Sequence[Sequence[int]] | None = None
    ) -> list[Found]:
        """Returns the `k` best items for each history, best first, without those excluded."""
        ids_BK, scores_BK = search(self.queries(histories), self.matrix, k, exclude)
        return as_found(ids_BK.numpy(), scores_BK.numpy())

    @abstractmethod
    def _weights(self) -> Mapping[str, Tensor]:
        """Returns the weights of a checkpoint, on the CPU."""

    @abstractmethod
    def _write_weights(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Writes them into `folder`."""

    @abstractmethod
    def _read_weights(self, folder: Path) -> Mapping[str, Tensor]:
        """Reads what `_write_weights` wrote.

        Raises:
            RunError, EmbeddingError: they cannot be read.
        """

    @abstractmethod
    def _take_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Puts them into the network."""

    @abstractmethod
    def _write_model(self, folder: Path) -> None:
        """Writes what a folder of sentence-transformers has beyond a checkpoint's weights."""

    @during(Phase.SAVING)
    def write(self, folder: Path, more: Callable[[Path], None] = lambda folder: None, *, size: int = 0) -> None:
        """Writes a checkpoint of the network, and more files; see `policy.loading.write_checkpoint`.

        Raises:
            RunError: the folder cannot be written; an existing one is untouched.
        """
        weights = self._weights()
        size += sum(value.numel() * value.element_size() for value in weights.values())

        def fill(temporary: Path) -> None:
            self._write_weights(temporary, weights)
            facts = {**self.facts, "sha256": sha256_of_tensors(weights)}
            (temporary / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            more(temporary)

        try:
            write_folder(folder, fill, size=size)
        except OSError as error:
            raise RunError(
                f"{folder}: cannot write the checkpoint of about {size:,} bytes: {error.strerror or error}",
                hint="make room or name another --output; what was written before is whole",
            ) from error

    @during(Phase.LOADING)
    def load(self, folder: Path) -> None:
        """Loads a checkpoint's weights.

        Raises:
            RunError: it is damaged, or of another catalogue, encoder or form.
        """
        facts = read_object(folder / FACTS, {"format": str, "sha256": str})
        if different := [key for key, value in self.facts.items() if facts.get(key) != value]:
            words = "; ".join(f"{key} {facts.get(key)!s:.24}, here {self.facts[key]!s:.24}" for key in different)
            raise RunError(
                f"{folder}: this retriever was trained on other items or vectors ({words})",
                hint="name the dataset and the encoder (retrieval.model, retrieval.emb_type) that it was trained with",
            )
        weights = self._read_weights(folder)
        if facts["sha256"] != sha256_of_tensors(weights):
            raise RunError(f"{folder}: damaged: the content of its weights does not match its checksum")
        self._take_weights(weights)
        self._matrix = None

    def write_model(self, folder: Path) -> None:
        """Completes a checkpoint's folder to one of sentence-transformers, which brings the items' vectors along.

        Raises:
            EmbeddingError: the encoder is no model of sentence-transformers.
        """
        self._write_model(folder)
        vectors_ND, emb_type = self.items().cpu(), self._retrieval.emb_type
        save_embeddings(folder / OWN_VECTORS, vectors_ND, model=None, emb_type=emb_type, dataset=self._dataset)


def write_tensors(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes `retriever.safetensors`."""
    from safetensors.torch import save_file

    save_file(dict(weights), folder / WEIGHTS)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Reads `retriever.safetensors`.

    Raises:
        RunError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder / WEIGHTS}: cannot be read: {error}") from error
