"""What holds on a GPU, where the libraries' sources say that it would fail or be other than asked: without one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rl4rec_cli import variables
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.policy import LoraSection, PolicySection
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.engine import process
from rl4rec_cli.engine.process import VllmProcess
from rl4rec_cli.errors import ConfigError, EngineError
from rl4rec_cli.policy import backend, unsloth_loading
from rl4rec_cli.policy.backend import check_engine, check_one_gpu
from rl4rec_cli.policy.pretrained import find_dtype
from rl4rec_cli.policy.sources import find_source
from rl4rec_cli.policy.unsloth_loading import load_by_unsloth
from rl4rec_cli.train.arguments import resolve_precision


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that there is a GPU, and every package."""
    monkeypatch.setattr(backend, "find_spec", lambda name: object())
    monkeypatch.setattr(process, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def pretend(*, has_bf16: bool) -> None:
        def supported(including_emulation: bool = True) -> bool:
            return has_bf16 or including_emulation

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)

    pretend(has_bf16=True)
    return pretend


def source_of(module: str) -> str:
    spec = find_spec(module.partition(".")[0])
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0], *module.split(".")[1:])
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


# Processes of ours get the environment as it was before Unsloth


def test_children_do_not_inherit_what_an_import_put_into_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variables, "_changed_by_import", {})
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "10")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with variables.import_noted():
        for name, value in {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "HF_HUB_ETAG_TIMEOUT": "30"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("TRITON_INTERPRET")
        monkeypatch.setenv("UNSLOTH_IS_PRESENT", "1")
    child = variables.child_environment()
    assert "PYTORCH_ALLOC_CONF" not in child
    assert "UNSLOTH_IS_PRESENT" not in child
    assert (child["HF_HUB_ETAG_TIMEOUT"], child["TRITON_INTERPRET"]) == ("10", "1")
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "60")  # changed since, by somebody who means it
    assert variables.child_environment()["HF_HUB_ETAG_TIMEOUT"] == "60"
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.parametrize(
    ("given", "handed"),
    [
        ("expandable_segments:True", None),
        ("max_split_size_mb:64,expandable_segments:True", "max_split_size_mb:64"),
        ("max_split_size_mb:64", "max_split_size_mb:64"),
    ],
)
def test_vllm_gets_no_expandable_segments_by_the_name_that_it_does_not_know(
    given: str, handed: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(process, "find_spec", lambda name: object())
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", given)
    shows = "import os; print('has', os.environ.get('PYTORCH_ALLOC_CONF'), flush=True)"
    with pytest.raises(EngineError):
        VllmProcess("a test", {}, log=tmp_path / "log", timeout=60.0, command=(sys.executable, "-c", shows))
    assert (tmp_path / "log").read_text() == f"has {handed}\n"


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vllm; `make test-vllm` installs it")
def test_vllm_still_knows_expandable_segments_by_the_older_name_alone() -> None:
    """Where this fails, look whether `child_environment` is still right."""
    text = source_of("vllm.device_allocator.cumem")
    assert 'os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")' in text
    assert '"PYTORCH_ALLOC_CONF"' not in text
    assert "assert inputs.dtype in [torch.float16, torch.bfloat16]" in (
        source_of("vllm.lora.ops.triton_ops.lora_shrink_op")
    )


@pytest.mark.unsloth
@pytest.mark.skipif(find_spec("unsloth") is None, reason="needs unsloth; `make test-unsloth` installs it")
def test_unsloth_still_has_what_is_worked_around() -> None:
    """Where this fails, look whether `import_unsloth` and `child_environment` are still right."""
    assert 'os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"' in source_of("unsloth_zoo")
    assert "def patch_trl_disable_gradient_checkpointing():" in source_of("unsloth.models.rl")


# What is refused before anything is loaded


def engine_config(**sets: Any) -> RunConfig:
    texts = [f"{key.replace('__', '.')}={value}" for key, value in sets.items()]
    return load_config(algorithm="grpo", sets=["policy.lora.r=8", "generation.engine=vllm", *texts])


def check(**sets: Any) -> None:
    config = engine_config(**sets)
    check_engine(config.generation, config.policy)


REFUSED = {
    "fp32 and 4 bits": ({"policy__dtype": "fp32", "policy__quantization": "4bit"}, "policy.quantization=4bit with"),
    "fp32 and an adapter": (
        {"policy__dtype": "fp32", "generation__vllm__handover": "adapter"},
        "generation.vllm.handover=adapter with policy.dtype=fp32",
    ),
    "fp32 and a server": (
        {"policy__dtype": "fp32", "generation__vllm__server": "http://127.0.0.1:1"},
        "generation.vllm.server with policy.dtype=fp32",
    ),
    "fp4": ({"policy__quantization": "4bit", "policy__four_bit__quant_type": "fp4"}, "nf4 with double quantisation"),
    "no double quantisation": (
        {"policy__quantization": "4bit", "policy__four_bit__double_quantization": "false"},
        "nf4 without it",
    ),
    "4 bits computed in fp16": ({"policy__quantization": "4bit", "policy__dtype": "fp16"}, "this policy in fp16"),
    "4 bits computed apart": (
        {"policy__quantization": "4bit", "policy__dtype": "bf16", "policy__four_bit__compute_dtype": "fp32"},
        "this policy in fp32",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_vllm_would_compute_otherwise_is_refused(case: str, gpu: Any) -> None:
    sets, said = REFUSED[case]
    with pytest.raises(ConfigError, match=re.escape(said)):
        check(**sets)


@pytest.mark.parametrize(
    "sets",
    [
        {},
        {"policy__dtype": "fp32"},
        {"policy__quantization": "4bit"},
        {"policy__quantization": "4bit", "policy__dtype": "bf16"},
    ],
)
def test_what_vllm_computes_as_asked_is_taken(sets: dict[str, Any], gpu: Any) -> None:
    check(**sets)


def test_unsloth_s_engine_is_given_no_critic_s_adapter() -> None:
    sets = ["policy.lora.r=8", "policy.fast_inference=true"]
    load_config(algorithm="ppo", sets=[*sets, "trainer.critic=head"])
    with pytest.raises(ConfigError, match=r"trainer\.critic: with policy\.fast_inference the engine would be given"):
        load_config(algorithm="ppo", sets=[*sets, "trainer.critic=adapter"])


def test_training_on_another_gpu_than_the_first_is_refused_with_the_way_out() -> None:
    for device in ("auto", "cpu", "cuda", "cuda:0"):
        check_one_gpu(device)
    with pytest.raises(ConfigError, match=r"policy\.device=cuda:2: training takes the first GPU") as caught:
        check_one_gpu("cuda:2")
    assert caught.value.hint == "let it see that one alone: CUDA_VISIBLE_DEVICES=2 with policy.device=cuda"


# 16 bits that the GPU has


def test_a_gpu_without_bf16_computes_in_fp16_and_not_by_emulation(gpu: Any) -> None:
    section = load_config(algorithm="grpo").trainer
    for has_bf16, half in ((True, "bf16"), (False, "fp16")):
        gpu(has_bf16=has_bf16)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[half]
        assert find_dtype("auto", "cuda:0") == dtype
        assert resolve_precision(section, "cuda:0") == half
        assert find_dtype("auto", "cuda", trains_all=True) == (torch.bfloat16 if has_bf16 else torch.float32)
    assert (find_dtype("auto", "cpu"), resolve_precision(section, "cpu")) == (torch.float32, "fp32")
    assert find_dtype("fp16", "cuda") == torch.float16
    with pytest.raises(ConfigError, match="weights that are trained themselves are not held in fp16"):
        find_dtype("fp16", "cuda", trains_all=True)


@pytest.mark.parametrize("share", [None, 0.3])
def test_unsloth_s_engine_gets_the_share_that_was_planned(
    share: float | None, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    given: dict[str, Any] = {}

    class Fast:
        @staticmethod
        def from_pretrained(**options: Any) -> tuple[torch.nn.Module, None]:
            given.update(options)
            return torch.nn.Linear(1, 1), None

    package = SimpleNamespace(FastLanguageModel=Fast)
    monkeypatch.setattr(unsloth_loading, "import_unsloth", lambda: package)
    section = PolicySection(
        model=str(tiny_folder), backend="unsloth", lora=LoraSection(r=32), fast_inference=True, device="cuda"
    )
    load_by_unsloth(
        section,
        find_source(section, "unsloth"),
        "cuda",
        torch.bfloat16,
        trainable=True,
        seed=0,
        max_length=64,
        gradient_checkpointing=False,
        engine_share=share,
    )
    assert (given["fast_inference"], given["max_lora_rank"]) == (True, 32)
    assert given.get("gpu_memory_utilization") == share
