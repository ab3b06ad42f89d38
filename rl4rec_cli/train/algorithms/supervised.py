"""A supervised loss beside that of reinforcement learning (`trainer.sft_weight`).

Decides: what the loss is. To the loss of every update from a batch of completions it adds

    sft_weight · (Σ over the taught tokens of -ln p) / (number of taught tokens),

over the texts that supervision teaches after the batch's prompts, each prompt once, whatever its completions earn. p
is the policy's own probability, without the temperature that completions are sampled at. Groups that are left out or
replaced (`trainer.zero_variance`) do not change it: it is of the prompts that were drawn.
Hides: that these texts are shared out over the micro-batches, so that none holds more of them than another; and what a
trainer's loss is divided by afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from rl4rec_cli.train.pairs import LEFT_OUT

if TYPE_CHECKING:
    from rl4rec_cli.config.trainer import RlSection

_PAIRS, _SCALE = "taught_pairs", "taught_scale"
LOSS = "sft_loss"
"""Name in logs of the mean cross-entropy, without its weight."""


class Supervised:
    """Stands before one of TRL's trainers of reinforcement learning and adds the supervised loss.

    Args:
        supervision: its `sft_weight`; 0 or None: everything stays TRL's. The rows of the training set have
            `taught_ids` and `taught_labels` where it is above 0.
    """

    args: Any
    temperature: float
    compute_loss_func: Any
    current_gradient_accumulation_steps: int
    _metrics: Any
    _step: int
    _tokenizer: Any

    def __init__(self, *args: Any, supervision: RlSection | None = None, **trl: Any) -> None:
        super().__init__(*args, **trl)
        self._sft_weight = 0.0 if supervision is None else supervision.sft_weight

    @property
    def learns_policy(self) -> bool:
        """Whether the present update changes the policy. A trainer whose updates may not overrides it."""
        return True

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = cast(Any, super())._prepare_inputs(generation_batch)
        if not self._sft_weight:
            return inputs
        # TRL hands out the rows of a whole batch of completions for each of its micro-batches, a row for each
        # completion. A checkpoint keeps the completions that are left to learn from, and not these.
        pairs, parts = generation_batch[:: self.args.num_generations], self.args.steps_per_generation
        own = pairs[self._step % parts :: parts]
        tokens = sum(label != LEFT_OUT for pair in pairs for label in pair["taught_labels"])
        return {**inputs, _PAIRS: own, _SCALE: parts / tokens}

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        pairs, scale = inputs.get(_PAIRS), inputs.get(_SCALE)
        own = {name: value for name, value in inputs.items() if name not in (_PAIRS, _SCALE)}
        loss: Tensor = cast(Any, super())._compute_loss(model, own)
        if not pairs or scale is None or not self.learns_policy:
            return loss
        taught = self._surprise(model, pairs) * scale  # the mean over a batch's micro-batches is that over its tokens
        self._metrics["train"][LOSS].append(float(taught.detach()))
        # transformers divides by the accumulated micro-batches what a trainer has not divided itself.
        steps = self.current_gradient_accumulation_steps if self.compute_loss_func is not None else 1
        return loss + self._sft_weight / steps * taught

    def _surprise(self, model: Any, pairs: Sequence[dict[str, Any]]) -> Tensor:
        """Returns Σ -ln p over the taught tokens of some pairs."""
        ids_BL, mask_BL, taught_BT = tensors(pairs, self._tokenizer.pad_token_id)
        device = self.args.device
        temperature, self.temperature = self.temperature, 1.0
        try:
            logps_BT = cast(Any, super())._get_per_token_logps_and_entropies(
                model, ids_BL.to(device), mask_BL.to(device), taught_BT.size(1)
            )[0]
        finally:
            self.temperature = temperature
        return -(logps_BT * taught_BT.to(device)).sum()


def tensors(pairs: Sequence[dict[str, Any]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns tokens and mask of B pairs `[B, L]`, and which of the last T tokens are taught `[B, T]`.

    Padded as completions are: prompts on the left, texts on the right.
    """
    starts = [pair["taught_labels"].count(LEFT_OUT) for pair in pairs]
    width = max(starts)
    length = max(len(pair["taught_ids"]) - start for pair, start in zip(pairs, starts, strict=True))
    ids_BL = torch.full((len(pairs), width + length), pad)
    mask_BL = torch.zeros_like(ids_BL)
    for row, (pair, start) in enumerate(zip(pairs, starts, strict=True)):
        own = slice(width - start, width - start + len(pair["taught_ids"]))
        ids_BL[row, own], mask_BL[row, own] = torch.tensor(pair["taught_ids"]), 1
    return ids_BL, mask_BL, mask_BL[:, width:]
