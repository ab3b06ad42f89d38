"""A run whose files were edited, cut or replaced: no command ends with an unexpected error, none waits for ever."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rl4rec_cli.cli.main import main
from rl4rec_cli.files.digests import sha256_of_file

SETS = [
    *("data.synthetic.users=40", "data.synthetic.items=25", "policy.tiny.hidden_size=32", "policy.tiny.heads=2"),
    *("policy.tiny.vocab_size=400", "generation.max_completion_length=6", "prompt.max_history=2", "run.name=whole"),
    *("trainer.batch_size=4", "trainer.num_generations=4", "trainer.max_steps=2", "trainer.warm_start=null"),
    *("eval.users=6", "eval.baselines=[popularity]", "eval.steps=1", "logging.steps=1", "logging.save_steps=1"),
    *("retrieval.embedder=lsa", "policy.device=cpu"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `runs/whole`, measured on both splits; it is the working directory meanwhile."""
    folder = tmp_path_factory.mktemp("runs")
    before = Path.cwd()
    os.chdir(folder)
    assert main(["train", "grpo", *(word for text in SETS for word in ("--set", text))]) == 0
    assert main(["eval", "runs/whole", "--split", "test"]) == 0
    yield folder
    os.chdir(before)


def every_leaf(value: Any, leaf: Any) -> Any:
    if isinstance(value, dict):
        return {key: every_leaf(below, leaf) for key, below in value.items()}
    return [every_leaf(below, leaf) for below in value] if isinstance(value, list) else leaf


def rewritten(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Changes a JSON file's value, or the first of a log."""

    def write(path: Path) -> None:
        if path.suffix == ".yaml":
            return
        first, *rest = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        path.write_text("\n".join([json.dumps(change(json.loads(first))), *rest]) + "\n")

    return write


def replaced(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.unlink()
        make(path)

    return write


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00\x80{\n\xff}\n"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "a list": lambda path: path.write_text("[]\n[]\n"),
    "no keys": lambda path: path.write_text("{}\n{}\n"),
    "a FIFO": replaced(os.mkfifo),
    "a folder": replaced(Path.mkdir),
    "gone": Path.unlink,
    "values null": rewritten(lambda v: dict.fromkeys(v)),
    "values text": rewritten(lambda v: dict.fromkeys(v, "x")),
    "values lists": rewritten(lambda v: {key: [] for key in v}),
    "leaves null": rewritten(lambda v: every_leaf(v, None)),
    "leaves text": rewritten(lambda v: every_leaf(v, "x")),
    "leaves 7": rewritten(lambda v: every_leaf(v, 7)),
    "leaves objects": rewritten(lambda v: every_leaf(v, {})),
}
SHOWN = (
    *(
        "env.json",
        "datasets.json",
        "validation_log.jsonl",
        "rollouts.jsonl",
        "test_openings.jsonl",
        "eval/validation.json",
    ),
    *("eval/test.json", "checkpoints/checkpoint_best/validation.json", "checkpoints/checkpoint_final/manifest.json"),
)
"""What a page says of as far as it can be read."""
RESUME = ["train", "grpo", "--resume", "runs/r"]
NEEDED = {
    "config.yaml": ["report", "runs/r"],
    "training_log.jsonl": ["compare", "runs/r", "popularity", "--html", "c.html"],
    "test_openings.jsonl": ["eval", "runs/r", "--split", "test"],
    "eval/validation.json": ["export", "runs/r"],
    "datasets.json": ["recommend", "runs/r", "--titles", "a"],
    # Only an unfinished run reads these.
    "checkpoints/checkpoint_step_1/progress.json": RESUME,
    "checkpoints/checkpoint_step_1/recipe.yaml": RESUME,
    "checkpoints/checkpoint_step_1/manifest.json": RESUME,
}


def ends(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and standard error of a command that waits for nothing."""
    capsys.readouterr()
    signal.alarm(120)  # ends the process, and the test with it, where one waits for ever
    code = main(command)
    signal.alarm(0)
    err = capsys.readouterr().err
    assert "unexpected" not in err, f"{command}: {err[-800:]}"
    return code, err


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_page_is_made_of_what_can_be_read(damage: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(SHOWN, DAMAGES[damage])
    code, err = ends(["report", "runs/r"], capsys)
    if damage in ("a FIFO", "a folder"):  # a log that cannot even be opened is no matter of single lines
        assert code == 1
        assert "validation_log.jsonl: cannot read it" in err
        return
    assert code == 0, err
    if damage in ("empty", "cut", "binary", "nested", "a list"):
        assert "env.json" in err
        assert "eval/validation.json" in err


@pytest.mark.parametrize("file", NEEDED)
def test_a_file_that_is_needed_is_named(file: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for damage in ("cut", "no keys", "a FIFO", "leaves 7"):
        prepare([file], DAMAGES[damage])
        code, err = ends(NEEDED[file], capsys)
        assert code in (0, 1, 2)
        assert code == 0 or file.rpartition("/")[2] in err or "config.yaml" in err, f"{file} {damage}: {err}"


def prepare(files: Sequence[str], damage: Callable[[Path], Any]) -> Path:
    """A copy of the run with files damaged; a checkpoint's manifest takes one for what was written."""
    run = Path("runs/r")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree("runs/whole", run)
    if "_step_" in files[0]:
        shutil.rmtree(run / "checkpoints" / "checkpoint_final")
    for path in (run / file for file in files):
        damage(path)
        manifest = path.parent / "manifest.json"
        if path.is_file() and manifest.is_file() and path != manifest:
            listed = json.loads(manifest.read_text())
            listed["files"][path.name] = {"size": path.stat().st_size, "sha256": sha256_of_file(path)}
            manifest.write_text(json.dumps(listed))
    return run


@pytest.mark.parametrize(("name", "number"), [("training_log.jsonl", 1), ("rollouts.jsonl", 2)])
def test_a_line_of_a_log_that_is_no_record_is_named_when_a_run_goes_on(
    name: str, number: int, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = prepare(["checkpoints/checkpoint_step_1/progress.json"], lambda path: None) / name
    lines = path.read_text().splitlines()
    lines[number - 1] = json.dumps(
        {key: value for key, value in json.loads(lines[number - 1]).items() if key != "step"}
    )
    path.write_text("\n".join(lines) + "\n")
    assert main(RESUME) == 1
    assert f"{path}:{number}: `step` is missing" in capsys.readouterr().err
