"""Preference tuning from the configuration to the run folder, by the real trainers on a random two-layer policy."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from rl4rec_cli.commands.evaluate import evaluate
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.preference.scoring import PairScorer
from rl4rec_cli.report.run_page import write_report
from rl4rec_cli.train.algorithms.advantages import discounted
from rl4rec_cli.train.algorithms.grpo import GrpoTrainer

SMALL = (
    *("data.synthetic.users=80", "data.synthetic.items=40", "generation.max_completion_length=6"),
    *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=300", "trainer.batch_size=4"),
    *("trainer.learning_rate=0.01", "eval.steps=2", "logging.steps=1", "logging.save_steps=2", "run.name=run"),
)
GRPO = (*SMALL, "trainer.num_generations=4", "trainer.max_steps=4", "trainer.warm_start=null", "logging.rollouts=99")


def small(folder: Path, *sets: str, algorithm: str = "grpo", base: Sequence[str] = GRPO) -> RunConfig:
    settings = [*base, f"run.output_dir={folder}", *sets]
    return load_config(algorithm=algorithm, recipes=["preference-quick-test"], sets=settings)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "checkpoint_final" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps."""
    folder = tmp_path_factory.mktemp("whole")
    (trained,) = train(small(folder))
    return trained.run.folder


def test_the_run_folder(whole: Path) -> None:
    """Log, rollouts, validation and result have the rewards by part; nothing is ranked."""
    steps = lines(whole / "training_log.jsonl")
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert {"avg_reward", "reward/accuracy", "reward/length", "kl", "entropy"} <= steps[0].keys()
    assert steps[0]["mean_rank"] is None
    for record in lines(whole / "rollouts.jsonl"):
        parts = record["parts"]
        assert record["reward"] == pytest.approx(parts["accuracy"] + 0.3 * parts["length"])
        assert record["prompt"]
    measured = lines(whole / "validation_log.jsonl")
    assert [record["step"] for record in measured] == [2, 4]
    assert {"reward", "accuracy", "length", "words"} <= measured[0].keys()
    result = json.loads((whole / "eval" / "validation.json").read_text())
    assert result["metric"] == "reward"
    assert result["unit"] == "prompts"
    assert list(result["methods"]) == ["rejected", "chosen", "before RL", "tuned policy"]
    assert result["kinds"]["chosen"] == "ceiling"
    assert result["methods"]["chosen"]["accuracy"] == 1
    assert result["methods"]["rejected"]["accuracy"] == 0
    assert set(result["differences"]) == {"rejected", "before RL"}
    records = lines(whole / "eval" / "validation_users.jsonl")
    assert len(records) == result["users"]
    own = [record["rewards"]["tuned policy"] for record in records]
    assert np.mean(own) == pytest.approx(result["methods"]["tuned policy"]["reward"])
    assert (whole / "checkpoints" / "checkpoint_best").is_dir()


def test_the_page_and_the_commands_that_rank(whole: Path) -> None:
    page = write_report(str(whole)).read_text()
    assert "reward accuracy × 1, length × 0.3" in page
    assert lines(whole / "rollouts.jsonl")[0]["prompt"] in page
    assert "next: <strong>" not in page
    with pytest.raises(ConfigError, match="is a run of the task preference, and this ranks in a catalogue"):
        evaluate(whole)


