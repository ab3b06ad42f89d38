"""Reading equal prompts of a batch once (`generation.share_prompts`).

Decides: which models can: those whose layers all attend to every token and keep plain keys and values. These do not
depend on what follows, so that one copy serves all completions of a prompt, gradients included.
Hides: transformers' cache of keys and values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl4rec_cli.errors import PolicyError


def distinct(ids_BP: Tensor, mask_BP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the different prompts of a batch with their masks, `[U, P]` each, and the place of each row's, `[B]`."""
    both_UP, places_B = torch.unique(torch.cat([ids_BP, mask_BP.to(ids_BP)], dim=1), dim=0, return_inverse=True)
    width = ids_BP.size(1)
    return both_UP[:, :width], both_UP[:, width:].to(mask_BP), places_B


def spread(cache: Any, places_B: Tensor) -> Any:
    """Gives every row of a batch the keys and values of its prompt, in place, and returns the cache.

    Args:
        cache: transformers' cache of U prompts.
        places_B: which prompt each row has.

    Raises:
        PolicyError: the model keeps something else of a prompt.
    """
    from transformers.cache_utils import DynamicLayer

    layers = getattr(cache, "layers", ())
    if odd := next((type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer), None) or (
        None if layers else type(cache).__name__
    ):
        raise PolicyError(
            f"generation.share_prompts: this model keeps more of a prompt than plain keys and values ({odd})",
            hint="set generation.share_prompts to false",
        )
    cache.batch_select_indices(places_B)
    return cache


def read_for_generation(model: Any, ids_BP: Tensor, mask_BP: Tensor) -> Any:
    """Returns the cache of a batch's prompts without their last token, each prompt read once; None if all differ.

    Raises:
        PolicyError: as `spread`.
    """
    ids_UP, mask_UP, places_B = distinct(ids_BP, mask_BP)
    if len(ids_UP) == len(ids_BP) or ids_BP.size(1) < 2:
        return None
    positions_UP = (mask_UP.cumsum(1) - 1).clamp(min=0)  # as `generate` numbers them
    output = model(
        input_ids=ids_UP[:, :-1],
        attention_mask=mask_UP[:, :-1],
        position_ids=positions_UP[:, :-1],
        use_cache=True,
        logits_to_keep=1,
    )
    return spread(output.past_key_values, places_B)
