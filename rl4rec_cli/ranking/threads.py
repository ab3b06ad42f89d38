"""How ranking uses processor cores, and what torch must not do meanwhile.

Decides: where there are few cores, work is cut into blocks that threads of our own take, each with torch on one core.
torch's own way, to share out every single operation, leaves cores idle in between, makes each operation wait for the
slowest of them (where other work keeps one core busy that is 8 ms, for microseconds of work), and leaves numpy on one
core. Hides: torch's settings of the process and of each thread, and what becomes of errors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")

FEW = 4
"""Up to so many threads the above holds; with more, Python's lock and the memory of one tile each would tell."""


@contextmanager
def strict_products() -> Iterator[None]:
    """No autograd, no autocast, no TF32 or bf16 inside float32 products: the error bound counts on it.

    The precision setting is global to the process; it is put back afterwards.
    """
    # The per-backend settings: the older `get_float32_matmul_precision` raises once a caller has used the newer ones.
    mkldnn: Any = torch.backends.mkldnn
    backends = (mkldnn.matmul, torch.backends.cuda.matmul)
    before = [backend.fp32_precision for backend in backends]
    with _plain():
        try:
            for backend in backends:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, value in zip(backends, before, strict=True):
                backend.fp32_precision = value


@contextmanager
def _plain(inference: bool = False) -> Iterator[None]:
    """What `strict_products` sets for the calling thread alone."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode() if inference else torch.no_grad())
        for kind in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def _helping(inference: bool) -> Iterator[None]:
    # A new thread begins with the process's number of torch threads, with gradients, without the caller's modes.
    with _plain(inference):
        torch.set_num_threads(1)
        yield


@contextmanager
def one_core() -> Iterator[int]:
    """Few torch threads become one, for the time being; yields how many threads `share_out` may use instead."""
    threads = torch.get_num_threads()
    if not 1 < threads <= FEW:
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        # Also what threads started later begin with: torch keeps one number for those.
        torch.set_num_threads(threads)


def share_out(jobs: Iterable[Job], work: Callable[[Iterator[Job]], Result], threads: int) -> list[Result]:
    """Results of `work`, called once in each of `threads` threads, the caller's among them.

    Each call gets an iterator; together they yield every job once, in order, to whoever asks first, so each sees its
    jobs in ascending order. After an error no further job is handed out.

    Threads are made for each call: 0.1 ms, and a process forked in between inherits no pool without threads.

    Raises:
        BaseException: whatever `work` raised; of several errors that of the earliest job.
    """
    if threads == 1:
        return [work(iter(jobs))]
    pending = enumerate(jobs)
    lock = threading.Lock()
    results: list[Result] = []
    errors: list[tuple[int, BaseException]] = []
    stopped = threading.Event()
    inference = torch.is_inference_mode_enabled()

    def run(settings: AbstractContextManager[None]) -> None:
        at = -1

        def mine() -> Iterator[Job]:
            nonlocal at
            while not stopped.is_set():
                with lock:
                    turn = next(pending, None)
                if turn is None:
                    return
                at, job = turn
                yield job

        try:
            with settings:
                results.append(work(mine()))
        except BaseException as error:
            stopped.set()
            errors.append((at, error))

    settings = [_helping(inference) for _ in range(threads - 1)]
    helpers = [threading.Thread(target=run, args=(one,), name="rl4rec-ranking") for one in settings]
    try:
        for helper in helpers:
            helper.start()
        run(nullcontext())
        for helper in helpers:
            helper.join()
    finally:
        # An interrupt in here leaves no thread behind.
        stopped.set()
        for helper in helpers:
            if helper.ident is not None:
                helper.join()
    if errors:
        # Jobs are handed out in order and finished once begun: none before the earliest that failed is left undone.
        raise min(errors, key=lambda one: (isinstance(one[1], Exception), one[0]))[1]
    return results
