"""`RLTrainer`: its steps are those of `rl4rec train`, one at a time, whatever the program does between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.data.dataset import build_examples
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import ConfigError, DataError, RewardError, RunError
from rl4rec_cli.files.logs import read_log
from rl4rec_cli.policy.loading import load_policy
from rl4rec_cli.train.rec_policy import RecPolicy
from rl4rec_cli.train.rl_trainer import RLTrainer

SMALL = (
    *("generation.max_completion_length=6", "retrieval.lsa_dim=16", "trainer.warm_start=null"),
    *("prompt.max_prompt_length=200", "eval.users=2", "eval.baselines=[]", "eval.cache_dir=null", "eval.steps=null"),
)
GROUPS = (
    *("trainer.batch_size=2", "trainer.num_generations=4", "trainer.gradient_accumulation_steps=2"),
    *("trainer.num_iterations=2", "trainer.num_train_epochs=2", "trainer.max_steps=6", "trainer.learning_rate=0.01"),
)
ALGORITHMS = {
    "grpo": (*GROUPS, "trainer.beta=0.01"),
    "rloo": GROUPS,
    "ppo": (
        *("trainer.batch_size=4", "trainer.mini_batch_size=2", "trainer.ppo_epochs=2", "trainer.max_steps=10"),
        *("trainer.num_train_epochs=2", "trainer.learning_rate=0.01"),
    ),
}
"""Small settings whose steps go through more than one epoch and learn from completions more than once."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "toy"
    save_dataset(synthesize(10, 20, 3), folder)
    return folder


def configured(data: Path, model: Path, algorithm: str = "grpo", *sets: str, **flags: Any) -> Any:
    named = {"data.path": str(data), "policy.model": str(model), "data.train_targets": "last", **flags}
    every = [*SMALL, *ALGORITHMS[algorithm], *sets]
    return load_config(algorithm=algorithm, recipes=["quick-test"], flags=named, sets=every)


