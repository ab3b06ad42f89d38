"""Where the training of a retriever goes, and what it takes, on paper.

Decides: that it goes where the item vectors are, and that it is estimated at the limits of its settings: sequences as
long as `trainer.max_sequence`, and texts as long as the encoder reads.
Hides: which tensors live at once (`retrieval/history_model.py`, `train/algorithms/retriever.py`, `encoder.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rl4rec_cli.models.devices import gpu_index
from rl4rec_cli.plan.machine import USABLE, Machine
from rl4rec_cli.plan.memory import RUNTIME_CPU, RUNTIME_GPU, Estimate, PhaseMemory, human
from rl4rec_cli.plan.phases import Phase
from rl4rec_cli.plan.placement import Choice, Placement, place_retrieval

if TYPE_CHECKING:
    from rl4rec_cli.config.retriever import RetrieverSection
    from rl4rec_cli.config.sections import RetrievalSection, RunConfig
    from rl4rec_cli.models.shape import RetrievalFacts

RETRIEVER = "retriever"
_COPIES = 12
"""Vectors of a position that live at once in a step, forward and backward."""
_LAYER_VECTORS, _ATTENTIONS = 20, 3
"""What a layer keeps of a token for the backward pass: vectors of its width (the inner ones of the feed-forward network
are four each), and rows of attention weights for each head."""


def in_process(section: RetrievalSection) -> RetrievalSection:
    """Returns the section with `backend: auto` decided: a retriever is trained in the process that has the vectors."""
    return section.model_copy(update={"backend": "in-process"}) if section.is_auto else section


def plan_retriever(machine: Machine, config: RunConfig, retrieval: RetrievalFacts) -> Placement:
    """Plans the training of a retriever, as `plan_placement` plans that of a policy."""
    config = config.model_copy(update={"retrieval": in_process(config.retrieval)})
    place = place_retrieval(machine, config)
    on_gpu = place.where.startswith("cuda")
    gpu = machine.gpus[gpu_index(place.where, "retrieval.device")] if on_gpu else None
    free = gpu.free if gpu is not None else machine.ram_free
    memory = f"{gpu.name}, {human(free)} free" if gpu is not None else f"{human(free)} of memory free, no GPU is used"
    section, room = cast("RetrieverSection", config.trainer), int(USABLE * free)
    parts = _encoder_parts if section.tunes_encoder else _parts
    estimate = Estimate((PhaseMemory(Phase.LEARNING, parts(config, retrieval, on_gpu=on_gpu)),))
    why = "each a history's text and the next item's" if section.tunes_encoder else ""
    step = Choice("batch", section.batch_words, why or "every position of each user is learnt from")
    where = Choice("retrieval", f"{place.backend} on {place.where}", place.reason)
    if not section.tunes_encoder:
        hint = "lower trainer.batch_size, trainer.max_sequence or trainer.dim"
    elif section.mini_batch_size is None:
        hint = "set trainer.mini_batch_size=8, which holds so many texts at once instead of a whole batch"
    else:
        hint = "lower trainer.mini_batch_size, set trainer.gradient_checkpointing=true, or train trainer.kind=lora"
    return Placement(
        *(place.where, memory, room, estimate, estimate.bytes <= room, (step, where), (), retrieval.notes),
        trained=RETRIEVER,
        hint=hint,
    )


def _parts(config: RunConfig, retrieval: RetrievalFacts, *, on_gpu: bool) -> dict[str, int]:
    section = cast("RetrieverSection", config.trainer)
    dim = min(section.dim, retrieval.dim)
    weights = retrieval.dim * dim + dim * dim + (retrieval.items * dim if section.residual else 0)
    positions = section.batch_size * section.max_sequence
    is_whole = retrieval.items <= section.full_softmax_items
    candidates = retrieval.items if is_whole else positions + section.sampled_items
    pairs = positions * section.max_sequence  # of a position and an item before it
    return {
        "weights": 4 * weights,
        "gradients": 4 * weights,
        "optimizer": 8 * weights,
        "embedder": 4 * retrieval.embedder_parameters,
        # The encoder's, and the projected ones that measurements rank.
        "item matrix": 4 * retrieval.items * (2 * retrieval.dim + dim),
        "activations": 4 * dim * (_COPIES * positions + 4 * candidates) + 16 * pairs,
        "context" if on_gpu else "runtime": RUNTIME_GPU if on_gpu else RUNTIME_CPU,
    }


def _encoder_parts(config: RunConfig, retrieval: RetrievalFacts, *, on_gpu: bool) -> dict[str, int]:
    """Estimates the tuning of an encoder; the one that embeds for the baselines stays beside it."""
    section, width, layers = cast("RetrieverSection", config.trainer), retrieval.dim, retrieval.layers
    trained, held = retrieval.embedder_parameters, retrieval.embedder_parameters
    if (lora := section.adapter) is not None:
        # Queries and values, as PEFT does for most encoders; else all linear maps, the inner ones four times as wide.
        trained = layers * lora.r * width * (4 if lora.target_modules == "auto" else 18)
        held += trained
    texts = 2 * section.batch_size if section.mini_batch_size is None else section.mini_batch_size
    tokens = texts * retrieval.context
    layer = 4 * tokens * (_LAYER_VECTORS * width + _ATTENTIONS * retrieval.heads * retrieval.context)
    activations = layer + 4 * tokens * width * layers if section.gradient_checkpointing else layer * layers
    pairs = section.batch_size * section.batch_size
    return {
        "weights": 4 * held,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "embedder": 4 * retrieval.embedder_parameters,
        "item matrix": 2 * 4 * retrieval.items * width,
        "activations": activations + 4 * (4 * pairs + 4 * section.batch_size * width),
        "context" if on_gpu else "runtime": RUNTIME_GPU if on_gpu else RUNTIME_CPU,
    }
