"""Preference tuning as a user types it: files in, a run out, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_lines import run_commands, said

from rl4rec_cli.cli.main import main

SMALL = [
    *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=300", "trainer.warm_start=null"),
    *("trainer.batch_size=4", "trainer.num_generations=2", "generation.max_completion_length=4", "logging.steps=1"),
]
REWARDS = {
    "accuracy": {"correct_keywords": ["good", "soap"]},
    "length": {"optimal_length": 150, "length_weight": 0.1},
    "custom": {"reward_scale": 1.0, "penalty_scale": -0.5},
}


def ultrafeedback(number: int) -> dict[str, Any]:
    """A record in UltraFeedback's schema."""
    asked = f"Which soap is good, number {number}?"
    sides = {
        side: [{"content": asked, "role": "user"}, {"content": f"{words} {number}.", "role": "assistant"}]
        for side, words in (("chosen", "This good soap"), ("rejected", "I do not know"))
    }
    return {"prompt": asked, "prompt_id": str(number), **sides, "messages": sides["chosen"], "score_chosen": 8.0}


def sets(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--set", text)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run was trained on a file, gone on with, reported and exported."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "my.jsonl").write_text("".join(f"{json.dumps(ultrafeedback(n))}\n" for n in range(40)))
    (folder / "rewards.json").write_text(json.dumps(REWARDS))
    own = ["--task", "preference", "-r", "preference-quick-test", "--dataset", "my.jsonl", "--max-samples", "30"]
    run_commands(
        {
            "dry": ["train", "dpo", *own[2:], "--dry-run"],
            "train": [
                *("train", "grpo", *own, "--reward-config", "rewards.json", "--output", "runs", "--run-name", "r"),
                *("--max-steps", "1", *sets(*SMALL)),
            ],
            "resume": ["train", "grpo", "--resume", "runs/r"],
            "report": ["report", "runs/r"],
            "export": ["export", "runs/r", "--to", "merged", "--output", "merged"],
        },
        folder,
    )
    return folder


def test_a_file_becomes_a_run(place: Path) -> None:
    trained = said(place, "train")
    assert "Dataset my: 27 pairs to train on, 3 held out" in trained["err"]
    assert "tuned policy" in trained["out"]
    assert "judge: chosen against rejected" not in trained["out"], "the embedder of `custom` is the judge's"
    assert "No judge: rewards read the vectors of lsa" in trained["err"]
    assert "Next: rl4rec report runs/r" in trained["err"]
    (record,) = [json.loads(line) for line in (place / "runs/r/training_log.jsonl").read_text().splitlines()]
    assert {"reward/accuracy", "reward/length", "reward/custom"} <= record.keys()
    assert "is finished" in said(place, "resume")["err"]
    assert (place / "runs/r/report.html").is_file()


def test_the_export_says_what_it_is(place: Path) -> None:
    card = (place / "merged/README.md").read_text()
    assert "preference-tuning" in card
    assert "rewards: accuracy × 1, length × 1, custom × 1\n" in card
    assert "{history}" not in card
    assert "Validation split, 3 prompts" in card


def test_dpo_needs_no_name_of_its_task(place: Path) -> None:
    dry = said(place, "dry")
    assert "task: preference" in dry["out"]
    assert "dataset my: 27 pairs to train on, 3 held out" in dry["err"]


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = main(["train", "grpo", "--task", "preference", "-r", "preference-quick-test", *words, "--dry-run"])
    assert code == 2
    return capsys.readouterr().err


def test_what_is_refused_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = ultrafeedback(1)
    bad = {**good, "chosen": [good["chosen"][0], good["chosen"][0], good["chosen"][1]]}
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in (good, {**good, "rejected": None}, bad)))
    message = fails(capsys, "--dataset", str(path))
    assert f"{path}:2: `rejected` is missing" in message
    assert f"{path}:3: " in message
    assert "2 of 3 records are no pairs" in message
    assert "hint: mend them, or leave them out" in message
    assert "no such file" in fails(capsys, "--dataset", str(tmp_path / "none.jsonl"))
    rewards = tmp_path / "rewards.json"
    rewards.write_text('{"lenght": {}}')
    assert "lenght: unknown reward; did you mean `length`?" in fails(capsys, "--reward-config", str(rewards))
    assert "unknown preference reward `ndcg`" in fails(capsys, "--reward", "ndcg")
