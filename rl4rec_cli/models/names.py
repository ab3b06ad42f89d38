"""Models by short name.

Decides: which folder or repository a short name means, how large its model is, and which modules of it a LoRA adapter
goes on.
Hides: nothing; any other Hugging Face name or folder works without being listed here.

The 4-bit repositories are those that Unsloth itself takes in place of the full ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl4rec_cli.models.shape import ModelFacts

TINY = "tiny"
"""Names no stored model: a small policy is built from the dataset."""
HOME = Path("models")
"""Where models are put, by the documents; git ignores what is in it."""
ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ModelPreset:
    facts: ModelFacts
    repository: str
    """The full weights; those of Google and Meta ask for an account that accepted their licence."""
    four_bit: str | None
    """The same in 4 bits, for Unsloth; None: quantised as it is loaded."""
    targets: tuple[str, ...] = ATTENTION_AND_MLP
    """Modules an adapter goes on."""

    @property
    def name(self) -> str:
        return self.facts.name


def _facts(
    name: str, hidden: int, layers: int, heads: tuple[int, int, int], ffn: int, vocab: int, context: int, **more: Any
) -> ModelFacts:
    family = more.pop("family", "llama")
    return ModelFacts(name, family, hidden, layers, *heads, ffn, vocab, context, more.pop("is_tied", True), **more)


# Sizes are those of each one's published config.json; the tests hold that the counts of parameters are the published
# ones.
PRESETS = {
    preset.name: preset
    for preset in (
        ModelPreset(
            _facts("gpt2", 768, 12, (12, 12, 64), 3072, 50_257, 1024, family="gpt2"),
            "openai-community/gpt2",
            None,
            ("c_attn", "c_proj", "c_fc"),
        ),
        ModelPreset(
            _facts("smollm2-135m", 576, 30, (9, 3, 64), 1536, 49_152, 8192),
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            None,
        ),
        ModelPreset(
            _facts("gemma-3-1b", 1152, 26, (4, 1, 256), 6912, 262_144, 32_768, family="gemma3", qk_norm=True),
            "google/gemma-3-1b-it",
            "unsloth/gemma-3-1b-it-unsloth-bnb-4bit",
        ),
        ModelPreset(
            _facts("qwen2.5-0.5b", 896, 24, (14, 2, 64), 4864, 151_936, 32_768, qkv_bias=True),
            "Qwen/Qwen2.5-0.5B-Instruct",
            "unsloth/Qwen2.5-0.5B-Instruct-unsloth-bnb-4bit",
        ),
        ModelPreset(
            _facts("qwen2.5-1.5b", 1536, 28, (12, 2, 128), 8960, 151_936, 32_768, qkv_bias=True),
            "Qwen/Qwen2.5-1.5B-Instruct",
            "unsloth/Qwen2.5-1.5B-Instruct-unsloth-bnb-4bit",
        ),
        ModelPreset(
            _facts("qwen2.5-7b", 3584, 28, (28, 4, 128), 18_944, 152_064, 32_768, qkv_bias=True, is_tied=False),
            "Qwen/Qwen2.5-7B-Instruct",
            "unsloth/Qwen2.5-7B-Instruct-unsloth-bnb-4bit",
        ),
        ModelPreset(
            _facts("llama-3.2-1b", 2048, 16, (32, 8, 64), 8192, 128_256, 131_072),
            "meta-llama/Llama-3.2-1B-Instruct",
            "unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit",
        ),
        ModelPreset(
            _facts("llama-3.1-8b", 4096, 32, (32, 8, 128), 14_336, 128_256, 131_072, is_tied=False),
            "meta-llama/Llama-3.1-8B-Instruct",
            "unsloth/Llama-3.1-8B-Instruct-unsloth-bnb-4bit",
        ),
        ModelPreset(
            _facts("llama-3.1-70b", 8192, 80, (64, 8, 128), 28_672, 128_256, 131_072, is_tied=False),
            "meta-llama/Llama-3.1-70B-Instruct",
            "unsloth/Meta-Llama-3.1-70B-Instruct-bnb-4bit",
        ),
        ModelPreset(
            _facts("gemma-2-9b", 3584, 42, (16, 8, 256), 14_336, 256_000, 8_192, family="gemma2", softcap=True),
            "google/gemma-2-9b-it",
            "unsloth/gemma-2-9b-it-bnb-4bit",
        ),
    )
}
"""By short name."""


def find_model(named: str) -> str:
    """Returns the folder of a path or plain name: itself if it exists, else the folder in `models/` if that exists."""
    is_plain = bool(named.strip()) and named != TINY and "/" not in named and not named.startswith((".", "~"))
    if is_plain and not Path(named).exists() and (HOME / named.lower()).is_dir():
        return str(HOME / named.lower())
    return named


def find_preset(model: str) -> ModelPreset | None:
    """Returns the preset of a short name or of a repository, or None. A folder is no preset."""
    if Path(find_model(model)).exists():
        return None
    if model.lower() in PRESETS:
        return PRESETS[model.lower()]
    return next((p for p in PRESETS.values() if model in (p.repository, p.four_bit)), None)


def repository_of(model: str, *, backend: str, quantization: str) -> str:
    """Returns the folder or repository to load for a short name; any other name stands for itself."""
    model = find_model(model)
    preset = find_preset(model)
    if preset is None or model.lower() != preset.name:
        return model
    is_stored = backend == "unsloth" and quantization == "4bit" and preset.four_bit is not None
    return preset.four_bit if is_stored and preset.four_bit else preset.repository
