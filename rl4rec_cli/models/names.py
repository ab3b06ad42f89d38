"""Models by short name.

Decides: which repositories a short name means, and which modules of it a LoRA adapter goes on.
Hides: nothing; any other Hugging Face name or folder works without being listed here.

The 4-bit repositories are those that Unsloth itself takes in place of the full ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ModelPreset:
    name: str
    repository: str
    """The full weights; those of Google and Meta ask for an account that accepted their licence."""
    four_bit: str | None
    """The same in 4 bits, for Unsloth; None: quantised as it is loaded."""
    targets: tuple[str, ...] = ATTENTION_AND_MLP
    """Modules an adapter goes on."""


PRESETS = {
    preset.name: preset
    for preset in (
        ModelPreset("gpt2", "openai-community/gpt2", None, ("c_attn", "c_proj", "c_fc")),
        ModelPreset("gemma-3-1b", "google/gemma-3-1b-it", "unsloth/gemma-3-1b-it-unsloth-bnb-4bit"),
        ModelPreset("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", "unsloth/Qwen2.5-0.5B-Instruct-unsloth-bnb-4bit"),
        ModelPreset("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", "unsloth/Qwen2.5-1.5B-Instruct-unsloth-bnb-4bit"),
        ModelPreset("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", "unsloth/Qwen2.5-7B-Instruct-unsloth-bnb-4bit"),
        ModelPreset(
            "llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", "unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit"
        ),
        ModelPreset(
            "llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", "unsloth/Llama-3.1-8B-Instruct-unsloth-bnb-4bit"
        ),
        ModelPreset(
            "llama-3.1-70b", "meta-llama/Llama-3.1-70B-Instruct", "unsloth/Meta-Llama-3.1-70B-Instruct-bnb-4bit"
        ),
        ModelPreset("gemma-2-9b", "google/gemma-2-9b-it", "unsloth/gemma-2-9b-it-bnb-4bit"),
    )
}
"""By short name."""


def find_preset(model: str) -> ModelPreset | None:
    """The preset that a model's name means: its short name, or one of its repositories. A folder is no preset."""
    if Path(model).exists():
        return None
    if model.lower() in PRESETS:
        return PRESETS[model.lower()]
    return next((p for p in PRESETS.values() if model in (p.repository, p.four_bit)), None)


def repository_of(model: str, *, backend: str, quantization: str) -> str:
    """What to load for a model's name; a name that is no preset's short name is itself."""
    preset = find_preset(model)
    if preset is None or model.lower() != preset.name:
        return model
    is_stored = backend == "unsloth" and quantization == "4bit" and preset.four_bit is not None
    return preset.four_bit if is_stored and preset.four_bit else preset.repository
