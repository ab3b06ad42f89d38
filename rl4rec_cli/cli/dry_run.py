"""What ``--dry-run`` prints: the configuration on standard output, where things would run on standard error.

Decides: what can be said of the placement without importing torch.
"""

from __future__ import annotations

from pathlib import Path

from rl4rec_cli import console
from rl4rec_cli.config import RunConfig
from rl4rec_cli.layering import dump_config

_GPU_NODES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, Windows subsystem


def show(config: RunConfig, seeds: tuple[int, ...]) -> None:
    console.result(dump_config(config))
    backend = "in-process" if config.retrieval.backend == "auto" else config.retrieval.backend
    console.log(
        f"placement: policy on {_device(config.policy.device)};"
        f" retrieval {backend} on {_device(config.retrieval.device)}"
    )
    console.log(f"seeds: {', '.join(map(str, seeds))}")
    if config.data.path is None and config.data.synthetic is None:
        console.log("dataset: none yet; give --dataset PATH, or --quick-test for synthetic data")


def _device(name: str) -> str:
    if name != "auto":
        return name
    if any(Path(node).exists() for node in _GPU_NODES):
        return "cuda if torch can use the GPU here, else cpu"
    return "cpu"
