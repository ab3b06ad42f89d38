"""Settings of a run that take less memory, cheapest first.

Decides: which settings may change, what each change costs, that a step learns from as many completions as before if
possible, and which settings a started run may still change.
Hides: the search, which estimates every combination.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rl4rec_cli.plan.catalogue import vector_bytes, why_not_mapped
from rl4rec_cli.plan.memory import Estimate, PhaseMemory, Surroundings, estimate
from rl4rec_cli.plan.phases import Phase
from rl4rec_cli.shell import setting

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import GenerationSection
    from rl4rec_cli.config.sections import PromptSection, RetrievalSection, RunConfig
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.models.shape import ModelFacts

# What a change costs, as far as one can say: the order is what counts.
_COSTS = {
    "eval_batch": (0.2, "validation in smaller batches"),
    "write_parts": (0.4, "a step's completions are written in several parts: writing takes longer"),
    "vectors": (0.6, "ranking reads a smaller copy of the item vectors, or their file: slower, to the same ranks"),
    "split": (0.3, "smaller micro-batches, as many completions a step: a little slower"),
    "retrieval_cpu": (1.5, "embedding and ranking on the CPU: rewards take longer"),
    "checkpointing": (2.0, "activations are computed twice: learning takes about a third longer"),
    "4bit": (3.0, "weights are rounded to 4 bits, and unpacked at every use: slower"),
    "lora": (6.0, "an adapter instead of all weights: it can learn less"),
    "fewer": (9.0, "fewer completions a step: noisier gradients"),
    "shorter": (12.0, "shorter prompts or completions: the policy reads or writes less"),
}
_FEW = 8
"""Sequences below which a GPU is mostly idle."""
_LARGE = 0.1
"""Share of the memory above which it is worth while to hold item vectors otherwise."""


@dataclass(frozen=True)
class WayOut:
    """A way to take less memory: settings, and what they cost."""

    config: RunConfig
    """The configuration with the settings."""
    settings: Mapping[str, Any]
    costs: tuple[str, ...]
    kinds: frozenset[str]
    estimate: Estimate
    cost: float

    @property
    def sets(self) -> tuple[str, ...]:
        """The settings, as `--set` takes them."""
        return set_texts(self.settings)


@dataclass(frozen=True)
class Room:
    """Bytes that each phase may take."""

    most: float
    own: Mapping[str, float] = field(default_factory=dict)
    """Bytes of the phases that may take less, by name."""

    def of(self, name: str) -> float:
        return min(self.most, self.own.get(name, self.most))

    def over(self, result: Estimate) -> list[PhaseMemory]:
        """Returns the phases that take more, the one furthest from fitting first."""
        phases = [phase for phase in result.phases if phase.total > self.of(phase.name)]
        return sorted(phases, key=lambda phase: self.of(phase.name) - phase.total)


def find_ways_out(
    config: RunConfig,
    facts: ModelFacts,
    surroundings: Surroundings,
    room: Room,
    *,
    keep_texts: bool = True,
    keep_weights: bool = False,
) -> list[WayOut]:
    """Returns the ways to fit into `room`, cheapest first; none contains another.

    Args:
        keep_texts: a step learns from as many completions as before; else fewer may do, too.
        keep_weights: the trained weights, and the form of the others, stay as they are.
    """
    ways = list(_all(config, facts, surroundings, room, [{}], keep_weights=keep_weights))
    if not ways and not keep_texts:
        ways = list(_all(config, facts, surroundings, room, _fewer(config.trainer), keep_weights=keep_weights))
    ways.sort(key=lambda way: (way.cost, way.estimate.bytes))
    distinct_ways: list[WayOut] = []
    for way in ways:
        if not any(other.kinds <= way.kinds for other in distinct_ways):
            distinct_ways.append(way)
    return distinct_ways


def way_on(config: RunConfig, facts: ModelFacts, surroundings: Surroundings, room: Room) -> WayOut | None:
    """Returns the cheapest way to fit for a started run, which keeps its weights, or None if nothing fits.

    It tries as many completions per step first, then fewer, then shorter ones.
    """
    for shorter in ({}, *_shorter(config.generation, config.prompt)):
        ways = find_ways_out(changed(config, shorter), facts, surroundings, room, keep_texts=False, keep_weights=True)
        if ways and shorter:
            price, words = _COSTS["shorter"]
            settings, costs = {**shorter, **ways[0].settings}, (*ways[0].costs, words)
            kinds = ways[0].kinds | {"shorter"}
            return replace(ways[0], settings=settings, costs=costs, kinds=kinds, cost=ways[0].cost + price)
        if ways:
            return ways[0]
    return None


def least(config: RunConfig, facts: ModelFacts, surroundings: Surroundings) -> Estimate:
    """Estimates a started run with everything cut that `way_on` may cut."""
    trainer = config.trainer
    shorter = (_shorter(config.generation, config.prompt) or [{}])[-1]
    sets = {**shorter, **(_fewer(trainer) or [{}])[-1], **_checkpointing(trainer)}
    smallest = changed(config, {**sets, "eval.batch_size": 1, "generation.batch_size": 1})
    smallest = changed(smallest, _split(smallest.trainer, smallest.trainer.divisors[-1], "trainer"))
    here = replace(surroundings, retrieval_on_device=surroundings.retrieval_on_device and not surroundings.on_gpu)
    if (smaller := smaller_vectors(config.retrieval, here, 0)) is not None:
        here = replace(here, item_matrix=smaller[1])
    return estimate(smallest, facts, here)


def smaller_vectors(
    section: RetrievalSection, surroundings: Surroundings, most: float
) -> tuple[dict[str, Any], int] | None:
    """Returns settings that hold the item vectors in the least memory, and the bytes that they then take.

    A GPU reads an int8 copy; a CPU reads the fp32 vectors in their file. None if they are held in less than fp32
    already, or take little of `most`, the bytes that there are.
    """
    whole = vector_bytes(surroundings.items, surroundings.embedding_dim, "fp32")
    if not surroundings.retrieval_on_device or surroundings.vector_bytes < whole or whole <= _LARGE * most:
        return None
    if surroundings.on_gpu:
        return {"retrieval.storage": "int8"}, vector_bytes(surroundings.items, surroundings.embedding_dim, "int8")
    return ({"retrieval.storage": "fp32", "retrieval.memory_map": "on"}, 0) if why_not_mapped(section) is None else None


def smaller_pieces(trainer: TrainerSection) -> dict[str, Any]:
    """Returns settings for the same updates with half the micro-batch and gradient checkpointing, where possible.

    This is for a model of unknown shape, whose memory no plan can estimate.
    """
    return {
        **(_split(trainer, trainer.divisors[1], "trainer") if len(trainer.divisors) > 1 else {}),
        **_checkpointing(trainer),
    }


def _all(
    config: RunConfig,
    facts: ModelFacts,
    surroundings: Surroundings,
    room: Room,
    shrinkings: Sequence[dict[str, Any]],
    *,
    keep_weights: bool,
) -> Iterator[WayOut]:
    policy = config.policy
    own = policy.model != "tiny" and not keep_weights
    options: list[list[tuple[str, dict[str, Any]]]] = [[("", {})] for _ in range(5)]
    if own and policy.lora is None:
        options[0].append(("lora", {"policy.lora.r": 16}))
    if own and surroundings.on_gpu and policy.quantization == "none":
        options[1].append(("4bit", {"policy.quantization": "4bit"}))
    if checkpointing := _checkpointing(config.trainer):
        options[2].append(("checkpointing", checkpointing))
    if surroundings.on_gpu and surroundings.retrieval_on_device:
        options[3].append(("retrieval_cpu", {"retrieval.device": "cpu"}))
    smaller = smaller_vectors(config.retrieval, surroundings, room.most)
    if smaller is not None:
        options[4].append(("vectors", smaller[0]))
    for shrinking, *combination in itertools.product(shrinkings, *options):
        kinds = {kind for kind, _ in combination if kind}
        sets = {key: value for _, values in combination for key, value in values.items()} | shrinking
        candidate = changed(config, sets)
        if ("4bit" in kinds and candidate.policy.lora is None) or kinds >= {"retrieval_cpu", "vectors"}:
            continue
        here = replace(
            surroundings, retrieval_on_device=surroundings.retrieval_on_device and "retrieval_cpu" not in kinds
        )
        if smaller is not None and "vectors" in kinds:
            here = replace(here, item_matrix=smaller[1])
        fit = _shrunk_to_fit(candidate, facts, here, room)
        if fit is None:
            continue
        more, splits, result = fit
        kinds |= {"split"} if splits > 1 else set()
        kinds |= {"eval_batch"} if "eval.batch_size" in more else set()
        kinds |= {"write_parts"} if "generation.batch_size" in more else set()
        kinds |= {"fewer"} if shrinking else set()
        cost = sum(_COSTS[kind][0] for kind in kinds - {"split"})
        if splits > 1:
            rows = changed(candidate, more).trainer.micro_batch
            cost += _COSTS["split"][0] * math.log2(splits) + (1.0 * math.log2(_FEW / rows) if rows < _FEW else 0.0)
        sets |= more
        costs = tuple(_COSTS[kind][1] for kind in _COSTS if kind in kinds)
        yield WayOut(changed(config, sets), sets, costs, frozenset(kinds), result, cost)


def _shrunk_to_fit(
    config: RunConfig, facts: ModelFacts, surroundings: Surroundings, room: Room
) -> tuple[dict[str, Any], int, Estimate] | None:
    """Finds the largest micro-batches, and the largest batches of validation and generation, that fit.

    Returns:
        The settings, the largest divisor of a micro-batch, and the estimate with them; None if nothing fits.
    """
    sets: dict[str, Any] = {}
    most = 1
    for trainer in config.trainer.phases:
        path = "trainer" if trainer is config.trainer else "trainer.warm_start"
        for parts in trainer.divisors:
            cut_settings = _split(trainer, parts, path)
            learning_phase = _learning(estimate(changed(config, cut_settings), facts, surroundings), path)
            if learning_phase.total <= room.of(learning_phase.name):
                sets |= cut_settings
                most = max(most, parts)
                break
        else:
            return None
    sizes: dict[str, int] = {Phase.MEASURING: config.eval.batch_size, Phase.WRITING: config.trainer.texts_at_once}
    sizes[Phase.WRITING] = min(sizes[Phase.WRITING], config.generation.batch_size or sizes[Phase.WRITING])
    settings: dict[str, str] = {Phase.MEASURING: "eval.batch_size", Phase.WRITING: "generation.batch_size"}
    while True:
        result = estimate(changed(config, sets), facts, surroundings)
        over = room.over(result)
        if not over:
            return sets, most, result
        name = over[0].name.rpartition(": ")[2]
        if sizes.get(name, 1) == 1:
            return None
        sizes[name] //= 2
        sets[settings[name]] = sizes[name]


def _learning(result: Estimate, path: str) -> PhaseMemory:
    """Returns the phase of learning in the warm start, or in the algorithm's own part."""
    name = f"warm start: {Phase.LEARNING}" if path == "trainer.warm_start" else Phase.LEARNING
    return next(phase for phase in result.phases if phase.name == name)


