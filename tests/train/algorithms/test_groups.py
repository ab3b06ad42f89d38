"""Groups without variance: left out, or replaced by fresh prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOTrainer, RLOOTrainer

from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.train.algorithms.groups import _replace

# Of users with an even target all texts earn the same.
REWARD = """
def half(texts, targets, histories, **kwargs):
    return [0.25 if t % 2 == 0 else len(text) / 100 for text, t in zip(texts, targets)]

def none(texts, targets, histories, **kwargs):
    return [0.25] * len(texts)
"""


def trained(
    folder: Path, how: str, reward: str, *sets: str, algorithm: str = "grpo"
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    (folder / "my.py").write_text(REWARD)
    config = load_config(
        algorithm=algorithm,
        recipes=["quick-test"],
        flags={"run.output_dir": str(folder), "reward.functions": {f"{folder}/my.py:{reward}": 1.0}},
        sets=[
            *("data.synthetic.users=60", "data.synthetic.items=20", "data.train_targets=last", "prompt.max_history=2"),
            *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=400"),
            *("generation.max_completion_length=6", "trainer.batch_size=8", "trainer.num_generations=4"),
            *("trainer.max_steps=3", "trainer.warm_start=null", "trainer.learning_rate=0.01", "eval.users=4"),
            *("eval.baselines=[]", "eval.cache_dir=null", "logging.steps=1", "logging.rollouts=999", f"run.name={how}"),
            *(f"trainer.zero_variance={how}", "reward.rank_shaping=0", "trainer.beta=0.1", *sets),
        ],
    )
    train(config, (0,))
    log, texts = folder / how / "training_log.jsonl", folder / how / "rollouts.jsonl"
    return [json.loads(line) for line in log.open()], [json.loads(line) for line in texts.open()]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What TRL's loss is given."""
    batches: list[dict[str, Any]] = []

    def watch(kind: Any) -> None:
        loss = kind._compute_loss

        def spy(self: Any, model: Any, inputs: Any) -> Any:
            batches.append(inputs)
            return loss(self, model, inputs)

        monkeypatch.setattr(kind, "_compute_loss", spy)

    watch(GRPOTrainer)
    watch(RLOOTrainer)
    return batches


def test_left_out_of_loss_and_kl(tmp_path: Path, seen: list[dict[str, Any]]) -> None:
    log, texts = trained(tmp_path, "leave_out", "half")
    for step, (record, batch) in enumerate(zip(log, seen, strict=True), 1):
        targets = [r["target"] for r in texts if r["step"] == step][::4]
        even = sum(t % 2 == 0 for t in targets)
        assert even > 0
        assert record["groups/zero_variance"] == record["groups/left_out"] >= even
        assert record["groups/refilled"] == record["groups/drawn"] == 0
        tokens_B = batch["completion_mask"].sum(1)
        assert (tokens_B == 0).sum() == 4 * record["groups/left_out"]
        assert batch["num_items_in_batch"] == tokens_B.sum()
        # A text whose tokens do not count has no advantage, and all others' groups have some.
        assert batch["advantages"][tokens_B == 0].abs().max() == 0


def test_fresh_prompts_take_their_place(tmp_path: Path, seen: list[dict[str, Any]]) -> None:
    log, texts = trained(tmp_path, "refill", "half", "trainer.refill_rounds=6")
    for step, (record, batch) in enumerate(zip(log, seen, strict=True), 1):
        assert record["groups/refilled"] > 0
        assert record["groups/left_out"] == record["groups/zero_variance"] - record["groups/refilled"]
        assert (batch["completion_mask"].sum(1) == 0).sum() == 4 * record["groups/left_out"]
        assert batch["completion_ids"].shape == batch["completion_mask"].shape
        assert sum(r["step"] == step for r in texts) == (8 + record["groups/drawn"]) * 4
        assert record["groups/drawn"] >= record["groups/refilled"]
    assert sum(r["groups/left_out"] for r in log) < sum(r["groups/zero_variance"] for r in log) / 3


