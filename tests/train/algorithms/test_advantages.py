"""PPO's mathematics next to plain loops in numpy float64, one token at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from rl4rec_cli.train.algorithms.advantages import (
    approximate_kl,
    clipped_policy_loss,
    clipped_value_loss,
    discounted_returns,
    explained_variance,
    gae,
    masked_mean,
    token_rewards,
    whiten,
)

Array = NDArray[np.float64]


@dataclass
class Batch:
    """Texts of different lengths; on the padding stands what must have no part in anything."""

    lengths: list[int]
    mask: Tensor
    rng: np.random.Generator

    def draw(self, scale: float = 1.0, *, padding: float = math.nan) -> Tensor:
        values = torch.from_numpy(self.rng.normal(0, scale, tuple(self.mask.shape)))
        return torch.where(self.mask.bool(), values, padding)

    def tokens(self, values: Tensor) -> list[Array]:
        return [values[row, :length].numpy() for row, length in enumerate(self.lengths)]

    def flat(self, values: Tensor) -> Array:
        return np.concatenate(self.tokens(values))

    def same(self, values: Tensor, expected: list[Array]) -> None:
        for ours, theirs in zip(self.tokens(values), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
        assert not values[self.mask == 0].any()


@st.composite
def batches(draw: Any) -> Batch:
    lengths = draw(st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any))
    mask = torch.zeros(len(lengths), max(lengths) + draw(st.integers(0, 2)), dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    return Batch(lengths, mask, np.random.default_rng(draw(st.integers(0, 2**32 - 1))))


fractions = st.floats(0, 1)


@given(batches(), fractions, fractions)
@settings(max_examples=80, deadline=None)
def test_gae_and_returns(batch: Batch, gamma: float, lam: float) -> None:
    rewards, values = batch.draw(), batch.draw()
    expected, returns = [], []
    for reward, value in zip(batch.tokens(rewards), batch.tokens(values), strict=True):
        n = len(reward)
        after = [*value[1:], 0.0]
        errors = [reward[t] + gamma * after[t] - value[t] for t in range(n)]
        # The sum as the paper writes it, not its recursion.
        expected.append(
            np.array([sum((gamma * lam) ** (s - t) * errors[s] for s in range(t, n)) for t in range(n)], np.float64)
        )
        returns.append(np.array([sum(gamma ** (s - t) * reward[s] for s in range(t, n)) for t in range(n)], np.float64))
    batch.same(gae(rewards, values, batch.mask, gamma=gamma, lam=lam), expected)
    batch.same(discounted_returns(rewards, batch.mask, gamma), returns)


@given(batches(), fractions)
@settings(max_examples=30, deadline=None)
def test_with_lambda_1_advantages_are_whole_returns_less_values(batch: Batch, gamma: float) -> None:
    rewards, values = batch.draw(), batch.draw(padding=0)
    advantages = gae(rewards, values, batch.mask, gamma=gamma, lam=1.0)
    torch.testing.assert_close(advantages + values, discounted_returns(rewards, batch.mask, gamma))


@given(batches(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_whitening(batch: Batch, scale: bool) -> None:
    values = batch.draw(3.0) + 5
    flat = batch.flat(values)
    spread = math.sqrt(flat.var() + 1e-8) if scale else 1.0
    expected = [(tokens - flat.mean()) / spread for tokens in batch.tokens(values)]
    batch.same(whiten(values, batch.mask, scale=scale), expected)
    assert masked_mean(values, batch.mask).item() == pytest.approx(flat.mean())


def test_whitening_equal_values_makes_no_noise() -> None:
    values = torch.full((3, 4), 0.1)
    assert whiten(values, torch.ones(3, 4)).abs().max() < 1e-3
    assert torch.isfinite(whiten(values, torch.zeros(3, 4))).all()


@given(batches())
@settings(max_examples=50, deadline=None)
def test_the_reward_stands_on_the_last_token(batch: Batch) -> None:
    rewards = torch.from_numpy(batch.rng.normal(size=len(batch.lengths)))
    penalties = batch.draw()
    expected = []
    for row, length in enumerate(batch.lengths):
        tokens = np.zeros(length)
        if length:
            tokens[-1] = rewards[row]
        expected.append(tokens)
    batch.same(token_rewards(rewards, batch.mask), expected)
    less = [tokens - penalty for tokens, penalty in zip(expected, batch.tokens(penalties), strict=True)]
    batch.same(token_rewards(rewards, batch.mask, penalties), less)


@given(batches(), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
@settings(max_examples=80, deadline=None)
def test_policy_loss(batch: Batch, low: float, high: float) -> None:
    old, advantages = batch.draw(), batch.draw()
    logps = old + batch.draw(0.4)
    expected = []
    for new, before, advantage in zip(batch.tokens(logps), batch.tokens(old), batch.tokens(advantages), strict=True):
        losses = []
        for n, b, a in zip(new, before, advantage, strict=True):
            ratio = math.exp(n - b)
            losses.append(-min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a))
        expected.append(np.array(losses, np.float64))
    batch.same(clipped_policy_loss(logps, old, advantages, batch.mask, low=low, high=high), expected)
    ratios = np.exp(batch.flat(logps) - batch.flat(old))
    assert approximate_kl(logps, old, batch.mask).item() == pytest.approx((ratios - 1 - np.log(ratios)).mean())


@given(batches(), st.one_of(st.none(), st.floats(0.05, 1)))
@settings(max_examples=80, deadline=None)
def test_value_loss(batch: Batch, clip: float | None) -> None:
    old, values, returns = batch.draw(), batch.draw(), batch.draw()
    expected = []
    for new, before, target in zip(batch.tokens(values), batch.tokens(old), batch.tokens(returns), strict=True):
        losses = []
        for v, o, g in zip(new, before, target, strict=True):
            near = v if clip is None else min(max(v, o - clip), o + clip)
            losses.append(0.5 * max((v - g) ** 2, (near - g) ** 2))
        expected.append(np.array(losses, np.float64))
    batch.same(clipped_value_loss(values, old, returns, batch.mask, clip=clip), expected)
    flat, target = batch.flat(values), batch.flat(returns)
    share = explained_variance(values, returns, batch.mask)
    assert share == (pytest.approx(1 - (target - flat).var() / target.var()) if len(flat) > 1 else 0.0)


def test_no_gradient_comes_from_padding() -> None:
    """NaN in, zeros out: also where a product with the mask would have let it through the gradient."""
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    values = torch.zeros(2, 3, dtype=torch.float64).masked_fill(mask == 0, math.nan).requires_grad_()
    other = torch.ones(2, 3, dtype=torch.float64)
    losses = clipped_value_loss(values, other, 2 * other, mask, clip=0.2)
    losses.sum().backward()
    assert values.grad is not None
    assert torch.isfinite(values.grad[mask.bool()]).all()
    assert values.grad[mask.bool()].all()
    assert losses.sum().isfinite()


def test_explained_variance_of_perfect_constant_and_bad_critics() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0]])
    mask = torch.ones(1, 3)
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.full((1, 3), 7.0), returns, mask) == 0
    assert explained_variance(-returns, returns, mask) == -3
    assert explained_variance(returns, torch.ones(1, 3), mask) == 0
