"""Supervised fine-tuning: teaches the policy to write an item's text (TRL's `SFTTrainer`).

Decides: which text the policy learns (the next item's, or that of the history's last item) and that only this text
counts in the loss.
Hides: TRL, tokenisation of the pairs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset as HfDataset
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from rl4rec_cli.data.prompts import PromptBuilder, item_renderer
from rl4rec_cli.plan.phases import Phase, during
from rl4rec_cli.train.arguments import (
    number_of_steps,
    one_gpu,
    release,
    shared_arguments,
    steps_per_epoch,
    weights_kept,
)
from rl4rec_cli.train.callbacks import StepLog
from rl4rec_cli.train.checkpoints import steps_done
from rl4rec_cli.train.environments import count_examples
from rl4rec_cli.train.live import TrainingView, shown
from rl4rec_cli.train.resumable import Keeper, Resumable

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.config.trainer import SftSection
    from rl4rec_cli.data.dataset import Dataset, Example
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.runs.folder import Run
    from rl4rec_cli.train.environments import Environment
    from rl4rec_cli.train.validation import Validation


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

    The text ends with the end-of-sequence token, even where `max_completion_length` cuts it.
    """
    tokenizer = builder.tokenizer
    texts = item_renderer(section.target_template, dataset, setting="target_template")
    rows = []
    for example in examples:
        prompt = builder.build(example.user, example.history)
        text = texts[example.target if section.target == "next" else example.history[-1]]
        # After a chat template or a line break the text starts as it is; after a word it needs its blank.
        if not builder.chat and not prompt.text[-1:].isspace():
            text = " " + text
        ids = builder.encoder.text_ids(text)[: max_completion_length - 1]
        ids = [*ids, tokenizer.eos_token_id]
        rows.append({"input_ids": [*prompt.ids, *ids], "labels": [-100] * len(prompt.ids) + ids})
    return rows


def train_sft(
    section: SftSection,
    config: RunConfig,
    run: Run,
    policy: Policy,
    environments: Sequence[Environment],
    log: JsonLines,
    *,
    is_warm_start: bool = False,
    resume: Path | None = None,
    validation: Validation | None = None,
) -> int:
    """Fine-tunes the policy in place.

    Args:
        environments: the policy learns from all of them together.
        is_warm_start: checkpoints are `checkpoint_warm_N`.
        resume: the checkpoint to go on from.
        validation: measures the policy at regular steps.

    Returns:
        The number of steps in all.

    Raises:
        ConfigError: too few examples.
    """
    examples = count_examples(environments)
    steps = number_of_steps(section, examples)
    longest = config.generation.max_completion_length
    pairs = [
        pair
        for one in environments
        for pair in build_pairs(section, one.dataset, one.examples, one.builder, max_completion_length=longest)
    ]

    def describe(logs: dict[str, Any]) -> dict[str, Any] | None:
        if "loss" not in logs:
            return None
        names = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy")
        return {name: logs[name] for name in names if name in logs}

    title = "Warm start" if is_warm_start else "SFT"
    course = validation.course if validation is not None else None
    view = TrainingView(title, steps, done=steps_done(resume), validation=course)
    with tempfile.TemporaryDirectory() as scratch, shown(view) as live_view:
        with weights_kept(policy.model), during(Phase.LOADING):
            trainer = SftTrainer(
                model=policy.model,
                args=one_gpu(
                    SFTConfig(
                        **shared_arguments(section, config, output_dir=Path(scratch), device=str(policy.device)),
                        per_device_train_batch_size=section.batch_size,
                        max_steps=steps,
                        max_length=None,
                        packing=False,
                        loss_type="nll",
                        dataset_kwargs={"skip_prepare_dataset": True},
                    )
                ),
                train_dataset=HfDataset.from_list(pairs),
                processing_class=policy.tokenizer,
            )
        trainer.remove_callback(PrinterCallback)
        batches = steps_per_epoch(section, examples)
        trainer.add_callback(
            StepLog(
                log,
                describe,
                phase=section.algorithm,
                batches_per_epoch=batches,
                view=live_view,
                best=validation.best_line if validation is not None else str,
            )
        )
        keeper = Keeper(
            run, policy, phase=section.algorithm, is_warm_start=is_warm_start, resume=resume, validation=validation
        )
        keeper.train(trainer)
        release(trainer)
    policy.model.eval()
    return steps
