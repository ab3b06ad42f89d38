"""`rl4rec plan` and the placement of `--dry-run`: the real command, its exit codes and messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rl4rec_cli.cli.main", *args], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
    )  # fmt: skip


def said(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    error, hint = [*(line for line in done.stderr.splitlines() if line.startswith(("error: ", "hint: "))), ""][:2]
    return error.removeprefix("error: "), hint.removeprefix("hint: ")


def test_what_fits() -> None:
    done = run("plan", "--gpu", "80", "--model", "llama-3.2-1b", "--set", "policy.lora.r=16", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["fits"] is True
    assert told["needs_bytes"] == sum(told["parts"].values()) == max(told["phases"].values()) <= told["room_bytes"]
    assert told["ways_out"] == []
    assert told["choices"]["backend"]["value"] == "unsloth"
    assert told["notes"] == ["no dataset is named: a catalogue of 100,000 items is assumed"]


def test_what_does_not_fit_ends_with_the_way_out() -> None:
    done = run("plan", "--gpu", "24", "-r", "beauty-grpo", "--model", "qwen2.5-7b")
    assert done.returncode == 1
    error, hint = said(done)
    assert error.startswith("qwen2.5-7b needs about ")
    assert error.endswith("22.1 GB can be used (24 GB, 24.0 GB free): does not fit")
    assert hint.startswith("--set ")
    assert "way out 1, " in done.stdout
    assert f"  {hint}\n" in done.stdout
    # As it was told, it fits.
    again = run("plan", "--gpu", "24", "-r", "beauty-grpo", "--model", "qwen2.5-7b", *hint.split())
    assert again.returncode == 0, again.stderr
    assert "does not fit" not in again.stdout


def test_what_nothing_makes_fit() -> None:
    done = run("plan", "--gpu", "16", "--model", "llama-3.1-70b")
    assert done.returncode == 1
    error, hint = said(done)
    assert error.endswith("nothing that can be cut makes it fit")
    assert "a smaller model" in hint


@pytest.mark.parametrize(
    ("args", "code", "error", "hint"),
    [
        (["--model", "no-such-model"], 1, "no-such-model: no preset, no folder", "give tiny, gpt2, "),
        (["--model", "someone/unheard-of"], 1, "its config.json is not in the Hub's cache", "hf download"),
        (["--gpu", "big"], 2, "--gpu 'big': must be the memory of one GPU in gigabytes", "--gpu 24"),
        (["--algorithm", "q-learning"], 2, "trainer.algorithm: must be one of grpo, ppo", ""),
        (["--gpu", "0"], 2, "no GPU has 0 GB", "policy.device=cpu"),
        (["--gpu", "24", "--set", "policy.device=cuda:1"], 2, "1 GPU there", "plan for one"),
    ],
)
def test_bad_input(args: list[str], code: int, error: str, hint: str) -> None:
    done = run("plan", *args)
    assert done.returncode == code
    assert error in said(done)[0]
    assert hint in said(done)[1]


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("plan", "--model", str(tmp_path / "empty"))
    assert (done.returncode, "a folder without config.json" in done.stderr) == (1, True)
    for name, text, word in (("torn", "{", "cannot be read"), ("bert", '{"model_type": "bert"}', "model_type 'bert'")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        done = run("plan", "--model", str(tmp_path / name))
        assert (done.returncode, word in done.stderr) == (1, True), done.stderr


def test_check_is_of_this_machine() -> None:
    done = run("plan", "--check", "--gpu", "24")
    assert done.returncode == 2
    assert "--check measures on this machine" in done.stderr


def test_a_dry_run_prints_the_same_placement() -> None:
    dry = run("train", "grpo", "--quick-test", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert dry.stdout.startswith("run:")
    planned: dict[str, Any] = json.loads(run("plan", "-r", "quick-test", "--json").stdout)
    line = next(line for line in dry.stderr.splitlines() if line.startswith("placement: "))
    assert line.startswith("placement: policy on cpu; ")
    for what, chosen in planned["choices"].items():
        assert f"{what} {chosen['value']}" in line
    assert f"needs about {round(planned['needs_bytes'] / 1e6)} MB" in dry.stderr


def test_a_dry_run_of_a_model_that_is_not_known_is_no_error() -> None:
    dry = run("train", "grpo", "--model", "someone/unheard-of", "--dry-run")
    assert dry.returncode == 0
    assert "placement: not known: someone/unheard-of" in dry.stderr


@pytest.mark.slow
def test_check_makes_a_real_step() -> None:
    done = run("plan", "-r", "quick-test", "--set", "trainer.batch_size=2", "--check", "--json")
    assert done.returncode == 0, done.stderr
    warm, own = json.loads(done.stdout)["check"]
    assert (warm["trainer"], own["trainer"]) == ("sft", "grpo")
    assert (warm["phase"], own["phase"]) == ("warm start: learning", "learning")
    for row in (warm, own):
        assert row["measured_bytes"] > 1e6
        assert row["ratio"] == row["predicted_bytes"] / row["measured_bytes"]
