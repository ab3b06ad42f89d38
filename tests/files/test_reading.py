"""Files of users and of runs: what is no file is refused at once, what is no record is named by file and line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rl4rec_cli.cli.main import main
from rl4rec_cli.errors import RunError
from rl4rec_cli.files.reading import read_object

FOLDER = {"items.jsonl": "", "sequential_data.txt": "", "prompts.json": "", "meta.json": ""}


@pytest.mark.parametrize("name", FOLDER)
def test_a_fifo_in_a_dataset_is_refused_not_waited_for(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "synth", str(tmp_path / "d"), "--users", "20", "--items", "20"]) == 0
    (tmp_path / "d" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "d" / name)
    assert main(["data", "stats", str(tmp_path / "d")]) == 2
    assert f"{name}: cannot be read: is a named pipe, not a file" in capsys.readouterr().err


def test_a_recipe_that_is_no_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fifo = tmp_path / "r.yaml"
    os.mkfifo(fifo)
    for path, what in ((fifo, "a named pipe"), (Path("/dev/zero"), "a device")):
        assert main(["train", "grpo", "-r", str(path), "--dry-run"]) == 2
        assert f"cannot read recipe {path}: is {what}, not a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,\n "b"', ":2: not JSON"),
        ("[1]", "must be a JSON object, is a list"),
        ("[" * 100_000, "not JSON: nested too deeply"),
        ('{"b": 2}', "`a` is missing"),
        ('{"a": "x"}', "`a` must be a whole number, is text"),
        ('{"a": true}', "`a` must be a whole number, is true/false"),
        ('{"a": null}', "`a` must be a whole number, is null"),
        ("\xff", "not JSON"),
    ],
)
def test_a_record_that_is_none_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError) as caught:
        read_object(path, {"a": int})
    assert said in caught.value.message
    assert str(path) in caught.value.message
