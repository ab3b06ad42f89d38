"""Log-probabilities of a group's completions, their prompt read once (`generation.share_prompts`).

Decides: nothing of the numbers, which are TRL's but for rounding, gradients too. A micro-batch of groups has few
different prompts, and most of its tokens are theirs.
Hides: two passes through the model, of the prompts and of the completions, and TRL's kernel for log-probabilities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from rl4rec_cli.errors import ConfigError
from rl4rec_cli.policy.shared_prompts import distinct, spread

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import GenerationSection


class SharedPrompts:
    """Stands before one of TRL's trainers of groups.

    Args:
        generation: its `share_prompts`; None: off, and everything stays TRL's.

    Raises:
        ConfigError: the model's backend keeps no cache while it trains.
    """

    temperature: float

    def __init__(self, *args: Any, generation: GenerationSection | None = None, **trl: Any) -> None:
        super().__init__(*args, **trl)
        self._shares_prompts = generation is not None and generation.share_prompts
        if self._shares_prompts and hasattr(cast(Any, self).model, "for_training"):
            raise ConfigError(
                "generation.share_prompts: Unsloth's models keep no keys and values while they train",
                hint="set it to false, or use policy.backend=hf",
            )

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        ids_BL: Tensor,
        mask_BL: Tensor,
        tokens: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        whole = cast(Any, super())._get_per_token_logps_and_entropies
        if not self._shares_prompts or more.get("compute_aux_loss"):
            results: tuple[Tensor, Tensor | None, Tensor | None] = whole(
                model, ids_BL, mask_BL, tokens, batch_size=batch_size, compute_entropy=compute_entropy, **more
            )
            return results
        step = batch_size or len(ids_BL)
        parts = [
            self._read(model, ids_BL[start : start + step], mask_BL[start : start + step], tokens, compute_entropy)
            for start in range(0, len(ids_BL), step)
        ]
        logps_BT = torch.cat([logps for logps, _ in parts])
        entropies = [own for _, own in parts if own is not None]
        return logps_BT, torch.cat(entropies) if entropies else None, None

    def _read(
        self, model: Any, ids_BL: Tensor, mask_BL: Tensor, tokens: int, compute_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the log-probabilities `[B, T]` of the last T tokens, and the entropies."""
        width = ids_BL.size(1) - tokens
        ids_UP, mask_UP, places_B = distinct(ids_BL[:, :width], mask_BL[:, :width])
        prompts = model(input_ids=ids_UP, attention_mask=mask_UP, use_cache=True, logits_to_keep=1)
        parts = [
            self._score(prompts.logits[:, -1:][places_B], ids_BL, mask_BL, slice(width, width + 1), compute_entropy)
        ]
        if tokens > 1:
            cache = spread(prompts.past_key_values, places_B)
            rest = model(
                input_ids=ids_BL[:, width:-1], attention_mask=mask_BL[:, :-1], past_key_values=cache, use_cache=True
            )
            parts.append(self._score(rest.logits, ids_BL, mask_BL, slice(width + 1, None), compute_entropy))
        logps_BT = torch.cat([logps for logps, _ in parts], dim=1)
        entropies = [own for _, own in parts if own is not None]
        return logps_BT, torch.cat(entropies, dim=1) if entropies else None

    def _score(
        self, logits_BSV: Tensor, ids_BL: Tensor, mask_BL: Tensor, own: slice, compute_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        from trl.trainer.utils import selective_log_softmax, selective_log_softmax_and_entropy

        ids_BS, mask_BS = ids_BL[:, own], mask_BL[:, own]
        if not compute_entropy:
            return selective_log_softmax(logits_BSV, ids_BS, temperature=self.temperature, row_mask=mask_BS), None
        logps_BS, entropies_BS = selective_log_softmax_and_entropy(
            logits_BSV, ids_BS, entropy_requires_grad=False, temperature=self.temperature, row_mask=mask_BS
        )
        return logps_BS, entropies_BS
