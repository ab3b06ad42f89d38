"""Help is quick, ends with examples, and docs/cli.md says the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from rl4rec_cli.config.algorithms import ALGORITHMS

ROOT = Path(__file__).parents[2]
HEAVY = {
    *("torch", "transformers", "trl", "peft", "unsloth", "vllm", "ray", "datasets", "numpy", "sklearn", "scipy"),
    *(
        "pydantic",
        "pydantic_core",
        "yaml",
        "rich",
        "sentence_transformers",
        "pandas",
        "polars",
        "pyarrow",
        "rl4rec_cli.config.sections",
    ),
}
GROUPS = [[], ["data"], ["train"], ["recipes"]]
COMMANDS = [
    *(
        ["data", "import"],
        ["data", "synth"],
        ["data", "stats"],
        ["data", "audit"],
        ["prompts"],
        ["embed"],
        ["eval"],
        ["compare"],
    ),
    *(["recommend"], ["export"], ["report"], ["plan"], ["settings"], ["serve-retrieval"], ["doctor"]),
    *(["train", name] for name in ALGORITHMS),
    *(["recipes", "list"], ["recipes", "show"], ["recipes", "copy"]),
]
# Prints the help, then which packages were imported for it.
PROBE = """
import json, sys
from rl4rec_cli.cli.main import main
code = main(sys.argv[1:])
sys.stdout.flush()
print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""


@cache
def run_help(*args: str) -> tuple[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *args, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    code, modules = json.loads(done.stderr)
    assert code == 0
    return done.stdout, modules


@pytest.mark.parametrize("args", [*GROUPS, *COMMANDS], ids=" ".join)
def test_help_imports_nothing_heavy_and_ends_with_two_examples(args: list[str]) -> None:
    text, modules = run_help(*args)
    assert HEAVY.isdisjoint(modules)
    assert HEAVY.isdisjoint(module.partition(".")[0] for module in modules)
    *_, head, first, second = text.rstrip().splitlines()
    assert head.strip() == "Examples:"
    assert first.startswith("    rl4rec ")
    assert second.startswith("    ")
    assert " rl4rec " in second  # a pipe may lead to it
    if args in COMMANDS:
        assert f"rl4rec {' '.join(args)}" in first


def test_every_command_is_tested() -> None:
    import typer

    from rl4rec_cli.cli.main import app

    def leaves(command: object, path: list[str]) -> list[list[str]]:
        below = getattr(command, "commands", None)
        return [path] if below is None else [leaf for name in below for leaf in leaves(below[name], [*path, name])]

    assert sorted(leaves(typer.main.get_command(app), [])) == sorted(COMMANDS)


def test_no_command_has_too_many_options() -> None:
    for args in COMMANDS:
        text, _ = run_help(*args)
        options = [line for line in text.splitlines() if line.startswith("  -")]
        assert len(options) <= 12 or args[0] == "train" or args == ["data", "import"], args  # with --help


def test_what_everybody_turns_are_options_of_train_in_panels() -> None:
    text, _ = run_help("train", "grpo")
    panels = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert panels == ["Data and reward:", "Model:", "Training:", "Run:"]
    for option in (
        *("learning-rate", "batch-size", "num-generations", "max-steps", "epochs", "k", "temperature"),
        *("max-new-tokens", "lora-r", "load-in-4bit", "bf16", "fp16", "run-name", "prompt-file", "sequential-file"),
    ):
        assert f"--{option} " in text
    for algorithm, lacks in (("sft", {"--num-generations", "--temperature", "--k"}), ("ppo", {"--num-generations"})):
        other, _ = run_help("train", algorithm)
        assert {word.strip(",") for word in text.split()} - {word.strip(",") for word in other.split()} >= lacks
        assert "--learning-rate X" in other


def test_the_generated_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/make_cli_docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_generated_pages_of_settings_are_current() -> None:
    command = [sys.executable, "scripts/make_settings_docs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("group", GROUPS)
def test_no_summary_of_a_command_is_cut_at_80_columns(group: list[str]) -> None:
    code = "import sys; from rl4rec_cli.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *group, "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
        check=True,
    )
    assert not [line for line in done.stdout.splitlines() if line.endswith("...") and not line.startswith("Usage")]
