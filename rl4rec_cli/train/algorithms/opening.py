"""From an algorithm's section to what its policy learns from, and to its trainer.

Decides: what is done to the trainer of every algorithm, whichever it is.
Hides: which module makes it; the line in `config/algorithms.py` names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rl4rec_cli.config.algorithms import ALGORITHMS
from rl4rec_cli.plan.phases import Phase, during
from rl4rec_cli.train.arguments import weights_kept

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import GenerationSection
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.train.environments import Examples
    from rl4rec_cli.train.learner import Learner
    from rl4rec_cli.train.parts import Lesson, TrainerParts


def open_lesson(
    section: TrainerSection,
    generation: GenerationSection,
    learner: Learner,
    environments: Sequence[Examples],
    rollouts: JsonLines,
    *,
    shown: int,
) -> Lesson:
    """Returns what the learner learns from in a phase.

    Args:
        section: of the phase.
        environments: it learns from all of them together.
        rollouts: gets the first `shown` completions of each step, where the policy writes any.
    """
    return _module(section).open_lesson(section, generation, learner, environments, rollouts, shown=shown)


def open_trainer(parts: TrainerParts) -> Any:
    """Returns the trainer of the phase's algorithm, a transformers `Trainer`.

    Raises:
        ConfigError: settings do not go together.
    """
    from transformers import PrinterCallback

    module = _module(parts.section)
    with weights_kept(parts.policy.model), during(Phase.LOADING):
        trainer = module.make_trainer(parts)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _module(section: TrainerSection) -> Any:
    return import_module(f"rl4rec_cli.train.algorithms.{ALGORITHMS[section.algorithm].module}")
