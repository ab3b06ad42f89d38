"""Weights in 4 and 8 bits by bitsandbytes and transformers, on the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from rl4rec_cli.config.policy import FourBitSection, LoraSection, PolicySection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.errors import ConfigError, PolicyError
from rl4rec_cli.policy import pretrained
from rl4rec_cli.policy.generation import generate_texts
from rl4rec_cli.policy.loading import Policy, load_policy, save_policy
from rl4rec_cli.policy.merging import load_merged

pytestmark = [
    pytest.mark.unsloth,
    pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes; `make test-unsloth` installs it"),
]
GREEDY = Sampling(max_new_tokens=12, temperature=0.0)
IDS = torch.arange(3, 40)[None]
LORA = LoraSection(r=4)
KINDS = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}


def load(model: Path, quantization: str, *, trainable: bool = True, **settings: Any) -> Policy:
    given: dict[str, Any] = {"dtype": "fp32", "lora": LORA, "device": "cpu", "backend": "hf", **settings}
    section = PolicySection.model_validate({"model": str(model), "quantization": quantization, **given})
    return load_policy(section, trainable=trainable, seed=1)


def write(policy: Policy) -> list[str]:
    prompts = [policy.tokenizer(text)["input_ids"] for text in ("rose hand cream\n", "mint", "honey lip balm\n")]
    return generate_texts(policy, prompts, GREEDY, batch_size=3)


def teach(policy: Policy, steps: int = 5) -> dict[str, torch.Tensor]:
    """Train the adapter a little; what it was before."""
    trained = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=1.0)
    policy.model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        policy.model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    policy.model.eval()
    return before


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_learns_over_weights_that_stay(kind: str, tiny_folder: Path) -> None:
    policy = load(tiny_folder, kind)
    held = {n: m.weight.detach().clone() for n, m in policy.model.named_modules() if type(m).__name__ == KINDS[kind]}
    assert len(held) >= 14
    assert {w.dtype for w in held.values()} == {torch.uint8 if kind == "4bit" else torch.int8}
    assert all("lora_" in n for n, p in policy.model.named_parameters() if p.requires_grad)
    write(
        policy
    )  # bitsandbytes packs layers anew when they first write, and no gradient would pass back through them from then on
    before = teach(policy)
    after = dict(policy.model.named_parameters())
    assert before
    assert [n for n in before if torch.equal(before[n], after[n])] == []
    weights = {n: m.weight for n, m in policy.model.named_modules() if n in held}
    assert [n for n in held if not torch.equal(held[n], weights[n])] == []


def test_without_the_trainable_layout_nothing_would_be_learnt(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap itself: when this fails, bitsandbytes mended it, and `keep_trainable_layout` can go."""
    from bitsandbytes.nn.modules import Linear4bit

    if not Linear4bit(64, 64).support_avx512bf16_for_cpu:
        pytest.skip("this processor has no AVX512-BF16, for which bitsandbytes packs layers")
    monkeypatch.setattr(pretrained, "keep_trainable_layout", lambda model: None)
    policy = load(tiny_folder, "4bit")
    write(policy)
    policy.model(IDS, labels=IDS).loss.backward()
    given = {n: p.grad for n, p in policy.model.named_parameters() if "lora_B" in n}
    assert not all(g is not None and g.any() for g in given.values())


def test_the_form_of_4_bits_is_as_asked(tiny_folder: Path) -> None:
    def config(**four_bit: Any) -> Any:
        return load(tiny_folder, "4bit", four_bit=FourBitSection(**four_bit)).model.config.quantization_config

    own = config()
    assert (own.bnb_4bit_quant_type, own.bnb_4bit_use_double_quant) == ("nf4", True)
    assert own.bnb_4bit_compute_dtype == torch.float32
    other = config(quant_type="fp4", double_quantization=False, compute_dtype="bf16")
    assert (other.bnb_4bit_quant_type, other.bnb_4bit_use_double_quant) == ("fp4", False)
    assert other.bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.parametrize(("kind", "dtype"), [("none", "fp32"), ("4bit", "fp32"), ("4bit", "bf16"), ("8bit", "fp32")])
def test_what_is_reloaded_and_what_is_merged_writes_the_same(
    kind: str, dtype: str, tiny_folder: Path, tmp_path: Path
) -> None:
    policy = load(tiny_folder, kind, dtype=dtype)
    plain = write(policy)
    teach(policy, 20)
    expected = write(policy)
    assert expected != plain
    save_policy(policy, tmp_path / "adapter")
    again = load(tmp_path / "adapter", kind, trainable=False, dtype=dtype)
    assert write(again) == expected
    section = PolicySection(quantization=kind, lora=LORA, device="cpu", dtype=dtype, backend="hf")  # type: ignore[arg-type]
    merged = load_merged(section, tmp_path / "adapter")
    assert not any(type(m).__name__ in KINDS.values() for m in merged.model.modules())
    assert {p.dtype for p in merged.model.parameters()} == {policy.model.dtype}
    if dtype == "fp32" and kind != "8bit":  # 8 bits round what goes through a layer, too
        assert write(merged) == expected
        with torch.no_grad():
            torch.testing.assert_close(merged.model(IDS).logits, policy.model(IDS).logits, atol=1e-4, rtol=1e-4)
    save_policy(merged, tmp_path / "merged")
    plain_again = load_policy(PolicySection(model=str(tmp_path / "merged"), device="cpu", dtype=dtype))  # type: ignore[arg-type]
    assert write(plain_again) == write(merged)
    sixteen = load_merged(section, tmp_path / "adapter", dtype="bf16")
    assert {p.dtype for p in sixteen.model.parameters()} == {torch.bfloat16}


def test_a_model_that_is_stored_in_4_bits(tiny_folder: Path, tmp_path: Path) -> None:
    stored = load(tiny_folder, "4bit", trainable=False, lora=None)
    expected = write(stored)
    save_policy(stored, tmp_path / "stored")
    assert write(load(tmp_path / "stored", "4bit", trainable=False)) == expected
    for kind in ("none", "8bit"):
        with pytest.raises(ConfigError, match=f"is stored in 4bit, but policy.quantization={kind}"):
            load(tmp_path / "stored", kind)


def test_what_does_not_come_as_asked_is_refused(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_quantization", lambda section, device: None)
    with pytest.raises(PolicyError, match=r"policy\.quantization=4bit, but the weights of .* came as none"):
        load(tiny_folder, "4bit")


def test_targets_that_match_nothing(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.lora\.target_modules=\['nothing'\]"):
        load(tiny_folder, "4bit", lora=LoraSection(target_modules=("nothing",)))


def test_a_moved_folder_does_not_matter(
    tiny_folder: Path, tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "a" / "base")
    policy = load(tmp_path / "a" / "base", "4bit")
    teach(policy)
    save_policy(policy, tmp_path / "a" / "adapter")
    expected = write(policy)
    (tmp_path / "a").rename(tmp_path / "b")
    assert write(load(tmp_path / "b" / "adapter", "4bit", trainable=False)) == expected
