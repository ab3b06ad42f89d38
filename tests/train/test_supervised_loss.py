"""The supervised loss beside that of RL: its gradient against a plain one in float64, and what it does not touch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.config.trainer import RlSection
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.data.prompts import PromptBuilder
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.train.rl_trainer import RLTrainer

SETS = (
    *("data.synthetic.users=24", "data.synthetic.items=20", "data.train_targets=last"),
    *("prompt.max_history=3", "prompt.max_prompt_length=64", "generation.max_completion_length=6"),
    *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=400"),
    *("trainer.max_steps=3", "trainer.learning_rate=0.01", "trainer.warm_start=null", "trainer.max_grad_norm=1e9"),
    "generation.temperature=0.6",  # completions are sampled at it, what is taught is not
)
GROUPS = (
    *("trainer.batch_size=4", "trainer.num_generations=4", "trainer.gradient_accumulation_steps=2"),
    "trainer.zero_variance=leave_out",
)
SINGLE = ("trainer.batch_size=8",)
WEIGHT = 0.4


def configured(algorithm: str, *sets: str) -> RunConfig:
    own = GROUPS if algorithm in ("grpo", "rloo") else SINGLE
    if algorithm == "ppo":
        own = (*SINGLE, "trainer.mini_batch_size=8", "trainer.ppo_epochs=2")
    if algorithm == "reinforce":
        own = ("trainer.batch_size=4", "trainer.gradient_accumulation_steps=2")
    return load_config(algorithm=algorithm, recipes=["quick-test"], sets=[*SETS, *own, *sets])


class Gradients(TrainerCallback):
    """Takes the gradients of the first step, and the prompts that it learnt from."""

    def __init__(self, trainer: RLTrainer) -> None:
        self.prompts: list[str] = []
        self.taken: dict[str, torch.Tensor] = {}
        inner: Any = trainer._trainer
        generate = inner._generate_and_score_completions

        def noting(inputs: Any) -> Any:
            self.prompts += [row["user"] for row in inputs] if not self.prompts else []
            return generate(inputs)

        inner._generate_and_score_completions = noting
        inner.add_callback(self)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not self.taken:
            named = model.named_parameters()
            self.taken = {name: p.grad.double().clone() for name, p in named if p.grad is not None}


def first_step(config: RunConfig, reward: Any = None) -> tuple[Gradients, dict[str, Any], Any]:
    """The gradients of the first step, its record, and the policy that it began with."""
    with RLTrainer(config, reward=reward) as trainer:
        start = copy.deepcopy(trainer.policy.model)
        gradients = Gradients(trainer)
        return gradients, trainer.train_step(), start


def plain_loss(config: RunConfig, model: Any, users: list[str]) -> torch.Tensor:
    """The mean cross-entropy per token of the next item's title and the end token, sequence by sequence in float64."""
    dataset = open_dataset(config.data)
    with RLTrainer(config) as trainer:
        tokenizer, examples = trainer.policy.tokenizer, {e.user: e for e in trainer.examples}
    builder = PromptBuilder(config.prompt, dataset, tokenizer)
    surprise, tokens = torch.zeros((), dtype=torch.float64), 0
    for user in users:
        example = examples[user]
        prompt = builder.build(user, example.history)
        title = str(dataset.items[example.target]["title"])
        text = title if prompt.text[-1:].isspace() else f" {title}"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: config.generation.max_completion_length - 1]
        ids = [*ids, builder.end_id]
        logits = model(torch.tensor([[*prompt.ids, *ids]])).logits[0, len(prompt.ids) - 1 : -1]
        surprise = surprise - logits.log_softmax(-1)[torch.arange(len(ids)), ids].sum()
        tokens += len(ids)
    return surprise / tokens


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo", "reinforce"])
def test_its_gradient_is_that_of_the_mean_over_the_batch_s_tokens(algorithm: str) -> None:
    alone, record, _ = first_step(configured(algorithm))
    config = configured(algorithm, f"trainer.sft_weight={WEIGHT}")
    both, mixed, start = first_step(config)
    assert both.prompts == alone.prompts
    assert "sft_loss" not in record
    users = list(dict.fromkeys(both.prompts))
    assert len(users) == 8
    model = start.double().eval()
    model.zero_grad()
    loss = plain_loss(config, model, users)
    loss.backward()
    assert mixed["sft_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert mixed["avg_reward"] == record["avg_reward"]
    largest = 0.0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        expected = WEIGHT * parameter.grad
        difference = both.taken[name] - alone.taken.get(name, torch.zeros_like(expected))
        scale = max(float(expected.abs().max()), float(both.taken[name].abs().max()), 1e-3)
        assert float((difference - expected).abs().max()) < 1e-4 * scale, name
        largest = max(largest, float(expected.abs().max()))
    assert largest > 1e-2


def test_groups_that_are_left_out_are_taught_all_the_same() -> None:
    """Every group earns one reward, so nothing is left of RL's loss."""
    config = configured("grpo", "reward.rank_shaping=0", f"trainer.sft_weight={WEIGHT}")
    gradients, record, start = first_step(config, reward=lambda texts, *_, **__: [0.0] * len(texts))
    assert record["groups/left_out"] == 8
    loss = float(plain_loss(config, start.double().eval(), list(dict.fromkeys(gradients.prompts))).detach())
    assert record["sft_loss"] == pytest.approx(loss, rel=1e-5)
    assert record["loss"] == pytest.approx(WEIGHT * loss, rel=1e-4)


def test_a_critic_that_warms_up_leaves_the_policy_alone() -> None:
    config = configured("ppo", f"trainer.sft_weight={WEIGHT}", "trainer.value_warmup_steps=2")
    with RLTrainer(config) as trainer:
        before = {name: p.detach().clone() for name, p in trainer.policy.model.named_parameters()}
        first, second, third = (trainer.train_step() for _ in range(3))
        assert "sft_loss" not in first
        assert "sft_loss" not in second
        assert third["sft_loss"] > 0
        after = dict(trainer.policy.model.named_parameters())
        assert any(not torch.equal(before[name], after[name]) for name in before if name in after)


def test_what_is_taught_is_what_the_warm_start_teaches() -> None:
    warm = "trainer.warm_start={target: last, target_template: '{text}'}"
    for algorithm in ("grpo", "rloo", "ppo", "reinforce"):
        section = load_config(algorithm=algorithm, sets=["trainer.sft_weight=0.1", warm]).trainer
        assert isinstance(section, RlSection)
        assert section.taught is section.warm_start
        section = load_config(algorithm=algorithm, sets=["trainer.sft_weight=0.1"]).trainer
        assert isinstance(section, RlSection)
        assert section.taught is not None
        assert (section.taught.target, section.taught.target_template) == ("next", "{title}")
        plain = load_config(algorithm=algorithm).trainer
        assert isinstance(plain, RlSection)
        assert plain.taught is None
        assert (plain.taught_at_once, section.taught_at_once > 0) == (0, True)


@pytest.mark.parametrize("algorithm", ["sft", "retriever"])
def test_who_learns_from_no_rewards_has_no_mixed_loss(algorithm: str) -> None:
    with pytest.raises(ConfigError, match="sft_weight"):
        load_config(algorithm=algorithm, sets=["trainer.sft_weight=0.1"])
    with pytest.raises(ConfigError, match="sft_weight"):
        load_config(algorithm="grpo", sets=["trainer.sft_weight=-0.1"])
