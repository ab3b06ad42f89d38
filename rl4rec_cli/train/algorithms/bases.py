"""What stands before TRL's trainers, and in which order.

Decides: the order. A method goes through these classes from left to right before it reaches TRL's. Checkpoints see a
step after all other classes have handled it. The weights of an engine's completions are logged for the batch that the
trainer learns from, which no longer has the groups without variance. The supervised loss is added to what these classes
make of RL's.

An algorithm declares its trainer as `class XTrainer(GroupBase, TrlsTrainer)`. What only completes TRL's class is a
subclass of TRL's in `TrlsTrainer`'s place; what an algorithm does beyond TRL's stands in the body.
"""

from __future__ import annotations

from rl4rec_cli.train.algorithms.groups import InformativeGroups
from rl4rec_cli.train.algorithms.shared_prompts import SharedPrompts
from rl4rec_cli.train.algorithms.supervised import Supervised
from rl4rec_cli.train.engine_rollouts import EngineRollouts
from rl4rec_cli.train.resumable import Resumable
from rl4rec_cli.train.stepwise import Stepwise


class RlBase(Stepwise, Resumable, Supervised, EngineRollouts):
    """Before every trainer of reinforcement learning."""


class GroupBase(Stepwise, Resumable, Supervised, EngineRollouts, InformativeGroups, SharedPrompts):
    """Before trainers that learn from several completions per prompt."""
