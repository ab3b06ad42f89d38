"""How transformers, vLLM and Unsloth's engine sample completions.

Decides: that every setting is passed explicitly, so that a model's own generation config has no effect.
"""

from __future__ import annotations

from dataclasses import dataclass

from rl4rec_cli.config.policy import GenerationSection


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int
    temperature: float
    """0: the most likely token."""
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    batch_size: int | None = None
    """Most completions generated at once; None: all."""
    num_beams: int = 1
    """Width of a beam search, which transformers alone does."""
    share_prompts: bool = False
    """Read equal prompts once, where transformers generates."""
    num_return_sequences: int = 1
    """Completions of each prompt that beam search returns, the best first."""

    @classmethod
    def from_section(cls, section: GenerationSection, *, temperature: float | None = None) -> Sampling:
        return cls(
            max_new_tokens=section.max_completion_length,
            temperature=section.temperature if temperature is None else temperature,
            top_p=section.top_p,
            top_k=section.top_k,
            repetition_penalty=section.repetition_penalty,
            batch_size=section.batch_size,
            share_prompts=section.share_prompts,
        )
