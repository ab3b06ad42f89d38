"""What the retrieval service costs over in-process retrieval, and what several callers get out of it.

A service of one actor and retrieval in this process answer the same requests over the same catalogue, in turns: ranks
of 64 targets, and the full score matrix of 64 texts. Then 1, 4 and 16 callers (threads, each waiting for its answer
before it asks again) send ranks of 64 targets each.

    python benchmarks/retrieval_service.py [--items 12000] [--rounds 200] [--seconds 5]

Claim: at most 5 ms over in-process for ranks. Needs `pip install 'rl4rec[ray]'`; starts Ray for itself, on loopback.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same on both sides, and steadier

from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.service import cluster
from rl4rec_cli.retrieval.service.serving import start_service

CLAIM_MS = 5.0
TEXTS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    settings = {"backend": "ray", "embedder": "lsa", "device": "cpu", "service": {"store_mb": 500, "queue": 256}}
    section = RetrievalSection.model_validate(settings)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "catalogue"
        save_dataset(synthesize(1_000, args.items, 0), folder)
        with cluster.opened(section.service) as (ray, _):
            actors = start_service(ray, section.model_dump(mode="json"), [str(folder)], num_gpus=0)
            over = measure(section, folder, args.rounds, args.seconds)
            del actors
    print(f"\nranks over in-process {over:.2f} ms, claim: at most {CLAIM_MS:g}")
    sys.exit(over > CLAIM_MS)


def measure(section: RetrievalSection, folder: Path, rounds: int, seconds: float) -> float:
    """Print both tables; milliseconds of a round trip for ranks over in-process."""
    dataset = load_dataset(folder)
    service = open_retriever(section, dataset)
    here = open_retriever(section.model_copy(update={"backend": "in-process"}), dataset)
    texts = [str(dataset.items[i * 97 % dataset.num_items]["title"]) for i in range(TEXTS)]
    batch = (texts, list(range(TEXTS)), [[i + 1, i + 2] for i in range(TEXTS)])
    assert service.target_ranks(*batch).ranks.tolist() == here.target_ranks(*batch).ranks.tolist()
    print(
        f"{TEXTS} texts, {dataset.num_items:,} items; load of the machine {os.getloadavg()[0]:.1f} on {cores()} cores"
    )
    print(f"{'round trip':<12}{'service ms':>12}{'in-process ms':>15}{'over ms':>10}{'lowest over':>13}")
    over = 0.0
    for name, ask in (
        ("ranks", lambda r: r.target_ranks(*batch)),
        ("full matrix", lambda r: r.calculate_reward(texts)),
    ):
        times = alternate([lambda ask=ask: ask(service), lambda ask=ask: ask(here)], rounds)
        served, local = (statistics.median(column) for column in times)
        print(
            f"{name:<12}{1e3 * served:>12.2f}{1e3 * local:>15.2f}{1e3 * (served - local):>10.2f}"
            f"{1e3 * (min(times[0]) - min(times[1])):>13.2f}"
        )
        over = over or 1e3 * (served - local)
    print(f"\n{'callers':<9}{'requests/s':>12}{'texts/s':>10}{'median ms':>11}")
    for callers in (1, 4, 16):
        rate, median = throughput(lambda: service.target_ranks(*batch), callers, seconds)
        print(f"{callers:<9}{rate:>12.0f}{rate * TEXTS:>10.0f}{1e3 * median:>11.2f}")
    return over


def cores() -> int:
    return len(os.sched_getaffinity(0))


def alternate(calls: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each call, taken in turns; the first ones warm up."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 5):
        for call, column in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            if number >= 5:
                column.append(time.perf_counter() - started)
    return times


def throughput(call: Callable[[], Any], callers: int, seconds: float) -> tuple[float, float]:
    """Requests a second of so many callers at once, and the median time of one."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    def caller() -> None:
        while time.perf_counter() < end:
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)

    threads = [threading.Thread(target=caller) for _ in range(callers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(times) / (time.perf_counter() - started), statistics.median(times)


if __name__ == "__main__":
    main()
