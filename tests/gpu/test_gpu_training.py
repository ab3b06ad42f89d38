"""Every trainer on the device, and what follows a training there: going on, evaluation, a merged export.

Each set-up's commands run in one process of their own: Unsloth patches what it is imported beside.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import log_of, run_commands, said
from safetensors.torch import load_file

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

SMALL = (
    *("data.synthetic.users=60", "data.synthetic.items=24", "data.train_targets=last", "eval.users=24"),
    *("eval.baselines=[last_item,untrained]", "eval.cache_dir=null", "eval.steps=2", "eval.step_users=8"),
    *("policy.tiny.vocab_size=400", "generation.max_completion_length=6", "logging.steps=1"),
    *("trainer.learning_rate=0.02", "trainer.max_steps=4", "policy.lora.r=8"),
)
WARM = "trainer.warm_start={max_steps: 60, num_train_epochs: 99, learning_rate: 3e-3, batch_size: 16, target: last}"
GROUPS = (WARM, "trainer.batch_size=4", "trainer.num_generations=4")
SINGLE = (WARM, "trainer.batch_size=16")
PPO = (*SINGLE, "trainer.mini_batch_size=8", "trainer.ppo_epochs=2")
TRAINERS = {
    "ppo": ("ppo", PPO),
    "ppo-adapter": ("ppo", (*PPO, "trainer.critic=adapter")),
    "rloo": ("rloo", (*GROUPS, "trainer.beta=0.05")),
    "reinforce": ("reinforce", SINGLE),
    "sft": ("sft", ()),
}
SIXTEEN_BIT, FOUR_BIT = "policy.quantization=none", "policy.quantization=4bit"
# The backend is always named: with an adapter and a GPU, `auto` is Unsloth, and Unsloth's default 4 bits.
HF, UNSLOTH = "policy.backend=hf", "policy.backend=unsloth"
VLLM = ("generation.engine=vllm", "generation.vllm.handover=adapter")
SLEEP = "generation.vllm.sleep=true"


@dataclass(frozen=True)
class Setup:
    sets: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """Packages."""
    only_gpu: bool = False


SETUPS = {
    "hf": Setup((HF, SIXTEEN_BIT)),
    "bitsandbytes": Setup((HF, FOUR_BIT), ("bitsandbytes",)),
    "unsloth": Setup((UNSLOTH, FOUR_BIT), ("unsloth", "bitsandbytes")),
    "vllm": Setup((HF, SIXTEEN_BIT, *VLLM), ("vllm",)),
    "vllm-sleep": Setup((HF, SIXTEEN_BIT, *VLLM, SLEEP), ("vllm",), only_gpu=True),
    "vllm-unsloth-sleep": Setup(
        (UNSLOTH, FOUR_BIT, *VLLM, SLEEP), ("vllm", "unsloth", "bitsandbytes", "vllm_bnb_plugin"), only_gpu=True
    ),
}


def train_command(algorithm: str, name: str, device: str, *sets: str) -> list[str]:
    own = (f"policy.device={device}", f"retrieval.device={device}", f"run.name={name}")
    # vLLM's kernels for adapters are for two-byte weights on a GPU.
    two_bytes = ("policy.dtype=bf16",) if "generation.engine=vllm" in sets and device != "cpu" else ()
    given = [part for text in (*SMALL, *own, *two_bytes, *sets) for part in ("--set", text)]
    return ["train", algorithm, "--quick-test", *given]


def adapter(place: Path, name: str, which: str = "final") -> dict[str, torch.Tensor]:
    return load_file(place / "runs" / name / "checkpoints" / f"checkpoint_{which}" / "adapter_model.safetensors")


def assert_learnt(place: Path, name: str, phase: str) -> None:
    """Four steps were made, all finite, and every weight of the adapter moved."""
    said(place, name)
    lines = [line for line in log_of(place, name) if line["phase"] == phase and "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(math.isfinite(line["loss"]) for line in lines)
    before, after = adapter(place, name, "start"), adapter(place, name)
    assert [key for key in before if torch.equal(before[key], after[key])] == []
    assert all(bool(value.isfinite().all()) for value in after.values())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, device: str) -> Path:
    """A folder in which every trainer ran."""
    folder = tmp_path_factory.mktemp("trainers")
    how = (HF, SIXTEEN_BIT)
    run_commands({name: train_command(a, name, device, *how, *sets) for name, (a, sets) in TRAINERS.items()}, folder)
    return folder


@pytest.mark.parametrize("name", TRAINERS)
def test_trainer(name: str, trained: Path) -> None:
    assert_learnt(trained, name, TRAINERS[name][0])


@pytest.mark.parametrize("name", SETUPS)
def test_setup(name: str, tmp_path: Path, device: str) -> None:
    """Training, going on, evaluation and export in one set-up: what was trained is what is measured and written."""
    setup, on_cpu = SETUPS[name], device == "cpu"
    if setup.only_gpu and on_cpu:
        pytest.skip("vLLM's sleep needs a CUDA device")
    if missing := [package for package in setup.needs if find_spec(package) is None]:
        pytest.skip(f"needs {', '.join(missing)}: docs/install.md")
    left = [*(f"checkpoints/checkpoint_{which}" for which in ("final", "step_4", "best")), "eval"]
    run_commands(
        {
            "grpo": train_command("grpo", "grpo", device, *setup.sets, *GROUPS, "logging.save_steps=2"),
            "copy": ["copy", "runs/grpo", "runs/resumed", *left],
            "resume": ["train", "grpo", "--resume", "runs/resumed"],
            "eval": ["eval", "runs/grpo", "--baselines", "untrained", "--json"],
            "merged": ["export", "runs/grpo", "--to", "merged", "--output", "merged", "--dtype", "fp32"],
        },
        tmp_path,
    )
    assert_learnt(tmp_path, "grpo", "grpo")
    assert "going on after step 2" in said(tmp_path, "resume")["err"]
    start, whole, resumed = (adapter(tmp_path, *which) for which in (("grpo", "start"), ("grpo",), ("resumed",)))
    own = json.loads((tmp_path / "runs" / "grpo" / "eval" / "validation.json").read_text())["methods"]["tuned policy"]
    again = json.loads(said(tmp_path, "eval")["out"])["methods"]["tuned policy"]
    if on_cpu:
        assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []
        assert again == own
    elif "vllm" not in name:  # vLLM's texts depend on how many it writes at once, and two-byte weights on its kernels
        moved, apart = (
            sum(float((other[key].float() - whole[key].float()).square().sum()) for key in whole)
            for other in (start, resumed)
        )
        assert apart <= 1e-3 * moved  # kernels may sum in another order
    said(tmp_path, "merged")
    # What is computed in two bytes, or from four bits, is rounded on its way.
    assert_same_logits(tmp_path, device, tolerance=1e-4 if name == "hf" else 5e-2)


def assert_same_logits(place: Path, device: str, *, tolerance: float) -> None:
    """The merged model, loaded by transformers alone, against the adapter over its base."""
    from transformers import AutoModelForCausalLM

    from rl4rec_cli.policy.loading import load_policy
    from rl4rec_cli.runs.making import open_run

    opened = open_run(place / "runs" / "grpo")
    section = opened.config.policy.model_copy(update={"backend": "hf", "model": str(opened.final)})
    policy = load_policy(section)
    merged = AutoModelForCausalLM.from_pretrained(place / "merged", dtype=torch.float32).to(device).eval()
    ids: Any = torch.tensor([policy.tokenizer("rose hand cream; mint shower gel\n")["input_ids"]], device=device)
    with torch.no_grad():
        ours, theirs = policy.model(ids).logits.float(), merged(ids).logits
    assert float((ours - theirs).abs().max()) <= tolerance * max(1.0, float(ours.std()))
