"""What vLLM is started with and in which order it is asked, on a GPU too: with something else in its place."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rl4rec_cli.config.policy import LoraSection, PolicySection
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.engine import limits
from rl4rec_cli.engine import vllm as vllm_engine
from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.engine.vllm import VllmEngine
from rl4rec_cli.engine.weights import make_folder
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.policy.loading import Policy, load_policy


class StandIn:
    """Writes down what it is started with and asked; answers with one token a text."""

    def __init__(self, what: str, options: dict[str, Any], **more: Any) -> None:
        self.options, self.more, self.asked, self.is_open = options, more, list[str](), True
        self.number = 0
        made.append(self)

    def ask(self, name: str, *arguments: Any, doing: str = "") -> Any:
        self.asked.append(name)
        if name in ("adapter", "weights"):
            self.number = arguments[0]
        if name == "write":
            return [([7], [-1.0], self.number) for _ in arguments[0]]
        return freed if name == "sleep" else None

    def close(self) -> None:
        self.is_open = False


made: list[StandIn] = []
freed = (1 << 30, 40 << 30)
"""What vLLM says of the GPU's free memory before and after it went to sleep."""


def config(**vllm: Any) -> RunConfig:
    generation = {"engine": "vllm", "max_completion_length": 16, "vllm": vllm}
    return RunConfig.model_validate({"prompt": {"max_prompt_length": 64}, "generation": generation})


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything believes that the policy is on the second GPU, of 80 GB; how often its memory was emptied is kept."""
    done: list[str] = []
    for module in (limits, vllm_engine):
        monkeypatch.setattr(module, "device_of", lambda model: torch.device("cuda:1"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("emptied"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    return done


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    made.clear()
    monkeypatch.setattr(vllm_engine, "VllmProcess", StandIn)


def adapted(folder: Path) -> Policy:
    section = PolicySection(model=str(folder), device="cpu", dtype="bf16", lora=LoraSection(r=12))
    return load_policy(section, trainable=True)


GREEDY = Sampling(max_new_tokens=4, temperature=0.0)


def test_on_a_gpu_it_gets_its_share_and_the_adapter(tiny_folder: Path, on_gpu: list[str]) -> None:
    policy, engine = adapted(tiny_folder), VllmEngine(config(sleep=True))
    for _ in range(2):
        assert engine.write(policy.model, [[5, 6]], GREEDY, [2]) == ([[7]], [[-1.0]])
        with torch.no_grad():
            next(p for p in policy.model.parameters() if p.requires_grad).add_(1.0)
    (process,) = made
    assert process.asked == ["adapter", "write", "sleep", "wake", "adapter", "write", "sleep"]
    assert on_gpu == ["emptied", "emptied"]  # before it starts, and before it takes its memory again
    options = process.options
    assert options["model"] == str(tiny_folder)
    assert (options["enable_lora"], options["max_lora_rank"], options["enable_sleep_mode"]) == (True, 16, True)
    assert 0.02 < options["gpu_memory_utilization"] < 0.05  # room for its process and passes is most of it
    # What it is started with is what was counted: neither a wider pass nor a cache of all that is left.
    assert options["max_num_batched_tokens"] == 8192
    assert options["kv_cache_memory_bytes"] == 256 << 20
    assert options["max_model_len"] == 80
    assert "enable_chunked_prefill" not in options
    assert process.more["environment"] == {"CUDA_VISIBLE_DEVICES": "6"}
    engine.close()


def test_a_share_that_is_given_is_taken_and_4_bits_are_said(tiny_folder: Path, on_gpu: list[str]) -> None:
    policy, engine = adapted(tiny_folder), VllmEngine(config(memory_share=0.4))
    policy.model.is_loaded_in_4bit = True
    engine.write(policy.model, [[5]], GREEDY, [2])
    assert made[0].options["gpu_memory_utilization"] == 0.4
    assert "kv_cache_memory_bytes" not in made[0].options
    assert made[0].options["quantization"] == "bitsandbytes"
    engine.close()
    policy.model.is_loaded_in_8bit, policy.model.is_loaded_in_4bit = True, False
    with pytest.raises(ConfigError, match="cannot hold the weights in 8bit"):
        engine.write(policy.model, [[5]], GREEDY, [2])


def test_fp32_weights_are_handed_over_merged_on_a_gpu_too(tiny_folder: Path, on_gpu: list[str]) -> None:
    """vLLM's kernels for adapters want 16 bits there."""
    policy, engine = adapted(tiny_folder), VllmEngine(config())
    policy.model.float()
    engine.write(policy.model, [[5]], GREEDY, [2])
    assert made[0].options["model"] == str(engine._folder)
    assert "enable_lora" not in made[0].options
    engine.close()
    for settings in ({"handover": "adapter"}, {"server": "http://127.0.0.1:1"}):
        with pytest.raises(ConfigError, match="applies adapters on a GPU in 16 bits, and the weights are fp32"):
            VllmEngine(config(**settings))._swaps(policy.model)
    policy.model.is_loaded_in_4bit = True
    with pytest.raises(ConfigError, match="applies adapters on a GPU in 16 bits, and the weights are fp32"):
        VllmEngine(config())._swaps(policy.model)
    with pytest.raises(ConfigError, match=r"computes with 4-bit weights in bf16, and this policy in torch\.float32"):
        VllmEngine(config()).write(policy.model, [[5]], GREEDY, [2])


