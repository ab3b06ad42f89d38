"""A reward model of the Hub or a folder: a sequence classifier with one number for a prompt and an answer.

Decides: what the model reads: its chat template's text where it has one, else prompt and answer as two texts.
Hides: transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec_cli import console
from rl4rec_cli.errors import RewardError, first_line
from rl4rec_cli.models.devices import resolve_device
from rl4rec_cli.models.hub import explain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.preference.records import Pair

_BATCH = 16


class RewardModel:
    """A sequence classifier.

    Args:
        name: Hub name or folder.
        device: torch device, or `auto`.

    Raises:
        RewardError: it cannot be loaded, or has another number of labels than one.
    """

    def __init__(self, name: str, *, device: str) -> None:
        console.quiet_libraries()
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.name = name
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name)
            self._model: Any = AutoModelForSequenceClassification.from_pretrained(name)
        except Exception as error:  # each kind of broken file has an error of its own
            message, hint = explain(error, name) or (
                f"{name}: cannot be loaded as a reward model: {first_line(error)}",
                None,
            )
            raise RewardError(message, hint=hint) from error
        labels = int(self._model.config.num_labels)
        if labels != 1:
            raise RewardError(
                f"reward model {name}: has {labels} labels; a reward model gives one number",
                hint="name another model, or write a function: --reward my.py:function",
            )
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if self._model.config.pad_token_id is None:
            self._model.config.pad_token_id = self._tokenizer.pad_token_id
        self._model.to(resolve_device(device, "retrieval.device")).eval()
        longest = int(getattr(self._model.config, "max_position_embeddings", 0) or 2048)
        self._longest = min(longest, int(self._tokenizer.model_max_length))

    def __call__(self, texts: Sequence[str], pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Returns the model's number for each text as the answer to its pair's prompt."""
        import torch

        values: list[float] = []
        for start in range(0, len(texts), _BATCH):
            rows = slice(start, start + _BATCH)
            inputs = self._encoded(texts[rows], pairs[rows]).to(self._model.device)
            with torch.inference_mode():
                values += self._model(**inputs).logits[:, 0].double().tolist()
        return np.asarray(values, np.float64)

    def _encoded(self, texts: Sequence[str], pairs: Sequence[Pair]) -> Any:
        how: dict[str, Any] = {
            "return_tensors": "pt",
            "padding": True,
            "truncation": True,
            "max_length": self._longest,
        }
        if self._tokenizer.chat_template:
            conversations = [
                [*(turn._asdict() for turn in pair.prompt), {"role": "assistant", "content": text}]
                for text, pair in zip(texts, pairs, strict=True)
            ]
            written = self._tokenizer.apply_chat_template(conversations, tokenize=False)
            return self._tokenizer(written, add_special_tokens=False, **how)
        prompts = ["\n\n".join(turn.content for turn in pair.prompt) for pair in pairs]
        return self._tokenizer(prompts, list(texts), **how)
