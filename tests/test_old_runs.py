"""Run folders of earlier versions: what they recorded is measured again, and they go on."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

ARCHIVE = Path(__file__).parent / "old_runs" / "rooms.tar.gz"
LARGEST_SHIFT = 0.02
"""NDCG@10: two or three of the 80 users whose text another processor's rounding changes."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "before"


def rl4rec(*words: str | Path) -> str:
    command = [sys.executable, "-m", "rl4rec_cli.cli.main", *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_is_measured_as_it_was(run: Path) -> None:
    before = json.loads((run / "eval" / "validation.json").read_text())
    users_before = records(run / "eval" / "validation_users.jsonl")
    (run / "eval" / "validation.json").unlink()
    rl4rec("eval", run)
    after = json.loads((run / "eval" / "validation.json").read_text())
    assert list(after["methods"]) == list(before["methods"])
    assert after["dataset_digest"] == before["dataset_digest"]
    for name, metrics in before["methods"].items():
        texts = name in ("before RL", "tuned policy")
        shift = LARGEST_SHIFT if texts else 1e-9
        assert after["methods"][name] == pytest.approx(metrics, abs=shift), name
    users_after = records(run / "eval" / "validation_users.jsonl")
    assert [user["target"] for user in users_after] == [user["target"] for user in users_before]
    same = [one["texts"] == other["texts"] for one, other in zip(users_before, users_after, strict=True)]
    assert sum(same) >= len(same) - 4


def test_it_goes_on(run: Path) -> None:
    log_before = records(run / "training_log.jsonl")
    rl4rec("train", "grpo", "--resume", run, "--set", "trainer.max_steps=6")
    log_after = records(run / "training_log.jsonl")
    assert [record["step"] for record in log_after] == [1, 2, 3, 4, 5, 6]
    assert log_after[:4] == log_before
    # What the version that made it logged when it went on.
    assert log_after[5]["learning_rate"] == pytest.approx(1e-3 / 6)
    assert log_after[4]["avg_reward"] > 0
    assert (run / "checkpoints" / "checkpoint_step_6" / "model.safetensors").is_file()


def test_its_page_shows_its_results(run: Path) -> None:
    page = run.parent / "page.html"
    rl4rec("report", run, "--out", page)
    text = page.read_text()
    assert "0.2455" in text
    assert "tuned policy" in text
