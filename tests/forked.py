"""Commands in processes of their own, with their own signals and limits, forked from one that has imported everything.

Importing again takes ten times as long as most of what is tested. What a real process does before its command runs,
such as the order of imports and what they print, is not tested by these.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

_ZYGOTE = """
import gc, json, os, resource, signal, sys
import datasets, peft, transformers, trl
from trl import GRPOTrainer, SFTTrainer
import rl4rec_cli.train.algorithms.grpo, rl4rec_cli.train.algorithms.sft
import rl4rec_cli.commands.train, rl4rec_cli.train.reinforcement
import rl4rec_cli.eval.measuring, rl4rec_cli.eval.policies, rl4rec_cli.eval.baselines, rl4rec_cli.retrieval.retriever
import sklearn.decomposition, sklearn.feature_extraction.text
from rl4rec_cli.cli.main import main
from rl4rec_cli.data.words import words

# PREPARE

def child(order):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    for descriptor, path in enumerate([order["in"], order["out"], order["err"]]):
        new = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(new, descriptor)
        os.close(new)
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", closefd=False)
    sys.path.insert(0, order["cwd"])
    if order["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"],) * 2)
    prepare(order)
    code = 1
    try:
        code = main(order["args"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)

words("é")  # makes a table of Unicode's letters
gc.collect()
gc.freeze()  # no child looks through all that is imported, or copies it
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        _, status = os.waitpid(order["wait"], 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    else:
        pid = os.fork()
        if pid == 0:
            child(order)
        print(pid, flush=True)
os._exit(0)
"""


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Zygote:
    """The process that commands are forked from; a context.

    Args:
        prepare: code with a function `prepare(order)`, which changes a command's process before the command runs.
    """

    def __init__(self, prepare: str = "def prepare(order): pass") -> None:
        code = _ZYGOTE.replace("# PREPARE", prepare)
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._numbers = itertools.count()
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        """Where pipes and what is written lie, outside of any command's own folder."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.__exit__(None, None, None)
        self._folder.cleanup()

    def ask(self, order: dict[str, Any]) -> int:
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        asked.write(json.dumps(order) + "\n")
        asked.flush()
        return int(answers.readline())

    def start(
        self, args: list[str], folder: Path, *, stdin: str = "", env: dict[str, str] | None = None, **options: Any
    ) -> Process:
        """Begins a command in a folder.

        Args:
            stdin: what it can read.
            env: variables beside those of this process.
            options: `out` (a path in place of a pipe), `limit` (bytes of a file), and what `prepare` reads.
        """
        options["env"] = {**os.environ, **(env or {})}
        return Process(self, next(self._numbers), args, folder, stdin, options)

    def run(self, args: list[str], folder: Path, **options: Any) -> Ended:
        """Runs a command to its end; see `start`."""
        return self.start(args, folder, **options).end()


class Process:
    """A command that runs; `err` is read as it comes."""

    def __init__(
        self, zygote: Zygote, number: int, args: list[str], folder: Path, stdin: str, options: dict[str, Any]
    ) -> None:
        self._zygote = zygote
        self._out, fifo, given = (zygote.folder / f"{number}.{end}" for end in ("out", "err", "in"))
        os.mkfifo(fifo)
        self._out.touch()
        given.write_text(stdin, newline="")
        order = {"args": args, "cwd": str(folder), "in": str(given), "out": str(self._out), "err": str(fifo)}
        self.pid = zygote.ask({**order, "limit": 0, **options})
        self.err = fifo.open()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> Ended:
        stderr = self.err.read()
        self.err.close()
        return Ended(self._zygote.ask({"wait": self.pid}), self._out.read_text(), stderr)


@cache
def _shared() -> Zygote:
    return Zygote()  # ends with this process, which holds its stdin


def rl4rec(*args: str | Path, cwd: Path | None = None, stdin: str = "") -> Ended:
    """Runs a command in a process that has imported what it needs."""
    return _shared().run(list(map(str, args)), cwd or Path.cwd(), stdin=stdin)
