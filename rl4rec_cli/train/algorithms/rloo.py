"""RLOO: TRL's `RLOOTrainer` on our rollouts and rewards.

Decides: TRL's configuration of our settings.
Hides: that TRL's RLOO has no `rollout_func`: here its two steps from prompts to tokens are ours, as everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trl import RLOOConfig, RLOOTrainer

from rl4rec_cli.train.algorithms.bases import GroupBase
from rl4rec_cli.train.arguments import group_arguments, one_gpu
from rl4rec_cli.train.engine_rollouts import weigh_texts
from rl4rec_cli.train.reinforcement import open_lesson

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import VllmSection
    from rl4rec_cli.train.parts import TrainerParts
    from rl4rec_cli.train.rollouts import Rollout

__all__ = ["RlooTrainer", "make_trainer", "open_lesson", "rloo_arguments"]


def rloo_arguments(parts: TrainerParts) -> RLOOConfig:
    """TRL's configuration of our settings."""
    whitens = parts.config.reward.normalize_rewards == "batch"
    return one_gpu(RLOOConfig(**group_arguments(parts), normalize_advantages=whitens))


class _WithRollouts(RLOOTrainer):
    """TRL's trainer, which has no `rollout_func`, with our generation.

    Args:
        rollout: generates the completions.
        correction: how an engine's completions are weighed.
    """

    def __init__(self, *, rollout: Rollout, correction: VllmSection, **trl: Any) -> None:
        super().__init__(**trl)
        self._rollout = rollout
        self._correction = correction

    def _tokenize_prompts(self, prompts: list[str]) -> Any:
        return self._rollout.prompt_ids(prompts), None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any) -> Any:
        return self._rollout.write(prompt_ids, self)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        if self._rollout.logps is not None:
            weigh_texts(output, self._rollout.logps, self._correction, self._metrics["train"])
        return output


class RlooTrainer(GroupBase, _WithRollouts):
    """TRL's trainer with what stands before it."""


def make_trainer(parts: TrainerParts) -> RlooTrainer:
    """The trainer for these parts."""
    return RlooTrainer(
        rollout=parts.lesson.rollout,
        correction=parts.config.generation.vllm,
        args=rloo_arguments(parts),
        **parts.groups,
    )
