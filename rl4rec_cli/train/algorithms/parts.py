"""What the trainer of every algorithm of reinforcement learning is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import VllmSection
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.train.rollouts import RetrievalReward, Rollout


@dataclass(frozen=True)
class TrainerParts:
    """Arguments of a module's `make_trainer`."""

    config: RunConfig
    policy: Policy
    steps: int
    """Optimiser steps."""
    output_dir: Path
    rows: Any
    """`datasets.Dataset` of prompt, user, target, history and the name of their dataset."""
    reward: RetrievalReward
    rollout: Rollout

    @property
    def engine(self) -> VllmSection | None:
        """Settings of the engine that generates, with `correction: auto` resolved; None where the model generates."""
        settings = self.config.generation.vllm
        if self.policy.engine is None:
            return None
        if settings.correction == "auto":
            whole = self.config.trainer.weighs_whole_texts
            return settings.model_copy(update={"correction": "sequence_truncate" if whole else "token_truncate"})
        return settings
