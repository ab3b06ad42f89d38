"""Settings of a run that take less memory, cheapest first.

Decides: what may be changed, what each change costs, and that a step learns from as many texts as before.
Hides: the search: every combination is tried on paper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rl4rec_cli.memory import Estimate, Surroundings, batch_shape, estimate

if TYPE_CHECKING:
    from rl4rec_cli.config import RunConfig
    from rl4rec_cli.config_trainer import TrainerSection
    from rl4rec_cli.model_facts import ModelFacts

# What a change costs, as far as one can say: the order is what counts.
_COSTS = {
    "eval_batch": (0.2, "validation in smaller batches"),
    "write_parts": (0.4, "a step's texts are written in several parts: writing takes longer"),
    "split": (0.3, "smaller micro-batches, as many texts a step: a little slower"),
    "retrieval_cpu": (1.5, "embedding and ranking on the CPU: rewards take longer"),
    "checkpointing": (2.0, "activations are computed twice: learning takes about a third longer"),
    "4bit": (3.0, "weights are rounded to 4 bits, and unpacked at every use: slower"),
    "lora": (6.0, "an adapter instead of all weights: it can learn less"),
    "fewer": (9.0, "fewer texts a step: noisier gradients"),
}
_FEW = 8
"""Sequences below which a GPU is mostly idle."""


@dataclass(frozen=True)
class Saving:
    """A way to take less memory."""

    config: RunConfig
    """With the settings."""
    settings: Mapping[str, Any]
    costs: tuple[str, ...]
    kinds: frozenset[str]
    estimate: Estimate
    cost: float

    @property
    def sets(self) -> tuple[str, ...]:
        """The settings, as `--set` takes them."""
        return _texts(self.settings)


def savings(
    config: RunConfig, facts: ModelFacts, around: Surroundings, room: float, *, keep_texts: bool = True
) -> list[Saving]:
    """The ways to fit into `room` bytes, cheapest first; none contains another.

    Args:
        keep_texts: a step learns from as many texts as before; else fewer are tried too.
    """
    found = list(_all(config, facts, around, room, [{}]))
    if not found and not keep_texts:
        found = list(_all(config, facts, around, room, _fewer(config.trainer)))
    found.sort(key=lambda saving: (saving.cost, saving.estimate.bytes))
    kept: list[Saving] = []
    for saving in found:
        if not any(other.kinds <= saving.kinds for other in kept):
            kept.append(saving)
    return kept


def cheaper_settings(
    config: RunConfig,
    facts: ModelFacts | None = None,
    around: Surroundings | None = None,
    *,
    is_warm_start: bool = False,
    share: float = 0.75,
) -> list[tuple[str, ...]]:
    """What to go on with where memory ran out in a run: the same policy, and as many texts a step.

    Args:
        facts: of the policy; None where its shape is not known: then no figures are looked at.
        is_warm_start: it ran out there.
        share: of what this phase takes by the plan, at most.

    Returns:
        `--set` texts for each way, cheapest first, two at most; empty where nothing can be cut.
    """
    phase: TrainerSection | None = getattr(config.trainer, "warm_start", None) if is_warm_start else config.trainer
    if phase is None:
        return []
    if phase.algorithm != "sft":
        phase = phase.model_copy(update={"warm_start": None})
    alone = config.model_copy(update={"trainer": phase})
    ways: list[dict[str, Any]] = []
    if facts is not None and around is not None:
        room = share * estimate(alone, facts, around).bytes
        ways = [dict(way.settings) for way in savings(alone, facts, around, room) if not way.kinds & {"lora", "4bit"}]
    if not ways:
        split = next((way for n in _divisors(phase)[1:] if (way := _split(phase, n, "trainer"))), {})
        # Writing in parts is left out: other texts would be drawn, and these ways lead to the same policy.
        ways = [way for way in (split, _checkpoint(phase)) if way]
    place = "trainer.warm_start." if is_warm_start else "trainer."
    return [_texts({key.replace("trainer.", place, 1): value for key, value in way.items()}) for way in ways[:2]]


def _all(
    config: RunConfig, facts: ModelFacts, around: Surroundings, room: float, shrinkings: Sequence[dict[str, Any]]
) -> Iterator[Saving]:
    policy = config.policy
    own = policy.model != "tiny"
    options: list[list[tuple[str, dict[str, Any]]]] = [[("", {})] for _ in range(4)]
    if own and policy.lora is None:
        options[0].append(("lora", {"policy.lora.r": 16}))
    if own and around.on_gpu and getattr(policy, "quantization", "none") == "none":
        options[1].append(("4bit", {"policy.quantization": "4bit"}))
    if checkpoint := _checkpoint(config.trainer):
        options[2].append(("checkpointing", checkpoint))
    if around.on_gpu and around.retrieval_on_device:
        options[3].append(("retrieval_cpu", {"retrieval.device": "cpu"}))
    for shrinking, *chosen in itertools.product(shrinkings, *options):
        kinds = {kind for kind, _ in chosen if kind}
        sets = {key: value for _, values in chosen for key, value in values.items()} | shrinking
        changed = _with(config, sets)
        if "4bit" in kinds and changed.policy.lora is None:
            continue
        here = replace(around, retrieval_on_device=around.retrieval_on_device and "retrieval_cpu" not in kinds)
        made = _shrunk_to_fit(changed, facts, here, room)
        if made is None:
            continue
        more, splits, result = made
        kinds |= {"split"} if splits > 1 else set()
        kinds |= {"eval_batch"} if "eval.batch_size" in more else set()
        kinds |= {"write_parts"} if "generation.batch_size" in more else set()
        kinds |= {"fewer"} if shrinking else set()
        cost = sum(_COSTS[kind][0] for kind in kinds - {"split"})
        if splits > 1:
            rows = batch_shape(_with(changed, more).trainer).micro
            cost += _COSTS["split"][0] * math.log2(splits) + (1.0 * math.log2(_FEW / rows) if rows < _FEW else 0.0)
        sets |= more
        costs = tuple(_COSTS[kind][1] for kind in _COSTS if kind in kinds)
        yield Saving(_with(config, sets), sets, costs, frozenset(kinds), result, cost)


def _shrunk_to_fit(
    config: RunConfig, facts: ModelFacts, around: Surroundings, room: float
) -> tuple[dict[str, Any], int, Estimate] | None:
    """The largest micro-batches, and batch of validation, that fit.

    Returns:
        Settings, the most that a micro-batch was cut by, what the run takes with them; None where nothing fits.
    """
    sets: dict[str, Any] = {}
    most = 1
    for path in ("trainer.warm_start", "trainer"):
        trainer = config.trainer if path == "trainer" else getattr(config.trainer, "warm_start", None)
        if trainer is None:
            continue
        for parts in _divisors(trainer):
            split = _split(trainer, parts, path)
            learning = _phase(estimate(_with(config, split), facts, around), path)
            if learning <= room:
                sets |= split
                most = max(most, parts)
                break
        else:
            return None
    sizes = {"validation": config.eval.batch_size, "writing": batch_shape(config.trainer).written}
    sizes["writing"] = min(sizes["writing"], config.generation.batch_size or sizes["writing"])
    settings = {"validation": "eval.batch_size", "writing": "generation.batch_size"}
    while True:
        result = estimate(_with(config, sets), facts, around)
        if result.bytes <= room:
            return sets, most, result
        name = result.peak.name.rpartition(": ")[2]
        if sizes.get(name, 1) == 1:
            return None
        sizes[name] //= 2
        sets[settings[name]] = sizes[name]


def _phase(result: Estimate, path: str) -> int:
    """Bytes of learning in the warm start, or in the algorithm's own phase."""
    name = "warm start: learning" if path == "trainer.warm_start" else "learning"
    return next(phase.total for phase in result.phases if phase.name == name)


