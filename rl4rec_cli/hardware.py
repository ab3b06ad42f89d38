"""What is there (GPUs, memory, cores), and what a run makes of it.

Decides: how GPUs and free memory are found without torch, how much of them may be used, whether a run fits, and which
backend, precision of weights, micro-batch and retrieval it would have (`plan_placement`, pure).
Hides: `nvidia-smi`, `/proc`, control groups.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rl4rec_cli.errors import ConfigError, Rl4RecError
from rl4rec_cli.memory import (
    ENGINE_TEXTS,
    GB,
    Estimate,
    Surroundings,
    activation_saving,
    batch_shape,
    engine_bytes,
    estimate,
    human,
    plain_weights,
)
from rl4rec_cli.savings import Room, Saving, savings

if TYPE_CHECKING:
    from rl4rec_cli.config import RunConfig
    from rl4rec_cli.model_facts import ModelFacts, RetrievalFacts

__all__ = ["Choice", "Gpu", "Machine", "Placement", "find_machine", "parse_gpu", "plan_placement"]

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


@dataclass(frozen=True)
class Choice:
    what: str
    value: str
    reason: str


@dataclass(frozen=True)
class Placement:
    """Where a run goes and whether it fits."""

    device: str
    """`cpu`, or `cuda:N`."""
    memory: str
    """What is there, in words."""
    room: int
    """Bytes that may be used."""
    estimate: Estimate
    fits: bool
    choices: tuple[Choice, ...]
    """As configured where that fits; else as the cheapest way out has it."""
    ways_out: tuple[Saving, ...]
    """The two cheapest, where it does not fit."""
    notes: tuple[str, ...] = ()


def find_machine() -> Machine:
    """This machine, without importing torch.

    Raises:
        Rl4RecError: there is an NVIDIA GPU and `nvidia-smi` fails.
    """
    return Machine(_gpus(), len(os.sched_getaffinity(0)), *ram())


def parse_gpu(text: str, index: int = 0) -> Gpu:
    """`24` or `24GB`: a GPU sold with so many gigabytes (of 10⁹ bytes: what such cards have at least).

    Raises:
        ConfigError: no number above 0.
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
        done = subprocess.run(
            [command, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True, timeout=20
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise Rl4RecError(f"nvidia-smi failed: {error}", hint="is the driver loaded? `nvidia-smi` says") from error
    return visible(read_smi(done.stdout), os.environ.get("CUDA_VISIBLE_DEVICES"))


def read_smi(text: str) -> list[tuple[str, Gpu]]:
    """Identity and GPU of each line of nvidia-smi's answer."""
    found = []
    for line in text.splitlines():
        index, uuid, name, total, free = (part.strip() for part in line.split(","))
        found.append((uuid, Gpu(int(index), name, int(total) << 20, int(free) << 20)))
    return found


def visible(gpus: Sequence[tuple[str, Gpu]], setting: str | None) -> tuple[Gpu, ...]:
    """What CUDA_VISIBLE_DEVICES leaves, in its order and numbered as torch numbers them."""
    if setting is None:
        return tuple(gpu for _, gpu in gpus)
    shown: list[Gpu] = []
    for wanted in filter(None, (part.strip() for part in setting.split(","))):
        match = [
            g for uuid, g in gpus if wanted == str(g.index) or (wanted.startswith("GPU") and uuid.startswith(wanted))
        ]
        if not match:  # as CUDA does: what follows an unknown one is not seen
            break
        shown.append(replace(match[0], index=len(shown)))
    return tuple(shown)


def ram() -> tuple[int, int]:
    """Bytes of memory there, and free, within the limits of the control group and of this process (`ulimit -v`)."""
    fields = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0]) * 1024
    total, free = fields["MemTotal"], fields["MemAvailable"]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
        total = min(total, int(text))
        free = min(free, int(text) - int(used.read_text(encoding="ascii")))
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        own = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        total, free = min(total, most), min(free, most - own)
    return total, max(0, free)


