"""Where a run goes: what the policy, its engine, retrieval and the embedder get of the machine.

Decides: whether a run fits, and which backend, precision of weights, micro-batch and retrieval it would have
(`plan_placement`, pure).
Hides: how the parts of a run share the free memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rl4rec_cli.errors import ConfigError
from rl4rec_cli.models.devices import gpu_index
from rl4rec_cli.plan.catalogue import Holding, plan_catalogue
from rl4rec_cli.plan.fitting import Room, WayOut, find_ways_out
from rl4rec_cli.plan.machine import USABLE, Gpu, Machine, find_machine
from rl4rec_cli.plan.memory import (
    ENGINE_TEXTS,
    GB,
    Estimate,
    Surroundings,
    activation_saving,
    engine_bytes,
    estimate,
    human,
    plain_weights,
)

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import DataSection, RetrievalSection, RunConfig
    from rl4rec_cli.models.shape import ModelFacts, RetrievalFacts


@dataclass(frozen=True)
class RetrievalPlace:
    """Where embedder and item matrix go."""

    backend: Literal["in-process", "ray"]
    where: str
    """Device, `cpu` or `cuda:N`; for somebody else's service, a description."""
    reason: str
    own_gpu: int | None = None
    """GPU of a service that the run itself starts; None: it starts none."""

    @property
    def in_service(self) -> bool:
        return self.backend == "ray"


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
    """Description of the memory that is there."""
    room: int
    """Bytes that the run may use."""
    estimate: Estimate
    fits: bool
    choices: tuple[Choice, ...]
    """Of the run as configured if that fits, else with the cheapest way out."""
    ways_out: tuple[WayOut, ...]
    """The two cheapest, if the run does not fit."""
    notes: tuple[str, ...] = ()
    trained: str = "policy"
    """What is trained."""
    hint: str = ""
    """Settings to change where it does not fit and nothing is cut."""


def plan_placement(
    machine: Machine,
    config: RunConfig,
    facts: ModelFacts,
    retrieval: RetrievalFacts,
    *,
    lengths: tuple[int, int] | None = None,
) -> Placement:
    """Plans where a run goes, what it takes and whether it fits.

    Args:
        machine: this machine, or the one that the user plans for.
        facts: of the policy.
        retrieval: facts of catalogue and embedder.
        lengths: tokens of the longest prompt and completion, where measurements are better than the limits.

    Raises:
        ConfigError: `policy.device` names a GPU that is not there.
    """
    gpu = _policy_gpu(machine, config.policy.device)
    place = place_retrieval(machine, config)
    surroundings = find_surroundings(machine, config, retrieval, lengths=lengths)
    free = gpu.free if gpu else machine.ram_free
    beside = _engine_size(config, facts, surroundings, gpu)
    room = int(USABLE * free) - beside
    result = estimate(config, facts, surroundings)
    fits = result.bytes <= room
    ways = () if fits else tuple(find_ways_out(config, facts, surroundings, Room(room), keep_texts=False)[:2])
    config_to_show = config if fits or not ways else ways[0].config
    choices = _choices(config_to_show, config, facts, surroundings, gpu)
    if (holding := _holding(machine, config_to_show, retrieval)) is not None:
        choices = (*choices, Choice("item vectors", holding.words, holding.reason))
    backend = Choice("retrieval", f"{place.backend} on {_where(config_to_show.retrieval, place)}", place.reason)
    memory = (
        f"{gpu.name}, {human(gpu.free)} free" if gpu else f"{human(machine.ram_free)} of memory free, no GPU is used"
    )
    if beside:
        memory += f", {human(beside)} of it vLLM's"
    return Placement(
        f"cuda:{gpu.index}" if gpu else "cpu", memory, room, result, fits, (*choices, backend), ways, retrieval.notes
    )


def find_surroundings(
    machine: Machine, config: RunConfig, retrieval: RetrievalFacts, *, lengths: tuple[int, int] | None = None
) -> Surroundings:
    """Returns what a run's memory depends on besides configuration and policy; for arguments see `plan_placement`.

    Raises:
        ConfigError: `policy.device` names a GPU that is not there.
    """
    gpu = _policy_gpu(machine, config.policy.device)
    where = place_retrieval(machine, config).where
    holding = _holding(machine, config, retrieval)
    return Surroundings(
        on_gpu=gpu is not None,
        items=retrieval.items,
        embedder_parameters=retrieval.embedder_parameters,
        embedding_dim=retrieval.dim,
        retrieval_on_device=where == (f"cuda:{gpu.index}" if gpu else "cpu"),
        item_matrix=None if holding is None else holding.bytes,
        prompt_tokens=lengths[0] if lengths else None,
        text_tokens=lengths[1] if lengths else None,
    )


