"""The trained retriever's lesson: every position of every user's training part, history → next item.

This is the lesson of a projection; that of a tuned encoder is in `encoder.py`.

Decides: what a positive is, and what is no negative: items that the user has chosen before, and items with the
positive's text.
Hides: how a batch of sequences becomes positions, candidates and pairs to leave out.

The sequences are training parts: no validation or test target is ever a positive, nor read as history.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from rl4rec_cli.models.softmax import Candidates, cross_entropy, draw_candidates
from rl4rec_cli.train.arguments import one_gpu, shared_arguments
from rl4rec_cli.train.parts import Lesson
from rl4rec_cli.train.resumable import Resumable
from rl4rec_cli.train.time_limit import Timed

if TYPE_CHECKING:
    from rl4rec_cli.config.retriever import RetrieverSection
    from rl4rec_cli.config.sections import GenerationSection
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.retrieval.history_model import HistoryModel
    from rl4rec_cli.train.environments import TrainingData
    from rl4rec_cli.train.parts import TrainerParts

_PADDING = -1


def open_lesson(
    section: TrainerSection,
    generation: GenerationSection,
    policy: Any,
    environments: Sequence[TrainingData],
    rollouts: JsonLines,
    *,
    shown: int,
) -> Lesson:
    """Returns the users' sequences, the most recent `max_sequence` items of each. Nothing is written.

    An encoder's lesson is the examples themselves, one for each position (`encoder.py`).
    """
    section = cast("RetrieverSection", section)
    if section.tunes_encoder:
        return Lesson([example for one in environments for example in one.examples], 0, _describe)
    longest = section.max_sequence
    rows = [(*example.history, example.target)[-longest:] for one in environments for example in one.examples]
    return Lesson(rows, 0, _describe)


def _describe(logs: dict[str, Any]) -> dict[str, Any] | None:
    if "loss" not in logs:
        return None
    return {name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs}


def collate(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Returns item ids `[B, T]`, padded on the right by -1."""
    ids_BT = torch.full((len(rows), max(map(len, rows))), _PADDING)
    for place, row in enumerate(rows):
        ids_BT[place, : len(row)] = torch.tensor(row)
    return {"ids_BT": ids_BT}


class RetrieverTrainer(Timed, Resumable, Trainer):
    """transformers' trainer with the retriever's loss.

    Args:
        section: the loss's settings.
        copies: for items that share their text, the other items of this text.
    """

    def __init__(self, *args: Any, section: RetrieverSection, copies: Mapping[int, Sequence[int]], **options: Any):
        super().__init__(*args, **options)
        self._section, self._copies = section, copies

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Names the weights of the two maps. Decay would draw every item's own vector to zero at the same pace."""
        return [name for name, _ in model.named_parameters() if name in ("text.weight", "last.weight")]

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **options: Any) -> Tensor:
        (ids_BT,) = inputs.values()
        return retriever_loss(model, ids_BT, self._section, self._copies)


def retriever_loss(
    model: HistoryModel, ids_BT: Tensor, section: RetrieverSection, copies: Mapping[int, Sequence[int]]
) -> Tensor:
    """Returns the mean cross-entropy of the next item at all positions, by cosine / temperature.

    Args:
        ids_BT: sequences, padded by -1.
        copies: for items that share their text, the other items of this text.
    """
    read_BT, next_BT = ids_BT[:, :-1], ids_BT[:, 1:]
    used_BT = next_BT >= 0
    history_BT = read_BT.clamp(min=0)
    queries_PD = model.queries(model.items(history_BT))[used_BT]
    if section.text_share:
        alone_P = torch.rand(len(queries_PD), device=ids_BT.device) < section.text_share
        last_P = history_BT[used_BT]
        of_texts_SD = model.text_queries(model.items(last_P[alone_P], by_text=True))
        queries_PD = queries_PD.index_put((alone_P,), of_texts_SD)
    targets_P = next_BT[used_BT]
    num_items = len(model.vectors_ND)
    candidates = draw_candidates(
        targets_P, num_items, sampled=section.sampled_items, full_up_to=section.full_softmax_items
    )
    masked = no_negatives(history_BT, used_BT, targets_P, candidates, num_items, copies)
    return cross_entropy(queries_PD / section.temperature, model.items(candidates.ids_C), candidates, masked)


def no_negatives(
    history_BT: Tensor,
    used_BT: Tensor,
    targets_P: Tensor,
    candidates: Candidates,
    num_items: int,
    copies: Mapping[int, Sequence[int]],
) -> tuple[Tensor, Tensor]:
    """Returns pairs of a position and a candidate that is no negative there, ordered by position.

    These are the items up to the position, and those with the target's text.
    """
    length = history_BT.shape[1]
    position_BT = used_BT.cumsum(1) - 1 + torch.nn.functional.pad(used_BT.sum(1).cumsum(0), (1, -1))[:, None]
    is_past_TT = torch.ones(length, length, dtype=torch.bool, device=history_BT.device).tril()
    rows_B, at, past = (used_BT[:, :, None] & is_past_TT).nonzero(as_tuple=True)
    positions, items = position_BT[rows_B, at], history_BT[rows_B, past]
    if copies:
        shared = [(place, other) for place, item in enumerate(targets_P.tolist()) for other in copies.get(item, ())]
        if shared:
            more = torch.tensor(shared, device=items.device)
            positions, items = torch.cat([positions, more[:, 0]]), torch.cat([items, more[:, 1]])
            order = positions.argsort(stable=True)
            positions, items = positions[order], items[order]
    if candidates.ids_C is None:
        return positions, items
    columns_N = torch.full((num_items,), -1, device=items.device)
    columns_N[candidates.ids_C] = torch.arange(len(candidates.ids_C), device=items.device)
    columns = columns_N[items]
    return positions[columns >= 0], columns[columns >= 0]


def copies_of(texts: Sequence[str]) -> dict[int, list[int]]:
    """Returns for each item that shares its text the other items of this text."""
    items_by_text: dict[str, list[int]] = defaultdict(list)
    for item, text in enumerate(texts):
        items_by_text[text].append(item)
    shared = [items for items in items_by_text.values() if len(items) > 1]
    return {item: [other for other in items if other != item] for items in shared for item in items}


def make_trainer(parts: TrainerParts) -> Any:
    """Returns the trainer for these parts: that of the projection, or of the encoder itself."""
    section = cast("RetrieverSection", parts.section)
    if section.tunes_encoder:
        from rl4rec_cli.train.algorithms.encoder import make_encoder_trainer

        return make_encoder_trainer(parts)
    arguments = TrainingArguments(
        **shared_arguments(parts),
        per_device_train_batch_size=section.batch_size,
        dataloader_drop_last=True,
        adam_beta2=0.98,
    )
    retriever = cast("Any", parts.policy)
    trainer = RetrieverTrainer(
        model=retriever.model,
        args=one_gpu(arguments),
        train_dataset=parts.lesson.rows,
        data_collator=collate,
        section=section,
        copies=copies_of(retriever.texts),
    )
    trainer.limit_time(section.max_minutes)
    return trainer
