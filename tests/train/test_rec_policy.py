"""The policy of library users: a loop of one's own learns what pays."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.errors import RewardError
from rl4rec_cli.layering import load_config
from rl4rec_cli.train.rec_policy import DummyRecPolicy, RecPolicy

HISTORIES = [[0, 1], [2], [3, 4, 5], [1]] * 8


@pytest.fixture
def policy(make_dataset: Callable[..., Dataset], tiny_folder: Path) -> RecPolicy:
    config = load_config(
        algorithm="reinforce",
        recipes=["quick-test"],
        sets=[f"policy.model={tiny_folder}", "trainer.learning_rate=0.003", "generation.max_completion_length=3"],
    )
    return RecPolicy.from_config(config, make_dataset())


def worth(texts: list[str]) -> list[float]:
    return [float("a" in text) for text in texts]


def loop(policy: Any, steps: int) -> list[float]:
    prompts = policy.build_prompts(HISTORIES)
    means = []
    for _ in range(steps):
        texts = policy.generate(prompts)
        means.append(policy.update(prompts, texts, worth(texts))["mean_reward"])
    return means


def test_a_loop_of_ones_own_learns(policy: RecPolicy) -> None:
    torch.manual_seed(0)
    means = loop(policy, 15)
    assert sum(means[-3:]) / 3 > sum(means[:3]) / 3 + 0.2


def test_the_twin_learns_too() -> None:
    policy = DummyRecPolicy(["rose", "mint", "cedar salt"])
    loop(policy, 30)
    assert policy.probabilities[2] > 0.9
    prompts = policy.build_prompts([[1], [2]])
    assert [p.ids for p in prompts] == [(1,), (2,)]


def test_the_loss_is_the_policy_gradients(policy: RecPolicy) -> None:
    """−Σ A ln p over the tokens that were sampled, one text at a time, without padding."""
    prompts = policy.build_prompts(HISTORIES[:4])
    torch.manual_seed(1)
    texts = policy.generate(prompts)
    rewards = [0.0, 1.0, 0.25, 3.0]
    policy.compute_loss(prompts, texts, rewards).backward()
    ours = {name: p.grad.clone() for name, p in policy.policy.model.named_parameters()}
    policy.policy.model.zero_grad()
    rows = [policy._tokens(p, t) for p, t in zip(prompts, texts, strict=True)]
    sampled = [policy._written[p.ids, t] for p, t in zip(prompts, texts, strict=True)]
    assert rows == sampled
    assert any(row[-1] != policy.policy.tokenizer.eos_token_id for row in rows)  # which a text's own tokens end with
    weights = [r for r, row in zip(rewards, rows, strict=True) for _ in row]
    mean = sum(weights) / len(weights)
    spread = math.sqrt(sum((w - mean) ** 2 for w in weights) / len(weights))
    total = 0.0
    for prompt, row, reward in zip(prompts, rows, rewards, strict=True):
        logits = policy.policy.model(torch.tensor([[*prompt.ids, *row]])).logits[0, len(prompt.ids) - 1 : -1]
        logps = torch.log_softmax(logits, -1)[range(len(row)), row]
        total = total - ((reward - mean) / spread * logps).sum() / len(weights)
    total.backward()
    for name, parameter in policy.policy.model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_a_text_from_elsewhere_can_be_learnt_from(policy: RecPolicy) -> None:
    prompts = policy.build_prompts([[0], [0]])
    before = policy._log_probabilities(prompts, ["mint", "rose"])[0].sum(1)
    for _ in range(5):
        policy.update(prompts, ["mint", "rose"], [1.0, 0.0])
    after = policy._log_probabilities(prompts, ["mint", "rose"])[0].sum(1)
    assert after[0] - before[0] > after[1] - before[1]


@pytest.mark.parametrize("rewards", [[1.0], [1.0, math.nan], [1.0, 2.0, 3.0]])
def test_rewards_that_are_none(rewards: list[float], policy: RecPolicy) -> None:
    for each in (policy, DummyRecPolicy(["a", "b"])):
        prompts = each.build_prompts([[0], [1]])
        with pytest.raises(RewardError, match="one finite reward per text"):
            each.update(prompts, ["a", "b"], rewards)