def _policy_gpu(machine: Machine, device: str) -> Gpu | None:
    if device == "cpu" or (device == "auto" and not machine.gpus):
        return None
    index = gpu_index(device, "policy.device")
    if index >= len(machine.gpus):
        there = f"{len(machine.gpus)} GPU{'s' * (len(machine.gpus) != 1)} there"
        raise ConfigError(f"policy.device={device}, but {there}", hint="use auto or cpu, or plan for one: --gpu 24")
    return machine.gpus[index]


def place_retrieval(machine: Machine, config: RunConfig) -> RetrievalPlace:
    """Decides where a run's embedder and item matrix go, and `retrieval.backend: auto`, by the machine's GPUs.

    It does not look for a service that already runs on this machine, which `auto` would take first.

    Raises:
        ConfigError: `policy.device` names a GPU that is not there.
    """
    device = config.retrieval.device
    gpu = _policy_gpu(machine, config.policy.device)
    if config.retrieval.needs_service:
        return RetrievalPlace("ray", "devices of its own", "a retrieval service embeds and ranks (retrieval.backend)")
    if device != "auto":
        return RetrievalPlace("in-process", "cuda:0" if device == "cuda" else device, "retrieval.device says so")
    if not machine.gpus:
        return RetrievalPlace("in-process", "cpu", "no GPU: in this process, on the CPU")
    if len(machine.gpus) == 1 and gpu is not None:
        return RetrievalPlace("in-process", "cuda:0", "one GPU: in this process, beside the policy")
    if gpu is None:
        return RetrievalPlace("in-process", "cuda:0", "in this process, on a GPU that the policy does not use")
    against = _against_a_service(machine, config.data, config.retrieval)
    if against is None:
        own = max(other.index for other in machine.gpus if other.index != gpu.index)
        reason = (
            f"{len(machine.gpus)} GPUs: a service that the run starts, and ends, on one that the policy does not use"
        )
        return RetrievalPlace("ray", f"cuda:{own}", reason, own_gpu=own)
    beside = "beside the policy" if gpu.index == 0 else "on a GPU that the policy does not use"
    return RetrievalPlace("in-process", "cuda:0", f"in this process, {beside}: {against}")


def _holding(machine: Machine, config: RunConfig, retrieval: RetrievalFacts) -> Holding | None:
    rooms = {"cpu": machine.ram_free, **{f"cuda:{gpu.index}": gpu.free for gpu in machine.gpus}}
    return plan_catalogue(config.retrieval, retrieval, place_retrieval(machine, config).where, rooms)


def _against_a_service(machine: Machine, data: DataSection, retrieval: RetrievalSection) -> str | None:
    """Says why a run starts no retrieval service of its own although there are enough GPUs; None if it starts one."""
    if retrieval.stays_in_process:
        return "retrieval.backend says so (--set retrieval.device=cuda:1 for another GPU)"
    if data.synthetic is not None:
        return "synthetic data lies in no folder that a service could read"
    if data.sequential_file is not None:
        return "data.sequential_file lies elsewhere than in the folder that a service would read"
    if not machine.has_ray:
        return "a service on another GPU needs Ray (pip install 'rl4rec[ray]'); or --set retrieval.device=cuda:1"
    return None


def _where(section: RetrievalSection, place: RetrievalPlace) -> str:
    return "cpu" if section.device == "cpu" and not place.in_service else place.where


