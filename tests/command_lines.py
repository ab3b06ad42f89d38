"""What tests of real commands share: many of them in one process, which imports once, and what they said and logged."""

from __future__ import annotations

import json
import os
import select
from pathlib import Path
from typing import Any

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
