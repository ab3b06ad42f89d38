"""What the trainer of every algorithm is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import VllmSection
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.train.batch_reward import BatchReward
    from rl4rec_cli.train.rollouts import Rollout


@dataclass(frozen=True)
class Lesson:
    """What is learnt from in a phase."""

    rows: Any
    """`datasets.Dataset`: pairs of tokens and labels, or prompts with what rewards read and the dataset; a list of
    users' sequences for a retriever."""
    longest_text: int
    """Tokens of the longest text that the policy is taught or may write."""
    describe: Callable[[dict[str, Any]], dict[str, Any] | None]
    """Turns a trainer's logs into the record of a step, or None if they are of no step."""
    reward: BatchReward | None = None
    """Rewards what the policy writes; None where it learns the texts of the rows."""
    rollout: Rollout | None = None


@dataclass(frozen=True)
class TrainerParts:
    """Argument of a module's `make_trainer`."""

    section: TrainerSection
    """Of the phase: the run's own, or its warm start's."""
    config: RunConfig
    policy: Policy
    steps: int
    """Optimiser steps."""
    output_dir: Path
    lesson: Lesson

    @property
    def engine(self) -> VllmSection | None:
        """Settings of the engine that generates, with `correction: auto` resolved; None where the model generates."""
        settings = self.config.generation.vllm
        if self.policy.engine is None:
            return None
        if settings.correction == "auto":
            whole = self.section.weighs_whole_texts
            return settings.model_copy(update={"correction": "sequence_truncate" if whole else "token_truncate"})
        return settings

    @property
    def groups(self) -> dict[str, Any]:
        """Keyword arguments as `rl`, for a trainer of several completions per prompt."""
        return {**self.rl, "groups": self.section, "generation": self.config.generation}

    @property
    def rl(self) -> dict[str, Any]:
        """Keyword arguments for any trainer of reinforcement learning, besides its `args` and the rollouts."""
        return {
            "engine": self.engine,
            "supervision": self.section,
            "model": self.policy.model,
            "train_dataset": self.lesson.rows,
            "processing_class": self.policy.tokenizer,
            "reward_funcs": self.lesson.reward,
        }
