"""What tests of registration share: a copy of the package that somebody added something made-up to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# All in one process, which imports once.
_DRIVER = """
import contextlib, io, json, sys
from rl4rec_cli.cli.main import main

answers = []
for command in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(command)
    answers.append([code, out.getvalue()])
print(json.dumps(answers))
"""


def copy_package(folder: Path) -> Path:
    """A copy of the package below `folder`; returns the copy's own folder."""
    package = folder / "rl4rec_cli"
    shutil.copytree(ROOT / "rl4rec_cli", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", package / "recipes", dirs_exist_ok=True)
    return package


def insert_after(file: Path, line: str, text: str) -> None:
    """Put text behind a line that stands in a file once."""
    head, mark, rest = file.read_text(encoding="utf-8").partition(line)
    assert mark, f"{file} has no line {line!r}"
    file.write_text(head + mark + text + rest, encoding="utf-8")


def run_commands(package: Path, folder: Path, *commands: list[str]) -> tuple[list[tuple[int, str]], str]:
    """Exit statuses and standard outputs of the commands, and the standard error of all."""
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, json.dumps(commands)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(package.parent), "COLUMNS": "100"},
    )
    assert done.returncode == 0, done.stderr
    return [(code, out) for code, out in json.loads(done.stdout.splitlines()[-1])], done.stderr
