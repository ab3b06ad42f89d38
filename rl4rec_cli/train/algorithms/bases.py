"""What stands before TRL's trainers, and in which order.

Decides: the order. A method goes through these classes from left to right before it reaches TRL's: checkpoints see a
step when everything else has had its say; what an engine's texts weigh is logged of the batch that is learnt from, thus
after groups without variance were left out of it.

An algorithm declares its trainer as `class XTrainer(GroupBase, TrlsTrainer)`. What only completes TRL's class is a
subclass of TRL's in `TrlsTrainer`'s place; what an algorithm does beyond TRL's stands in the body.
"""

from __future__ import annotations

from rl4rec_cli.train.algorithms.groups import InformativeGroups
from rl4rec_cli.train.engine_rollouts import EngineRollouts
from rl4rec_cli.train.resumable import Resumable


class RlBase(Resumable, EngineRollouts):
    """Before every trainer of reinforcement learning."""


class GroupBase(Resumable, EngineRollouts, InformativeGroups):
    """Before trainers that learn from several texts per prompt."""
