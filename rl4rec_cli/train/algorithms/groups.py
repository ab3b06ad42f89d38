"""GRPO and RLOO that learn only from groups whose completions differ in reward.

Decides: a group without variance does not show which completion is better. The loss, the KL penalty and the divisor of
the loss leave it out. With `zero_variance: refill`, other prompts take its place (DAPO's dynamic sampling,
arXiv:2503.14476, with a bound).
Hides: TRL's batches of padded completions, and what each loss divides by: GRPO's `dapo` and `bnpo` by tokens, `grpo`
and `dr_grpo` by completions, as RLOO's.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rl4rec_cli.config.trainer import GroupSection

_LEFT = ("prompt_ids", "prompt_mask")
_IDS = ("prompt_ids", "completion_ids")
_WHOLE = ("advantages", "old_logps")
_PER_COMPLETION = ("grpo", "dr_grpo")
"""Values of `loss_type` whose loss divides by the batch's completions, whether they have tokens or not."""
_SCALE = "learnt_scale"


class InformativeGroups:
    """Stands before TRL's trainer of groups: it treats groups without variance as the section says.

    Args:
        groups: where `zero_variance` is `keep`, everything stays TRL's.
    """

    args: Any
    train_dataset: Any
    reward_weights: Any
    loss_type: str
    _metrics: Any
    _step: int
    _tokenizer: Any

    def __init__(self, *args: Any, groups: GroupSection, **trl: Any) -> None:
        super().__init__(*args, **trl)
        self._keeps_all = groups.zero_variance == "keep"
        self._rounds = groups.refill_rounds if groups.zero_variance == "refill" else 0
        self._size = int(self.args.num_generations)
        self._rewards_B = torch.zeros(0)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards: Tensor = cast(Any, super())._calculate_rewards(*args, **kwargs)
        self._rewards_B = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        generate = cast(Any, super())._generate_and_score_completions
        output = generate(inputs)
        if self._keeps_all:
            return output
        varied_G = self._varied()
        zero_variance, refills, draws = int((~varied_G).sum()), 0, 0
        # What is logged of a batch is logged of the prompts that were drawn for it, not of those that stand in.
        lengths = {name: len(values) for name, values in self._metrics["train"].items()}
        for turn in range(self._rounds):
            empty = torch.nonzero(~varied_G).flatten().tolist()
            if not empty:
                break
            rows = self._fresh(len(empty), turn)
            draws += len(rows) // self._size
            fresh = generate(rows)
            good = torch.nonzero(self._varied()).flatten().tolist()
            for ours, theirs in zip(empty, good, strict=False):
                output = _replace(output, self._rows(ours), fresh, self._rows(theirs), self._tokenizer.pad_token_id)
                varied_G[ours] = True
                refills += 1
        for name, values in self._metrics["train"].items():
            del values[lengths.get(name, 0) :]
        keep_B = varied_G.repeat_interleave(self._size).to(output["completion_mask"].device)
        scale = len(keep_B) / keep_B.sum().clamp(min=1)
        if "num_items_in_batch" in output:  # GRPO: the KL penalty is beside the advantages
            output["completion_mask"] = output["completion_mask"] * keep_B[:, None]
            output["num_items_in_batch"] = output["completion_mask"].sum()
            if self.loss_type in _PER_COMPLETION:
                output[_SCALE] = scale
        else:  # RLOO: a mean over completions, the KL penalty in the advantages; masking tokens would spoil the ratio
            output["advantages"] = output["advantages"] * keep_B * scale
        counts = {
            "zero_variance": zero_variance,
            "drawn": draws,
            "refilled": refills,
            "left_out": zero_variance - refills,
        }
        for name, count in counts.items():
            self._metrics["train"][f"groups/{name}"].append(float(count))
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = cast(Any, super())._compute_loss(model, inputs)
        return loss * inputs[_SCALE] if _SCALE in inputs else loss

    def _varied(self) -> Tensor:
        """`[groups]` whether the rewards of the last completions differ within their group."""
        rewards_GN = self._rewards_B.view(-1, self._size)
        return ~torch.isclose(rewards_GN, rewards_GN[:, :1], rtol=0.0, atol=1e-8).all(1).cpu()

    def _rows(self, group: int) -> slice:
        return slice(group * self._size, (group + 1) * self._size)

    def _fresh(self, count: int, turn: int) -> list[dict[str, Any]]:
        """Draws prompts from the whole training set. Only the step seeds it, so that a resumed run draws the same."""
        draw = random.Random(f"{self.args.seed} {self._step} {turn}")
        rows: Any = self.train_dataset
        indices = draw.sample(range(len(rows)), min(count, len(rows)))
        return [rows[i] for i in indices for _ in range(self._size)]


def _replace(output: dict[str, Any], ours: slice, other: dict[str, Any], theirs: slice, pad: int) -> dict[str, Any]:
    """Returns a copy of the batch in which a group of another batch replaces one of its own."""
    batch = dict(output)
    for name, value in output.items():
        if name in _WHOLE:
            batch[name] = value.clone()
            batch[name][ours] = other[name][theirs]
        elif isinstance(value, Tensor) and value.dim() == 2:
            width = max(value.size(1), other[name].size(1))
            fill = pad if name in _IDS else 0
            both = [_widen(t, width, fill, left=name in _LEFT) for t in (value, other[name])]
            batch[name] = both[0].clone()
            batch[name][ours] = both[1][theirs]
    return batch


def _widen(value: Tensor, width: int, fill: int, *, left: bool) -> Tensor:
    padding = width - value.size(1)
    return torch.nn.functional.pad(value, (padding, 0) if left else (0, padding), value=fill)
