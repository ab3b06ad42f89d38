"""Openings of the test split: counted, chained, and what goes unnoticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.errors import RunError
from rl4rec_cli.eval.openings import FILE, read_openings, record_opening
from rl4rec_cli.files.logs import read_jsonl
from rl4rec_cli.files.writing import write_json
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.runs.making import create_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = RunConfig()
    section = config.run.model_copy(update={"output_dir": str(tmp_path), "name": "r"})
    return create_run(config.model_copy(update={"run": section}), dataset="d")


def opened(run: Run, times: int) -> None:
    for number in range(1, times + 1):
        found = record_opening(run)
        assert (found.count, found.problem) == (number, None)
        write_json(run.folder / "eval" / f"n{number}" / "test.json", {"test_openings": found.as_json()})


def test_openings_are_counted_and_described(run: Run) -> None:
    assert read_openings(run).count == 0
    assert read_openings(run).line() == "Test split opened 0 times."
    opened(run, 2)
    found = read_openings(run)
    assert found.line().startswith("Test split opened 2 times (20")
    for record in found.records:
        assert {"time", "commit", "version", "recipe", "command", "previous", "digest"} <= record.keys()


def lines(run: Run) -> list[str]:
    return (run.folder / FILE).read_text().splitlines()


def write(run: Run, kept: list[str]) -> None:
    (run.folder / FILE).write_text("".join(f"{line}\n" for line in kept))


def test_a_record_removed_is_noticed(run: Run) -> None:
    opened(run, 3)
    whole = lines(run)
    for kept in (whole[1:], [whole[0], whole[2]], whole[:2], []):
        write(run, kept)
        found = read_openings(run)
        assert found.problem is not None, kept
        assert "WARNING" in found.line()
    (run.folder / FILE).unlink()
    assert "cut or removed" in str(read_openings(run).problem)
    write(run, whole)
    assert read_openings(run).problem is None


@pytest.mark.parametrize("key", ["time", "commit", "recipe", "command", "opening", "digest"])
def test_a_record_changed_is_noticed(run: Run, key: str) -> None:
    opened(run, 2)
    whole = lines(run)
    record = json.loads(whole[0])
    record[key] = "other"
    write(run, [json.dumps(record), whole[1]])
    assert "line 1" in str(read_openings(run).problem)


def test_a_record_of_another_run_is_noticed(run: Run, tmp_path: Path) -> None:
    opened(run, 1)
    other = Run(tmp_path / "other", run.config)
    other.folder.mkdir()
    write_json(other.folder / "env.json", {"started": "another time"})
    (other.folder / FILE).write_text((run.folder / FILE).read_text())
    assert read_openings(other).problem is not None


def test_a_damaged_record_is_continued_and_still_said(run: Run) -> None:
    opened(run, 2)
    (run.folder / FILE).write_text("{ not json\n")
    found = record_opening(run)
    assert found.count == 2
    assert found.problem is not None
    assert lines(run)[0] == "{ not json"


def test_the_limit_is_as_documented(run: Run) -> None:
    """Whoever removes the record and all results that came from it is not noticed."""
    opened(run, 1)
    (run.folder / FILE).unlink()
    (run.folder / "eval" / "n1" / "test.json").unlink()
    assert read_openings(run).problem is None


def test_a_record_that_cannot_be_written_keeps_the_split_closed(run: Run) -> None:
    (run.folder / FILE).mkdir()
    with pytest.raises(RunError, match=FILE):
        record_opening(run)


HAMMER = """
import sys
from rl4rec_cli.eval.openings import record_opening
from rl4rec_cli.files.logs import JsonLines
from rl4rec_cli.files.writing import write_json
from rl4rec_cli.runs.making import open_run
run = open_run(sys.argv[1])
for number in range(12):
    seen = record_opening(run)
    assert seen.problem is None, seen.problem
    write_json(run.folder / "eval" / f"{sys.argv[2]}-{number}" / "test.json", {"test_openings": seen.as_json()})
    log = JsonLines(run.folder / "log.jsonl")
    log.write({"text": sys.argv[2] * 20_000})
    log.close()
"""


def test_openings_and_log_lines_of_several_processes_are_all_kept(run: Run) -> None:
    command = [sys.executable, "-c", HAMMER, str(run.folder)]
    processes = [subprocess.Popen([*command, letter]) for letter in "abcd"]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0, 0]
    found = read_openings(run)
    assert (found.count, found.problem) == (48, None)
    told = [json.loads(path.read_text())["test_openings"]["count"] for path in run.folder.rglob("test.json")]
    assert sorted(told) == list(range(1, 49))
    written = sorted(record["text"] for record in read_jsonl(run.folder / "log.jsonl"))
    assert written == [letter * 20_000 for letter in "abcd" for _ in range(12)]
