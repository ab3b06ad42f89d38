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
        """The linear maps of a layer that a LoRA adapter of these targets goes on."""
        if targets in ("all-linear", "auto"):
            return self.linears
        wanted = {targets} if isinstance(targets, str) else set(targets)
        return tuple(one for one in self.linears if one[0] in wanted or one[0].rpartition(".")[2] in wanted)

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


def read_facts(name: str, config: Mapping[str, Any]) -> ModelFacts:
    """A model's `config.json`, as `transformers` writes it.

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


def _of(
    name: str, hidden: int, layers: int, heads: tuple[int, int, int], ffn: int, vocab: int, context: int, **more: Any
) -> ModelFacts:
    family = more.pop("family", "llama")
    return ModelFacts(name, family, hidden, layers, *heads, ffn, vocab, context, more.pop("is_tied", True), **more)


# From the published config.json of each; the tests hold that the counts of parameters are the published ones.
PRESET_FACTS = {
    facts.name: facts
    for facts in (
        _of("gpt2", 768, 12, (12, 12, 64), 3072, 50_257, 1024, family="gpt2"),
        _of("gemma-3-1b", 1152, 26, (4, 1, 256), 6912, 262_144, 32_768, family="gemma3", qk_norm=True),
        _of("qwen2.5-0.5b", 896, 24, (14, 2, 64), 4864, 151_936, 32_768, qkv_bias=True),
        _of("qwen2.5-1.5b", 1536, 28, (12, 2, 128), 8960, 151_936, 32_768, qkv_bias=True),
        _of("qwen2.5-7b", 3584, 28, (28, 4, 128), 18_944, 152_064, 32_768, qkv_bias=True, is_tied=False),
        _of("llama-3.2-1b", 2048, 16, (32, 8, 64), 8192, 128_256, 131_072),
        _of("llama-3.1-8b", 4096, 32, (32, 8, 128), 14_336, 128_256, 131_072, is_tied=False),
        _of("llama-3.1-70b", 8192, 80, (64, 8, 128), 28_672, 128_256, 131_072, is_tied=False),
        _of("gemma-2-9b", 3584, 42, (16, 8, 256), 14_336, 256_000, 8_192, family="gemma2", softcap=True),
    )
}
