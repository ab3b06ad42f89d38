"""Whether two forms of one policy are one model, by the logits that they compute.

Decides: which texts are compared, and how far rounding may move logits.
Hides: running models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LIMITS = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest relative difference that rounding explains, by the coarser type of the two models.

Rounding a weight moves it by 2⁻²⁴, 2⁻¹¹ or 2⁻⁸ of itself; through some tens of layers that grows by one or two decimal
places. Weights that were merged wrongly move logits by about as much as they are large.
"""
_SEQUENCES, _TOKENS = 3, 24


def probe_sequences(tokenizer: Any, text: str, *, vocabulary: int) -> list[list[int]]:
    """A text, and a few sequences of tokens drawn by a fixed seed: these reach rows that no text would.

    Args:
        vocabulary: tokens are drawn below this.
    """
    random_ids = torch.randint(vocabulary, (_SEQUENCES, _TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    ids = tokenizer(text)["input_ids"][:_TOKENS]
    return [ids, *random_ids] if ids else random_ids


@torch.no_grad()
def logits_of(model: Any, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """The logits of each sequence, `[tokens, vocabulary]` float32 on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    return [model(input_ids=torch.tensor([ids], device=device)).logits[0].float().cpu() for ids in sequences]


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest over sequences of ‖a − b‖ / ‖a − mean(a)‖; infinite where shapes differ or numbers are not finite."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return float("inf")
        ratio = float((a - b).norm() / (a - a.mean(-1, keepdim=True)).norm())
        worst = max(worst, ratio if ratio == ratio else float("inf"))
    return worst


def limit_of(*dtypes: torch.dtype, is_quantised: bool) -> float:
    """What rounding explains between models of these types.

    Args:
        is_quantised: one of them computes with weights that it holds in 4 or 8 bits. Its products are rounded to 16
            bits at least.
    """
    limit = max(LIMITS[dtype] for dtype in dtypes)
    return max(limit, LIMITS[torch.float16]) if is_quantised else limit
