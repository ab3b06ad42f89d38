"""The mathematics of PPO and REINFORCE, on tensors of B completions and T tokens.

Decides: how rewards and values become advantages, returns and losses, and that padding has no part in any of them.
Hides: nothing; every function is pure.

`mask_BT` is 1 on the tokens of a completion and 0 on the padding that follows them. Values on padding in any other
argument, NaN included, change no result. Results are 0 there.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the completions' tokens; 0 where there is none."""
    return _on(values_BT, mask_BT).sum() / mask_BT.sum().clamp(min=1)


def whiten(values_BT: Tensor, mask_BT: Tensor, *, scale: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Mean 0 and (with `scale`) variance 1 over the completions' tokens.

    The mean is over tokens, as that of the loss is: a completion counts with its length. This weighting also brings it
    nearer to the baseline of least variance, which weights a completion by the square of its score function (Greensmith
    et al. 2004).

    Args:
        epsilon: added to the variance: equal values become 0, not noise.
    """
    centred_BT = _on(values_BT - masked_mean(values_BT, mask_BT), mask_BT)
    if not scale:
        return centred_BT
    return centred_BT * torch.rsqrt(masked_mean(centred_BT.square(), mask_BT) + epsilon)


def token_rewards(rewards_B: Tensor, mask_BT: Tensor, penalties_BT: Tensor | None = None) -> Tensor:
    """A completion's reward on its last token, less a penalty on every token (the KL term of Ziegler et al. 2019)."""
    last_B = mask_BT.cumsum(1).argmax(1)  # the first of the greatest: the completion's last token
    rewards_BT = torch.zeros_like(mask_BT, dtype=rewards_B.dtype).scatter_(1, last_B[:, None], rewards_B[:, None])
    if penalties_BT is not None:
        rewards_BT = rewards_BT - penalties_BT
    return _on(rewards_BT, mask_BT)


def discounted(advantages_B: Tensor, mask_BT: Tensor, gamma: float) -> Tensor:
    """A completion's advantage on each of its tokens, γ times less with each token before the last; 0 on padding."""
    ahead_BT = mask_BT.sum(1, keepdim=True) - mask_BT.cumsum(1)
    return _on(advantages_B[:, None] * gamma ** ahead_BT.clamp(min=0), mask_BT)


def discounted_returns(rewards_BT: Tensor, mask_BT: Tensor, gamma: float) -> Tensor:
    """G_t = r_t + γ G_{t+1}: what is still to come, in units of the reward."""
    return gae(rewards_BT, torch.zeros_like(rewards_BT), mask_BT, gamma=gamma, lam=1.0)


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16), in units of the reward.

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γλ A_{t+1}; after a completion's last token there is no value.

    Args:
        values_BT: V_t, what the critic expects before token t.
    """
    rewards_BT, values_BT = _on(rewards_BT, mask_BT), _on(values_BT, mask_BT)
    ahead_B = value_B = torch.zeros_like(rewards_BT[:, 0])
    columns = []
    for t in reversed(range(rewards_BT.size(1))):
        ahead_B = rewards_BT[:, t] + gamma * value_B - values_BT[:, t] + gamma * lam * ahead_B
        value_B = values_BT[:, t]
        columns.append(ahead_B)
    return _on(torch.stack(columns[::-1], dim=1), mask_BT)


def clipped_policy_loss(
    logps_BT: Tensor, old_logps_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, *, low: float, high: float
) -> Tensor:
    """−min(ρA, clip(ρ, 1−low, 1+high)·A) of each token (Schulman et al. 2017, equation 7), ρ the policy ratio."""
    ratio_BT = torch.exp(_on(logps_BT - old_logps_BT, mask_BT))
    clipped_BT = ratio_BT.clamp(1 - low, 1 + high)
    return -_on(torch.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT), mask_BT)


def clipped_value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, *, clip: float | None
) -> Tensor:
    """½ (V − G)² of each token, at least what it is with V held within `clip` of its old value.

    The clipping is that of OpenAI's baselines (ppo2), in units of the reward; None leaves it out.
    """
    losses_BT = (values_BT - returns_BT).square()
    if clip is not None:
        near_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
        losses_BT = torch.maximum(losses_BT, (near_BT - returns_BT).square())
    return 0.5 * _on(losses_BT, mask_BT)


def approximate_kl(logps_BT: Tensor, old_logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """KL(old ‖ new) in nats per token from the old policy's samples: mean of ρ − 1 − ln ρ (Schulman 2020, "k3")."""
    log_ratio_BT = _on(logps_BT - old_logps_BT, mask_BT)
    return masked_mean(torch.expm1(log_ratio_BT) - log_ratio_BT, mask_BT)


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> float:
    """1 − Var(G − V) / Var(G): 1 for a perfect critic, 0 for a constant one, below for worse; 0 where G is constant."""
    spread = whiten(returns_BT, mask_BT, scale=False).square().sum().item()
    residual = whiten(returns_BT - values_BT, mask_BT, scale=False).square().sum().item()
    return 1 - residual / spread if spread > 0 else 0.0


def _on(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The values on the completions' tokens, else 0; a product would let NaN through."""
    return torch.where(mask_BT.bool(), values_BT, 0)
