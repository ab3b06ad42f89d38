"""The shape of a language model: what memory and parameter counts follow from.

Decides: which families of layers are known, and how a `config.json` becomes a `ModelFacts`.
Hides: the names that architectures give to the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rl4rec_cli.errors import PolicyError

Family = Literal["llama", "gemma2", "gemma3", "gpt2"]
# `model_type` of a config.json to how its layers are built.
FAMILIES: dict[str, Family] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
}


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a causal language model."""

    name: str
    family: Family
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    """Longest sequence."""
    is_tied: bool
    """Embedding and head are one matrix."""
    qkv_bias: bool = False
    qk_norm: bool = False
    softcap: bool = False
    """The logits go through a tanh."""

    @property
    def linears(self) -> tuple[tuple[str, int, int], ...]:
        """Name, inputs and outputs of a layer's linear maps."""
        h, q, kv, f = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.ffn
        if self.family == "gpt2":
            return (("c_attn", h, 3 * h), ("c_proj", h, h), ("c_fc", h, f), ("mlp.c_proj", f, h))
        return (
            *(("q_proj", h, q), ("k_proj", h, kv), ("v_proj", h, kv), ("o_proj", q, h)),
            *(("gate_proj", h, f), ("up_proj", h, f), ("down_proj", f, h)),
        )

    @property
    def linear_parameters(self) -> int:
        """Of all layers' linear maps, without biases."""
        return self.layers * sum(ins * outs for _, ins, outs in self.linears)

    @property
    def parameters(self) -> int:
        h, kv = self.hidden, self.kv_heads * self.head_dim
        embeddings = self.vocab * h * (1 if self.is_tied else 2)
        if self.family == "gpt2":
            biases = sum(outs for _, _, outs in self.linears)
            return embeddings + self.context * h + self.linear_parameters + self.layers * (biases + 4 * h) + 2 * h
        norms = (4 if self.family in ("gemma2", "gemma3") else 2) * h + (2 * self.head_dim if self.qk_norm else 0)
        biases = self.heads * self.head_dim + 2 * kv if self.qkv_bias else 0
        return embeddings + self.linear_parameters + self.layers * (norms + biases) + h

    def adapted(self, targets: str | tuple[str, ...]) -> tuple[tuple[str, int, int], ...]:
        """The linear maps of a layer that a LoRA adapter with these targets is on."""
        if targets in ("all-linear", "auto"):
            return self.linears
        names = {targets} if isinstance(targets, str) else set(targets)
        return tuple(one for one in self.linears if one[0] in names or one[0].rpartition(".")[2] in names)

    def lora_parameters(self, r: int, targets: str | tuple[str, ...]) -> int:
        return self.layers * sum(r * (ins + outs) for _, ins, outs in self.adapted(targets))


@dataclass(frozen=True)
class RetrievalFacts:
    """Sizes of a catalogue and of what embeds it."""

    items: int
    embedder_parameters: int
    """0: `lsa`, which takes next to nothing."""
    dim: int
    notes: tuple[str, ...] = ()
    """What was assumed."""
    layers: int = 0
    """Of the embedder; 0: it has none."""
    heads: int = 0
    context: int = 0
    """Tokens of the longest text that the embedder reads."""


def read_facts(name: str, config: Mapping[str, Any]) -> ModelFacts:
    """Reads the sizes from a model's `config.json`, as `transformers` writes it.

    Raises:
        PolicyError: an architecture that is not known here, or a number is missing.
    """
    config = config.get("text_config") or config  # of a model that sees pictures too
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise PolicyError(
            f"{name}: its config.json says model_type {kind!r}, whose memory is not known here",
            hint=f"known are {', '.join(sorted(FAMILIES))}; training itself takes any causal language model",
        )
    family = FAMILIES[kind]
    try:
        if family == "gpt2":
            hidden = int(config["n_embd"])
            heads, ffn = int(config["n_head"]), int(config.get("n_inner") or 4 * hidden)
            vocab, context = int(config["vocab_size"]), int(config.get("n_positions", 1024))
            shape = (hidden, int(config["n_layer"]), heads, heads, hidden // heads, ffn, vocab, context)
            return ModelFacts(name, family, *shape, is_tied=True)
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return ModelFacts(
            *(name, family, hidden, int(config["num_hidden_layers"]), heads),
            *(int(config.get("num_key_value_heads") or heads), int(config.get("head_dim") or hidden // heads)),
            *(int(config["intermediate_size"]), int(config["vocab_size"])),
            *(int(config.get("max_position_embeddings", 2048)),),
            bool(config.get("tie_word_embeddings", family in ("gemma2", "gemma3"))),
            qkv_bias=kind == "qwen2" or bool(config.get("attention_bias")),
            qk_norm=kind in ("gemma3_text", "qwen3"),
            softcap=config.get("final_logit_softcapping") is not None,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise PolicyError(
            f"{name}: its config.json has no usable {error}" if isinstance(error, KeyError) else f"{name}: {error}",
            hint="is it the folder of a language model, as `save_pretrained` writes it?",
        ) from error
