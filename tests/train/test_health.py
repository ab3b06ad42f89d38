"""Health rules: each on records, and each by a training run built to go wrong in its way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rl4rec_cli.commands.train import train
from rl4rec_cli.config.health import HealthSection
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.errors import HealthError, PolicyError
from rl4rec_cli.train import rollouts
from rl4rec_cli.train.health import Finding, Health, check_finite

ALL = ("entropy", "length", "truncated", "kl", "masked", "zero_variance", "overfit")
WELL = {
    "entropy": 1.0,
    "mean_length": 20.0,
    "truncated_share": 0.1,
    "kl": 0.01,
    "masked_share": 0.01,
    "zero_variance_share": 0.1,
    "avg_reward": 0.3,
}


def feed(health: Health, records: Sequence[dict[str, Any]], first: int = 1) -> list[Finding]:
    return [f for step, r in enumerate(records, first) for f in health.see({"step": step, **WELL, **r})]


@pytest.mark.parametrize(
    ("rule", "record", "said"),
    [
        ("entropy", {"entropy": 0.04}, "the policy's entropy is 0.04 nats per token, from step 2 to step 6"),
        ("entropy", {"entropy": 4.1}, "above 4 (at the start 1)"),
        ("length", {"mean_length": 3.9}, "below 4 (at the start 20)"),
        ("length", {"mean_length": 61.0}, "above 60 (at the start 20)"),
        ("truncated", {"truncated_share": 0.95}, "cut at generation.max_completion_length is 0.95"),
        ("kl", {"kl": 1.5}, "above 1 (at the start 0.01)"),
        ("masked", {"masked_share": 0.3}, "left out or cut by importance sampling is 0.3"),
        ("zero_variance", {"zero_variance_share": 1.0}, "completions all have one reward is 1,"),
    ],
)
def test_a_rule_on_records(rule: str, record: dict[str, float], said: str) -> None:
    health = Health(HealthSection())
    assert feed(health, [{}, *[record] * 4]) == []
    [found] = feed(health, [record], first=6)
    assert (found.rule, found.step, found.stops) == (rule, 6, False)
    assert said in found.seen
    assert found.advice
    assert feed(health, [record] * 20, first=7) == []
    off = Health(HealthSection.model_validate({rule: "off"}))
    assert feed(off, [{}, *[record] * 20]) == []
    stop = Health(HealthSection.model_validate({rule: "stop"}))
    assert [f.stops for f in feed(stop, [{}, *[record] * 5])] == [True]


def test_a_policy_that_begins_undecided_is_no_noise() -> None:
    start, later = {"entropy": 6.0}, {"entropy": 7.0}
    assert feed(Health(HealthSection()), [start, *[later] * 9]) == []
    assert len(feed(Health(HealthSection(entropy_share_above=1.1)), [start, *[later] * 9])) == 1


def test_one_noisy_step_is_no_sign_and_a_sign_is_told_once_an_onset() -> None:
    health = Health(HealthSection(window=3))
    low: dict[str, float] = {"entropy": 0.01}
    assert feed(health, [{}, low, low, {}, low, low]) == []
    assert len(feed(health, [low])) == 1
    # It comes and goes: the same onset.
    assert feed(health, [{}, low, {}, low, low, low, {}, {}, low, low, low]) == []
    assert feed(health, [{}, {}, {}]) == []
    assert len(feed(health, [low, low, low])) == 1


def test_what_was_not_measured_says_nothing() -> None:
    health = Health(HealthSection(window=2))
    absent: dict[str, Any] = dict.fromkeys(WELL)
    assert feed(health, [absent] * 5) == []
    assert [f for step in range(9) for f in health.see({"step": step, "kl": float("nan"), "loss": 1.0})] == []


def test_the_state_goes_on_as_if_nothing_had_been() -> None:
    low, much = {"entropy": 0.01}, {"kl": 3.0}
    records = [{}, low, low, low, {**low, **much}, much, much, {}, {}, {}, low, low, low, much, much, much]
    values = [0.3, 0.2, 0.1, 0.2, 0.1, 0.4, 0.1, 0.1]

    def run(at: int | None) -> list[Finding]:
        health, found = Health(HealthSection(window=3)), []
        for step, record in enumerate(records, 1):
            if step == at:
                state = json.loads(json.dumps(health.state()))
                health = Health(HealthSection(window=3))
                health.set_state(state)
            found += health.see({"step": step, **WELL, **record, "avg_reward": step / 10})
            if step % 2 == 0:
                found += health.see_validation(step, "ndcg@10", values[step // 2 - 1])
        return found

    expected = run(None)
    assert sorted(f.rule for f in expected) == ["entropy", "entropy", "kl", "kl", "overfit"]
    assert all(run(at) == expected for at in range(2, len(records)))


def overfit(values: Sequence[float], rewards: Sequence[float], **settings: Any) -> list[Finding]:
    """A measurement after each window of one logged step."""
    health, found = Health(HealthSection.model_validate({"window": 1, **settings})), []
    for step, (value, reward) in enumerate(zip(values, rewards, strict=True), 1):
        health.see({"step": step, **WELL, "avg_reward": reward})
        found += health.see_validation(step, "ndcg@10", value)
    return found


def test_reward_up_validation_down() -> None:
    up = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    [found] = overfit([0.1, 0.2, 0.17, 0.16, 0.15, 0.1, 0.1, 0.1], up)
    assert (found.rule, found.step) == ("overfit", 5)
    assert "ndcg@10 of validation users fell from 0.2000 after step 2 to 0.1700, 0.1600, 0.1500 at steps 3 to 5" in (
        found.seen
    )
    assert "the mean reward rose from 0.2000 to 0.5000" in found.seen
    assert overfit([0.1, 0.2, 0.17, 0.16, 0.19, 0.16, 0.17, 0.19], up) == []  # never three in a row below 0.18
    assert overfit([0.1, 0.2, 0.17, 0.16, 0.15, 0.1, 0.1, 0.1], up[::-1]) == []  # the reward falls too
    assert overfit([0.1, 0.2, 0.1, 0.1, 0.3, 0.2, 0.2, 0.2], up)[0].step == 8
    assert len(overfit([0.2, 0.1, 0.1, 0.1, 0.3, 0.1, 0.1, 0.1], up)) == 2  # a new best ends the first
    assert overfit([0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], up, overfit="off") == []


def test_what_is_not_finite() -> None:
    check_finite("loss", 1e30, step=1)
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(PolicyError, match="step 7: the loss is not finite; the step is left out"):
            check_finite("loss", value, step=7)


SMALL = (
    *("data.synthetic.users=24", "data.synthetic.items=60", "data.train_targets=last", "prompt.max_history=2"),
    *("prompt.max_prompt_length=48", "generation.max_completion_length=5", "policy.tiny.hidden_size=32"),
    *("policy.tiny.heads=2", "policy.tiny.vocab_size=400", "trainer.batch_size=4", "trainer.num_generations=4"),
    *("trainer.warm_start=null", "trainer.max_steps=6", "trainer.learning_rate=0.01", "trainer.num_train_epochs=99"),
    *("eval.users=6", "eval.baselines=[]", "eval.cache_dir=null", "eval.step_users=9", "logging.steps=1"),
    *("run.name=run", "health.window=3"),
)
REWARDS = """
def long(texts, targets, histories, **kwargs):
    return [len(t) / 10 for t in texts]

