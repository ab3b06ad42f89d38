"""SASRec's model: a small causal transformer over item ids, used as query vectors and item vectors.

Decides: that the input's and the output's item embeddings are one, and that a logit is a cosine divided by a
temperature rather than a dot product (on Amazon Beauty, validation NDCG@10 .032 against .023 after three epochs).
Hides: padding and batching of histories.

Since its scores are dot products of vectors, its ranks come from the same kernel, masks and tie rule as everyone's.
Histories are padded on the right and attention is causal: no position attends to padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli import console
from rl4rec_cli.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUERY_POSITIONS = 1 << 14
"""Positions of histories in one forward pass, padding included."""


@dataclass(frozen=True)
class SasRecSettings:
    """SASRec's architecture and training. The defaults were chosen on Amazon Beauty's validation split."""

    hidden_size: int = 64
    layers: int = 2
    heads: int = 2
    max_length: int = 50
    """Most items of a history that the model reads, the last ones."""
    dropout: float = 0.5
    learning_rate: float = 1e-3
    temperature: float = 0.07
    """Divides the cosine of a state and an item."""
    batch_positions: int = 512
    """Positions of a batch, padding included."""
    rounds: int = 20
    """How often validation is looked at. A round is an epoch, or several where data are few (`min_steps`). Over all
    rounds the learning rate rises linearly for a twentieth and falls to zero in a half cosine."""
    min_steps: int = 1500
    """Optimiser steps that all rounds together have at least."""
    patience: int = 5
    """Rounds without a better validation NDCG@10 after which training ends."""
    validation_users: int = 5000
    max_minutes: float = 60.0
    """Training ends after so long, with the best weights until then; the learning rate has fallen to zero by then."""
    full_softmax_items: int = 200_000
    """Up to this many items the loss is the full softmax; above, a sampled one."""
    sampled_items: int = 20_000
    """Items drawn for each batch of the sampled softmax."""


class SasRec:
    """A trained SASRec.

    Attributes:
        items_ND: item vectors, float32 `[num_items, hidden_size]`, on the CPU.
        summary: the outcome of training: `rounds`, `epochs`, `best_round`, `validation_ndcg@10`, `validation_users`,
            `seconds`, and `stopped`, the reason for its end: `rounds`, `no better` or `time`.
    """

    def __init__(self, model: Any, settings: SasRecSettings, summary: dict[str, Any], device: str) -> None:
        self.settings, self.summary = settings, summary
        self._model, self._device = model.eval(), device
        self.items_ND: Tensor = item_vectors(model).detach().to("cpu", torch.float32).clone()

    @torch.no_grad()
    def queries(self, histories: Sequence[Sequence[int]]) -> Tensor:
        """Returns the query of each history: float32 `[len(histories), hidden_size]` on the CPU.

        A query's dot product with `items_ND` is the logit of that item coming next. The model reads the last
        `max_length` items of a history. Batching moves a query by rounding only.

        Raises:
            DataError: a history is empty or has an item outside the catalogue.
        """
        lengths = check_histories(histories, len(self.items_ND))
        queries_BD = torch.empty(len(histories), self.items_ND.shape[1])
        order = np.argsort(lengths, kind="stable")
        for rows in cut(order, np.minimum(lengths, self.settings.max_length), QUERY_POSITIONS):
            recent = [histories[row][-self.settings.max_length :] for row in rows]
            ids_BT, used_BT = pad(recent, self._device)
            states_BTD = next_states(self._model, ids_BT, self.settings)
            last_B = used_BT.sum(1) - 1
            queries_BD[torch.from_numpy(rows)] = states_BTD[torch.arange(len(rows)), last_B].float().cpu()
        return queries_BD


def build_model(num_items: int, settings: SasRecSettings) -> Any:
    """Builds a GPT-2 over items: its blocks are SASRec's with the normalisation first, its tokens are the items."""
    console.quiet_libraries()
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(
        GPT2Config(
            vocab_size=num_items,
            n_positions=settings.max_length,
            n_embd=settings.hidden_size,
            n_layer=settings.layers,
            n_head=settings.heads,
            resid_pdrop=settings.dropout,
            embd_pdrop=settings.dropout,
            attn_pdrop=settings.dropout,
            initializer_range=0.02,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def item_vectors(model: Any) -> Tensor:
    """Returns item vectors `[N, D]` of unit length."""
    return torch.nn.functional.normalize(model.wte.weight, dim=1)


def next_states(model: Any, ids_BT: Tensor, settings: SasRecSettings) -> Tensor:
    """Returns the query for the next item after every position, `[B, T, D]`."""
    states_BTD = model(input_ids=ids_BT, use_cache=False).last_hidden_state
    return torch.nn.functional.normalize(states_BTD, dim=-1) / settings.temperature


def check_histories(histories: Sequence[Sequence[int]], num_items: int) -> NDArray[np.int64]:
    lengths = np.fromiter(map(len, histories), np.int64, len(histories))
    for row, history in enumerate(histories):
        if not len(history) or not (min(history) >= 0 and max(history) < num_items):
            what = "is empty" if not len(history) else f"has an item that is not among the {num_items:,} items"
            raise DataError(f"history {row} {what}")
    return lengths


def pad(rows: Sequence[Sequence[int]], device: str) -> tuple[Tensor, Tensor]:
    """Returns ids `[B, T]`, padded on the right, and which of them are no padding."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    used_BT = np.arange(lengths.max())[None, :] < lengths[:, None]
    ids_BT = np.zeros(used_BT.shape, np.int64)
    ids_BT[used_BT] = np.concatenate([np.asarray(row, np.int64) for row in rows])
    return torch.from_numpy(ids_BT).to(device), torch.from_numpy(used_BT).to(device)


def cut(order: NDArray[np.int64], lengths: NDArray[np.int64], positions: int) -> Iterator[NDArray[np.int64]]:
    """Cuts `order` into pieces of at most `positions` positions with padding, but at least one row each."""
    start = widest = 0
    for stop, row in enumerate(order):
        widest = max(widest, int(lengths[row]))
        if stop > start and (stop - start + 1) * widest > positions:
            yield order[start:stop]
            start, widest = stop, int(lengths[row])
    if start < len(order):
        yield order[start:]