def _choices(
    chosen: RunConfig, config: RunConfig, facts: ModelFacts, surroundings: Surroundings, gpu: Gpu | None
) -> tuple[Choice, ...]:
    """Returns the run's choices, each with its reason; `chosen` differs from `config` if that does not fit."""
    policy, trainer = chosen.policy, chosen.trainer
    does_not_fit = "as configured it does not fit"
    plain_bytes, quantised_bytes = (
        plain_weights(chosen.policy, chosen.trainer.precision, facts, on_gpu=surroundings.on_gpu),
        estimate(chosen, facts, surroundings).phases[-1].parts["weights"],
    )
    if policy.lora is None:
        backend = Choice("backend", "hf", "all weights are trained, no adapter (policy.lora)")
    elif policy.backend != "auto":
        backend = Choice("backend", policy.backend, "policy.backend says so")
    elif gpu is None:
        backend = Choice("backend", "hf", "no GPU is used")
    else:
        backend = Choice("backend", "unsloth", "an adapter on a GPU; hf where unsloth is not installed")
    if policy.quantization == "none":
        quantization = Choice("quantization", "none", f"the weights take {human(plain_bytes)} as they are")
    else:
        because = does_not_fit if config.policy.quantization == "none" else "policy.quantization says so"
        quantization = Choice(
            "quantization", policy.quantization, f"{because}; {human(quantised_bytes)} instead of {human(plain_bytes)}"
        )
    step = trainer.micro_batch * trainer.gradient_accumulation_steps
    step_words = f"{step} learnt from in a step, {trainer.micro_batch} at once"
    is_changed = trainer.batch_words != config.trainer.batch_words
    size = Choice("batch", trainer.batch_words, f"{does_not_fit}; {step_words}" if is_changed else step_words)
    plain_activations, checkpointed_activations = activation_saving(chosen, facts, surroundings)
    if trainer.gradient_checkpointing:
        because = "trainer.gradient_checkpointing says so" if config.trainer.gradient_checkpointing else does_not_fit
        again = Choice(
            "gradient checkpointing",
            "on",
            f"{because}; activations take {human(checkpointed_activations)}, not {human(plain_activations)}",
        )
    else:
        again = Choice(
            "gradient checkpointing",
            "off",
            f"activations take {human(plain_activations)}; with it {human(checkpointed_activations)}",
        )
    return (backend, quantization, size, again, _vllm(chosen, facts, surroundings, gpu))


def _engine_size(config: RunConfig, facts: ModelFacts, surroundings: Surroundings, gpu: Gpu | None) -> int:
    """Returns the bytes of the device that vLLM gets, in a process of its own."""
    share = config.generation.vllm.memory_share
    need = engine_bytes(config, facts, surroundings)
    return int(share * gpu.total) if need and gpu is not None and share is not None else need


def engine_share(config: RunConfig, facts: ModelFacts, retrieval: RetrievalFacts) -> float | None:
    """Returns the share of its GPU that the engine of `policy.fast_inference` gets, by a plan for this machine.

    It returns None without that engine.

    Raises:
        ConfigError: `policy.device` names a GPU that is not there.
    """
    if not config.policy.fast_inference:
        return None
    machine = find_machine()
    surroundings = find_surroundings(machine, config, retrieval)
    return float(_vllm(config, facts, surroundings, _policy_gpu(machine, config.policy.device)).value) or None


def _vllm(config: RunConfig, facts: ModelFacts, surroundings: Surroundings, gpu: Gpu | None) -> Choice:
    """Chooses the share of the GPU that vLLM gets."""
    if beside := _engine_size(config, facts, surroundings, gpu):
        texts = config.generation.batch_size or ENGINE_TEXTS
        why = f"weights of its own and the cache of {texts} completions take {human(beside)} (generation.engine=vllm)"
        return Choice("vLLM share", f"{beside / gpu.total:.2f}" if gpu else "0", why if gpu else f"no GPU: {why}")
    if gpu is None or not config.policy.fast_inference:
        return Choice("vLLM share", "0", "completions are written by the policy itself (generation.engine)")
    writing_phase = next((p for p in estimate(config, facts, surroundings).phases if p.name == "writing"), None)
    if writing_phase is None:
        return Choice("vLLM share", "0", "no completions are written")
    if (share := config.generation.vllm.memory_share) is not None:
        return Choice("vLLM share", f"{share:.2f}", "generation.vllm.memory_share says so")
    # The engine shares the weights, and needs room beside the cache for a batch of its own.
    need = writing_phase.parts["weights"] + 1.2 * writing_phase.parts["KV cache"] + GB
    return Choice(
        "vLLM share",
        f"{min(0.9, need / gpu.total):.2f}",
        f"weights and the cache of {config.trainer.texts_at_once} completions",
    )
