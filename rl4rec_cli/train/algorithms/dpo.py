"""Direct preference optimisation: learns from pairs of answers, without a reward (TRL's `DPOTrainer`).

Decides: TRL's configuration of our settings, and that the reference is the policy that training starts from.
Hides: TRL, tokenisation of the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from datasets import Dataset as HfDataset
from trl import DPOConfig, DPOTrainer

from rl4rec_cli.train.arguments import one_gpu, reference_arguments, shared_arguments
from rl4rec_cli.train.pairs import text_ids
from rl4rec_cli.train.parts import Lesson
from rl4rec_cli.train.resumable import Resumable

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import GenerationSection
    from rl4rec_cli.config.trainer import DpoSection
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.train.environments import PolicyData
    from rl4rec_cli.train.parts import TrainerParts


class DpoTrainer(Resumable, DPOTrainer):
    """TRL's trainer that goes on from our checkpoints, and takes pairs that are tokens already."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset


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
    most = generation.max_completion_length
    rows = [
        {
            "prompt_ids": list(prompt.ids),
            "chosen_ids": text_ids(prompt, chosen, one.builder, most=most),
            "rejected_ids": text_ids(prompt, rejected, one.builder, most=most),
        }
        for one in environments
        for prompt, chosen, rejected in one.compared()
    ]
    longest_text = max(len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids"))
    return Lesson(HfDataset.from_list(rows), longest_text, _describe)


def _describe(logs: dict[str, Any]) -> dict[str, Any] | None:
    """Returns a step's record. `pair_accuracy` is the share of pairs whose chosen answer the policy has moved towards.

    `margin` is by how much, in nats times beta, more than towards the rejected one.
    """
    if "loss" not in logs:
        return None
    own = {"pair_accuracy": logs.get("rewards/accuracies"), "margin": logs.get("rewards/margins")}
    return {name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs} | own


def make_trainer(parts: TrainerParts) -> DpoTrainer:
    """The trainer for these parts."""
    section = cast("DpoSection", parts.section)
    arguments = DPOConfig(
        **shared_arguments(parts),
        per_device_train_batch_size=section.batch_size,
        model_init_kwargs=reference_arguments(parts),
        beta=section.beta,
        loss_type=[section.loss_type],
        label_smoothing=section.label_smoothing,
        max_length=None,
    )
    return DpoTrainer(
        model=parts.policy.model,
        args=one_gpu(arguments),
        train_dataset=parts.lesson.rows,
        processing_class=parts.policy.tokenizer,
    )
