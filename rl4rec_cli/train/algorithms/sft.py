"""Supervised fine-tuning: teaches the policy to write the texts that its environment names (TRL's `SFTTrainer`).

Decides: that only these texts count in the loss, not their prompts.
Hides: TRL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from datasets import Dataset as HfDataset
from trl import SFTConfig, SFTTrainer

from rl4rec_cli.train.arguments import one_gpu, shared_arguments
from rl4rec_cli.train.pairs import build_pairs
from rl4rec_cli.train.parts import Lesson
from rl4rec_cli.train.resumable import Resumable

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import GenerationSection
    from rl4rec_cli.config.trainer import SftSection
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.train.environments import PolicyData
    from rl4rec_cli.train.parts import TrainerParts


class SftTrainer(Resumable, SFTTrainer):
    """TRL's trainer that goes on from our checkpoints."""


def open_lesson(
    section: TrainerSection,
    generation: GenerationSection,
    policy: Policy,
    environments: Sequence[PolicyData],
    rollouts: JsonLines,
    *,
    shown: int,
) -> Lesson:
    """Returns the pairs of all environments. The policy writes nothing, so that no rollouts are shown."""
    longest = generation.max_completion_length
    pairs = [
        pair
        for one in environments
        for pair in build_pairs(one.taught(cast("SftSection", section)), one.builder, max_completion_length=longest)
    ]
    longest_text = max(sum(label >= 0 for label in pair["labels"]) for pair in pairs)
    return Lesson(HfDataset.from_list(pairs), longest_text, _describe)


def _describe(logs: dict[str, Any]) -> dict[str, Any] | None:
    if "loss" not in logs:
        return None
    names = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy")
    return {name: logs[name] for name in names if name in logs}


def make_trainer(parts: TrainerParts) -> SftTrainer:
    """The trainer for these parts."""
    arguments = SFTConfig(
        **shared_arguments(parts),
        per_device_train_batch_size=parts.section.batch_size,
        max_length=None,
        packing=False,
        loss_type="nll",
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return SftTrainer(
        model=parts.policy.model,
        args=one_gpu(arguments),
        train_dataset=parts.lesson.rows,
        processing_class=parts.policy.tokenizer,
    )
