"""What `test_counting.py` runs in a process of its own: the fused kernel, by Triton's interpreter, on the CPU.

TRITON_INTERPRET=1 must be set before triton is imported, and stays for the process.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np
import torch

from rl4rec_cli.ranking import counting, triton_count
from rl4rec_cli.ranking.ranks import ItemMatrix, count_at_least, pair_scores, target_ranks

CALLS = {"kernel": 0, "overflows": 0, "crowds": 0}


def watched(*args: Any, **options: Any) -> triton_count.Counted:
    found = triton_count.count_range(*args, **options)
    CALLS["kernel"] += 1
    CALLS["overflows"] += found.pairs_M is None
    rows = options["stop"] - options["start"]
    CALLS["crowds"] += found.pairs_M is not None and bool((found.near_B * counting._CROWD > rows).any())
    return found


class Watched:
    count_range = staticmethod(watched)


def catalogue(kind: str, n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, d, generator=generator)
    if kind == "ties":
        return torch.randint(-1, 2, (n, d), generator=generator).float()
    if kind == "twins":
        vectors[n // 2 :] = vectors[: n - n // 2].clone()
    if kind == "tiny":
        vectors *= 1e-30
    return vectors


def masks_for(texts: int, n: int, targets: torch.Tensor, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    masks = [rng.integers(0, n, int(rng.integers(0, min(n, 60)))).tolist() for _ in range(texts)]
    masks[0] += [int(targets[0]), int(targets[0])]  # the target stays in; an id may be listed twice
    return [mask + mask[:2] for mask in masks]


def check(n: int, d: int, texts: int, kind: str, storage: Any, seed: int) -> None:
    vectors, queries = (
        catalogue(kind, n, d, seed),
        torch.randn(texts, d, generator=torch.Generator().manual_seed(~seed)),
    )
    queries[-1] = 0  # ties with every item
    targets = torch.randint(0, n, (texts,), generator=torch.Generator().manual_seed(seed + 1))
    masks = masks_for(texts, n, targets, seed)
    items = ItemMatrix(vectors, storage=storage)
    results = []
    for kernel in (None, Watched):
        counting._kernel = lambda items, texts, kernel=kernel: kernel  # type: ignore[assignment]
        goals = pair_scores(queries, items, targets)
        counts = count_at_least(queries, items, goals, masks)
        results.append((target_ranks(queries, items, targets, masks), target_ranks(queries, items, targets), counts))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs), (n, d, texts, kind, storage, seed)


def main() -> None:
    counting._try_both = lambda *_: True  # type: ignore[assignment]
    shapes = [(1, 1, 1), (130, 33, 3), (700, 96, 70), (257, 8, 17)]
    for seed, ((n, d, texts), kind) in enumerate(itertools.product(shapes, ["plain", "ties", "twins", "tiny"])):
        for storage in ("fp32", "int8") if kind == "tiny" else ("fp32", "fp16", "int8"):
            # Several calls of the kernel, whose last one is not full; and all in one.
            counting._RANGE_SCORES = 256 * texts if seed % 2 else 1 << 26
            counting._ROOM = 1 << 20 if kind == "plain" else 64
            check(n, d, texts, kind, storage, seed)
    assert CALLS["kernel"] > 100, CALLS
    assert CALLS["overflows"] > 5, CALLS
    assert CALLS["crowds"] > 5, CALLS
    print("the same", CALLS)


if __name__ == "__main__":
    sys.exit(main())
