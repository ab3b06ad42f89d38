"""Texts that an engine sampled: weighed by how far its probabilities are from the trainer's, against brute force."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.policy import VllmSection
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.engine.vllm import Handover
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.policy.backend import check_engine
from rl4rec_cli.policy.generation import generate_ids
from rl4rec_cli.train.engine_rollouts import weigh_texts

SMALL = (
    *("data.synthetic.users=40", "data.synthetic.items=25", "policy.tiny.hidden_size=32", "policy.tiny.heads=2"),
    *("policy.tiny.vocab_size=400", "generation.max_completion_length=6", "prompt.max_history=2"),
    *("trainer.warm_start=null", "trainer.num_train_epochs=99", "trainer.max_steps=6", "trainer.learning_rate=0.01"),
    *("eval.users=6", "eval.baselines=[]", "eval.cache_dir=null", "logging.steps=1", "run.name=r", "health.window=3"),
    *("generation.engine=vllm", "policy.tiny.head_dim=16"),
)


class StandIn:
    """Writes by transformers, and says other log-probabilities than the policy's: `off` less for each token."""

    def __init__(self, off: float) -> None:
        self.off, self.closed = off, False

    def write(
        self, model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, ends: Sequence[int]
    ) -> tuple[list[list[int]], list[list[float]]]:
        ids = generate_ids(model, SimpleNamespace(pad_token_id=model.generation_config.pad_token_id), prompts, sampling)
        logps = []
        for prompt, text in zip(prompts, ids, strict=True):
            with torch.no_grad():
                given = torch.tensor([[*prompt, *text]])
                scores = torch.log_softmax(model(input_ids=given).logits[0, len(prompt) - 1 : -1], -1)
            own = scores.gather(-1, torch.tensor(text)[:, None])[:, 0]
            logps.append((own - self.off).tolist())
        return ids, logps

    def take_handovers(self) -> list[Handover]:
        return [Handover(0.5, 100), Handover(0.25, 10)]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    from rl4rec_cli.commands.train import train
    from rl4rec_cli.engine import vllm
    from rl4rec_cli.policy import backend

    monkeypatch.setattr(backend, "check_installed", lambda what: None)
    monkeypatch.setattr(backend, "check_head", lambda *_: None)

    def run(algorithm: str, off: float, *sets: str) -> list[dict[str, Any]]:
        engine = StandIn(off)
        monkeypatch.setattr(vllm, "make_engine", lambda config, log=None: engine)
        batch = ("trainer.batch_size=4", "trainer.num_generations=4")
        if algorithm in ("ppo", "reinforce"):
            batch = ("trainer.batch_size=16",) + (("trainer.mini_batch_size=8",) if algorithm == "ppo" else ())
        config = load_config(
            algorithm=algorithm, recipes=["quick-test"], sets=[*SMALL, *batch, *sets, f"run.output_dir={tmp_path}"]
        )
        train(config, (0,))
        assert engine.closed
        lines = (tmp_path / "r" / "training_log.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo", "reinforce"])
def test_a_distance_is_logged_corrected_and_warned_of(
    algorithm: str, train: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine gives every token e times less than the trainer computes: every weight is cut at 1.5."""
    more = ("trainer.ppo_epochs=1",) if algorithm == "ppo" else ()  # two updates from each batch of texts
    lines = train(algorithm, 1.0, "generation.vllm.correction_max=1.5", *more)
    steps = [line for line in lines if "masked_share" in line]
    assert len(steps) == {"ppo": 3}.get(algorithm, 6)
    for line in steps:
        assert line["logp_difference"] == pytest.approx(1.0, abs=1e-4)
        assert line["masked_share"] == 1.0
        assert line["importance_ratio"] == pytest.approx(1.5)
        assert line["handover_seconds"] == 0.75
        assert line["handover_bytes"] == 110
    (told,) = [line for line in lines if line.get("health") == "masked"]
    assert "the share left out or cut by importance sampling is 1" in told["seen"]
    third = 5 if algorithm == "ppo" else 3
    assert f"Warning (health.masked), step {third}" in capsys.readouterr().err


def test_texts_are_weighed_as_said() -> None:
    generator = torch.Generator().manual_seed(0)
    old_B, advantages_B = torch.randn(5, generator=generator) - 3, torch.randn(5, generator=generator)
    sampled = [[-0.5, -2.0], [-9.0], [-1.0, -1.0, -1.5], [-3.3], [-2.9]]
    mask_BT = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]])
    for correction in ("auto", "sequence_truncate", "sequence_mask", "none"):
        output: dict[str, Any] = {"old_logps": old_B, "advantages": advantages_B.clone(), "completion_mask": mask_BT}
        metrics: dict[str, list[float]] = defaultdict(list)
        weigh_texts(output, sampled, VllmSection(correction=correction, correction_max=2.0), metrics)
        for row in range(5):
            ratio = math.exp(float(old_B[row]) - sum(sampled[row])) if mask_BT[row].any() else 1.0
            if correction == "none":
                ratio = 1.0
            elif ratio > 2.0:
                ratio = 0.0 if correction == "sequence_mask" else 2.0
            assert float(output["advantages"][row]) == pytest.approx(float(advantages_B[row]) * ratio, rel=1e-5)
        if correction == "none":
            assert metrics == {}
            continue
        rows = zip(old_B, sampled, mask_BT, strict=True)
        gaps = [abs(float(o) - sum(s)) / int(m.sum()) if m.any() else 0.0 for o, s, m in rows]
        assert metrics["sampling/sampling_logp_difference/mean"] == [pytest.approx(sum(gaps) / 5)]
        assert metrics["sampling/sampling_logp_difference/max"] == [pytest.approx(max(gaps))]
        assert any(ratio > 1.99 for ratio in output["importance_sampling_ratio"].flatten()) != (
            correction == "sequence_mask"
        )


def load(*sets: str, algorithm: str = "grpo") -> RunConfig:
    return load_config(algorithm=algorithm, recipes=["quick-test"], sets=["generation.engine=vllm", *sets])


def test_heads_are_wide_enough_where_vllm_writes_and_left_alone_where_not() -> None:
    assert load().policy.tiny.head_width == 32
    assert load("policy.tiny.hidden_size=256").policy.tiny.head_dim is None
    assert load("generation.engine=transformers").policy.tiny.head_width == 16
    assert load("policy.tiny.head_dim=16").policy.tiny.head_width == 16


def test_rloo_has_no_tokens_to_weigh() -> None:
    with pytest.raises(ConfigError, match="rloo learns from whole completions"):
        load("generation.vllm.correction=token_mask", algorithm="rloo")


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["policy.tiny.head_dim=16"], "has no attention for heads 16 wide"),
        (["generation.vllm.sleep=true"], "sleep needs a GPU"),
        (["policy.lora.r=4", "policy.quantization=4bit"], "cannot hold the weights in 4bit without a GPU"),
        (["policy.lora.r=4", "policy.quantization=8bit"], "cannot hold the weights in 8bit"),
        (["policy.fast_inference=true"], "are two engines"),
        (["generation.vllm.server=http://127.0.0.1:1"], "takes adapters, but all weights are trained"),
    ],
)
def test_what_cannot_go_together_is_refused(sets: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl4rec_cli.policy import backend

    monkeypatch.setattr(backend, "check_installed", lambda what: None)
    config = load(*sets)
    with pytest.raises(ConfigError, match=said):
        check_engine(config.generation, config.policy)
