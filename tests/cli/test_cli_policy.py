"""Errors of loading a policy, through the real command. Missing packages are hidden, so nothing here needs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HIDING = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None
from rl4rec_cli.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def train(folder: Path, *sets: str, hidden: str = "nothing", algorithm: str = "grpo") -> tuple[int, str, str]:
    """Exit status, error and hint of a training that must not begin."""
    given = [part for text in (f"run.output_dir={folder / 'runs'}", *sets) for part in ("--set", text)]
    command = [sys.executable, "-c", HIDING, hidden, "train", algorithm, "--quick-test", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not (folder / "runs").exists()
    error, hint = done.stderr.splitlines()[-2:]
    return done.returncode, error, hint


def test_a_missing_package_names_what_installs_it(tmp_path: Path) -> None:
    assert train(tmp_path, "policy.backend=unsloth", hidden="unsloth") == (
        2,
        "error: policy.backend=unsloth: unsloth is not installed",
        "hint: with a GPU: pip install 'rl4rec[gpu]'; without one: make unsloth-cpu, from the source folder; "
        "or use policy.backend=hf",
    )
    code, error, hint = train(
        tmp_path, "policy.quantization=4bit", "policy.lora.r=4", "policy.backend=hf", hidden="bitsandbytes,unsloth"
    )
    assert (code, error) == (2, "error: policy.quantization=4bit: bitsandbytes is not installed")
    assert "make unsloth-cpu" in hint


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes; `make test-unsloth` installs it")
@pytest.mark.unsloth
def test_settings_that_exclude_each_other(tmp_path: Path) -> None:
    code, error, hint = train(tmp_path, "policy.quantization=8bit", "policy.backend=hf")
    assert (code, error) == (
        2,
        "error: policy.quantization=8bit without policy.lora: quantised weights cannot be trained",
    )
    assert "--set policy.lora.r=16" in hint


def test_what_only_unsloth_or_a_gpu_has(tmp_path: Path) -> None:
    code, error, _ = train(tmp_path, "policy.lora.r=4", "trainer.gradient_checkpointing=unsloth", algorithm="sft")
    assert code == 2
    assert error == (
        "error: trainer.gradient_checkpointing=unsloth needs backend unsloth; here it is policy.backend=auto "
        "(hf: no GPU is used)"
    )


def test_fast_inference_and_the_reference(tmp_path: Path) -> None:
    code, error, _ = train(tmp_path, "policy.fast_inference=true")
    assert (code, error.partition(";")[0]) == (2, "error: policy.fast_inference needs backend unsloth and a GPU")
    code, error, _ = train(tmp_path, "policy.fast_inference=true", "trainer.beta=0.1")
    assert code == 2
    assert error.startswith("error: policy.fast_inference: with trainer.beta above 0 the engine would be given the")


def test_a_model_that_is_not_causal(tiny_folder: Path, tmp_path: Path) -> None:
    import transformers

    bert = transformers.BertConfig(
        vocab_size=600, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        initializer_range=1.0,
    )  # fmt: skip
    transformers.BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, tmp_path / "bert" / name)
    code, error, hint = train(tmp_path, f"policy.model={tmp_path / 'bert'}")
    assert (code, error) == (1, f"error: '{tmp_path / 'bert'}' is not a causal language model: it reads ahead")
    assert "qwen2.5-0.5b" in hint


def test_texts_longer_than_the_model_reads(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 48}))
    code, error, hint = train(tmp_path, f"policy.model={tmp_path / 'short'}")
    assert code == 2
    assert error.startswith("error: prompt and completion may have 74 tokens together, but ")
    assert error.endswith(" reads 48 at most")
    assert "prompt.max_prompt_length" in hint
