"""The reference of the KL term: no second model beside an adapter, and the same numbers as one would give."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.data.dataset import build_examples
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.data.prompts import PromptBuilder
from rl4rec_cli.files.logs import JsonLines
from rl4rec_cli.policy.loading import load_policy, save_policy
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.rewards.scorer import Scorer
from rl4rec_cli.train.algorithms.opening import open_lesson, open_trainer
from rl4rec_cli.train.environments import Environment
from rl4rec_cli.train.parts import TrainerParts

SMALL = (
    *("data.synthetic.users=24", "data.synthetic.items=20", "generation.max_completion_length=6"),
    *("policy.tiny.vocab_size=400", "trainer.warm_start=null", "trainer.beta=0.1", "retrieval.lsa_dim=16"),
    *("trainer.batch_size=2", "trainer.num_generations=4"),
)
needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="needs bitsandbytes; `make test-unsloth` installs it"
)
CASES = {
    "full": (),
    "adapter": ("policy.lora.r=4",),
    "trained adapter": ("policy.lora.r=4",),
    "4-bit adapter": ("policy.lora.r=4", "policy.quantization=4bit"),
}


def move(model: Any, by: float) -> None:
    """What training does, at once."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn(parameter.shape, generator=draw)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[needs_bitsandbytes, pytest.mark.unsloth] if "4-bit" in name else ()) for name in CASES],
)
def test_the_divergence_is_that_from_a_true_copy(case: str, algorithm: str, tmp_path: Path) -> None:
    config = load_config(algorithm=algorithm, recipes=["quick-test"], sets=SMALL)
    dataset = open_dataset(config.data)
    save_policy(load_policy(config.policy, dataset=dataset, seed=5), tmp_path / "base")
    sets = (*SMALL, *CASES[case], f"policy.model={tmp_path / 'base'}")
    config = load_config(algorithm=algorithm, recipes=["quick-test"], sets=sets)
    policy = load_policy(config.policy, seed=5, trainable=True)
    if case == "full":  # TRL reads the reference by this name, as a run arranges it
        policy.model.config._name_or_path = str(tmp_path / "base")
    if case == "trained adapter":
        move(policy.model, 0.05)
    true_copy = copy.deepcopy(policy.model)
    assert policy.model is not true_copy

    examples = build_examples(dataset, "train")
    log = JsonLines(tmp_path / "rollouts.jsonl")
    scorer = Scorer(open_retriever(config.retrieval, dataset), config.reward)
    builder = PromptBuilder(config.prompt, dataset, policy.tokenizer)
    environment = Environment(dataset, scorer.retriever, scorer, builder, examples)
    lesson = open_lesson(config.trainer, config.generation, policy, [environment], log, shown=0)
    trainer = open_trainer(TrainerParts(config.trainer, config, policy, 2, tmp_path / "scratch", lesson))
    # A second model is in memory where all weights are trained, and nowhere else.
    assert (trainer.ref_model is not None) == (case == "full")
    move(policy.model, 0.05)
    trainer.model.train()
    inputs = [lesson.rows[i // 4] for i in range(8)]
    kept = policy.model.state_dict()
    output = trainer._generate_and_score_completions(inputs)
    log.close()
    if algorithm == "rloo":  # where the divergence is part of the reward, TRL logs it and keeps no reference
        kl_logged = trainer._metrics["train"]["kl"][-1]
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    tokens, chosen = output["completion_ids"].size(1), output["completion_mask"].bool()

    def log_probabilities(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found = trainer._get_per_token_logps_and_entropies(model, ids, mask, tokens)
        return found[0][chosen]

    ours, reference = log_probabilities(policy.model), log_probabilities(true_copy)
    assert (ours - reference).abs().max() > 0.01
    if algorithm == "rloo":
        assert kl_logged == pytest.approx((ours - reference).mean().item(), abs=1e-4)
    else:
        torch.testing.assert_close(output["ref_per_token_logps"][chosen], reference, atol=1e-4, rtol=0)
    assert all(torch.equal(kept[name], value) for name, value in policy.model.state_dict().items())
