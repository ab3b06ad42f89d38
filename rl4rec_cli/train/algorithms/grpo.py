"""GRPO: TRL's `GRPOTrainer` on our rollouts and rewards.

Decides: TRL's configuration of our settings.
Hides: TRL. Generation is ours, through TRL's `rollout_func`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from trl import GRPOConfig, GRPOTrainer

from rl4rec_cli.train.algorithms.bases import GroupBase
from rl4rec_cli.train.arguments import one_gpu, rl_arguments

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.config.trainer import GrpoSection
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.train.algorithms.parts import TrainerParts


def grpo_arguments(
    section: GrpoSection, config: RunConfig, policy: Policy, *, steps: int, output_dir: Path
) -> GRPOConfig:
    """TRL's configuration of our settings."""
    arguments = GRPOConfig(
        **rl_arguments(section, config, policy, steps=steps, output_dir=output_dir),
        per_device_train_batch_size=section.batch_size * section.num_generations,
        num_generations=section.num_generations,
        num_iterations=section.num_iterations,
        loss_type=section.loss_type,
        scale_rewards=config.reward.scale_rewards,
    )
    return one_gpu(arguments)


class GrpoTrainer(GroupBase, GRPOTrainer):
    """TRL's trainer with what stands before it."""


def make_trainer(parts: TrainerParts) -> GrpoTrainer:
    """The trainer for these parts."""
    section = cast("GrpoSection", parts.config.trainer)
    return GrpoTrainer(
        groups=section,
        engine=parts.engine,
        model=parts.policy.model,
        args=grpo_arguments(section, parts.config, parts.policy, steps=parts.steps, output_dir=parts.output_dir),
        train_dataset=parts.rows,
        processing_class=parts.policy.tokenizer,
        reward_funcs=parts.reward,
        rollout_func=parts.rollout,
    )
