"""A merged policy computes what the adapter on its base computes, whatever the adapter changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rl4rec_cli.commands import export
from rl4rec_cli.config.policy import LoraSection, PolicySection
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.engine.limits import check_fits
from rl4rec_cli.engine.vllm import VllmEngine
from rl4rec_cli.engine.weights import adapts_tied_ends, whole_tensors
from rl4rec_cli.errors import ConfigError, PolicyError
from rl4rec_cli.policy import merging
from rl4rec_cli.policy.agreement import largest_difference, limit_of, logits_of
from rl4rec_cli.policy.loading import Policy, load_policy, save_policy
from rl4rec_cli.policy.merging import load_merged

TARGETS = [("lm_head",), ("embed_tokens",), ("embed_tokens", "lm_head"), ("q_proj",)]
SEQUENCES = [[5, 17, 4, 230], [9]]


def adapted(base: Path, targets: tuple[str, ...]) -> Policy:
    """A policy with an adapter of random weights on a base whose two ends share theirs."""
    lora = LoraSection(r=4, alpha=8, target_modules=targets)
    policy = load_policy(PolicySection(model=str(base), device="cpu", lora=lora), trainable=True, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("targets", TARGETS)
def test_an_adapter_on_either_end_of_a_tied_base_is_merged_into_that_end_alone(
    targets: tuple[str, ...], tiny_folder: Path, tmp_path: Path
) -> None:
    policy = adapted(tiny_folder, targets)
    trained = logits_of(policy.model, SEQUENCES)
    base = logits_of(AutoModelForCausalLM.from_pretrained(tiny_folder), SEQUENCES)
    assert largest_difference(trained, base) > 0.1
    save_policy(policy, tmp_path / "adapter")
    merged = load_merged(PolicySection(device="cpu", lora=LoraSection(r=4)), tmp_path / "adapter")
    merged.model.save_pretrained(tmp_path / "merged")
    read: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert largest_difference(trained, logits_of(read, SEQUENCES)) < 1e-5
    # What was shared and is equal still stays shared: the files are no larger than they must be.
    assert read.config.tie_word_embeddings == (targets == ("q_proj",))
    handed: Any = AutoModelForCausalLM.from_pretrained(tiny_folder, tie_word_embeddings=False)
    handed.load_state_dict(whole_tensors(policy.model))
    assert largest_difference(trained, logits_of(handed, SEQUENCES)) < 1e-5


@pytest.mark.parametrize("targets", TARGETS)
def test_vllm_gets_such_an_adapter_merged_or_not_at_all(targets: tuple[str, ...], tiny_folder: Path) -> None:
    policy = adapted(tiny_folder, targets)
    on_ends = targets != ("q_proj",)
    assert adapts_tied_ends(policy.model) == on_ends
    assert not engine(handover="auto")._swaps(policy.model)
    if on_ends:
        with pytest.raises(ConfigError, match="changes the embedding or the head of a base"):
            engine(handover="adapter")._swaps(policy.model)
        policy.model.to(torch.bfloat16)  # where other adapters are swapped
        assert not engine(handover="auto")._swaps(policy.model)
    else:
        assert engine(handover="adapter")._swaps(policy.model)


def engine(**vllm: Any) -> VllmEngine:
    return VllmEngine(RunConfig.model_validate({"generation": {"engine": "vllm", "vllm": vllm}}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "its use_dora"),
        ({"bias": "all"}, "its bias=all"),
        ({"trainable_token_indices": [3]}, "its trainable_token_indices"),
        ({"modules_to_save": ["lm_head"]}, "its modules_to_save"),
        ({"rank_pattern": {"q_proj": 1024}}, "rank 1024"),
    ],
)
def test_vllm_refuses_adapters_that_are_more_than_added_products(
    change: dict[str, Any], said: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = adapted(tiny_folder, ("q_proj",))
    monkeypatch.setattr("rl4rec_cli.engine.limits.check_head", lambda *_: None)  # the tiny policy's is narrow
    section, generation = PolicySection(), RunConfig().generation
    check_fits(policy.model, section, generation)
    for name, value in change.items():
        setattr(policy.model.peft_config["default"], name, value)
    with pytest.raises(ConfigError, match=f"cannot take this adapter: {said}"):
        check_fits(policy.model, section, generation)


def test_a_merge_that_is_another_model_is_refused_and_leaves_nothing(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    save_policy(adapted(tiny_folder, ("lm_head",)), run / "checkpoints" / "checkpoint_final")
    lora = {"r": 4, "target_modules": ["lm_head"]}
    (run / "config.yaml").write_text(
        json.dumps({"data": {"synthetic": {}}, "policy": {"model": str(tiny_folder), "device": "cpu", "lora": lora}})
    )
    out = tmp_path / "out"
    options: dict[str, Any] = {"form": "merged", "output": str(out), "dtype": "auto", "push_to": None, "public": False}
    monkeypatch.setattr(merging, "_untie", lambda model: False)  # as PEFT merges by itself
    with pytest.raises(PolicyError, match="the merged model is not what was trained"):
        export.export(str(run), **options)
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    monkeypatch.undo()
    export.export(str(run), **options)
    assert (out / "model.safetensors").is_file()


def test_limits_grow_with_the_rounding() -> None:
    fp32, fp16, bf16 = torch.float32, torch.float16, torch.bfloat16
    assert limit_of(fp32, fp32, is_quantised=False) < limit_of(fp32, fp16, is_quantised=False)
    assert limit_of(fp16, fp32, is_quantised=False) < limit_of(bf16, fp16, is_quantised=False)
    assert limit_of(fp32, fp32, is_quantised=True) == limit_of(fp16, fp32, is_quantised=False)
    assert largest_difference([torch.ones(2, 3)], [torch.ones(2, 4)]) == float("inf")
    assert largest_difference([torch.tensor([[1.0, 2.0]])], [torch.tensor([[1.0, float("nan")]])]) == float("inf")
