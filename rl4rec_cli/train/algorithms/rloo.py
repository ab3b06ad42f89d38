"""RLOO: TRL's `RLOOTrainer` on our rollouts and rewards.

Decides: TRL's configuration of our settings.
Hides: that TRL's RLOO has no `rollout_func`: here its two steps from prompts to tokens are ours, as everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trl import RLOOConfig, RLOOTrainer

from rl4rec_cli.train.algorithms.bases import GroupBase
from rl4rec_cli.train.arguments import one_gpu, rl_arguments
from rl4rec_cli.train.engine_rollouts import weigh_texts

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import VllmSection
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.config.trainer import RlooSection
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.train.algorithms.parts import TrainerParts
    from rl4rec_cli.train.rollouts import Rollout


def rloo_arguments(
    section: RlooSection, config: RunConfig, policy: Policy, *, steps: int, output_dir: Path
) -> RLOOConfig:
    """TRL's configuration of our settings."""
    arguments = RLOOConfig(
        **rl_arguments(section, config, policy, steps=steps, output_dir=output_dir),
        per_device_train_batch_size=section.batch_size * section.num_generations,
        num_generations=section.num_generations,
        num_iterations=section.num_iterations,
        normalize_advantages=config.reward.normalize_rewards == "batch",
    )
    return one_gpu(arguments)


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
    section = cast("RlooSection", parts.config.trainer)
    return RlooTrainer(
        groups=section,
        engine=parts.engine,
        rollout=parts.rollout,
        correction=parts.config.generation.vllm,
        model=parts.policy.model,
        args=rloo_arguments(section, parts.config, parts.policy, steps=parts.steps, output_dir=parts.output_dir),
        train_dataset=parts.rows,
        processing_class=parts.policy.tokenizer,
        reward_funcs=parts.reward,
    )
