"""Supervised fine-tuning: teaches the policy to write an item's text (TRL's `SFTTrainer`).

Decides: which text the policy learns (the next item's, or that of the history's last item) and that only this text
counts in the loss.
Hides: TRL, tokenisation of the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from datasets import Dataset as HfDataset
from trl import SFTConfig, SFTTrainer

from rl4rec_cli.data.prompts import PromptBuilder, item_renderer
from rl4rec_cli.train.arguments import one_gpu, shared_arguments
from rl4rec_cli.train.parts import Lesson
from rl4rec_cli.train.resumable import Resumable

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import GenerationSection
    from rl4rec_cli.config.trainer import SftSection
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.data.dataset import Dataset, Example
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.train.environments import Environment
    from rl4rec_cli.train.parts import TrainerParts


class SftTrainer(Resumable, SFTTrainer):
    """TRL's trainer that goes on from our checkpoints."""


def build_pairs(
    section: SftSection,
    dataset: Dataset,
    examples: Sequence[Example],
    builder: PromptBuilder,
    *,
    max_completion_length: int,
) -> list[dict[str, list[int]]]:
    """Returns `input_ids` and `labels` of each example; prompt tokens have the label -100.

    The text ends with the token that ends a completion, even where `max_completion_length` cuts it.
    """
    texts = item_renderer(section.target_template, dataset, setting="target_template")
    rows = []
    for example in examples:
        prompt = builder.build(example.user, example.history)
        text = texts[example.target if section.target == "next" else example.history[-1]]
        # After a chat template or a line break the text starts as it is; after a word it needs its blank.
        if not builder.chat and not prompt.text[-1:].isspace():
            text = " " + text
        ids = builder.encoder.text_ids(text)[: max_completion_length - 1]
        ids = [*ids, builder.end_id]
        rows.append({"input_ids": [*prompt.ids, *ids], "labels": [-100] * len(prompt.ids) + ids})
    return rows


def open_lesson(
    section: TrainerSection,
    generation: GenerationSection,
    policy: Policy,
    environments: Sequence[Environment],
    rollouts: JsonLines,
    *,
    shown: int,
) -> Lesson:
    """Returns the pairs of all environments. The policy writes nothing, so that no rollouts are shown."""
    longest = generation.max_completion_length
    pairs = [
        pair
        for one in environments
        for pair in build_pairs(
            cast("SftSection", section), one.dataset, one.examples, one.builder, max_completion_length=longest
        )
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