def test_a_resumed_run_is_the_uninterrupted_one(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    score, calls = PairScorer.score, 0

    def interrupted(self: PairScorer, *args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += "completion_ids" in more
        if calls == 4:
            raise KeyboardInterrupt
        return score(self, *args, **more)

    monkeypatch.setattr(PairScorer, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(small(tmp_path))
    monkeypatch.undo()
    folder = tmp_path / "run"
    assert len(lines(folder / "training_log.jsonl")) == 3
    assert "--resume" in capsys.readouterr().err
    train(small(tmp_path), resume=folder)
    mine, theirs = weights(folder), weights(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for name in ("loss", "avg_reward", "reward/accuracy"):
        ours = [record[name] for record in lines(folder / "training_log.jsonl")]
        assert ours == [record[name] for record in lines(whole / "training_log.jsonl")]
    assert lines(folder / "rollouts.jsonl") == lines(whole / "rollouts.jsonl")
    assert train(small(tmp_path), resume=folder) == []


def test_nothing_changes_at_a_learning_rate_of_zero(tmp_path: Path) -> None:
    (trained,) = train(small(tmp_path, "trainer.learning_rate=0", "trainer.max_steps=2"))
    (evaluation,) = trained.evaluations.values()
    gain = evaluation.difference("tuned policy", "before RL")
    assert (gain.mean, gain.low, gain.high) == (0, 0, 0)


@pytest.mark.parametrize("algorithm", ["sft", "ppo", "rloo", "dpo"])
def test_other_algorithms_have_the_task_too(tmp_path: Path, algorithm: str) -> None:
    own = {
        "sft": [],
        "dpo": ["trainer.gradient_accumulation_steps=1", "trainer.warm_start=null"],
        "ppo": ["trainer.batch_size=8", "trainer.mini_batch_size=4", "trainer.warm_start=null"],
        "rloo": ["trainer.num_generations=4", "trainer.warm_start=null"],
    }
    sets = [*SMALL, "trainer.max_steps=2", *own[algorithm]]
    (trained,) = train(small(tmp_path, algorithm=algorithm, base=sets))
    (evaluation,) = trained.evaluations.values()
    assert evaluation.subject == "tuned policy"


def test_the_warm_start_teaches_both_answers(tmp_path: Path) -> None:
    sets = [*SMALL, "trainer.max_steps=1", "trainer.warm_start.max_steps=2", "trainer.num_generations=4"]
    (trained,) = train(small(tmp_path, base=sets))
    steps = lines(trained.run.folder / "warm_start_log.jsonl")
    assert [record["step"] for record in steps][-1] == 2


def test_beta_holds_a_reference(tmp_path: Path) -> None:
    """The divergence begins at 0 and is logged."""
    (trained,) = train(small(tmp_path, "trainer.beta=0.1", "trainer.max_steps=2"))
    kl = [record["kl"] for record in lines(trained.run.folder / "training_log.jsonl")]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[1] > 0


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.floats(0, 1), st.randoms())
def test_discounted_advantages(lengths: list[int], gamma: float, draw: Any) -> None:
    width = max(1, *lengths)
    advantages = [draw.uniform(-2, 2) for _ in lengths]
    mask = torch.tensor([[int(t < n) for t in range(width)] for n in lengths])
    values = discounted(torch.tensor(advantages, dtype=torch.float64), mask, gamma)
    expected = [
        [a * gamma ** (n - 1 - t) if t < n else 0.0 for t in range(width)]
        for a, n in zip(advantages, lengths, strict=True)
    ]
    assert np.allclose(values, expected)


def test_gamma_discounts_what_grpo_learns_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The advantages of a batch against a float64 reference from the logged rewards and the completions' lengths."""
    seen: list[dict[str, Any]] = []
    loss = GrpoTrainer._compute_loss

    def keep(self: GrpoTrainer, model: Any, inputs: dict[str, Any]) -> Any:
        seen.append({name: inputs[name].clone() for name in ("advantages", "completion_mask", "completion_ids")})
        return loss(self, model, inputs)

    monkeypatch.setattr(GrpoTrainer, "_compute_loss", keep)
    gamma = 0.7
    (trained,) = train(small(tmp_path, f"trainer.gamma={gamma}", "trainer.max_steps=1", "eval.steps=null"))
    rewards = np.array([record["reward"] for record in lines(trained.run.folder / "rollouts.jsonl")]).reshape(-1, 4)
    spread = rewards.std(1, ddof=1, keepdims=True)
    plain = ((rewards - rewards.mean(1, keepdims=True)) / (spread + 1e-4)).ravel()
    (batch,) = seen
    lengths = batch["completion_mask"].sum(1).tolist()
    # TRL shuffles a batch: rows are matched by what a completion's last token gets, which gamma leaves as it is.
    ours = batch["advantages"].double().numpy()
    assert ours.shape == tuple(batch["completion_ids"].shape)
    last = [row[length - 1] for row, length in zip(ours, lengths, strict=True)]
    assert np.allclose(np.sort(last), np.sort(plain), atol=1e-4)
    for row, length in zip(ours, lengths, strict=True):
        expected = [row[length - 1] * gamma ** (length - 1 - t) if t < length else 0.0 for t in range(len(row))]
        assert np.allclose(row, expected, atol=1e-5)


def test_dpo_learns_the_order_of_pairs(tmp_path: Path) -> None:
    """The loss begins at ln 2, as the reference is the starting policy, and falls; a resumed run ends with the same."""
    sets = [*SMALL, "trainer.gradient_accumulation_steps=1", "trainer.warm_start=null", "trainer.max_steps=12"]
    (trained,) = train(small(tmp_path, "eval.steps=null", algorithm="dpo", base=sets))
    steps = lines(trained.run.folder / "training_log.jsonl")
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert steps[-1]["loss"] < 0.6
    assert steps[-1]["margin"] > 0
    assert steps[-1]["pair_accuracy"] > 0.5
    with pytest.raises(ConfigError, match="dpo learns from pairs of answers, and the task recommendation has none"):
        load_config(algorithm="dpo", recipes=["quick-test"])


class TestSettings:
    """What the configuration refuses, with the layer that it comes from."""

    @staticmethod
    def refuse(match: str, *sets: str, **more: Any) -> None:
        with pytest.raises(ConfigError) as error:
            load_config(algorithm=more.pop("algorithm", "grpo"), recipes=["preference-quick-test"], sets=sets, **more)
        assert match in f"{error.value.message} | {error.value.hint}"

    def test_settings_of_the_other_task(self) -> None:
        self.refuse(
            "reward.rank_shaping: is of the task recommendation, and this run's is preference (--set)",
            "reward.rank_shaping=0.1",
        )
        with pytest.raises(ConfigError, match=r"data\.pairs: is of the task preference"):
            load_config(algorithm="grpo", recipes=["quick-test"], sets=["data.pairs.max_samples=3"])

    def test_rewards_of_the_other_task(self) -> None:
        self.refuse("unknown preference reward `ndcg`", flags={"reward.functions": {"ndcg": 1.0}})

    def test_no_keywords(self) -> None:
        self.refuse("reward.accuracy.correct_keywords", "reward.accuracy.correct_keywords=[]")
        self.refuse("reward.accuracy.correct_keywords", "reward.accuracy.correct_keywords=[' ']")

    def test_what_is_taught(self) -> None:
        self.refuse("the task preference has next and both to teach, not last", "trainer.target=last", algorithm="sft")

    def test_a_retriever_has_a_catalogue(self) -> None:
        self.refuse("retriever trains on a catalogue", algorithm="retriever")

    def test_unknown_task(self) -> None:
        self.refuse("run.task: must be 'recommendation' or 'preference', not 'preferences'", "run.task=preferences")

    def test_custom_code_needs_the_flag(self) -> None:
        self.refuse("only --reward may name custom code", "reward.functions.my.py:f=1")

    def test_default_rewards(self) -> None:
        plain = load_config(algorithm="grpo", sets=["run.task=preference"])
        assert plain.reward.functions == {"accuracy": 1.0}
        assert load_config(algorithm="grpo").reward.functions == {"ndcg": 1.0}
        model = load_config(
            algorithm="grpo", sets=["run.task=preference"], flags={"reward.functions": {"me/model": 1.0}}
        )
        assert model.reward.functions == {"me/model": 1.0}


ORIGINAL = {
    "accuracy": {"correct_keywords": ["helpful", "good"]},
    "length": {"optimal_length": 150, "length_weight": 0.1},
    "custom": {"reward_scale": 1.0, "penalty_scale": -0.5},
}


@pytest.fixture
def reward_file(tmp_path: Path) -> Callable[[Any], str]:
    def write(content: Any) -> str:
        path = tmp_path / "rewards.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def test_the_reward_file_of_the_original(reward_file: Callable[[Any], str]) -> None:
    """Its settings are taken as they are, and its rewards are the run's, unless flags name others."""
    config = load_config(algorithm="grpo", recipes=["preference"], reward_config=reward_file(ORIGINAL))
    assert config.reward.functions == {"accuracy": 1.0, "length": 1.0, "custom": 1.0}
    assert config.reward.accuracy.correct_keywords == ("helpful", "good")
    assert (config.reward.length.optimal_length, config.reward.length.length_weight) == (150, 0.1)
    assert (config.reward.custom.reward_scale, config.reward.custom.penalty_scale) == (1.0, -0.5)
    flags = {"reward.functions": {"length": 0.5}}
    config = load_config(algorithm="grpo", recipes=["preference"], reward_config=reward_file(ORIGINAL), flags=flags)
    assert config.reward.functions == {"length": 0.5}
    assert config.reward.length.optimal_length == 150


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"accuraccy": {}}, "accuraccy: unknown reward; did you mean `accuracy`?"),
        ({"length": {"optimal_lenght": 3}}, "unknown key; did you mean `reward.length.optimal_length`?"),
        ({"length": {"optimal_length": -3}}, "reward.length.optimal_length: must be greater than or equal to 1"),
        ({"accuracy": {"correct_keywords": []}}, "reward.accuracy.correct_keywords"),
        ("{", "rewards.json"),
        ({}, "names no reward"),
    ],
)  # fmt: skip
def test_reward_files_with_a_mistake(reward_file: Callable[[Any], str], content: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(algorithm="grpo", recipes=["preference"], reward_config=reward_file(content))
    assert reason in error.value.message
    assert "rewards.json" in error.value.message
