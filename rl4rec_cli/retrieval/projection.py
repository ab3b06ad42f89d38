"""The retriever that projects a frozen encoder's vectors, with the encoder's catalogue.

Decides: how the network becomes a folder of sentence-transformers.
Hides: sentence-transformers.

`retriever.safetensors` is a small file, of no use without the encoder. The whole folder is encoder → `Router`
(documents: `Dense`, `Normalize`; queries: the same and another `Dense`, `Normalize`). Its item vectors have what the
items have beyond their texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rl4rec_cli.plan.phases import Phase, during
from rl4rec_cli.retrieval.embedder import find_embedder
from rl4rec_cli.retrieval.embedding_rows import vectors_digest
from rl4rec_cli.retrieval.history_model import HistoryModel
from rl4rec_cli.retrieval.trained import TrainedRetriever, read_tensors, write_tensors

if TYPE_CHECKING:
    from rl4rec_cli.config.retriever import RetrieverSection
    from rl4rec_cli.config.sections import RetrievalSection
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.retrieval.retriever import VectorRetriever

FORMAT = "rl4rec-retriever-1"
_POSITIONS = 1 << 16
"""Positions of histories in one pass, padding included."""


class Projection(TrainedRetriever):
    """A `HistoryModel` over the encoder's vectors of the items.

    Args:
        section: its settings.
        retrieval, dataset: as of `TrainedRetriever`.
        retriever: the encoder's vectors of the items.
    """

    def __init__(
        self, section: RetrieverSection, retrieval: RetrievalSection, dataset: Dataset, retriever: VectorRetriever
    ) -> None:
        super().__init__(retrieval, dataset)
        vectors_ND = retriever.vectors_ND.to(retriever.device)
        self.facts = {
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

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.text.weight.device
        return device

    @property
    def about(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        return f"{parameters / 1e6:.2f} M parameters on {self.device}, over vectors of {self.facts['encoder']}"

    @property
    def _passes(self) -> int:
        passes: int = self.model.passes
        return passes

    @torch.no_grad()
    def _item_vectors(self) -> Tensor:
        self.model.eval()
        vectors_ND: Tensor = self.model.items()
        return vectors_ND

    @torch.no_grad()
    @during(Phase.RANKING)
    def queries(self, histories: Sequence[Sequence[int]]) -> Tensor:
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

    def _weights(self) -> Mapping[str, Tensor]:
        return {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}

    def _write_weights(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        write_tensors(folder, weights)

    def _read_weights(self, folder: Path) -> Mapping[str, Tensor]:
        return read_tensors(folder)

    def _take_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(weights)

    def _write_model(self, folder: Path) -> None:
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
