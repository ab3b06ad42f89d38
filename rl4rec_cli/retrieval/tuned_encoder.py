"""The retrievers that are an encoder, tuned: all its weights, or an adapter that is merged into them.

Decides: that the query of a user is the embedded text of the history, and that of an item its text; that the result
is a plain folder of sentence-transformers.
Hides: sentence-transformers and PEFT.

A checkpoint of `TunedEncoder` is such a folder. That of `AdaptedEncoder` holds the adapter alone, of no use without the
encoder, and the final one is the folder besides, with the adapter merged into the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rl4rec_cli import console
from rl4rec_cli.data.history_texts import HistoryTexts
from rl4rec_cli.errors import ConfigError, EmbeddingError, first_line
from rl4rec_cli.plan.phases import Phase, during
from rl4rec_cli.ranking.item_matrix import ItemMatrix
from rl4rec_cli.retrieval.embedder import find_embedder
from rl4rec_cli.retrieval.embedders.models import OWN_VECTORS, check_tunable
from rl4rec_cli.retrieval.embedders.sentence_transformers import encode, open_model
from rl4rec_cli.retrieval.embedding import each_once
from rl4rec_cli.retrieval.embedding_files import load_embeddings
from rl4rec_cli.retrieval.trained import TrainedRetriever, read_tensors, write_tensors

if TYPE_CHECKING:
    from rl4rec_cli.config.retriever import RetrieverSection
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset

FORMAT = "rl4rec-encoder-1"


class TunedEncoder(TrainedRetriever):
    """An encoder of which all weights are trained. They are held in fp32, whatever `retrieval.dtype` says.

    Args:
        section: its settings.
        config: names the encoder, and says how histories are written.
        dataset: its items' texts.
        device: torch device.

    Raises:
        ConfigError, EmbeddingError: the encoder cannot be tuned.
    """

    def __init__(self, section: RetrieverSection, config: RunConfig, dataset: Dataset, *, device: str) -> None:
        super().__init__(config.retrieval, dataset)
        check_tunable(config.retrieval)
        self._section, self._prompt = section, config.prompt.of(dataset.name)
        self.facts = {
            "format": FORMAT,
            "kind": section.kind,
            "encoder": find_embedder(config.retrieval).identity,
            "emb_type": config.retrieval.emb_type,
            "items": dataset.items_digest(config.retrieval.emb_type),
        }
        self.model = open_model(config.retrieval.model, device=device)
        if self.model.transformers_model is None:
            raise EmbeddingError(
                f"the embedding model {config.retrieval.model!r} is no transformer, which trainer.kind={section.kind} "
                "tunes",
                hint="name another one (retrieval.model), or leave it as it is: trainer.kind=projection",
            )
        self._prepare(section, seed=config.run.seed)
        self.histories = HistoryTexts(
            self._prompt,
            dataset,
            count=self._count,
            limit=self.model.max_seq_length,
            before=config.retrieval.query_prompt,
        )
        self._counted = 0
        self.model.register_forward_pre_hook(self._count_pass)
        self.model.eval()

    def _prepare(self, section: RetrieverSection, *, seed: int) -> None:
        """Chooses the weights that are trained."""
        self.model.requires_grad_(True)

    def _count(self, texts: Sequence[str]) -> list[int]:
        rows = self.model.tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
        return [len(row) for row in rows]

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def about(self) -> str:
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        parameters = sum(p.numel() for p in self.model.parameters())
        return (
            f"{trained / 1e6:.2f} M of {parameters / 1e6:.2f} M parameters on {self.device}, of {self.facts['encoder']}"
        )

    @property
    def reads(self) -> dict[str, Any]:
        keys = ("item_template", "separator", "order", "max_history")
        written = {key: getattr(self._prompt, key) for key in keys}
        return {**written, "query_prompt": self._retrieval.query_prompt}

    @property
    def _passes(self) -> int:
        return self._counted

    def _count_pass(self, module: Any, inputs: Any) -> None:
        self._counted += module.training

    @during(Phase.RANKING)
    def _item_vectors(self) -> Tensor:
        return self._embedded(self.texts, "items")

    @during(Phase.RANKING)
    def queries(self, histories: Sequence[Sequence[int]]) -> Tensor:
        return self._embedded([self.histories.write(history) for history in histories], "histories")

    def _embedded(self, texts: Sequence[str], what: str) -> Tensor:
        with console.progress(len(texts), f"Embedding {len(texts):,} {what}") as advance:
            vectors_ND = each_once(
                texts,
                lambda batch: encode(self.model, list(batch), len(batch)),
                str(self.facts["encoder"]),
                batch_size=self._retrieval.batch_size,
                progress=advance,
            )
        return vectors_ND.to(self.device)

    def _weights(self) -> Mapping[str, Tensor]:
        return {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}

    def _write_weights(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        self.model.save(str(folder), create_model_card=False)

    def _read_weights(self, folder: Path) -> Mapping[str, Tensor]:
        weights: Mapping[str, Tensor] = open_model(str(folder), device="cpu").state_dict()
        return weights

    def _take_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(weights)

    def load(self, folder: Path) -> None:
        super().load(folder)
        path = folder / OWN_VECTORS
        if path.is_file():
            retrieval = self._retrieval
            vectors_ND = load_embeddings(path, dataset=self._dataset, emb_type=retrieval.emb_type, model=None)
            self._matrix = self._passes, ItemMatrix(vectors_ND, device=str(self.device))

    def _write_model(self, folder: Path) -> None:
        """The checkpoint is one already."""


class AdaptedEncoder(TunedEncoder):
    """An encoder with a LoRA adapter, which alone is trained."""

    def _prepare(self, section: RetrieverSection, *, seed: int) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        lora = section.lora
        torch.manual_seed(seed if lora.seed is None else lora.seed)
        targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
        self.model.requires_grad_(False)
        try:
            inject_adapter_in_model(
                LoraConfig(
                    r=lora.r,
                    lora_alpha=lora.alpha,
                    lora_dropout=lora.dropout,
                    target_modules=None if targets == "auto" else targets,
                ),
                self._network,
            )
        except ValueError as error:
            kind = type(self._network).__name__
            raise ConfigError(
                f"trainer.lora.target_modules={targets!r}: {first_line(error)} (the encoder is a {kind})",
                hint="`all-linear` adapts every linear layer; or name modules, as [query, value]",
            ) from error

    @property
    def _network(self) -> Any:
        return self.model.transformers_model

    def _weights(self) -> Mapping[str, Tensor]:
        from peft import get_peft_model_state_dict

        weights = get_peft_model_state_dict(self._network)
        return {name: value.detach().cpu().contiguous() for name, value in weights.items()}

    def _write_weights(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        write_tensors(folder, weights)

    def _read_weights(self, folder: Path) -> Mapping[str, Tensor]:
        return read_tensors(folder)

    def _take_weights(self, weights: Mapping[str, Tensor]) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self._network, dict(weights))

    @torch.no_grad()
    def _write_model(self, folder: Path) -> None:
        from peft.tuners.lora import LoraLayer

        model = open_model(self._retrieval.model, device="cpu")
        plain = dict(model.transformers_model.named_modules())
        adapted: dict[str, Any] = {n: m for n, m in self._network.named_modules() if isinstance(m, LoraLayer)}
        for name, module in adapted.items():
            (adapter,) = module.active_adapters
            plain[name].weight += module.get_delta_weight(adapter).to("cpu", plain[name].weight.dtype)
        model.save(str(folder), create_model_card=False)