def _split(trainer: TrainerSection, parts: int, path: str) -> dict[str, Any]:
    """Returns settings that cut micro-batches into `parts`, and accumulate that many more of them."""
    return {f"{path}.{key}": value for key, value in trainer.split(parts).items()} if parts > 1 else {}


def _checkpointing(trainer: TrainerSection) -> dict[str, Any]:
    """Returns settings that turn on gradient checkpointing where it is off, in the warm start, too."""
    sets: dict[str, Any] = {}
    if not trainer.gradient_checkpointing and trainer.can_checkpoint:
        sets["trainer.gradient_checkpointing"] = True
    if any(not phase.gradient_checkpointing for phase in trainer.phases[:-1]):
        sets["trainer.warm_start.gradient_checkpointing"] = True
    return sets


def _fewer(trainer: TrainerSection) -> list[dict[str, Any]]:
    """Returns settings with fewer prompts per step, then with fewer completions per prompt, too."""
    if not trainer.has_groups:
        return []
    ways: list[dict[str, Any]] = []
    accumulation = trainer.gradient_accumulation_steps
    while accumulation > 1:
        accumulation //= 2
        ways.append({"trainer.gradient_accumulation_steps": accumulation})
    texts = trainer.texts_per_prompt
    while texts > 2:
        texts //= 2
        ways.append({**(ways[-1] if ways else {}), "trainer.num_generations": texts})
    return ways


def _shorter(generation: GenerationSection, prompt_section: PromptSection) -> list[dict[str, Any]]:
    """Returns settings with shorter completions, then with shorter prompts, too: half, then a quarter."""
    text, prompt = generation.max_completion_length, prompt_section.max_prompt_length
    ways = [{"generation.max_completion_length": text // 2}] if text > 1 else []
    for parts in (2, 4):
        if text >= parts and prompt >= parts:
            both = {"generation.max_completion_length": text // parts, "prompt.max_prompt_length": prompt // parts}
            ways.append(both)
    return ways


def changed(config: RunConfig, sets: Mapping[str, Any]) -> RunConfig:
    """Returns the configuration with some settings changed. The caller knows that they go together."""
    for key, value in sets.items():
        config = _put(config, key.split("."), value)
    return config


def _put(section: Any, path: Sequence[str], value: Any) -> Any:
    name, *below = path
    if below:
        inner = getattr(section, name)
        if inner is None and name == "lora":
            from rl4rec_cli.config.policy import LoraSection

            inner = LoraSection()
        value = _put(inner, below, value)
    return section.model_copy(update={name: value})


def set_texts(sets: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns settings as `--set` takes them."""
    return tuple(setting(key, value) for key, value in sets.items())
