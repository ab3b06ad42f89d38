"""From an algorithm's name to its trainer.

Decides: what is done to the trainer of every algorithm, whichever it is.
Hides: which module makes it; the line in `config/algorithms.py` names it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rl4rec_cli.config.algorithms import ALGORITHMS
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.plan.phases import Phase, during
from rl4rec_cli.train.arguments import weights_kept

if TYPE_CHECKING:
    from rl4rec_cli.train.algorithms.parts import TrainerParts


def open_trainer(parts: TrainerParts) -> Any:
    """Returns the trainer of the configured algorithm, a transformers `Trainer`.

    Raises:
        ConfigError: the algorithm is no reinforcement learning, or settings do not go together.
    """
    from transformers import PrinterCallback

    section = parts.config.trainer
    if not section.is_rl:
        raise ConfigError(f"trainer.algorithm is {section.algorithm}, which is no reinforcement learning")
    module = import_module(f"rl4rec_cli.train.algorithms.{ALGORITHMS[section.algorithm].module}")
    with weights_kept(parts.policy.model), during(Phase.LOADING):
        trainer = module.make_trainer(parts)
    trainer.remove_callback(PrinterCallback)
    return trainer
