"""When memory runs out in a run.

Decides: which errors mean that, which phase failed, how much can be used, and which settings the run goes on with.
These are the cheapest that fit by the plan (`plan/memory.py`, from the shape of the loaded model). If the failed phase
fits by the plan, they are those that take a good deal less in it.
Hides: how torch words it.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rl4rec_cli.errors import PolicyError, first_line
from rl4rec_cli.models.shape import ModelFacts, read_facts
from rl4rec_cli.plan.fitting import (
    Room,
    changed,
    find_ways_out,
    least,
    set_texts,
    smaller_pieces,
    smaller_vectors,
    way_on,
)
from rl4rec_cli.plan.machine import USABLE, Gpu, Machine, ram
from rl4rec_cli.plan.memory import RUNTIME_GPU, Estimate, PhaseMemory, Surroundings, estimate, human
from rl4rec_cli.plan.phases import Phase
from rl4rec_cli.plan.placement import find_surroundings
from rl4rec_cli.policy.facts import retrieval_facts
from rl4rec_cli.retrieval.embedder import find_embedder
from rl4rec_cli.shell import set_flags
from rl4rec_cli.train.checkpoints import changed_keys

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RetrievalSection, RunConfig
    from rl4rec_cli.train.learner import Learner

STEP_DOWN = 0.6
"""Of what is there in a phase only, where the plan believed that it fits and so cannot say how much does."""
_MESSAGES = ("out of memory", "can't allocate memory", "cannot allocate memory", "cublas_status_alloc_failed")
_ABOVE = "The command above resumes with that"


class OutOfMemory(PolicyError):
    """Memory ran out in a run.

    Args:
        flags: of the command that resumes the run with settings that take less; empty where there are none.
    """

    def __init__(self, message: str, *, hint: str, flags: str = "") -> None:
        super().__init__(message, hint=hint)
        self.flags = flags


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU's allocator, and libraries on the GPU, have no class of their own for it.
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MESSAGES)


def used_gib(device: Any) -> float:
    """Returns the most that torch has held on a GPU, or what the process holds on the CPU, in GiB."""
    if str(device).startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**30
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


@dataclass(frozen=True)
class Usable:
    """How much memory of its policy's device a run's process may hold."""

    bytes: int
    """What the process holds already, and as much of the free memory as a plan may count on."""
    words: str


def advise(
    error: BaseException,
    config: RunConfig,
    learner: Learner,
    *,
    when: str,
    phase: Phase,
    is_warm_start: bool = False,
    is_first: bool = False,
) -> OutOfMemory:
    """Returns the error to raise, with settings to resume the run with. The caller has freed the failed step's memory.

    Args:
        when: `at step 7 of grpo`; empty before and after training.
        phase: the phase that failed.
        is_warm_start: it failed in the warm start.
        is_first: it failed before the first update: the optimiser has no state yet.
    """
    reason = f": {first_line(error)}" if str(error) else ""
    message = f"out of memory{f' {when},' if when else ''} while {phase.words}{reason}"
    alone = _alone(config, phase, is_warm_start=is_warm_start)
    base = learner.model.get_base_model() if hasattr(learner.model, "peft_config") else learner.model
    try:
        facts = read_facts("the policy", base.config.to_dict() if hasattr(base, "config") else {})
    except PolicyError:
        return _advise_without_figures(message, config, alone, phase, is_warm_start=is_warm_start)
    machine = _machine(str(learner.device))
    surroundings = find_surroundings(machine, config, retrieval_facts(config))
    there = _failed(alone, facts, surroundings, phase)
    lasting_bytes = there.lasting - (there.parts.get("optimizer", 0) if is_first else 0)
    usable = _usable(machine, str(learner.device), lasting_bytes)
    return advise_by_plan(message, config, facts, surroundings, usable, phase=phase, is_warm_start=is_warm_start)


def advise_by_plan(
    message: str,
    config: RunConfig,
    facts: ModelFacts,
    surroundings: Surroundings,
    usable: Usable,
    *,
    phase: Phase,
    is_warm_start: bool = False,
) -> OutOfMemory:
    """Does the work of `advise` from the facts of model and machine, without looking at either."""
    alone = _alone(config, phase, is_warm_start=is_warm_start)
    phase_memory = _failed(alone, facts, surroundings, phase)
    foreseen = phase_memory.total > usable.bytes
    figures = (
        f"by the plan {phase.words} needs {human(phase_memory.total)}, where {human(usable.bytes)} can be used"
        f" ({usable.words})"
    )
    if not foreseen:
        figures += ": it is too low here, or something else took memory for a while"
    if not phase_memory.passing and not foreseen:
        sets, costs = _ranks_with_less(alone.retrieval, surroundings, usable) if phase is Phase.RANKING else ({}, "")
        after = _failed(changed(alone, sets), facts, _beside(surroundings, sets), phase).total
    else:
        own = {} if foreseen else {phase_memory.name: phase_memory.lasting + STEP_DOWN * phase_memory.passing}
        way = way_on(alone, facts, surroundings, Room(usable.bytes, own))
        sets, costs = ({}, "") if way is None else (dict(way.settings), "; ".join(way.costs))
        after = 0 if way is None else _phase(way.estimate, phase).total
    if not sets:
        return OutOfMemory(message, hint=f"{figures}. {_no_way(alone, facts, surroundings, usable, phase)}")
    if is_warm_start:
        sets = {key.replace("trainer.", "trainer.warm_start.", 1): value for key, value in sets.items()}
        sets |= _what_follows(changed(config, sets), facts, surroundings, usable)
    settings = f"{' '.join(set_texts(sets))} ({costs})"
    how = (
        f"It fits with {settings}: {human(after)}" if foreseen else f"The next step down is {human(after)}: {settings}"
    )
    return OutOfMemory(message, hint=f"{figures}. {how}. {_ABOVE}", flags=_flags(config, sets))


def _advise_without_figures(
    message: str, config: RunConfig, alone: RunConfig, phase: Phase, *, is_warm_start: bool
) -> OutOfMemory:
    """Advises on a model whose architecture the plan does not know."""
    sets = {
        Phase.MEASURING: {"eval.batch_size": max(1, config.eval.batch_size // 2)},
        Phase.RANKING: {"retrieval.batch_size": max(1, config.retrieval.batch_size // 2)},
        Phase.WRITING: {"generation.max_completion_length": max(1, config.generation.max_completion_length // 2)},
    }.get(phase) or smaller_pieces(alone.trainer)
    if is_warm_start:
        sets = {key.replace("trainer.", "trainer.warm_start.", 1): value for key, value in sets.items()}
    unknown = "the plan does not know this model's architecture, so there are no figures"
    if changed(config, sets) == config:
        return OutOfMemory(message, hint=f"{unknown}; a smaller model, shorter prompts or completions take less")
    hint = f"{unknown}. {' '.join(set_texts(sets))} needs less, whether enough cannot be said. {_ABOVE}"
    return OutOfMemory(message, hint=hint, flags=_flags(config, sets))


def _alone(config: RunConfig, phase: Phase, *, is_warm_start: bool) -> RunConfig:
    """Returns the configuration of the failed part of the run alone: a finished warm start takes no memory."""
    trainer = config.trainer.phases[0] if is_warm_start else config.trainer.without_warm_start()
    # The run measures validation users after the last step, too, but not in a warm start.
    steps = None if is_warm_start else 1 if phase is Phase.MEASURING else config.eval.steps
    return config.model_copy(update={"trainer": trainer, "eval": config.eval.model_copy(update={"steps": steps})})


def _failed(alone: RunConfig, facts: ModelFacts, surroundings: Surroundings, phase: Phase) -> PhaseMemory:
    return _phase(estimate(alone, facts, surroundings), phase)


def _phase(result: Estimate, phase: Phase) -> PhaseMemory:
    """Returns the plan's figures for a phase.

    A phase that the plan does not list takes only the memory that is there all the time, the embedder's among it. So
    does a phase in another process: vLLM's generation.
    """
    by_name = {one.name: one for one in result.phases}
    return by_name.get(phase) or by_name[Phase.LEARNING].without_passing(phase)


def _machine(device: str) -> Machine:
    """Returns this machine with its GPUs as torch sees them. Looks up free memory of the policy's GPU only.

    Asking another GPU for its free memory would take some of it.
    """
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        own = device.startswith("cuda") and index == (torch.device(device).index or 0)
        free = torch.cuda.mem_get_info(index)[0] if own else properties.total_memory
        gpus.append(Gpu(index, properties.name, properties.total_memory, free))
    return Machine(tuple(gpus), len(os.sched_getaffinity(0)), *ram())


def _usable(machine: Machine, device: str, lasting: int) -> Usable:
    """Returns how much memory the process can use.

    Args:
        lasting: bytes that the process holds by the plan. What it really holds of a computer's memory contains the
            libraries, which the plan does not count.
    """
    if not device.startswith("cuda"):
        return Usable(lasting + int(USABLE * machine.ram_free), f"{human(machine.ram_free)} of memory are free now")
    gpu = machine.gpus[torch.device(device).index or 0]
    own = torch.cuda.memory_reserved(gpu.index) + RUNTIME_GPU
    limit = min(gpu.total, gpu.free + own)
    return Usable(int(USABLE * limit), f"{gpu.name} with {human(gpu.total)}, {human(gpu.total - limit)} held by others")


def _ranks_with_less(
    section: RetrievalSection, surroundings: Surroundings, usable: Usable
) -> tuple[dict[str, Any], str]:
    """Returns settings with which ranking takes less, and what they cost; none where nothing can be cut."""
    size = section.batch_size
    smaller = smaller_vectors(section, surroundings, usable.bytes)
    if smaller is not None and not surroundings.on_gpu:
        return smaller[0], "ranking reads the item vectors from their file: slower, to the same ranks"
    if surroundings.on_gpu and surroundings.retrieval_on_device:
        return {"retrieval.device": "cpu"}, "embedding and ranking on the CPU: rewards take longer"
    if size == 1 or not find_embedder(section).in_batches:
        return {}, ""
    return {"retrieval.batch_size": size // 2}, "texts are embedded in smaller batches"


def _beside(surroundings: Surroundings, sets: Mapping[str, Any]) -> Surroundings:
    if "retrieval.memory_map" in sets:
        return replace(surroundings, item_matrix=0)
    return replace(
        surroundings, retrieval_on_device=surroundings.retrieval_on_device and "retrieval.device" not in sets
    )


def _what_follows(config: RunConfig, facts: ModelFacts, surroundings: Surroundings, usable: Usable) -> dict[str, Any]:
    """Returns further settings so that the phases after the warm start fit; none where no settings make them fit."""
    after, room = _alone(config, Phase.LEARNING, is_warm_start=False), Room(usable.bytes)
    if not room.over(estimate(after, facts, surroundings)):
        return {}
    way = way_on(after, facts, surroundings, room)
    return {} if way is None else dict(way.settings)


def _no_way(alone: RunConfig, facts: ModelFacts, surroundings: Surroundings, usable: Usable, phase: Phase) -> str:
    """Says why no settings fit, and what else the user can do."""
    lowest = human(_phase(least(alone, facts, surroundings), phase).total)
    why = f"With all cut that a begun run can cut it needs {lowest}, so no settings are proposed"
    others = find_ways_out(alone, facts, surroundings, Room(usable.bytes), keep_texts=False)
    new = [way for way in others if way.kinds & {"lora", "4bit"}]
    if new:
        sets = set_flags(new[0].sets)
        return f"{why}. A new run needs {human(new[0].estimate.bytes)} with {sets}"
    return f"{why}. `rl4rec plan --gpu GB` says which GPU a run fits; a smaller model takes less"


def _flags(config: RunConfig, sets: Mapping[str, Any]) -> str:
    """Returns the settings as flags of a shell command, with --allow-partial if they change what the run learns."""
    same = not changed_keys(config.model_dump(mode="json"), changed(config, sets).model_dump(mode="json"))
    return " ".join([*([] if same else ["--allow-partial"]), *([set_flags(set_texts(sets))] if sets else [])])