REWARD = """
def letters(generated_texts, target_items, history_items, **_):
    return [sum(map(ord, text)) % 97 / 97 for text in generated_texts]
"""


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_its_steps_are_those_of_the_command(algorithm: str, data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(REWARD)
    reward = {"reward.functions": {f"{tmp_path / 'own.py'}:letters": 1.0, "ndcg": 0.0}}  # random weights write no title
    flags = {"run.output_dir": str(tmp_path), "run.name": "r", "logging.steps": 1, **reward}
    [trained] = train(configured(data, tiny_folder, algorithm, **flags))
    theirs = weights(load_policy(trained.run.config.policy.model_copy(update={"model": str(trained.run.final)})).model)
    with RLTrainer(configured(data, tiny_folder, algorithm, **reward)) as trainer:
        before = weights(trainer.policy.model)
        records = [trainer.train_step() for _ in range(2)]
        torch.manual_seed(99)  # what a program draws in between
        np.random.seed(99)
        trainer.policy.model.eval()
        records += trainer.train()
        assert trainer.step == trainer.steps == len(records) == trained.run.config.trainer.max_steps
        with pytest.raises(RunError, match="steps are made"):
            trainer.train_step()
        assert trainer.train() == []
    assert_equal(weights(trainer.policy.model), theirs)
    assert any(not torch.equal(value, theirs[name]) for name, value in before.items())
    log = [record for record in read_log(trained.run.folder / "training_log.jsonl")[0] if "avg_reward" in record]
    names = ("step", "loss", "avg_reward", "std_reward", "grad_norm", "learning_rate", "entropy", "kl", "mean_rank")
    assert [[record.get(name) for name in names] for record in records] == [
        [record.get(name) for name in names] for record in log
    ]


def test_the_policy_can_be_a_program_s_own(data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    config = configured(data, tiny_folder)
    dataset = load_dataset(data)
    policy = RecPolicy.from_config(config, dataset)
    before = weights(policy.policy.model)
    with RLTrainer(config, dataset, policy=policy, reward=longer) as trainer:
        assert trainer.policy is policy.policy
        record = trainer.train_step()
        assert record["step"] == 1
        assert any(not torch.equal(value, before[name]) for name, value in weights(policy.policy.model).items())
        saved = trainer.save(tmp_path / "policy")
    stored = load_policy(config.policy.model_copy(update={"model": str(saved)}))
    assert_equal(weights(stored.model), weights(policy.policy.model))
    assert policy.generate(policy.build_prompts([trainer.examples[0].history]))
    with pytest.raises(RunError, match="the trainer is closed"):
        trainer.train_step()


def longer(
    generated_texts: Sequence[str], target_items: Sequence[int], history_items: Sequence[Sequence[int]], **_: Any
) -> list[float]:
    return [len(text) / 100 for text in generated_texts]


def test_rewards_are_those_of_the_scorer(data: Path, tiny_folder: Path) -> None:
    config = configured(data, tiny_folder, "grpo", "reward.rank_shaping=0")
    dataset = load_dataset(data)
    with RLTrainer(config, dataset) as trainer:
        examples = trainer.examples[:2]
        title = str(dataset.items[examples[0].target]["title"])
        text = str(dataset.items[examples[0].target]["text"])
        rewards = trainer.compute_rewards([text, ""], examples)
        assert rewards.tolist() == [1.0, 0.0]
        with pytest.raises(DataError, match="1 completions for 2 examples"):
            trainer.compute_rewards([title], examples)
        with pytest.raises(DataError, match="no dataset 'other'"):
            trainer.compute_rewards([text, text], examples, dataset="other")
    with RLTrainer(config, dataset, reward=longer) as trainer:
        assert trainer.compute_rewards([text, ""], examples).tolist() == [len(text) / 100, 0.0]
        record = trainer.train_step()
        assert record["reward/longer"] == pytest.approx(record["avg_reward"])
        assert "reward/ndcg" in record


def test_several_datasets_each_have_their_catalogue(data: Path, tiny_folder: Path) -> None:
    first, second = load_dataset(data), replace(synthesize(10, 20, 4), name="other")
    with RLTrainer(configured(data, tiny_folder), [first, second]) as trainer:
        examples = build_examples(second, "train")
        assert set(examples) < set(trainer.examples)
        texts = [str(second.items[example.target]["text"]) for example in examples]
        with pytest.raises(ConfigError, match="there are several"):
            trainer.compute_rewards(texts, examples)
        right = trainer.compute_rewards(texts, examples, dataset="other")
        assert right.min() > 1  # the best rank, and shaping
        assert trainer.compute_rewards(texts, examples, dataset=first.name).mean() < right.mean()


def test_a_step_that_fails_changes_nothing(data: Path, tiny_folder: Path) -> None:
    calls: list[int] = []

    def fails_at_the_second_batch(generated_texts: Sequence[str], *_: Any, **__: Any) -> list[float]:
        calls.append(len(generated_texts))
        return [float("nan") if len(calls) > 1 else float(i) for i in range(len(generated_texts))]

    config = configured(data, tiny_folder, "grpo", "trainer.num_iterations=1")
    with RLTrainer(config, reward=fails_at_the_second_batch) as trainer:
        trainer.train_step()
        before = weights(trainer.policy.model)
        with pytest.raises(RewardError, match="returned nan"):
            trainer.train_step()
        assert_equal(weights(trainer.policy.model), before)
        assert trainer.step == 1
        with pytest.raises(RunError, match="an earlier step failed"):
            trainer.train()


def test_what_it_does_not_do_is_refused(data: Path, tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="makes no warm start"):
        RLTrainer(load_config(algorithm="grpo", recipes=["quick-test"]))
    with pytest.raises(ConfigError, match="no reinforcement learning"):
        RLTrainer(load_config(algorithm="sft", recipes=["quick-test"]))
    with pytest.raises(RewardError, match="not a function"):
        RLTrainer(configured(data, tiny_folder), reward=3)  # type: ignore[arg-type]