@pytest.mark.parametrize(("after", "is_less"), [(40 << 30, False), (1 << 30, True)])
def test_sleep_says_what_it_gave_back(
    after: int,
    is_less: bool,
    tiny_folder: Path,
    on_gpu: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "freed", (1 << 30, after))
    policy, engine = adapted(tiny_folder), VllmEngine(config(sleep=True))
    for _ in range(2):
        engine.write(policy.model, [[5]], GREEDY, [2])
    engine.close()
    said = capsys.readouterr().err
    assert said.count(f"vLLM sleeps: free GPU memory 1.1 GB before, {after / 1e9:.1f} GB after") == 1
    assert ("gave back 0.0 GB, less than the weights" in said) == is_less


def test_nothing_is_merged_into_quantised_weights(tiny_folder: Path, on_gpu: list[str]) -> None:
    policy, engine = adapted(tiny_folder), VllmEngine(config(handover="merged"))
    policy.model.is_loaded_in_4bit = True
    with pytest.raises(ConfigError, match="nothing is merged into quantised weights"):
        engine.write(policy.model, [[5]], GREEDY, [2])


def test_a_gpu_that_is_too_small_is_told(tiny_folder: Path, on_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 29, 1 << 30))
    with pytest.raises(ConfigError, match=r"needs .* GB for 256 completions; the GPU has 1\.1 GB"):
        VllmEngine(config()).write(adapted(tiny_folder).model, [[5]], GREEDY, [2])


def test_a_model_that_stays_as_it_is_is_read_by_its_name(
    tiny_folder: Path, make_dataset: Callable[..., Dataset], on_gpu: list[str]
) -> None:
    """Nothing is copied of the base that an evaluation measures."""
    frozen = load_policy(PolicySection(model=str(tiny_folder), device="cpu"))
    for parameter in frozen.model.parameters():
        parameter.requires_grad_(False)
    engine = VllmEngine(config())
    engine.write(frozen.model, [[5]], GREEDY, [2])
    engine.write(frozen.model, [[5]], GREEDY, [2])
    assert made[0].options["model"] == str(tiny_folder)
    assert made[0].asked == ["write", "write"]
    engine.close()


def test_folders_of_processes_that_were_killed_are_removed(tmp_path: Path) -> None:
    code = (
        "import os, sys, signal\n"
        "from rl4rec_cli.engine.weights import make_folder\n"
        "class Owner: pass\n"
        "owner = Owner()\n"
        "folder, _ = make_folder(owner, 0)\n"
        "(folder / 'model.safetensors').write_text('x')\n"
        "print(folder, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = Path(killed.stdout.strip())
    assert (left / "model.safetensors").exists()
    short, _ = make_folder(_Owner(), 0)
    assert not left.exists()
    assert not short.exists()  # its owner was gone at once
    own = _Owner()
    folder, remove = make_folder(own, 0)
    third = _Owner()
    another, remove_other = make_folder(third, 0)
    assert folder.exists()  # its owner lives
    assert (folder.stat().st_mode & 0o777) == 0o700
    remove()
    remove_other()
    assert not folder.exists()
    assert not another.exists()


class _Owner:
    pass


def test_where_memory_has_no_room_the_disk_is_taken() -> None:
    owner = _Owner()
    folder, remove = make_folder(owner, 1 << 60)
    assert not folder.is_relative_to("/dev/shm")
    remove()
