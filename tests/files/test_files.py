"""Files of users and of runs: what is no file is refused at once, what is no record is named by file and line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rl4rec_cli.cli.main import main
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.errors import ConfigError, RunError
from rl4rec_cli.files.logs import read_jsonl
from rl4rec_cli.files.reading import read_object
from rl4rec_cli.files.writing import check_writable
from rl4rec_cli.runs.making import create_run, open_run, recipe_text

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


def test_an_output_never_takes_a_device_s_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "page.html")
    for path in (tmp_path / "page.html", Path("/dev/null")):
        with pytest.raises(ConfigError, match="not a file"):
            check_writable(path)


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


def test_a_log_s_line_that_is_no_record_is_named_and_a_cut_last_one_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n\n{"step": 2}\n{"st')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n[2]\n')
    with pytest.raises(RunError, match=r"log\.jsonl:2: is no JSON object"):
        read_jsonl(path)


def test_a_configuration_that_is_cut_anywhere_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    config = load_config(algorithm="grpo", sets=["run.name=r", f"run.output_dir={tmp_path}"])
    run = create_run(config, dataset="d")
    assert open_run(run.folder).config == config
    path = run.folder / "config.yaml"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    cuts = ["".join(lines[:n]) for n in range(len(lines))]  # between two lines YAML itself sees nothing
    for text in [*cuts, whole[: len(whole) // 2], whole[:-2]]:
        path.write_text(text)
        with pytest.raises(RunError, match=r"config\.yaml: is cut"):
            open_run(run.folder)


def test_a_configuration_that_was_edited_or_is_of_an_older_version_still_opens(tmp_path: Path) -> None:
    config = load_config(algorithm="grpo", sets=["run.name=r", f"run.output_dir={tmp_path}"])
    run = create_run(config, dataset="d")
    path = run.folder / "config.yaml"
    path.write_text(recipe_text(config) + "# mine\n")
    assert open_run(run.folder).config == config
    path.write_text("".join(line for line in recipe_text(config).splitlines(keepends=True) if line[0] != "#"))
    assert open_run(run.folder).config == config
