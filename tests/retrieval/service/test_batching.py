"""Requests that wait: what is done together, what is refused. No Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from rl4rec_cli.errors import DataError, ServiceBusy, ServiceError
from rl4rec_cli.retrieval.service.batching import Batcher, Job


class Work:
    """Notes what is done together; the first batch waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()

    def __call__(self, jobs: Sequence[Job]) -> list[Any]:
        self.batches.append([job.arguments[0] for job in jobs])
        assert self.go.wait(30)
        return [DataError("bad") if job.arguments[0] == "bad" else job.arguments[0].upper() for job in jobs]


async def gather(batcher: Batcher, work: Work, jobs: list[Job]) -> list[Any]:
    """The answers to a first job, and to `jobs`, which all wait while it is done."""
    first = asyncio.ensure_future(batcher.do(Job("first", 1, ("first",))))
    while not work.batches:
        await asyncio.sleep(0)
    rest = [asyncio.ensure_future(batcher.do(job)) for job in jobs]
    await asyncio.sleep(0)
    work.go.set()
    return [await first, *await asyncio.gather(*rest, return_exceptions=True)]


def run(jobs: list[Job], **options: Any) -> tuple[list[Any], list[list[str]], Batcher]:
    async def main() -> tuple[list[Any], list[list[str]], Batcher]:
        work = Work()
        batcher = Batcher(work, **{"limit": 10, "together": 10, "pause": 0.0, **options})
        return await gather(batcher, work, jobs), work.batches, batcher

    return asyncio.run(main())


def test_what_waits_is_done_together_by_kind_and_each_gets_its_own() -> None:
    jobs = [Job("x", 4, ("a",)), Job("y", 1, ("b",)), Job("x", 4, ("c",)), Job("x", 4, ("d",)), Job("x", 2, ("bad",))]
    answers, batches, batcher = run(jobs)
    assert answers[:4] == ["FIRST", "A", "B", "C"]
    assert isinstance(answers[5], DataError)
    assert batches == [
        ["first"],
        ["a", "c", "bad"],
        ["b"],
        ["d"],
    ]  # ten texts at most, nobody overtaken by another kind
    assert (batcher.done, batcher.batches, batcher.waiting, batcher.is_busy) == (6, 4, 0, False)


def test_what_has_no_kind_is_done_alone() -> None:
    assert run([Job(None, 1, ("a",)), Job(None, 1, ("b",))])[1] == [["first"], ["a"], ["b"]]


def test_a_larger_job_than_goes_together_is_done_alone() -> None:
    assert run([Job("x", 50, ("a",)), Job("x", 1, ("b",))])[1] == [["first"], ["a"], ["b"]]


def test_a_full_queue_refuses() -> None:
    answers, _, batcher = run([Job(None, 1, (name,)) for name in "abcd"], limit=2)
    assert answers[:3] == ["FIRST", "A", "B"]
    assert [type(answer) for answer in answers[3:]] == [ServiceBusy, ServiceBusy]
    assert batcher.refused == 2


def test_work_that_raises_fails_its_batch_alone() -> None:
    def work(jobs: Sequence[Job]) -> list[Any]:
        if jobs[0].arguments[0] == "a":
            raise ZeroDivisionError
        return ["fine"]

    async def main() -> list[Any]:
        batcher = Batcher(work, limit=5, together=5, pause=0.0)
        jobs = [batcher.do(Job(None, 1, (name,))) for name in "ab"]
        return await asyncio.gather(*jobs, return_exceptions=True)

    first, second = asyncio.run(main())
    assert (type(first), second) == (ZeroDivisionError, "fine")


def test_closing_answers_what_waits_and_takes_nothing_new() -> None:
    async def main() -> None:
        work = Work()
        batcher = Batcher(work, limit=5, together=5, pause=0.0)
        asked = asyncio.ensure_future(batcher.do(Job(None, 1, ("a",))))
        while not work.batches:
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(ServiceError, match="being stopped"):
            await batcher.do(Job(None, 1, ("b",)))
        assert not batcher.closed.is_set()
        work.go.set()
        assert await asked == "A"
        await closing
        assert batcher.closed.is_set()

    asyncio.run(main())
