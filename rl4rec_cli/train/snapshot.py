"""What of a trainer the next step depends on, besides its weights and its optimiser.

Decides: which numbers, completions and random states it takes after a whole step and restores before the next.
Hides: the attributes of transformers' and TRL's trainers that hold them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from rl4rec_cli.train.checkpoints import ALGORITHM
from rl4rec_cli.train.library_names import BUFFER, METRICS, TRAINER_STATE


class Stateful(Protocol):
    """Something besides the trainer that the next steps depend on."""

    def state(self) -> dict[str, Any]:
        """Returns numbers, texts, lists and tensors, which later steps do not change."""

    def set_state(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class Snapshot:
    """What to save of a step besides weights and optimiser, which stay as they are until the next update."""

    step: int
    trainer: Any
    random: dict[str, Any]
    algorithm: dict[str, Any]


def take(trainer: Any, parts: Mapping[str, Stateful]) -> Snapshot:
    """Takes the snapshot of a whole step."""
    state = copy.copy(trainer.state)
    state.log_history = []
    algorithm: dict[str, Any] = {name: _copy(getattr(trainer, name)) for name in TRAINER_STATE if _has(trainer, name)}
    metrics = {mode: {k: list(v) for k, v in of.items()} for mode, of in getattr(trainer, METRICS, {}).items()}
    algorithm[METRICS] = metrics
    # The trainer generates again only after all updates from these. It replaces the list, never writes into it.
    is_used_up = not getattr(trainer, "_step", 0) % _steps_per_batch(trainer)
    algorithm[BUFFER] = None if is_used_up else getattr(trainer, BUFFER, None)
    algorithm["micro_batches"], algorithm["longest"] = _micro_batches(trainer), _longest(trainer)
    algorithm["parts"] = {name: part.state() for name, part in parts.items()}
    if own := trainer.algorithm_state():
        algorithm["own"] = own
    return Snapshot(state.global_step, state, random_states(), algorithm)


def restore(trainer: Any, parts: Mapping[str, Stateful], folder: Path, *, done: int) -> None:
    """Brings a trainer to where it was when the checkpoint was written, `done` steps from its start.

    With other micro-batches than before, or shorter completions (``--allow-partial``), the completions still to learn
    from do not fit, and the trainer generates new ones.
    """
    trainer.read_beside(folder)
    path = folder / ALGORITHM
    if not path.is_file():  # --allow-partial
        _begin_at(trainer, done)
        return
    algorithm = torch.load(path, map_location="cpu", weights_only=True)
    for name in TRAINER_STATE:
        if name in algorithm:
            setattr(trainer, name, _to(algorithm[name], trainer.args.device))
    for mode, metrics in algorithm[METRICS].items():
        getattr(trainer, METRICS)[mode].update(metrics)
    is_cut_otherwise = algorithm.get("micro_batches", _micro_batches(trainer)) != _micro_batches(trainer)
    if is_cut_otherwise or algorithm.get("longest", _longest(trainer)) != _longest(trainer):
        _begin_at(trainer, done)
    elif algorithm[BUFFER] is not None:
        setattr(trainer, BUFFER, _to(algorithm[BUFFER], trainer.args.device))
    for name, part in parts.items():
        if name in algorithm["parts"]:
            part.set_state(algorithm["parts"][name])
    if "own" in algorithm:
        trainer.set_algorithm_state(_to(algorithm["own"], trainer.args.device))


def _begin_at(trainer: Any, done: int) -> None:
    if hasattr(trainer, "_step"):
        trainer._step = done * trainer.args.gradient_accumulation_steps


def _micro_batches(trainer: Any) -> list[int]:
    args = trainer.args
    return [args.per_device_train_batch_size, args.gradient_accumulation_steps, _steps_per_batch(trainer)]


def _longest(trainer: Any) -> int:
    """Returns the most tokens of a completion; 0 where the trainer generates none."""
    return int(getattr(trainer.args, "max_completion_length", None) or 0)


def _steps_per_batch(trainer: Any) -> int:
    """Returns how many micro-batches the trainer learns from between two generations."""
    return int(getattr(trainer.args, "steps_per_generation", 1) * getattr(trainer, "num_iterations", 1))


def random_states() -> dict[str, Any]:
    """Returns the state of every generator of random numbers, in transformers' form."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.random.get_rng_state()
    return state


def set_random_states(state: Mapping[str, Any]) -> None:
    """Restores what `random_states` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.random.set_rng_state(state["cuda"])


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Restores the random states afterwards: draws inside the block change no later draw."""
    before = random_states()
    try:
        yield
    finally:
        set_random_states(before)


def size(value: Any) -> int:
    """Returns the bytes of the tensors in a value."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(size, value.values()))
    return sum(map(size, value)) if isinstance(value, (list, tuple)) else 0


def _has(trainer: Any, name: str) -> bool:
    return getattr(trainer, name, None) is not None


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _to(value: Any, device: Any) -> Any:
    """Moves the tensors in lists and mappings to a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(v, device) for key, v in value.items()}
    if isinstance(value, list):
        return [_to(v, device) for v in value]
    return value