def _divisors(trainer: TrainerSection) -> list[int]:
    size = trainer.mini_batch_size if trainer.algorithm == "ppo" else trainer.batch_size
    return [n for n in range(1, size + 1) if size % n == 0]


def _split(trainer: TrainerSection, parts: int, path: str) -> dict[str, Any]:
    """Micro-batches cut in `parts`, that many more of them; empty where they cannot be."""
    if parts == 1 or parts not in _divisors(trainer):
        return {}
    sets = {
        f"{path}.batch_size": trainer.batch_size // parts,
        f"{path}.gradient_accumulation_steps": trainer.gradient_accumulation_steps * parts,
    }
    if trainer.algorithm == "ppo":  # as many texts in a batch and in an update
        sets[f"{path}.mini_batch_size"] = trainer.mini_batch_size // parts
    return sets


def _checkpoint(trainer: TrainerSection) -> dict[str, Any]:
    """Gradient checkpointing, also in the warm start, where it is off."""
    sets: dict[str, Any] = {}
    if not trainer.gradient_checkpointing and not (trainer.algorithm == "ppo" and trainer.critic == "adapter"):
        sets["trainer.gradient_checkpointing"] = True
    warm = None if trainer.algorithm == "sft" else trainer.warm_start
    if warm is not None and not warm.gradient_checkpointing:
        sets["trainer.warm_start.gradient_checkpointing"] = True
    return sets


def _fewer(trainer: TrainerSection) -> list[dict[str, Any]]:
    """Fewer prompts a step, then fewer texts a prompt."""
    if trainer.algorithm != "grpo" and trainer.algorithm != "rloo":
        return []
    ways: list[dict[str, Any]] = []
    accumulation = trainer.gradient_accumulation_steps
    while accumulation > 1:
        accumulation //= 2
        ways.append({"trainer.gradient_accumulation_steps": accumulation})
    texts = trainer.num_generations
    while texts > 2:
        texts //= 2
        ways.append({**(ways[-1] if ways else {}), "trainer.num_generations": texts})
    return ways


def _with(config: RunConfig, sets: Mapping[str, Any]) -> RunConfig:
    """The configuration with some settings changed; they are known to go together."""
    for key, value in sets.items():
        config = _put(config, key.split("."), value)
    return config


def _put(section: Any, path: Sequence[str], value: Any) -> Any:
    name, *below = path
    if below:
        inner = getattr(section, name)
        if inner is None and name == "lora":
            from rl4rec_cli.config import LoraSection

            inner = LoraSection()
        value = _put(inner, below, value)
    return section.model_copy(update={name: value})


def _texts(sets: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in sets.items())
