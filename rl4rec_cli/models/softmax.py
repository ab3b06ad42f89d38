"""Cross-entropy of a softmax over the items of a catalogue, or over a sample that stands for them.

Decides: what the sample is, and its weights; that no matrix `[positions, candidates]` is ever held.
Hides: how the loss and its gradients are computed a few positions at a time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

_CPU_LOGITS, _GPU_LOGITS = 1 << 21, 1 << 26
"""Logits held at once: 8 MB, which a CPU's cache holds, and 256 MB."""
_MASKED = -1e4
"""Logit of what is masked: finite, so that a row of which all is masked but the target has a gradient of zero."""


class Candidates(NamedTuple):
    """The items that a batch's softmax runs over."""

    ids_C: Tensor | None
    """Item ids; None: the whole catalogue."""
    columns_P: Tensor
    """The place of each position's target among the candidates."""
    offsets_C: Tensor | None
    """What is added to a candidate's logit for the items that it stands for."""


def draw_candidates(targets_P: Tensor, num_items: int, *, sampled: int, full_up_to: int) -> Candidates:
    """Returns the whole catalogue, or for more than `full_up_to` items a sample drawn by torch's global generator.

    The sample is the batch's targets and `sampled` uniform draws. Each draw that is no target weighs as much as the
    items it represents, so that the estimate of every softmax's sum is unbiased given the batch.
    """
    if num_items <= full_up_to:
        return Candidates(None, targets_P, None)
    targets_M = torch.unique(targets_P)
    draws = torch.unique(torch.randint(num_items, (sampled,), device=targets_P.device))
    others = draws[~torch.isin(draws, targets_M)]
    weight = math.log(max(1, num_items - len(targets_M)) / max(1, len(others)))
    offsets_C = torch.cat([torch.zeros(len(targets_M)), torch.full((len(others),), weight)]).to(targets_P.device)
    return Candidates(torch.cat([targets_M, others]), torch.searchsorted(targets_M, targets_P), offsets_C)


def cross_entropy(
    states_PD: Tensor, items_CD: Tensor, candidates: Candidates, masked: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Returns the mean cross-entropy of the targets, where a logit is the product of a state and a candidate.

    Args:
        masked: rows and columns of pairs that are left out of the softmax, ordered by row. A target never is.
    """
    loss: Tensor = _SoftmaxLoss.apply(
        states_PD, items_CD, candidates.columns_P, candidates.offsets_C, *(masked or (None, None))
    )
    return loss


class _SoftmaxLoss(torch.autograd.Function):
    """The forward pass computes the gradients of both inputs: softmax minus one-hot, times the other input."""

    @staticmethod
    def forward(
        ctx: Any,
        states_PD: Tensor,
        items_CD: Tensor,
        targets_P: Tensor,
        offsets_C: Tensor | None,
        masked_rows: Tensor | None,
        masked_columns: Tensor | None,
    ) -> Tensor:
        count, candidates = len(states_PD), len(items_CD)
        max_logits = _CPU_LOGITS if states_PD.device.type == "cpu" else _GPU_LOGITS
        rows = max(1, max_logits // candidates)
        state_grads_PD, item_grads_CD = torch.empty_like(states_PD), torch.zeros_like(items_CD)
        total = torch.zeros((), dtype=torch.float64, device=states_PD.device)
        for start in range(0, count, rows):
            some_RD, targets_R1 = states_PD[start : start + rows], targets_P[start : start + rows, None]
            logits_RC = some_RD @ items_CD.T
            if offsets_C is not None:
                logits_RC += offsets_C
            if masked_rows is not None and masked_columns is not None:
                first, last = torch.searchsorted(masked_rows, masked_rows.new_tensor([start, start + rows])).tolist()
                goals_R1 = logits_RC.gather(1, targets_R1)
                logits_RC[masked_rows[first:last] - start, masked_columns[first:last]] = _MASKED
                logits_RC.scatter_(1, targets_R1, goals_R1)
            shares_RC = torch.softmax(logits_RC, dim=1)
            total -= shares_RC.gather(1, targets_R1).clamp_min(1e-30).log().double().sum()
            shares_RC.scatter_add_(1, targets_R1, torch.full_like(targets_R1, -1, dtype=shares_RC.dtype))
            torch.mm(shares_RC, items_CD, out=state_grads_PD[start : start + rows])
            item_grads_CD.addmm_(shares_RC.T, some_RD)
        ctx.save_for_backward(state_grads_PD.div_(count), item_grads_CD.div_(count))
        return (total / count).to(states_PD.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        state_grads_PD, item_grads_CD = ctx.saved_tensors
        return grads[0] * state_grads_PD, grads[0] * item_grads_CD, None, None, None, None
