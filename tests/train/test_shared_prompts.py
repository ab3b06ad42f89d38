"""Prompts that are read once: the numbers of whole sequences, fewer tokens read, and models that cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, set_seed

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.errors import ConfigError, PolicyError
from rl4rec_cli.policy.generation import generate_ids
from rl4rec_cli.train.rl_trainer import RLTrainer

SETS = (
    *("data.synthetic.users=24", "data.synthetic.items=20", "data.train_targets=last"),
    *("prompt.max_history=3", "prompt.max_prompt_length=64", "generation.max_completion_length=6"),
    *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=400"),
    *("trainer.batch_size=4", "trainer.num_generations=4", "trainer.gradient_accumulation_steps=1"),
    *("trainer.max_steps=2", "trainer.learning_rate=0.01", "trainer.warm_start=null", "generation.temperature=0.7"),
)
SHAPE: dict[str, Any] = {
    **{"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
}


def configured(*sets: str, algorithm: str = "grpo") -> RunConfig:
    return load_config(algorithm=algorithm, recipes=["quick-test"], sets=[*SETS, *sets])


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """The tokens of each pass through a model."""
    passes: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, args, __: passes.append(args[0].numel()))
    try:
        yield passes
    finally:
        hook.remove()


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_log_probabilities_and_gradients_are_those_of_whole_sequences(algorithm: str, batch_size: int | None) -> None:
    """With prompts of different lengths, completions that end early, and rows in any order."""
    draw = torch.Generator().manual_seed(0)
    with RLTrainer(configured("generation.share_prompts=true", algorithm=algorithm)) as opened:
        trainer, model = opened._trainer, opened.policy.model.double()
        width, tokens, rows = 9, 6, 12
        lengths = torch.tensor([9, 4, 7]).repeat(4)[torch.randperm(rows, generator=draw)]
        prompts_BP = torch.randint(5, 400, (3, width), generator=draw)[
            (lengths == 4).long() + 2 * (lengths == 7).long()
        ]
        mask_BP = (torch.arange(width) >= width - lengths[:, None]).long()
        prompts_BP = prompts_BP * mask_BP
        ends = torch.randint(1, tokens + 1, (rows,), generator=draw)
        mask_BT = (torch.arange(tokens) < ends[:, None]).long()
        ids_BL = torch.cat([prompts_BP, torch.randint(5, 400, (rows, tokens), generator=draw) * mask_BT], 1)
        mask_BL = torch.cat([mask_BP, mask_BT], 1)
        weights_BT = torch.randn(rows, tokens, generator=draw, dtype=torch.float64) * mask_BT
        found = []
        for shares in (True, False):
            trainer._shares_prompts = shares
            model.zero_grad()
            with counted(model) as passes:
                logps_BT, entropies_BT, _ = trainer._get_per_token_logps_and_entropies(
                    model, ids_BL, mask_BL, tokens, batch_size=batch_size, compute_entropy=True
                )
            (logps_BT.double() * weights_BT).sum().backward()
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            found.append((logps_BT * mask_BT, entropies_BT * mask_BT, gradients, sum(passes)))
        ours, theirs = found
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-6, atol=1e-6)
        assert ours[2].keys() == theirs[2].keys()
        for name in ours[2]:
            torch.testing.assert_close(ours[2][name], theirs[2][name], rtol=1e-6, atol=1e-6)
        assert theirs[3] == rows * (width + tokens)
        if batch_size is None:
            assert ours[3] == 3 * width + rows * (tokens - 1)
        assert ours[3] < theirs[3]


class _Tokenizer:
    pad_token_id = 0
    eos_token_id = 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_completions_are_those_of_prompts_read_each(temperature: float) -> None:
    set_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).double().eval()
    prompts = [[5, 6, 7, 8, 9], [11, 12], [5, 6, 7, 8, 9], [11, 12], [20, 21, 22], [5, 6, 7, 8, 9]]
    written, read = [], []
    for shares in (True, False):
        set_seed(4)
        with counted(model) as passes:
            sampling = Sampling(max_new_tokens=8, temperature=temperature, share_prompts=shares)
            written.append(generate_ids(model, _Tokenizer(), prompts, sampling))
        read.append(passes)
    assert written[0] == written[1]
    assert read[1][0] == 6 * 5
    assert read[0][:2] == [3 * 4, 6]
    # Prompts that all differ are read as ever.
    with counted(model) as passes:
        generate_ids(model, _Tokenizer(), [[5, 6], [7, 8, 9]], Sampling(2, 0.0, share_prompts=True))
    assert passes[0] == 2 * 3


def test_a_step_is_the_same_step() -> None:
    records, weights = [], []
    for shares in ("true", "false"):
        with RLTrainer(configured(f"generation.share_prompts={shares}")) as trainer:
            with counted(trainer.policy.model) as passes:
                records.append(trainer.train_step())
            records[-1]["read"] = sum(passes)
            weights.append({name: p.detach().clone() for name, p in trainer.policy.model.named_parameters()})
    ours, theirs = records
    assert ours["avg_reward"] == theirs["avg_reward"]
    assert ours["entropy"] == pytest.approx(theirs["entropy"], rel=1e-4)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    assert ours["read"] < 0.6 * theirs["read"]


def test_what_keeps_more_than_keys_and_values_is_refused() -> None:
    set_seed(1)
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)).eval()
    with pytest.raises(PolicyError, match=r"keeps more of a prompt than plain keys and values \(DynamicSliding"):
        generate_ids(model, _Tokenizer(), [[5, 6, 7]] * 2, Sampling(2, 1.0, share_prompts=True))


def test_gradient_checkpointing_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"generation\.share_prompts: gradient checkpointing keeps no keys and values"
    ):
        configured("generation.share_prompts=true", "trainer.gradient_checkpointing=true")