@pytest.mark.parametrize("how", ["leave_out", "refill"])
def test_rloo_leaves_them_out_or_refills_too(tmp_path: Path, seen: list[dict[str, Any]], how: str) -> None:
    log, texts = trained(tmp_path, how, "half", algorithm="rloo")
    for step, (record, batch) in enumerate(zip(log, seen, strict=True), 1):
        assert record["groups/left_out"] == record["groups/zero_variance"] - record["groups/refilled"]
        assert (record["groups/refilled"] > 0) == (how == "refill")
        assert sum(r["step"] == step for r in texts) == (8 + record["groups/drawn"]) * 4
        # Of a group whose rewards differ at least two texts are not worth its mean.
        idle = int((batch["advantages"] == 0).sum())
        assert 4 * record["groups/left_out"] <= idle <= 32 - 2 * (8 - record["groups/left_out"])
        assert (batch["completion_mask"].sum(1) > 0).all()
        assert len(batch["old_logps"]) == len(batch["completion_ids"]) == 32


def test_rloo_takes_the_mean_over_the_groups_that_are_left(tmp_path: Path, seen: list[dict[str, Any]]) -> None:
    log, _ = trained(tmp_path, "leave_out", "half", "trainer.max_steps=1", algorithm="rloo")
    left_out = log[0]["groups/left_out"]
    assert 0 < left_out < 8
    trained(tmp_path, "keep", "half", "trainer.max_steps=1", algorithm="rloo")
    ours, kept = (batch["advantages"] for batch in seen)
    assert torch.allclose(ours, kept * 8 / (8 - left_out))


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "bnpo", "dapo"])
def test_every_loss_of_grpo_divides_by_the_groups_that_are_left(
    tmp_path: Path, seen: list[dict[str, Any]], loss: str
) -> None:
    sets = (f"trainer.loss_type={loss}", "trainer.beta=0", "trainer.max_steps=1")
    left_out, kept = (trained(tmp_path, how, "half", *sets)[0][0] for how in ("leave_out", "keep"))
    assert 0 < left_out["groups/left_out"] < 8
    tokens, all_tokens = (int(batch["completion_mask"].sum()) for batch in seen)
    share = tokens / all_tokens if loss in ("bnpo", "dapo") else 1 - left_out["groups/left_out"] / 8
    # Without a KL penalty groups without variance add nothing but their part of the divisor.
    assert left_out["grad_norm"] == pytest.approx(kept["grad_norm"] / share, rel=1e-4)


def test_the_bound_holds_where_nothing_ever_varies(tmp_path: Path) -> None:
    log, texts = trained(tmp_path, "refill", "none")
    assert [r["groups/left_out"] for r in log] == [8.0] * 3
    assert [sum(r["step"] == step for r in texts) for step in (1, 2, 3)] == [3 * 8 * 4] * 3
    assert [r["loss"] for r in log] == [0.0] * 3
    assert [r["grad_norm"] for r in log] == [0.0] * 3


def test_merging_pads_prompts_left_and_texts_right() -> None:
    ours = {
        "prompt_ids": torch.tensor([[1], [2]]),
        "completion_ids": torch.tensor([[5, 6], [7, 8]]),
        "completion_mask": torch.ones(2, 2, dtype=torch.long),
        "advantages": torch.tensor([0.0, 1.0]),
        "num_items_in_batch": torch.tensor(4),
    }
    theirs = {
        "prompt_ids": torch.tensor([[3, 4]]),
        "completion_ids": torch.tensor([[9]]),
        "completion_mask": torch.ones(1, 1, dtype=torch.long),
        "advantages": torch.tensor([2.0]),
        "num_items_in_batch": torch.tensor(1),
    }
    merged = _replace(ours, slice(0, 1), theirs, slice(0, 1), 99)
    assert merged["prompt_ids"].tolist() == [[3, 4], [99, 2]]
    assert merged["completion_ids"].tolist() == [[9, 99], [7, 8]]
    assert merged["completion_mask"].tolist() == [[1, 0], [1, 1]]
    assert merged["advantages"].tolist() == [2.0, 1.0]
    assert ours["prompt_ids"].tolist() == [[1], [2]]
