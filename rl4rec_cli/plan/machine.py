"""What a machine has: GPUs, memory, cores.

Decides: how to find GPUs and free memory without torch, and how much of them a run may use.
Hides: `nvidia-smi`, `/proc`, control groups.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rl4rec_cli.errors import ConfigError, Rl4RecError
from rl4rec_cli.plan.memory import (
    GB,
)
from rl4rec_cli.variables import check_one_process

if TYPE_CHECKING:
    pass

# Of what is free: the rest goes to fragmentation, and to the error of the estimate.
USABLE = 0.92


@dataclass(frozen=True)
class Gpu:
    index: int
    name: str
    total: int
    """Bytes."""
    free: int


@dataclass(frozen=True)
class Machine:
    gpus: tuple[Gpu, ...]
    cores: int
    ram: int
    """Bytes, within the control group's limit."""
    ram_free: int
    has_ray: bool = True
    """Whether Ray is installed."""


def find_machine() -> Machine:
    """Looks at this machine without importing torch.

    Raises:
        ConfigError: by the environment, this process is one of several.
        Rl4RecError: there is an NVIDIA GPU and `nvidia-smi` fails.
    """
    check_one_process()
    has_ray = importlib.util.find_spec("ray") is not None
    return Machine(_gpus(), len(os.sched_getaffinity(0)), *ram(), has_ray)


def parse_gpu(text: str, index: int = 0) -> Gpu:
    """Parses `24` or `24GB`: a GPU sold with so many gigabytes (of 10⁹ bytes: such cards have at least that).

    Raises:
        ConfigError: `text` is no number above 0.
    """
    number = text.strip().upper().removesuffix("B").removesuffix("G").strip()
    try:
        size = float(number)
    except ValueError:
        raise ConfigError(
            f"--gpu {text!r}: must be the memory of one GPU in gigabytes", hint="e.g. --gpu 24, or --gpu 24 --gpu 24"
        ) from None
    if not 0 < size < 10_000:
        raise ConfigError(
            f"--gpu {text}: no GPU has {size:g} GB", hint="for a machine without one: --set policy.device=cpu"
        )
    return Gpu(index, f"{size:g} GB", int(size * GB), int(size * GB))


def _gpus() -> tuple[Gpu, ...]:
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
        return ()
    command = shutil.which("nvidia-smi")
    if command is None:
        raise Rl4RecError(
            "there is an NVIDIA GPU, but no nvidia-smi to ask for its memory",
            hint="install the driver's tools, or name the GPU: rl4rec plan --gpu 24",
        )
    query = "--query-gpu=index,uuid,name,memory.total,memory.free"
    try:
        process = subprocess.run(
            [command, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True, timeout=20
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise Rl4RecError(f"nvidia-smi failed: {error}", hint="is the driver loaded? `nvidia-smi` says") from error
    return visible(read_smi(process.stdout), os.environ.get("CUDA_VISIBLE_DEVICES"))


def read_smi(text: str) -> list[tuple[str, Gpu]]:
    """Parses nvidia-smi's answer into the identity and the GPU of each line."""
    gpus = []
    for line in text.splitlines():
        index, uuid, name, total, free = (part.strip() for part in line.split(","))
        gpus.append((uuid, Gpu(int(index), name, int(total) << 20, int(free) << 20)))
    return gpus


def visible(gpus: Sequence[tuple[str, Gpu]], setting: str | None) -> tuple[Gpu, ...]:
    """Returns the GPUs that CUDA_VISIBLE_DEVICES names, in its order and numbered as torch numbers them."""
    if setting is None:
        return tuple(gpu for _, gpu in gpus)
    visible_gpus: list[Gpu] = []
    for name in filter(None, (part.strip() for part in setting.split(","))):
        match = [g for uuid, g in gpus if name == str(g.index) or (name.startswith("GPU") and uuid.startswith(name))]
        if not match:  # CUDA, too, ignores everything after an unknown one
            break
        visible_gpus.append(replace(match[0], index=len(visible_gpus)))
    return tuple(visible_gpus)


def ram() -> tuple[int, int]:
    """Returns total and free bytes of memory, within the limits of control group and process (`ulimit -v`)."""
    fields = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0]) * 1024
    total, free = fields["MemTotal"], fields["MemAvailable"]
    limit, usage = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and usage.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
        total = min(total, int(text))
        free = min(free, int(text) - int(usage.read_text(encoding="ascii")))
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        own = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        total, free = min(total, most), min(free, most - own)
    return total, max(0, free)


def free_bytes(device: str) -> int:
    """Returns the bytes that are free now where a torch device keeps its tensors."""
    if not device.startswith("cuda"):
        return ram()[1]
    import torch

    return int(torch.cuda.mem_get_info(device)[0])
