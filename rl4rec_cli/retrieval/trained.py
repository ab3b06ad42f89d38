"""The trained retriever: its network over a catalogue, and its files.

Decides: which files a checkpoint of it has, and that one made for another catalogue or encoder is refused; how the
network becomes a folder of sentence-transformers.
Hides: sentence-transformers.

A checkpoint holds `retriever.safetensors` and `retriever.json`: small files, of no use without the encoder. The final
one is besides a whole folder of sentence-transformers: encoder → `Router` (documents: `Dense`, `Normalize`; queries:
the same and another `Dense`, `Normalize`), with `item_vectors.safetensors`, the vectors of the catalogue's items with
what they have beyond their texts. `retrieval.model=FOLDER` reads both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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
from rl4rec_cli.retrieval.embedding_rows import vectors_digest
from rl4rec_cli.retrieval.history_model import HistoryModel
from rl4rec_cli.retrieval.retriever import Found, as_found

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RetrievalSection, RunConfig
    from rl4rec_cli.config.trainer import RetrieverSection
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.retrieval.retriever import VectorRetriever

FORMAT = "rl4rec-retriever-1"
WEIGHTS, FACTS = "retriever.safetensors", "retriever.json"
_POSITIONS = 1 << 16
"""Positions of histories in one pass, padding included."""


class TrainedRetriever:
    """A network that is trained, or was, with the catalogue that it ranks.

    Args:
        section: its settings.
        retrieval: names the encoder.
        dataset: its items' texts and its training part.
        retriever: the encoder's vectors of the items.
    """

    def __init__(
        self, section: RetrieverSection, retrieval: RetrievalSection, dataset: Dataset, retriever: VectorRetriever
    ) -> None:
        self.section, self._retrieval, self._dataset = section, retrieval, dataset
        vectors_ND = retriever.vectors_ND.to(retriever.device)
        self.facts: dict[str, Any] = {
            "format": FORMAT,
            "encoder": find_embedder(retrieval).identity,
            "emb_type": retrieval.emb_type,
            "items": dataset.items_digest(retrieval.emb_type),
            "vectors": vectors_digest(vectors_ND.cpu()),
            "dim": min(section.dim, vectors_ND.shape[1]),
            "max_history": section.max_history,
            "residual": section.residual,
        }
        self.model = HistoryModel(
            vectors_ND,
            dim=section.dim,
            max_history=section.max_history,
            residual_N=_with_residual(section, dataset).to(retriever.device) if section.residual else None,
            residual_dropout=section.residual_dropout,
            dropout=section.dropout,
        ).to(retriever.device)
        self.model.eval()
        self._matrix: ItemMatrix | None = None
        self._matrix_of: list[tuple[int, int]] = []
        """The weights that the matrix was made by."""

    name = "retriever"
    engine = None
    """It generates nothing."""

    @property
    def device(self) -> torch.device:
        return self.model.text.weight.device

    @property
    def has_model(self) -> bool:
        """Whether the encoder is a model, so that a folder of sentence-transformers can be made."""
        return find_embedder(self._retrieval).model is not None

    @property
    def texts(self) -> list[str]:
        """The items' texts that the encoder read."""
        return self._dataset.texts(self._retrieval.emb_type)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of its weights and of what they were trained on."""
        weights = {name: value.detach().cpu() for name, value in self.model.state_dict().items()}
        return sha256_of_json([self.facts, sha256_of_tensors(weights)])

    def close(self) -> None:
        """Nothing is open."""

    def items(self) -> Tensor:
        """Returns the items' vectors, unit `[num_items, dim]`; do not change them."""
        return self.matrix.vectors_ND

    @property
    @torch.no_grad()
    def matrix(self) -> ItemMatrix:
        """The items' vectors as the kernel reads them, made once for the same weights: an answer costs its history."""
        # torch counts what is written into a tensor in place, by an optimiser or by `load_state_dict`.
        weights = [(parameter.data_ptr(), parameter._version) for parameter in self.model.parameters()]
        if self._matrix is None or weights != self._matrix_of:
            self._matrix = None  # before the next one is made: two may not fit
            self.model.eval()
            self._matrix, self._matrix_of = ItemMatrix(self.model.items(), device=str(self.device)), weights
        return self._matrix

    @torch.no_grad()
    @during(Phase.RANKING)
    def queries(self, histories: Sequence[Sequence[int]]) -> Tensor:
        """Returns the query after each history, unit `[len(histories), dim]`; a history is not empty.

        Batching moves a query by rounding only.
        """
        self.model.eval()
        items_ND = self.items()
        longest = len(self.model.recency)
        recent = [list(history[-longest:]) for history in histories]
        queries_BD = items_ND.new_zeros(len(recent), items_ND.shape[1])
        rows = max(1, _POSITIONS // longest)
        for start in range(0, len(recent), rows):
            some = recent[start : start + rows]
            lengths_B = torch.tensor([len(history) for history in some], device=self.device)
            ids_BT = torch.zeros(len(some), longest, dtype=torch.long)
            for place, history in enumerate(some):
                ids_BT[place, : len(history)] = torch.tensor(history)
            every_BTD = self.model.queries(items_ND[ids_BT.to(self.device)])
            last_B = torch.arange(len(some), device=self.device)
            queries_BD[start : start + len(some)] = every_BTD[last_B, lengths_B - 1]
        return queries_BD

    def search(
        self, histories: Sequence[Sequence[int]], k: int, exclude: Sequence[Sequence[int]] | None = None
    ) -> list[Found]:
        """Returns the `k` best items for each history, best first, without those excluded."""
        ids_BK, scores_BK = search(self.queries(histories), self.matrix, k, exclude)
        return as_found(ids_BK.numpy(), scores_BK.numpy())

    @during(Phase.SAVING)
    def write(self, folder: Path, more: Callable[[Path], None] = lambda folder: None, *, size: int = 0) -> None:
        """Writes a checkpoint of the network, and more files; see `policy.loading.write_checkpoint`.

        Raises:
            RunError: the folder cannot be written; an existing one is untouched.
        """
        from safetensors.torch import save_file

        weights = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        size += sum(value.numel() * value.element_size() for value in weights.values())

        def fill(temporary: Path) -> None:
            save_file(weights, temporary / WEIGHTS)
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
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        facts = read_object(folder / FACTS, {"format": str, "sha256": str})
        if different := [key for key, value in self.facts.items() if facts.get(key) != value]:
            words = "; ".join(f"{key} {facts.get(key)!s:.24}, here {self.facts[key]!s:.24}" for key in different)
            raise RunError(
                f"{folder}: this retriever was trained on other items or vectors ({words})",
                hint="name the dataset and the encoder (retrieval.model, retrieval.emb_type) that it was trained with",
            )
        try:
            weights = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{folder / WEIGHTS}: cannot be read: {error}") from error
        if facts["sha256"] != sha256_of_tensors(weights):
            raise RunError(f"{folder / WEIGHTS}: damaged: its content does not match its checksum")
        self.model.load_state_dict(weights)

    def write_model(self, folder: Path) -> None:
        """Writes the whole folder of sentence-transformers into `folder`, which may hold other files.

        Raises:
            EmbeddingError: the encoder is no model of sentence-transformers.
        """
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Router

        from rl4rec_cli.retrieval.embedders.sentence_transformers import open_model

        encoder = open_model(self._retrieval.model, device="cpu")
        text = _dense(Dense, self.model.text.weight, self.model.text.bias)
        scale, last = self.model.scale, self.model.last
        identity = torch.eye(len(last.bias), device=self.device)
        query = _dense(Dense, identity + last.weight, last.bias / scale)
        router = Router.for_query_document(
            query_modules=[text, Normalize(), query, Normalize()], document_modules=[text, Normalize()]
        )
        model = SentenceTransformer(modules=[*encoder.children(), Normalize(), router], device="cpu")
        model.max_seq_length = encoder.max_seq_length
        model.save(str(folder), create_model_card=False)
        vectors_ND, emb_type = self.items().cpu(), self._retrieval.emb_type
        save_embeddings(folder / OWN_VECTORS, vectors_ND, model=None, emb_type=emb_type, dataset=self._dataset)


def _dense(kind: Any, weight: Tensor, bias: Tensor) -> Any:
    dense = kind(weight.shape[1], weight.shape[0], bias=True, activation_function=torch.nn.Identity())
    with torch.no_grad():
        dense.linear.weight.copy_(weight)
        dense.linear.bias.copy_(bias)
    return dense


def _with_residual(section: RetrieverSection, dataset: Dataset) -> Tensor:
    """Returns which items stand in the training part often enough to have a vector of their own, bool `[num_items]`."""
    counts_N = torch.zeros(dataset.num_items, dtype=torch.long)
    items = torch.tensor([item for part in dataset.training_parts for item in part], dtype=torch.long)
    counts_N.scatter_add_(0, items, torch.ones_like(items))
    return counts_N >= section.residual_min_count


def open_trained(
    config: RunConfig, dataset: Dataset, retriever: VectorRetriever, folder: str | Path | None = None
) -> TrainedRetriever:
    """Returns the retriever of a checkpoint, or a new one.

    Args:
        retriever: of the encoder that the run names.

    Raises:
        RunError: the checkpoint is damaged, or of another catalogue or encoder.
    """
    trained = TrainedRetriever(cast("RetrieverSection", config.trainer), config.retrieval, dataset, retriever)
    if folder is not None:
        trained.load(Path(folder))
    return trained
