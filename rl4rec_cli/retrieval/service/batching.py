"""Requests of several callers, one at a time or together.

Decides: what waits, what is refused, and what is done in one go. While a batch runs requests gather; those of one kind
are taken together up to a number of texts. Only where several wait already is there a pause for more to come, so that
a lone caller never waits for others.
Hides: the thread that the work runs in.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rl4rec_cli.errors import ServiceBusy, ServiceError


@dataclass
class Job:
    kind: Hashable
    """Only jobs of one kind are done together; None: alone."""
    size: int
    """Texts."""
    arguments: tuple[Any, ...]
    answer: asyncio.Future[Any] = field(init=False)


class Batcher:
    """Does jobs in a thread of its own, in the order they come.

    Args:
        work: gives a result or an exception for each of some jobs of one kind.
        limit: jobs that may wait; more are refused.
        together: most texts done together; a larger job is done alone.
        pause: seconds to wait for more where several jobs wait.
    """

    def __init__(
        self, work: Callable[[Sequence[Job]], Sequence[Any]], *, limit: int, together: int, pause: float
    ) -> None:
        self._work, self._limit, self._together, self._pause = work, limit, together, pause
        self._waiting: deque[Job] = deque()
        self._is_running = False
        self._is_closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="retrieval")
        self.closed = asyncio.Event()
        """Set when a closed batcher has answered all it had taken."""
        self.done = self.refused = self.batches = 0

    @property
    def is_busy(self) -> bool:
        """Whether a batch is being done."""
        return self._is_running

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def do(self, job: Job) -> Any:
        """The job's result.

        Raises:
            ServiceBusy: too many jobs wait. ServiceError: the service is being stopped. Whatever the work raises.
        """
        if self._is_closed:
            raise ServiceError("the retrieval service is being stopped")
        if len(self._waiting) >= self._limit:
            self.refused += 1
            raise ServiceBusy(
                f"the retrieval service has {len(self._waiting)} requests waiting and takes no more",
                hint="send fewer at once, or start it with more replicas or a longer queue: "
                "--set retrieval.service.replicas=2, --set retrieval.service.queue=256",
            )
        job.answer = asyncio.get_running_loop().create_future()
        self._waiting.append(job)
        if not self._is_running:
            self._is_running = True
            self._runner = asyncio.ensure_future(self._run())
        return await job.answer

    async def close(self) -> None:
        """Refuse new jobs and wait for those that are here."""
        self._is_closed = True
        if not self._is_running:
            self.closed.set()
        await self.closed.wait()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            if len(self._waiting) > 1 and self._pause:
                await asyncio.sleep(self._pause)
            jobs = self._next()
            try:
                results = await loop.run_in_executor(self._thread, self._work, jobs)
            except Exception as error:
                results = [error] * len(jobs)
            self.batches += 1
            self.done += len(jobs)
            for job, result in zip(jobs, results, strict=True):
                if job.answer.done():  # its caller has left
                    continue
                if isinstance(result, Exception):
                    job.answer.set_exception(result)
                else:
                    job.answer.set_result(result)
        self._is_running = False
        if self._is_closed:
            self.closed.set()

    def _next(self) -> list[Job]:
        """The first job, and those of its kind that fit with it."""
        first = self._waiting.popleft()
        taken, texts, left = [first], first.size, deque[Job]()
        while self._waiting:
            job = self._waiting.popleft()
            if first.kind is not None and job.kind == first.kind and texts + job.size <= self._together:
                taken.append(job)
                texts += job.size
            else:
                left.append(job)
        self._waiting = left
        return taken
