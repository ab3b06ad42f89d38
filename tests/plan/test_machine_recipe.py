"""Without a recipe one is chosen for the machine, and said."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rl4rec_cli.cli.main import main
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.plan.recipe import choose_recipe

ON_CPU = ["policy.device=cpu"]


def test_a_cpu_gets_the_tiny_policy_and_a_gpu_a_small_instruct_model_over_4_bits() -> None:
    assert choose_recipe(None, ON_CPU).recipe == "cpu"
    assert choose_recipe(None, [], ["24"]).recipe == "gpu"
    assert choose_recipe("tiny", [], ["24"]).recipe == "cpu"
    assert choose_recipe(None, ["policy.device=cuda:1"]).recipe in ("gpu", "lora")  # lora: without bitsandbytes
    assert choose_recipe("gpt2", ON_CPU).recipe == choose_recipe(None, [*ON_CPU, "policy.model=gpt2"]).recipe == "lora"
    cpu, gpu = (load_config(algorithm="grpo", recipes=[name]) for name in ("cpu", "gpu"))
    assert cpu.policy.model == "tiny"
    assert cpu.trainer.warm_start is not None  # type: ignore[union-attr]
    assert cpu.retrieval.embedder == "lsa"
    assert (gpu.policy.backend, gpu.policy.quantization) == ("auto", "4bit")
    assert gpu.policy.lora is not None


@pytest.mark.parametrize("command", [["train", "grpo", "--dry-run"], ["plan"]])
def test_the_choice_is_said_and_is_that_of_the_recipe_named(command: list[str], capsys: Any) -> None:
    more = ["--set", "policy.device=cpu", "--set", "data.synthetic.users=50"]
    assert main([*command, *more]) == 0
    chosen = capsys.readouterr()
    assert chosen.err.startswith("No recipe given: using cpu (no GPU is used: a tiny policy, warm-started, ")
    assert main([*command, "-r", "cpu", *more]) == 0
    named = capsys.readouterr()
    assert "No recipe given" not in named.err
    free = re.compile(r"[\d.]+ [GM]B (can be used|of memory free|free)")  # is another a moment later
    assert free.sub("", named.out) == free.sub("", chosen.out)
    assert main(["train", "grpo", "--quick-test", "--dry-run"]) == 0
    assert "No recipe given" not in capsys.readouterr().err


def test_the_choice_imports_nothing_heavy() -> None:
    code = (
        "import sys; from rl4rec_cli.cli.main import main; main(['train', 'grpo', '--dry-run', '--set',"
        " 'data.synthetic.users=9']); print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")


def test_the_first_command_that_a_user_types_teaches_something(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "synth", "data/shop", "--users", "150", "--items", "40"]) == 0
    shorter = ["--max-steps", "2", "--batch-size", "8", "--set", "trainer.warm_start.max_steps=60"]
    shorter += ["--run-name", "first", "--set", "policy.tiny.hidden_size=64", "--set", "eval.users=60"]
    assert main(["train", "grpo", "--dataset", "shop", "--set", "policy.device=cpu", *shorter]) == 0
    assert "No recipe given: using cpu" in capsys.readouterr().err
    result = json.loads(Path("runs/first/eval/validation.json").read_text())
    scores = {name: metrics["ndcg@10"] for name, metrics in result["methods"].items()}
    assert scores["tuned policy"] > 0.5 * scores["last item"] > 0
    # A run that goes on has its own recipe.
    assert main(["train", "grpo", "--resume", "runs/first"]) == 0
    assert "No recipe given" not in capsys.readouterr().err
