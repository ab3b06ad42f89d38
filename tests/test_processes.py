"""Processes that end with the one that started them, and only then."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import ends

# Starts the child in a thread that ends, and says so when it has.
PARENT = """
import os, subprocess, sys, threading
def start():
    global child
    child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:], str(os.getpid())], stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
thread = threading.Thread(target=start)
thread.start()
thread.join()
print(child.pid, flush=True)
sys.stdin.read()
"""
CHILD = """
import signal, sys, time
from pathlib import Path
from rl4rec_cli.processes import end_with_parent
def note(number, frame):
    Path(sys.argv[1]).write_text(signal.Signals(number).name)
    if not Path(sys.argv[1]).with_name("stays").exists():
        sys.exit()
signal.signal(signal.SIGTERM, note)
end_with_parent(int(sys.argv[3]), grace=float(sys.argv[2]))
print("ready", flush=True)
while True:
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["at once", "as SIGTERM ends it", "though it takes no notice of SIGTERM"])
def test_a_child_outlives_the_thread_that_started_it_and_ends_with_the_process(how: str, tmp_path: Path) -> None:
    if how.startswith("though"):
        (tmp_path / "stays").touch()
    grace = {"at once": "0", "as SIGTERM ends it": "600"}.get(how, "0.5")
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD, str(tmp_path / "noted"), grace],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not ends(child, 1.5)  # the thread is gone, and it has looked twice
        parent.send_signal(signal.SIGKILL)
    assert ends(child)
    assert (tmp_path / "noted").exists() == (how != "at once")


@pytest.mark.parametrize(
    "command",
    [
        ["rl4rec_cli.engine.worker", "0", "1"],
        ["rl4rec_cli.retrieval.service.own_service", "1"],
        ["rl4rec_cli.commands.peak", "1", "recipe", "answer", "folder"],
    ],
    ids=["worker", "own_service", "peak"],
)
def test_each_of_ours_ends_where_the_one_that_started_it_is_gone_already(command: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")
