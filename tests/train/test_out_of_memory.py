"""What is said when memory runs out; `tests/cli/test_faults.py` lets it run out."""

from __future__ import annotations

import pytest
import torch

from rl4rec_cli.layering import load_config
from rl4rec_cli.train.out_of_memory import advice, is_out_of_memory, used_gib


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 5"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_which_errors_are_it(error: BaseException, is_it: bool) -> None:
    assert is_out_of_memory(error) is is_it


def said(*sets: str, algorithm: str = "grpo", is_warm_start: bool = False) -> str:
    config = load_config(algorithm=algorithm, sets=["generation.max_completion_length=64", *sets])
    return advice(config, is_warm_start=is_warm_start)


def test_the_same_updates_in_smaller_pieces_come_first() -> None:
    first, then = said("trainer.batch_size=4", "trainer.gradient_accumulation_steps=3").split("; ")
    assert first == (
        "resume with --allow-partial --set trainer.batch_size=2 --set trainer.gradient_accumulation_steps=6 "
        "--set trainer.gradient_checkpointing=true (the same updates in smaller pieces)"
    )
    assert "--set generation.max_completion_length=32 --set prompt.max_prompt_length=64" in then
    ppo = said("trainer.batch_size=16", "trainer.mini_batch_size=4", algorithm="ppo")
    assert "--set trainer.batch_size=8 " in ppo
    assert "--set trainer.mini_batch_size=2 " in ppo


def test_a_warm_start_has_its_own() -> None:
    warm = 'trainer.warm_start={"batch_size": 8}'
    first = said(warm, is_warm_start=True).partition(";")[0]
    assert "--set trainer.warm_start.batch_size=4 --set trainer.warm_start.gradient_accumulation_steps=2 " in first
    assert "--set trainer.batch_size" not in first


def test_where_no_piece_can_be_smaller() -> None:
    least = ("trainer.batch_size=1", "trainer.gradient_checkpointing=true", "policy.model=somewhere")
    assert said(*least).startswith("resume with --allow-partial --set generation.max_completion_length=32 ")


def test_what_is_in_use() -> None:
    assert 0.01 < used_gib("cpu") < 64
