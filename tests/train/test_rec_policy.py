"""The policy of library users: a loop of one's own learns what pays."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.errors import ConfigError, DataError, RewardError
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
    before = policy.log_probabilities(prompts, ["mint", "rose"])[0].sum(1)
    for _ in range(5):
        policy.update(prompts, ["mint", "rose"], [1.0, 0.0])
    after = policy.log_probabilities(prompts, ["mint", "rose"])[0].sum(1)
    assert after[0] - before[0] > after[1] - before[1]


def test_log_probabilities_are_the_models_one_text_at_a_time(policy: RecPolicy) -> None:
    """Padding on either side changes nothing; the temperature divides the logits; another model may be asked."""
    policy.sampling = replace(policy.sampling, temperature=0.7)
    prompts, texts = policy.build_prompts([[0], [3, 4, 5]]), ["mint rose", "soap"]
    other = copy.deepcopy(policy.policy.model)
    torch.nn.init.normal_(other.get_output_embeddings().weight)
    tokenizer = policy.policy.tokenizer
    for model, asked in ((policy.policy.model, {}), (other, {"model": other})):
        logps_BT, mask_BT = policy.log_probabilities(prompts, texts, **asked)
        assert logps_BT.shape == mask_BT.shape
        assert logps_BT.requires_grad
        for logps_T, mask_T, prompt, text in zip(logps_BT, mask_BT, prompts, texts, strict=True):
            row = [*policy.builder.encoder.text_ids(text), tokenizer.eos_token_id]
            logits = model(torch.tensor([[*prompt.ids, *row]])).logits[0, len(prompt.ids) - 1 : -1]
            alone_T = torch.log_softmax(logits / 0.7, -1)[range(len(row)), row]
            assert mask_T.tolist() == [1] * len(row) + [0] * (len(mask_T) - len(row))
            torch.testing.assert_close(logps_T[: len(row)], alone_T, atol=1e-5, rtol=1e-4)
    for few in ([], ["mint"]):
        with pytest.raises(DataError, match="a completion for each prompt"):
            policy.log_probabilities(prompts[: 2 * len(few)], few)


def test_temperature_0_writes_the_most_likely_tokens_and_is_asked_for_once(policy: RecPolicy) -> None:
    prompts = policy.build_prompts([[0, 1]] * 16)
    assert len(set(policy.generate(prompts, temperature=0))) == 1
    torch.manual_seed(0)
    assert len(set(policy.generate(prompts))) > 1  # the next call samples as configured


@pytest.mark.parametrize(
    "rewards",
    [
        *([1.0], [1.0, math.nan], [1.0, 2.0, 3.0], [1.0, None], [1.0, 1e300], [[1.0], [2.0, 3.0]], 1.0),
        *(torch.tensor([1.0, math.inf]), torch.tensor(1.0), torch.ones(2, 3), np.array([1.0, math.nan])),
    ],
)
def test_what_cannot_be_learnt_from_changes_nothing(rewards: Any, policy: RecPolicy) -> None:
    before = {name: p.detach().clone() for name, p in policy.policy.model.named_parameters()}
    for each in (policy, DummyRecPolicy(["a", "b"])):
        prompts = each.build_prompts([[0], [1]])
        with pytest.raises(RewardError, match="one finite reward per completion"):
            each.update(prompts, ["a", "b"], rewards)
        with pytest.raises(RewardError, match="got 0 prompts, 0 completions and 0 rewards"):
            each.update([], [], [])
    with pytest.raises(DataError, match="'c' is none of the completions"):
        each.update(prompts, ["a", "c"], [1.0, 0.0])
    assert all(p.equal(before[name]) for name, p in policy.policy.model.named_parameters())
    assert each.probabilities.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda r: torch.tensor(r, requires_grad=True)])
def test_rewards_may_be_a_list_an_array_or_a_tensor(kind: Callable[[list[float]], Any], policy: RecPolicy) -> None:
    results = []
    for rewards in ([0.75, 0.5], kind([0.75, 0.5])):
        twin = DummyRecPolicy(["mint", "rose"])
        prompts = policy.build_prompts([[0], [1]])
        policy.policy.model.eval()
        results.append(policy.compute_loss(prompts, ["mint", "rose"], rewards).item())
        results.append(twin.update(prompts, ["mint", "rose"], rewards))
    assert results[:2] == results[2:]
    assert policy.update(prompts, ["mint", "rose"], kind([0.75, 0.5]))["mean_reward"] == 0.625


def test_a_policy_by_name_alone_reads_titles_and_texts(tiny_folder: Path) -> None:
    policy = RecPolicy(model_name=str(tiny_folder), device="cpu")
    policy.sampling = replace(policy.sampling, max_new_tokens=3)
    for each in (policy, DummyRecPolicy(model_name="gpt2", device="cuda")):
        prompts = each.build_prompts([["red nail polish", "nail polish remover"], ["shaving brush"]])
        assert ["nail polish remover" in prompt.text for prompt in prompts] == [True, False]
        for asked in (prompts, ["A user chose a shaving brush. Next:", "Next:"]):
            texts = each.generate(asked)
            assert [type(text) for text in texts] == [str, str]
            assert set(each.update(asked, texts, torch.tensor([0.8, 0.6]))) == {"loss", "grad_norm", "mean_reward"}
    assert policy.generate([]) == []
    with pytest.raises(DataError, match="not in the dataset, which has 0 items") as caught:
        policy.build_prompts([[0]])
    assert "dataset=load_dataset" in (caught.value.hint or "")
    for wrong, words in (("shaving brush", "one title, not a history"), ([1.5], "neither an item id nor a title")):
        with pytest.raises(DataError, match=words):
            policy.build_prompts([wrong])  # type: ignore[list-item]
    with pytest.raises(DataError, match="prompts are a list"):
        policy.generate("shaving brush")
    with pytest.raises(ConfigError, match="tiny policy is built from a dataset"):
        RecPolicy("tiny")


def test_titles_of_the_dataset_are_its_items(make_dataset: Callable[..., Dataset], tiny_folder: Path) -> None:
    dataset = make_dataset(["soap", "comb"], fields=[{"brand": "Lilt"}, {"brand": "Rook"}])
    config = load_config(algorithm="reinforce", sets=["prompt.item_template={title} by {brand}"])
    policy = RecPolicy(str(tiny_folder), "cpu", dataset=dataset, config=config)
    by_id, by_title, mixed = policy.build_prompts([[1, 0], ["comb", "soap"], ["razor", "soap"]])
    assert by_id == by_title
    assert "comb by Rook" in by_id.text
    assert "soap by Lilt" in mixed.text
    assert "razor by" in mixed.text
