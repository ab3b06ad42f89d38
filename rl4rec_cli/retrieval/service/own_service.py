"""A retrieval service that a run starts for itself, on a GPU that the policy does not use, and ends.

Decides: that it is a process of its own which ends with the run, however that ends: told to when the run is done or
fails, and by itself where the run's process is killed; that nobody else finds it by chance, for its name is the
run's; that a run whose service of the configured name is there already takes that one.
Hides: the process, and what it and the run tell each other: settings go in by its standard input, one line with the
address comes out when everything is loaded.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from rl4rec_cli import signals
from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.engine.process import same_gpu
from rl4rec_cli.errors import Rl4RecError, ServiceError
from rl4rec_cli.processes import end_with_parent
from rl4rec_cli.retrieval.service import cluster
from rl4rec_cli.variables import child_environment

_STOP_SECONDS = 90.0
"""A service answers what it has taken, for at most 60 s, before it goes."""
_LONGEST_NAME = 70


@contextmanager
def own_service(section: RetrievalSection, folders: Sequence[str], gpu: int) -> Iterator[RetrievalSection]:
    """Start a service over dataset folders, and end it; gives the section by which it is found.

    Args:
        section: how to embed, and the service's limits.
        gpu: where, as torch numbers the GPUs.

    Raises:
        ServiceError: it cannot be started, or it ended while it was used.
    """
    cluster.require_ray()
    name = f"{section.service.name[:_LONGEST_NAME]}-{os.getpid()}"
    service = section.service.model_copy(update={"name": name, "address": None})
    own = section.model_copy(update={"backend": "ray", "service": service})
    process, is_ready = _start(own, folders, gpu), False
    try:
        found = service.model_copy(update={"address": _address(process)})
        is_ready = True
        yield own.model_copy(update={"service": found})
    except ServiceError as error:
        if is_ready and process.poll() is not None:
            error.hint = "it was this run's own and has ended; going on with the run starts another"
        raise
    finally:
        cluster.leave()
        _stop(process)


def _start(section: RetrievalSection, folders: Sequence[str], gpu: int) -> subprocess.Popen[str]:
    # A cluster that the user works with is not the service's, and ours listens on loopback alone.
    env = {key: value for key, value in child_environment().items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "rl4rec_cli.retrieval.service.own_service", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**env, "CUDA_VISIBLE_DEVICES": same_gpu(torch.device("cuda", gpu))},
        start_new_session=True,  # Ctrl-C is the run's, which may still need the service to finish a step
    )
    given = {"section": section.model_dump(mode="json"), "folders": list(folders)}
    with suppress(BrokenPipeError), process.stdin as pipe:  # type: ignore[union-attr]
        pipe.write(json.dumps(given))  # where it ended at once `_address` says so
    return process


def _address(process: subprocess.Popen[str]) -> str:
    """Waits until everything is loaded."""
    line = process.stdout.readline() if process.stdout is not None else ""
    if not line:
        raise ServiceError(
            f"the retrieval service of this run ended with exit status {process.wait()} before it was ready",
            hint="what it said stands above; --set retrieval.backend=in-process does without it",
        )
    return str(json.loads(line)["address"])


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a session of its own: Ray's processes too
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


# In the service's process


def main(parent: int) -> int:
    end_with_parent(parent, grace=_STOP_SECONDS)
    given: dict[str, Any] = json.load(sys.stdin)
    # Whatever libraries print goes where the log goes: the run reads one line and nothing else.
    told = os.dup(1)
    os.dup2(2, 1)
    from rl4rec_cli.retrieval.service.serving import Serving, serve

    def ready(serving: Serving) -> None:
        with os.fdopen(told, "w", encoding="utf-8") as pipe:
            pipe.write(json.dumps({"address": serving.address}) + "\n")

    with signals.handled():
        try:
            serve(RetrievalSection.model_validate(given["section"]), given["folders"], ready=ready, quiet=True)
        except KeyboardInterrupt:
            return 143
        except Rl4RecError as error:
            print(f"error: {error.message}", file=sys.stderr)
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
