"""GRPO: TRL's `GRPOTrainer` on our rollouts and rewards.

Decides: TRL's configuration of our settings.
Hides: TRL. Generation is ours, through TRL's `rollout_func`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from trl import GRPOConfig, GRPOTrainer

from rl4rec_cli.train.algorithms.advantages import discounted
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
    """TRL's trainer with what stands before it.

    Args:
        gamma: discount of a completion's advantage over the tokens before its last. TRL takes one advantage for each
            token, too.
    """

    def __init__(self, *args: Any, gamma: float = 1.0, **more: Any) -> None:
        super().__init__(*args, **more)
        self._gamma = gamma

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        if self._gamma < 1:
            output["advantages"] = discounted(output["advantages"], output["completion_mask"], self._gamma)
        return output


def make_trainer(parts: TrainerParts) -> GrpoTrainer:
    """The trainer for these parts."""
    section = cast("GrpoSection", parts.section)
    return GrpoTrainer(
        gamma=section.token_discount,
        args=grpo_arguments(parts),
        rollout_func=parts.lesson.rollout,
        **parts.groups,
    )
