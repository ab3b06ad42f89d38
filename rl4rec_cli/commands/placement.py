"""Where a run would go: what `rl4rec plan` and `train … --dry-run` say.

Decides: how a `Placement` reads, in words and as JSON.
Hides: where the facts about models, data and machine come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.errors import ConfigError, Rl4RecError
from rl4rec_cli.plan.machine import Machine, find_machine, parse_gpu
from rl4rec_cli.plan.memory import PhaseMemory, human
from rl4rec_cli.plan.placement import Placement, plan_placement
from rl4rec_cli.plan.retriever import RETRIEVER, plan_retriever
from rl4rec_cli.shell import set_flags

if TYPE_CHECKING:
    from rl4rec_cli.commands.peak import Peak
    from rl4rec_cli.config.policy import PolicySection
    from rl4rec_cli.config.sections import RunConfig


def place(config: RunConfig, gpus: Sequence[str] = ()) -> Placement:
    """Returns the placement on this machine, or on one with other GPUs (`24`, in gigabytes).

    Raises:
        PolicyError: the model's shape is unknown, or its tokenizer does not fit it.
        ConfigError: the text names no GPU.
    """
    from rl4rec_cli.policy.facts import policy_facts, retrieval_facts
    from rl4rec_cli.policy.sources import with_own_adapter
    from rl4rec_cli.retrieval.embedder import find_embedder

    other_gpus = tuple(parse_gpu(text, index) for index, text in enumerate(gpus))
    machine = find_machine() if not other_gpus else _with(other_gpus)
    if not config.trainer.trains_policy:
        find_embedder(config.retrieval).check()
        return plan_retriever(machine, config, retrieval_facts(config))
    config = config.model_copy(update={"policy": with_own_adapter(config.policy)})
    facts = policy_facts(config.policy)
    if Path(config.policy.model).is_dir():
        from rl4rec_cli.policy.loading import check_tokenizer

        check_tokenizer(config.policy, config.max_length)
    find_embedder(config.retrieval).check()
    return plan_placement(machine, config, facts, retrieval_facts(config))


def _with(gpus: tuple[Any, ...]) -> Machine:
    """Returns this machine with other GPUs."""
    import os

    from rl4rec_cli.plan.machine import ram

    return Machine(gpus, len(os.sched_getaffinity(0)), *ram())


def brief(placement: Placement) -> list[str]:
    """Returns a few lines for `--dry-run`."""
    choices = ", ".join(f"{c.what} {c.value}" for c in placement.choices)
    lines = [f"placement: {placement.trained} on {placement.device}; {choices}", f"memory: {sentence(placement)}"]
    reason = next(c.reason for c in placement.choices if c.what == "retrieval")
    lines.insert(1, f"retrieval: {reason}")
    return lines + [f"way out: {set_flags(way.sets)} ({human(way.estimate.bytes)})" for way in placement.ways_out]


def sentence(placement: Placement) -> str:
    verdict = "fits" if placement.fits else "does not fit"
    return (
        f"needs about {human(placement.estimate.bytes)}, {human(placement.room)} can be used"
        f" ({placement.memory}): {verdict}"
    )


def complain(section: PolicySection, placement: Placement) -> None:
    """Raises an Rl4RecError with the way out, if the run does not fit."""
    if placement.fits:
        return
    if placement.trained == RETRIEVER:
        raise Rl4RecError(f"the retriever {sentence(placement)}", hint=placement.hint)
    verdict = f"{section.model} {sentence(placement)}"
    if placement.ways_out:
        raise Rl4RecError(verdict, hint=set_flags(placement.ways_out[0].sets))
    raise Rl4RecError(
        f"{verdict}, and nothing that can be cut makes it fit",
        hint="a smaller model, a larger GPU (--gpu 80), or shorter prompts and completions (prompt.max_prompt_length)",
    )


def as_json(placement: Placement) -> dict[str, Any]:
    phase = placement.estimate.peak
    return {
        "device": placement.device,
        "room_bytes": placement.room,
        "needs_bytes": phase.total,
        "fits": placement.fits,
        "phase": phase.name,
        "parts": dict(phase.parts),
        "phases": {one.name: one.total for one in placement.estimate.phases},
        "choices": {c.what: {"value": c.value, "reason": c.reason} for c in placement.choices},
        "ways_out": [
            {"set": list(way.sets), "needs_bytes": way.estimate.bytes, "costs": list(way.costs)}
            for way in placement.ways_out
        ],
        "notes": list(placement.notes),
    }


@dataclass(frozen=True)
class MemoryCheck:
    """The memory that real steps of a phase took, and its prediction for prompts and texts of their lengths."""

    trainer: str
    phase: str
    """The largest predicted phase."""
    predicted_bytes: int
    measured_bytes: int
    ratio: float
    """Predicted over measured."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check_memory(config: RunConfig) -> list[MemoryCheck]:
    """Makes real steps and compares their memory with the prediction for the same lengths.

    Raises:
        Rl4RecError: a step fails. ConfigError: the run trains a retriever.
    """
    if not config.trainer.trains_policy:
        raise ConfigError("--check measures policies only, and this run trains a retriever", hint="leave it out")
    if not config.task.has_catalogue:
        raise ConfigError(
            f"--check makes steps in a catalogue, and the task {config.run.task} has none", hint="leave it out"
        )
    from rl4rec_cli.commands.peak import measure_peaks
    from rl4rec_cli.policy.facts import policy_facts, retrieval_facts

    console.log("Making two real steps of each phase in a process of its own …")
    facts, retrieval = policy_facts(config.policy), retrieval_facts(config)
    checks = []
    for peak in measure_peaks(config):
        lengths = (peak.prompt_tokens, peak.text_tokens)
        placement = plan_placement(find_machine(), config, facts, retrieval, lengths=lengths)
        phase = _predicted(placement.estimate.phases, peak)
        checks.append(MemoryCheck(peak.phase, phase.name, phase.total, peak.bytes, phase.total / peak.bytes))
    return checks


def _predicted(phases: Sequence[PhaseMemory], peak: Peak) -> PhaseMemory:
    """Returns the largest predicted phase among the measured ones. Validation is not measured."""
    own = [p for p in phases if p.name.startswith("warm start: ") == peak.is_warm_start]
    own = [p for p in own if not p.name.endswith("validation")]
    return max(own, key=lambda phase: phase.total)