def backwards(texts, targets, histories, ranks, **kwargs):
    return [rank / 10 for rank in ranks]
"""


def trained(
    folder: Path, *sets: str, reward: str | None = None, only: str = "", algorithm: str = "grpo"
) -> tuple[list[Any], list[Any]]:
    """The records of the steps and of the health rules, of which only one is on."""
    flags: dict[str, Any] = {"run.output_dir": str(folder)}
    if reward:
        (folder / "my.py").write_text(REWARDS)
        flags["reward.functions"] = {f"{folder}/my.py:{reward}": 1.0}
    off = [f"health.{name}={'warn' if name == only else 'off'}" for name in ALL]
    config = load_config(algorithm=algorithm, recipes=["quick-test"], flags=flags, sets=[*SMALL, *off, *sets])
    train(config, (0,))
    records = [json.loads(line) for line in (folder / "run" / "training_log.jsonl").read_text().splitlines()]
    return [r for r in records if "health" not in r], [r for r in records if "health" in r]


# Each goes wrong by far, whatever the seed: rounding differs between processors, and soon so does the whole run.
WARM = (
    'trainer.warm_start={"batch_size": 8, "max_steps": 200, "num_train_epochs": 99, "learning_rate": 0.01, '
    '"target": "last"}'
)
RUNS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    # Sampling this cold is all but greedy, and TRL takes the entropy of what is sampled from.
    "entropy": (None, ("generation.temperature=0.001",)),
    "length": (
        "long",
        (
            *("trainer.learning_rate=0.02", "trainer.max_steps=12", "generation.max_completion_length=40"),
            *("health.length_share_above=1.5", WARM),
        ),
    ),
    "truncated": (None, ("health.truncated_above=0.7",)),  # a random policy does not end its texts
    "kl": (None, ("trainer.beta=1e-6", "trainer.learning_rate=0.2", "health.window=2")),
    "zero_variance": (None, ("reward.rank_shaping=0", "reward.k=1", "health.zero_variance_above=0.7")),
    "overfit": (
        "backwards",
        (
            *("eval.steps=1", "eval.step_users=24", "health.overfit_checks=2"),
            *("trainer.learning_rate=0.02", "trainer.max_steps=16", WARM),
        ),
    ),
}


@pytest.mark.parametrize("rule", RUNS)
def test_a_run_that_goes_wrong(rule: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reward, sets = RUNS[rule]
    steps, found = trained(tmp_path, *sets, reward=reward, only=rule)
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("Warning (health.")]
    assert [r["health"] for r in found] == [rule], steps
    assert len(warnings) == 1
    assert warnings[0].startswith(f"Warning (health.{rule}), step {found[0]['step']}: {found[0]['seen']}")
    assert (found[0]["phase"], found[0]["action"]) == ("grpo", "warn")
    assert found[0]["step"] >= 3


def test_texts_that_turn_to_noise(tmp_path: Path) -> None:
    """A bonus for entropy that outweighs every reward, after a warm start that made the policy sure of its texts."""
    sets = (
        *("trainer.num_generations=1", "trainer.batch_size=16", "trainer.entropy_coef=9", "trainer.max_steps=12"),
        *("trainer.learning_rate=0.03", "health.entropy_above=4"),
        'trainer.warm_start={"batch_size": 8, "max_steps": 90, "num_train_epochs": 99, "learning_rate": 0.01}',
    )
    steps, [found] = trained(tmp_path, *sets, only="entropy", algorithm="reinforce")
    assert (found["health"], found["phase"]) == ("entropy", "reinforce"), steps
    assert "above 4" in found["seen"]
    assert found["advice"].startswith("completions turn to noise")
    entropies = [step["entropy"] for step in steps if step["phase"] == "reinforce"]
    assert entropies[-1] > 3 * entropies[0]


def test_texts_that_an_engine_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever engine logs the share: here one that masks more and more."""
    write = rollouts.Rollout.write

    def masking(self: Any, prompt_ids: Any, trainer: Any) -> Any:
        trainer._metrics["train"]["masked_share"].append(0.1 * trainer.state.global_step)
        return write(self, prompt_ids, trainer)

    monkeypatch.setattr(rollouts.Rollout, "write", masking)
    steps, [found] = trained(tmp_path, only="masked")
    assert [r["masked_share"] for r in steps] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert (found["health"], found["step"]) == ("masked", 6)
    assert "from step 4 to step 6 between 0.3 and 0.5: above 0.2" in found["seen"]


def test_a_stop_keeps_the_step_and_the_run_can_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], go_on: Callable[..., None]
) -> None:
    with pytest.raises(HealthError, match=r"by health\.truncated after step 3: the share of completions cut") as caught:
        trained(tmp_path, "health.truncated=stop", only="truncated")
    assert "resume with --set health.truncated=warn" in str(caught.value.hint)
    assert "Stopped: the policy of step 3 is in" in capfd.readouterr().err
    run = tmp_path / "run"
    assert (run / "checkpoints" / "checkpoint_step_3").is_dir()
    with pytest.raises(HealthError, match="after step 6"):  # a whole window later
        go_on(run)
    go_on(run, "health.truncated=warn")
    assert (run / "checkpoints" / "checkpoint_final").is_dir()
    records = [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "health" not in r] == [1, 2, 3, 4, 5, 6]
    assert [(r["step"], r["action"]) for r in records if "health" in r] == [(3, "stop"), (6, "stop")]


@pytest.fixture
def go_on() -> Callable[..., None]:
    def resume(folder: Path, *sets: str) -> None:
        config = load_config(algorithm="grpo", recipes=[str(folder / "config.yaml")], sets=sets)
        train(config, (config.run.seed,), resume=folder)

    return resume
