"""When memory runs out in training.

Decides: which errors mean that, how much is in use, and which of the cheaper settings a run can go on with.
Hides: how torch words it.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rl4rec_cli.savings import cheaper_settings

if TYPE_CHECKING:
    from rl4rec_cli.config import RunConfig

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


def advice(config: RunConfig, *, is_warm_start: bool) -> str:
    """What to resume a run with whose memory ran out.

    First all that leaves a step what it was, but for rounding; then what needs less and changes what is learnt.
    """
    ways = cheaper_settings(config, is_warm_start=is_warm_start)
    same = list(dict.fromkeys(text for way in ways for text in way))
    shorter = (
        f"generation.max_completion_length={max(1, config.generation.max_completion_length // 2)}",
        f"prompt.max_prompt_length={max(1, config.prompt.max_prompt_length // 2)}",
    )
    less = f"{_sets(shorter)} (shorter texts)"
    if not same:
        return f"resume with --allow-partial {less}"
    pieces = f"resume with --allow-partial {_sets(same)} (the same updates in smaller pieces)"
    return f"{pieces}; where that is not enough, {less}"


def _sets(texts: Sequence[str]) -> str:
    return " ".join(f"--set {text}" for text in texts)