def plan_placement(
    machine: Machine,
    config: RunConfig,
    facts: ModelFacts,
    retrieval: RetrievalFacts,
    *,
    lengths: tuple[int, int] | None = None,
) -> Placement:
    """Where a run goes, what it takes and whether that fits.

    Args:
        machine: what is there, or what is asked about.
        facts: of the policy.
        retrieval: of catalogue and embedder.
        lengths: tokens of the longest prompt and text, where they are known better than by the limits.

    Raises:
        ConfigError: `policy.device` names a GPU that is not there.
    """
    gpu = _policy_gpu(machine, config.policy.device)
    where, reason = _retrieval_place(machine, config, gpu)
    around = surroundings(machine, config, retrieval, lengths=lengths)
    free = gpu.free if gpu else machine.ram_free
    beside = _engine_size(config, facts, around, gpu)
    room = int(USABLE * free) - beside
    result = estimate(config, facts, around)
    fits = result.bytes <= room
    ways = () if fits else tuple(savings(config, facts, around, Room(room), keep_texts=False)[:2])
    chosen = config if fits or not ways else ways[0].config
    choices = _choices(chosen, config, facts, around, gpu)
    backend = Choice("retrieval", f"{_retrieval_backend(config)} on {_where(chosen, where)}", reason)
    said = f"{gpu.name}, {human(gpu.free)} free" if gpu else f"{human(machine.ram_free)} of memory free, no GPU is used"
    if beside:
        said += f", {human(beside)} of it vLLM's"
    return Placement(
        f"cuda:{gpu.index}" if gpu else "cpu", said, room, result, fits, (*choices, backend), ways, retrieval.notes
    )


def surroundings(
    machine: Machine, config: RunConfig, retrieval: RetrievalFacts, *, lengths: tuple[int, int] | None = None
) -> Surroundings:
    """What a run's memory depends on besides its configuration and its policy; arguments as of `plan_placement`.

    Raises:
        ConfigError: `policy.device` names a GPU that is not there.
    """
    gpu = _policy_gpu(machine, config.policy.device)
    where, _ = _retrieval_place(machine, config, gpu)
    return Surroundings(
        on_gpu=gpu is not None,
        items=retrieval.items,
        embedder_parameters=retrieval.embedder_parameters,
        embedding_dim=retrieval.dim,
        retrieval_on_device=where == (f"cuda:{gpu.index}" if gpu else "cpu"),
        prompt_tokens=lengths[0] if lengths else None,
        text_tokens=lengths[1] if lengths else None,
    )


def _policy_gpu(machine: Machine, device: str) -> Gpu | None:
    if device == "cpu" or (device == "auto" and not machine.gpus):
        return None
    name, _, number = ("cuda" if device == "auto" else device).partition(":")
    index = int(number or 0) if name == "cuda" and (not number or number.isdigit()) else None
    if index is None:
        raise ConfigError(f"policy.device={device} is no device", hint="auto, cpu, cuda, cuda:1 …")
    if index >= len(machine.gpus):
        there = f"{len(machine.gpus)} GPU{'s' * (len(machine.gpus) != 1)} there"
        raise ConfigError(f"policy.device={device}, but {there}", hint="use auto or cpu, or plan for one: --gpu 24")
    return machine.gpus[index]


def _retrieval_backend(config: RunConfig) -> str:
    """`auto` also takes a retrieval service that runs on this machine, which is no part of the plan."""
    return "in-process" if config.retrieval.backend == "auto" else config.retrieval.backend


def _retrieval_place(machine: Machine, config: RunConfig, gpu: Gpu | None) -> tuple[str, str]:
    """Device of embedder and item matrix, and why."""
    device = config.retrieval.device
    if _retrieval_backend(config) == "ray":
        return "devices of its own", "a retrieval service embeds and ranks (retrieval.backend)"
    if device != "auto":
        return ("cuda:0" if device == "cuda" else device), "retrieval.device says so"
    if not machine.gpus:
        return "cpu", "no GPU: in this process, on the CPU"
    if gpu is None or gpu.index != 0:  # `auto` is the first GPU
        return "cuda:0", "in this process, on a GPU that the policy does not use"
    if len(machine.gpus) > 1:
        return (
            "cuda:0",
            "beside the policy; --set retrieval.device=cuda:1 or rl4rec serve-retrieval gives it another GPU",
        )
    return "cuda:0", "one GPU: in this process, beside the policy"


