"""Tests that are meant for a GPU. RL4REC_TEST_DEVICE=cpu runs them on the CPU, where most of the same code is used."""

from __future__ import annotations

import os

import pytest

DEVICE = os.environ.get("RL4REC_TEST_DEVICE", "cuda")


@pytest.fixture(scope="session")
def device() -> str:
    """`cuda`, or what RL4REC_TEST_DEVICE names."""
    import torch

    if DEVICE.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; RL4REC_TEST_DEVICE=cpu runs it on the CPU")
    return DEVICE
