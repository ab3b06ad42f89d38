"""What tests of real commands share: many of them in one process, which imports once, and what they said and logged."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# Runs commands one after the other, and writes what each of them said.
DRIVER = """
import contextlib, io, json, os, shutil, sys
from pathlib import Path
from rl4rec_cli.cli.main import main
commands = json.loads(Path(sys.argv[1]).read_text())
for name, command in commands.items():
    if command[0] == "copy":
        shutil.copytree(command[1], command[2])
        for left in command[3:]:
            shutil.rmtree(Path(command[2]) / left)
        continue
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command)
    Path(f"said_{name}.json").write_text(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}))
Path("modules.json").write_text(json.dumps(sorted({m.partition(".")[0] for m in sys.modules})))
"""


def run_commands(commands: dict[str, list[str]], folder: Path) -> None:
    """Runs commands in one process in the folder, and shows the error of the first that failed."""
    (folder / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "commands.json"], cwd=folder, capture_output=True, text=True, check=False
    )
    skip_without_instructions(done.returncode)
    for name in commands:
        if (folder / f"said_{name}.json").exists():
            said(folder, name)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def skip_without_instructions(returncode: int) -> None:
    """Skips a test whose process Unsloth ended beside vLLM, on a processor that cannot run vLLM's kernels."""
    if returncode == -signal.SIGILL and all(find_spec(name) for name in ("unsloth", "vllm")):
        pytest.skip("Unsloth loads vLLM's kernels, and this processor lacks their instructions (AVX512-BF16)")


def said(place: Path, name: str) -> dict[str, Any]:
    found = json.loads((place / f"said_{name}.json").read_text())
    assert found["code"] == 0, found["err"][-3000:]
    return found


def ends(pid: int, seconds: float = 20) -> bool:
    """Whether a process that may be nobody's child here ends within so many seconds."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def log_of(place: Path, name: str) -> list[dict[str, Any]]:
    lines = (place / "runs" / name / "training_log.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if "second" not in k and k != "memory_gib"} for line in lines
    ]  # what a step took differs from one time to the next