def _where(chosen: RunConfig, where: str) -> str:
    return "cpu" if chosen.retrieval.device == "cpu" and chosen.retrieval.backend != "ray" else where


def _choices(
    chosen: RunConfig, config: RunConfig, facts: ModelFacts, around: Surroundings, gpu: Gpu | None
) -> tuple[Choice, ...]:
    """What the run has, each with its reason; `chosen` differs from `config` where that did not fit."""
    policy, trainer = chosen.policy, chosen.trainer
    forced = "as configured it does not fit"
    full, packed = plain_weights(chosen, facts, around), estimate(chosen, facts, around).phases[-1].parts["weights"]
    if policy.lora is None:
        backend = Choice("backend", "hf", "all weights are trained, no adapter (policy.lora)")
    elif policy.backend != "auto":
        backend = Choice("backend", policy.backend, "policy.backend says so")
    elif gpu is None:
        backend = Choice("backend", "hf", "no GPU is used")
    else:
        backend = Choice("backend", "unsloth", "an adapter on a GPU; hf where unsloth is not installed")
    if policy.quantization == "none":
        quantised = Choice("quantization", "none", f"the weights take {human(full)} as they are")
    else:
        because = forced if config.policy.quantization == "none" else "policy.quantization says so"
        quantised = Choice("quantization", policy.quantization, f"{because}; {human(packed)} instead of {human(full)}")
    batch = batch_shape(trainer)
    changed = batch_shape(config.trainer) != batch
    texts = f"{batch.micro} sequences × {trainer.gradient_accumulation_steps}"
    if trainer.algorithm in ("grpo", "rloo"):
        texts = (
            f"{trainer.batch_size} prompts × {trainer.num_generations} texts × {trainer.gradient_accumulation_steps}"
        )
    learnt = f"{batch.micro * trainer.gradient_accumulation_steps} learnt from in a step, {batch.micro} at once"
    size = Choice("batch", texts, f"{forced}; {learnt}" if changed else learnt)
    without, kept = activation_saving(chosen, facts, around)
    if trainer.gradient_checkpointing:
        because = "trainer.gradient_checkpointing says so" if config.trainer.gradient_checkpointing else forced
        again = Choice(
            "gradient checkpointing", "on", f"{because}; activations take {human(kept)}, not {human(without)}"
        )
    else:
        again = Choice("gradient checkpointing", "off", f"activations take {human(without)}; with it {human(kept)}")
    return (backend, quantised, size, again, _vllm(chosen, facts, around, gpu))


def _engine_size(config: RunConfig, facts: ModelFacts, around: Surroundings, gpu: Gpu | None) -> int:
    """Bytes of the device that vLLM gets, in a process of its own."""
    share = config.generation.vllm.memory_share
    need = engine_bytes(config, facts, around)
    return int(share * gpu.total) if need and gpu is not None and share is not None else need


def _vllm(config: RunConfig, facts: ModelFacts, around: Surroundings, gpu: Gpu | None) -> Choice:
    """The share of the GPU that vLLM gets."""
    if beside := _engine_size(config, facts, around, gpu):
        texts = config.generation.batch_size or ENGINE_TEXTS
        why = f"weights of its own and the cache of {texts} texts take {human(beside)} (generation.engine=vllm)"
        return Choice("vLLM share", f"{beside / gpu.total:.2f}" if gpu else "0", why if gpu else f"no GPU: {why}")
    if gpu is None or not config.policy.fast_inference:
        return Choice("vLLM share", "0", "texts are written by the policy itself (generation.engine)")
    writing = next((p for p in estimate(config, facts, around).phases if p.name == "writing"), None)
    if writing is None:
        return Choice("vLLM share", "0", "no texts are written")
    # The weights are shared with the engine, which wants room beside the cache for a batch of its own.
    need = writing.parts["weights"] + 1.2 * writing.parts["KV cache"] + GB
    return Choice(
        "vLLM share",
        f"{min(0.9, need / gpu.total):.2f}",
        f"weights and the cache of {batch_shape(config.trainer).written} texts",
    )
