"""Texts to vectors by vLLM.

Decides: that a model gives here what it gives in sentence-transformers: the same tokens of a text, as many of them, its
own pooling, computed in the same type.
Hides: vLLM, and the process it runs in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rl4rec_cli.engine.process import VllmProcess, same_gpu
from rl4rec_cli.errors import EmbeddingError
from rl4rec_cli.files.paths import expand
from rl4rec_cli.models.devices import TYPE_NAMES
from rl4rec_cli.retrieval.embedders.models import ModelEmbedder, ModelKind, cannot_load, has_ways

if TYPE_CHECKING:
    from torch import Tensor

    from rl4rec_cli.data.dataset import Texts

TIMEOUT = 1800.0


class Vllm(ModelKind):
    """`retrieval.embedder=vllm`."""

    variant: ClassVar[tuple[str, ...]] = ("vllm",)

    def check(self) -> None:
        super().check()
        if has_ways(self.model):
            raise EmbeddingError(
                f"{self.model}: vLLM cannot run it: it is a trained retriever, with a way for queries and another for "
                "items",
                hint="set retrieval.embedder=sentence-transformers",
            )

    def open(self, dataset: Texts) -> VllmEmbedder:
        self.check()
        return VllmEmbedder(**self.arguments(), memory_share=self.section.memory_share)


class VllmEmbedder(ModelEmbedder):
    """A sentence-transformers model, run by vLLM.

    Args:
        device: torch device.
        model, batch_size, query_prompt, dtype: as of `ModelEmbedder`.
        memory_share: share of the GPU's memory it may take.

    Raises:
        ConfigError: vllm is not installed. EmbeddingError: no such model. EngineError: vLLM does not start.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str,
        batch_size: int,
        query_prompt: str = "",
        dtype: str = "fp32",
        memory_share: float = 0.2,
    ) -> None:
        import torch
        from transformers import AutoTokenizer

        super().__init__(model, batch_size=batch_size, query_prompt=query_prompt, dtype=dtype)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            self._longest = _longest(model, self._tokenizer)
        except (OSError, ValueError, KeyError) as error:
            raise cannot_load(model, error) from error
        options: dict[str, Any] = {
            "model": model,
            "runner": "pooling",
            "dtype": TYPE_NAMES[dtype],
            "max_model_len": self._longest,
            "max_num_seqs": batch_size,
            "enforce_eager": True,
        }
        environment = {}
        if device.startswith("cuda"):
            options["gpu_memory_utilization"] = memory_share
            environment["CUDA_VISIBLE_DEVICES"] = same_gpu(torch.device(device))
        else:
            options["kv_cache_memory_bytes"] = 256 << 20
        self._process = VllmProcess("retrieval.embedder=vllm", options, timeout=TIMEOUT, environment=environment)

    def _embed(self, texts: list[str], *, query: bool) -> Tensor:
        import torch

        ids = self._tokenizer(texts, truncation=True, max_length=self._longest)
        vectors = self._process.ask("embed", ids["input_ids"], doing=f"embedding {len(texts):,} texts")
        return torch.from_numpy(vectors)

    def close(self) -> None:
        """End vLLM."""
        self._process.close()


def _longest(model: str, tokenizer: Any) -> int:
    """Tokens of a text that the model reads, as sentence-transformers would."""
    folder = expand(model)
    if folder.is_dir():
        path: Path | None = folder / "sentence_bert_config.json"
    else:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, "sentence_bert_config.json")
        path = Path(found) if isinstance(found, str) else None
    if path is not None and path.is_file():
        wanted = json.loads(path.read_text(encoding="utf-8")).get("max_seq_length")
        if isinstance(wanted, int):
            return wanted
    return int(min(tokenizer.model_max_length, 8192))
