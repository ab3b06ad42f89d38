"""The trained retriever's network: a user's history and an item of the catalogue as vectors of one space.

With unit text vectors v of the frozen encoder, an item is

    x = unit(A v + a + r),

where A projects to fewer dimensions and r, one vector per item, is what its text does not say. The query after items
x₁ … xₜ is

    q = unit(s · m + B (s · xₜ) + b),   m = Σ w x over the last items, weights w learnt by recency, Σ w = 1.

A text without a history is one item without r, so that its query is unit(C x + c), with C = I + B and c = b / s. Both
maps are dense layers of sentence-transformers (`trained.py`).

Decides: this form, and its start: A is the principal directions of the catalogue's vectors, r is zero, B the identity,
and w falls by e from one item to the one before. The untrained retriever is thus near to the text's own cosine.
Hides: how the weighted mean is computed for every position of a batch at once.

To add an embedding of the item's own to that of its text is Hou et al. 2022, "Towards Universal Sequence Representation
Learning for Recommender Systems" (UniSRec).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize

FARTHEST = 8.0
"""Log-weight by which the recency weights start below that of the last item, at most."""


class HistoryModel(nn.Module):
    """Items and histories as unit vectors `[…, dim]`.

    Args:
        vectors_ND: unit text vectors of the catalogue, float32 `[num_items, text_dim]`.
        dim: dimensions of the common space; fewer where the text vectors have fewer.
        max_history: most items of a history that are read, the last ones.
        residual_N: bool `[num_items]`, the items that have a vector r of their own; None: no item has.
        residual_dropout: share of r that is left out in training, whole vectors at a time.
        dropout: of the last item's way through B, in training.
    """

    vectors_ND: Tensor
    residual_N: Tensor

    def __init__(
        self,
        vectors_ND: Tensor,
        *,
        dim: int,
        max_history: int,
        residual_N: Tensor | None = None,
        residual_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        num_items, text_dim = vectors_ND.shape
        dim = min(dim, text_dim)
        self._residual_dropout, self._dropout = residual_dropout, dropout
        self.register_buffer("vectors_ND", vectors_ND.float(), persistent=False)
        self.text = nn.Linear(text_dim, dim)
        self.last = nn.Linear(dim, dim)
        self.recency = nn.Parameter(-torch.arange(max_history).float().clamp(max=FARTHEST))
        self.residual = nn.Embedding(num_items, dim) if residual_N is not None else None
        if residual_N is not None:
            self.register_buffer("residual_N", residual_N, persistent=False)
        self.scale = 0.3 * math.sqrt(dim)
        self.passes = 0
        """Passes in training mode, after each of which weights may change."""
        self._start(vectors_ND)

    @torch.no_grad()
    def _start(self, vectors_ND: Tensor) -> None:
        mean_D = vectors_ND.double().mean(0)
        centred_ND = vectors_ND.double() - mean_D
        # The right singular vectors by way of the covariance: [text_dim, text_dim], whatever the catalogue's size.
        directions_DD = torch.linalg.eigh(centred_ND.T @ centred_ND).eigenvectors.flip(1).T
        # A direction has no sign of its own: the largest entry's is made positive, whatever the library gives.
        largest_D1 = directions_DD.abs().argmax(1, keepdim=True)
        directions_DD = directions_DD * directions_DD.gather(1, largest_D1).sign()
        projection = directions_DD[: self.text.out_features]
        self.text.weight.copy_(projection)
        self.text.bias.copy_(-(projection @ mean_D))
        nn.init.eye_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        if self.residual is not None:
            nn.init.zeros_(self.residual.weight)

    def items(self, ids: Tensor | None = None, *, by_text: bool = False) -> Tensor:
        """Returns item vectors `[*ids.shape, dim]`, of the whole catalogue without `ids`.

        Args:
            by_text: by their texts alone, without r.
        """
        self.passes += self.training
        x = self.text(self.vectors_ND if ids is None else self.vectors_ND[ids])
        if self.residual is not None and not by_text:
            own = self.residual.weight if ids is None else self.residual(ids)
            has_one = (self.residual_N if ids is None else self.residual_N[ids])[..., None]
            if self.training and self._residual_dropout:
                has_one = has_one & (torch.rand(has_one.shape, device=has_one.device) >= self._residual_dropout)
            x = x + own * has_one
        return normalize(x, dim=-1)

    def queries(self, items_BTD: Tensor) -> Tensor:
        """Returns the query after every position, unit `[B, T, dim]`.

        Args:
            items_BTD: item vectors of histories, oldest first, padded on the right. No position reads a later one.
        """
        length = items_BTD.shape[1]
        reach = min(length, len(self.recency))
        weights_L = (self.recency - self.recency[0]).clamp(max=30).exp()
        mean_BTD, total_T = torch.zeros_like(items_BTD), items_BTD.new_zeros(length)
        for back in range(reach):
            part_BTD = weights_L[back] * items_BTD[:, : length - back]
            mean_BTD = mean_BTD + nn.functional.pad(part_BTD, (0, 0, back, 0))
            total_T = total_T + nn.functional.pad(weights_L[back].expand(length - back), (back, 0))
        return self._queries(mean_BTD / total_T[:, None], items_BTD)

    def text_queries(self, items_PD: Tensor) -> Tensor:
        """Returns the queries of single texts, unit `[P, dim]`, from their item vectors without r."""
        return self._queries(items_PD, items_PD)

    def _queries(self, mean: Tensor, last: Tensor) -> Tensor:
        last = dropout(self.scale * last, self._dropout, training=self.training)
        return normalize(self.scale * mean + self.last(last), dim=-1)
