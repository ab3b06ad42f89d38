"""Compares the logits of two forms of one policy, to see whether they are one model.

Decides: which sequences are compared, and how far rounding may move logits.
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
    """Returns the tokens of a text, and a few random sequences from a fixed seed, which reach rows that no text would.

    Args:
        vocabulary: random token ids are below this.
    """
    random_ids = torch.randint(vocabulary, (_SEQUENCES, _TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    ids = tokenizer(text)["input_ids"][:_TOKENS]
    return [ids, *random_ids] if ids else random_ids


@torch.no_grad()
def logits_of(model: Any, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Returns the logits of each sequence, `[tokens, vocabulary]` float32 on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    return [model(input_ids=torch.tensor([ids], device=device)).logits[0].float().cpu() for ids in sequences]


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Returns the largest ‖a − b‖ / ‖a − mean(a)‖ of all sequences.

    It is infinite if shapes differ or a number is not finite.
    """
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return float("inf")
        ratio = float((a - b).norm() / (a - a.mean(-1, keepdim=True)).norm())
        worst = max(worst, ratio if ratio == ratio else float("inf"))
    return worst


def limit_of(*dtypes: torch.dtype, is_quantised: bool) -> float:
    """Returns the largest relative difference that rounding explains between models of these types.

    Args:
        is_quantised: one of the models holds its weights in 4 or 8 bits. It rounds its products to 16 bits at least.
    """
    limit = max(LIMITS[dtype] for dtype in dtypes)
    return max(limit, LIMITS[torch.float16]) if is_quantised else limit
