"""The algorithms there are, one line for each.

Decides: their names, where the section and the trainer of each stand, and what `rl4rec train` shows of it.
Hides: nothing; it imports nothing heavy, because the command line reads it for its help. Everything else that
somebody may ask of an algorithm its section answers (`trainer.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["groups", "single", "supervised"]


@dataclass(frozen=True)
class Algorithm:
    section: str
    """Class in `config/trainer.py`."""
    module: str
    """Module in `train/algorithms`, whose `make_trainer` makes the trainer; of a supervised algorithm its own."""
    kind: Kind
    """Several texts per prompt, one text per prompt, or no texts of its own. It decides which options the command
    has."""
    summary: str
    """One sentence of help that fits into 80 columns beside the name."""


DEFAULT_ALGORITHM = "grpo"
ALGORITHMS: dict[str, Algorithm] = {
    "grpo": Algorithm("GrpoSection", "grpo", "groups", "RL: raise the rank of the item the user chose next (GRPO)."),
    "ppo": Algorithm("PpoSection", "ppo", "single", "RL with a critic, one text per prompt (PPO)."),
    "rloo": Algorithm("RlooSection", "rloo", "groups", "RL with the other texts of a prompt as baseline (RLOO)."),
    "reinforce": Algorithm("ReinforceSection", "ppo", "single", "RL with the batch's mean as baseline (REINFORCE)."),
    "sft": Algorithm("SftSection", "sft", "supervised", "Learn to write the next item's text (the warm start)."),
}
