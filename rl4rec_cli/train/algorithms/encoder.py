"""The lesson of a tuned encoder: pairs of a history's text and the next item's, at every training position.

Decides: what a pair is, and which items of a batch are no negatives of it: those that its user has chosen, and those
with the text of one of these, the positive among them.
Hides: sentence-transformers' trainer and losses.

The pairs are of training parts: no validation or test target is ever a positive, nor read as history.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset as Rows
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor

from rl4rec_cli.train.arguments import one_gpu, shared_arguments
from rl4rec_cli.train.resumable import Resumable
from rl4rec_cli.train.time_limit import Timed

if TYPE_CHECKING:
    from rl4rec_cli.config.retriever import RetrieverSection
    from rl4rec_cli.data.dataset import Example
    from rl4rec_cli.data.history_texts import HistoryTexts
    from rl4rec_cli.retrieval.tuned_encoder import TunedEncoder
    from rl4rec_cli.train.parts import TrainerParts

PAIR, QUERY, POSITIVE = "label", "query", "positive"
"""Columns of a batch; sentence-transformers hands `label` to the loss."""


class Pairs:
    """The pairs of a training, by their numbers.

    Args:
        examples: histories and targets, one for each position.
        texts: of the items.
        histories: writes a history.
        text_share: share of the pairs whose query is the last item's text alone, the same ones in every epoch.
        seed: of this draw.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        texts: Sequence[str],
        histories: HistoryTexts,
        *,
        text_share: float,
        seed: int,
    ) -> None:
        self._examples, self._texts, self._histories = examples, texts, histories
        drawn = torch.rand(len(examples), generator=torch.Generator().manual_seed(seed))
        self._is_alone = (drawn < text_share).tolist()
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        self._text_of = [number[text] for text in texts]
        """The number of each item's text: copies have one."""
        own: dict[str, set[int]] = defaultdict(set)
        for example in examples:
            own[example.user] |= {self._text_of[item] for item in (*example.history, example.target)}
        self._own = own

    def __len__(self) -> int:
        return len(self._examples)

    def texts(self, pair: int) -> tuple[str, str]:
        """Returns the query and the positive of a pair."""
        example = self._examples[pair]
        if self._is_alone[pair]:
            query = self._histories.before + self._texts[example.history[-1]]
        else:
            query = self._histories.write(example.history)
        return query, self._texts[example.target]

    def no_negatives(self, pairs: Sequence[int]) -> Tensor:
        """Returns where a pair's positive (column) is no negative of another's query (row), bool `[B, B]`."""
        targets = [self._text_of[self._examples[pair].target] for pair in pairs]
        rows = [[target in self._own[self._examples[pair].user] for target in targets] for pair in pairs]
        masked_BB = torch.tensor(rows)
        return masked_BB.fill_diagonal_(False)


class PairCollator(SentenceTransformerDataCollator):
    """Turns the numbers of pairs into tokens. Pairs are ordered by their queries' length: see `mini_batch_size`."""

    pairs: Pairs

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [(*self.pairs.texts(row[PAIR]), row[PAIR]) for row in features]
        rows.sort(key=lambda row: (len(row[0]), row[2]))
        return super().__call__([{QUERY: query, POSITIVE: text, PAIR: pair} for query, text, pair in rows])


def ranking_loss(queries_BD: Tensor, items_BD: Tensor, scale: float, masked_BB: Tensor) -> Tensor:
    """Returns the mean cross-entropy of each query's own item among those of the batch, by cosine times `scale`.

    Args:
        masked_BB: pairs of a query and an item that are left out.
    """
    queries_BD, items_BD = (torch.nn.functional.normalize(x.float(), dim=1) for x in (queries_BD, items_BD))
    logits_BB = (scale * queries_BD @ items_BD.T).masked_fill(masked_BB.to(queries_BD.device), -torch.inf)
    return torch.nn.functional.cross_entropy(logits_BB, torch.arange(len(logits_BB), device=logits_BB.device))


class PairLoss(MultipleNegativesRankingLoss):
    """The plain loss without false negatives."""

    def __init__(self, model: Any, pairs: Pairs, *, scale: float) -> None:
        super().__init__(model, scale=scale)
        self._pairs = pairs

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        queries_BD, items_BD = embeddings
        return ranking_loss(queries_BD, items_BD, self.scale, self._pairs.no_negatives(labels.tolist()))


class CachedPairLoss(CachedMultipleNegativesRankingLoss):
    """The cached loss without false negatives."""

    def __init__(self, model: Any, pairs: Pairs, *, scale: float, mini_batch_size: int) -> None:
        super().__init__(model, scale=scale, mini_batch_size=mini_batch_size)
        self._pairs = pairs

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        queries_BD, items_BD = (torch.cat(parts) for parts in reps)
        pairs = cast("Tensor", labels).tolist()
        loss = ranking_loss(queries_BD, items_BD, self.scale, self._pairs.no_negatives(pairs))
        if with_backward:
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        return loss


class EncoderTrainer(Timed, Resumable, SentenceTransformerTrainer):
    """sentence-transformers' trainer, which goes on from our checkpoints and ends in time."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Adds none: the card is written by `report/model_card.py`."""


def make_encoder_trainer(parts: TrainerParts) -> EncoderTrainer:
    """Returns the trainer for these parts."""
    section, encoder = cast("RetrieverSection", parts.section), cast("TunedEncoder", parts.policy)
    pairs = Pairs(
        parts.lesson.rows,
        encoder.texts,
        encoder.histories,
        text_share=section.text_share,
        seed=parts.config.run.seed,
    )
    scale = 1 / section.temperature
    loss = (
        PairLoss(encoder.model, pairs, scale=scale)
        if section.mini_batch_size is None
        else CachedPairLoss(encoder.model, pairs, scale=scale, mini_batch_size=section.mini_batch_size)
    )
    collator = PairCollator(preprocess_fn=encoder.model.preprocess)
    collator.pairs = pairs
    arguments = SentenceTransformerTrainingArguments(
        **shared_arguments(parts),
        per_device_train_batch_size=section.batch_size,
        dataloader_drop_last=True,
    )
    trainer = EncoderTrainer(
        model=encoder.model,
        args=one_gpu(arguments),
        train_dataset=Rows.from_dict({PAIR: list(range(len(pairs)))}),
        loss=loss,
        data_collator=collator,
    )
    trainer.limit_time(section.max_minutes)
    return trainer
