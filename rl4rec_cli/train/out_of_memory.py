"""When memory runs out in training.

Decides: which errors mean that, how much is in use, and which settings ask for less: first those that cut a step into
smaller pieces and leave what is learnt from it as it is, then those that change it.
Hides: how torch words it.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from rl4rec_cli.config import RunConfig
    from rl4rec_cli.config_trainer import TrainerSection

_SAID = ("out of memory", "can't allocate memory", "cannot allocate memory", "cublas_status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU's allocator, and libraries on the GPU, have no class of their own for it.
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAID)


def used_gib(device: Any) -> float:
    """The most that torch held on a GPU so far, or what the process holds on the CPU, in GiB."""
    if str(device).startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**30
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def smaller_pieces(section: TrainerSection, prefix: str = "trainer") -> dict[str, Any]:
    """Settings that need less memory for the same updates (to rounding): the effective batch stays.

    Args:
        prefix: where the section stands: `trainer` or `trainer.warm_start`.
    """
    found: dict[str, Any] = {}
    pieces = section.mini_batch_size if section.algorithm == "ppo" else section.batch_size
    divisor = next((d for d in range(2, pieces + 1) if pieces % d == 0), 1)
    if divisor > 1:
        # In PPO a batch is what is written before each accumulation: it shrinks with its mini-batches.
        found[f"{prefix}.batch_size"] = section.batch_size // divisor
        if section.algorithm == "ppo":
            found[f"{prefix}.mini_batch_size"] = pieces // divisor
        found[f"{prefix}.gradient_accumulation_steps"] = section.gradient_accumulation_steps * divisor
    if not section.gradient_checkpointing and not (section.algorithm == "ppo" and section.critic == "adapter"):
        found[f"{prefix}.gradient_checkpointing"] = True
    return found


def less_to_hold(config: RunConfig) -> dict[str, Any]:
    """Settings that need less memory and change what is learnt: shorter texts and prompts."""
    return {
        "generation.max_completion_length": max(1, config.generation.max_completion_length // 2),
        "prompt.max_prompt_length": max(1, config.prompt.max_prompt_length // 2),
    }


def advice(config: RunConfig, *, is_warm_start: bool) -> str:
    """What to resume a run with whose memory ran out."""
    trainer: Any = config.trainer
    section = trainer.warm_start if is_warm_start else trainer
    same = smaller_pieces(section, "trainer.warm_start" if is_warm_start else "trainer")
    other = less_to_hold(config)
    first = f"resume with --allow-partial {_sets(same)} (the same updates in smaller pieces)" if same else ""
    second = f"{_sets(other)} (shorter texts) needs less, too"
    return f"{first}; where that is not enough, {second}" if first else f"resume with --allow-partial {second}"


def _sets(settings: dict[str, Any]) -> str:
    return " ".join(f"--set {key}={str(value).lower()}" for key, value in settings.items())
