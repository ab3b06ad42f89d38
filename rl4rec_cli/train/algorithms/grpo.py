"""GRPO: TRL's `GRPOTrainer` on our rollouts and rewards.

Decides: TRL's configuration of our settings.
Hides: TRL. Generation is ours, through TRL's `rollout_func`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from trl import GRPOConfig, GRPOTrainer

from rl4rec_cli.train.algorithms.bases import GroupBase
from rl4rec_cli.train.arguments import group_arguments, one_gpu
from rl4rec_cli.train.reinforcement import open_lesson

if TYPE_CHECKING:
    from rl4rec_cli.config.trainer import GrpoSection
    from rl4rec_cli.train.parts import TrainerParts

__all__ = ["GrpoTrainer", "grpo_arguments", "make_trainer", "open_lesson"]


def grpo_arguments(parts: TrainerParts) -> GRPOConfig:
    """TRL's configuration of our settings."""
    section = cast("GrpoSection", parts.section)
    return one_gpu(
        GRPOConfig(
            **group_arguments(parts), loss_type=section.loss_type, scale_rewards=parts.config.reward.scale_rewards
        )
    )


class GrpoTrainer(GroupBase, GRPOTrainer):
    """TRL's trainer with what stands before it."""


def make_trainer(parts: TrainerParts) -> GrpoTrainer:
    """The trainer for these parts."""
    return GrpoTrainer(args=grpo_arguments(parts), rollout_func=parts.lesson.rollout, **parts.groups)
