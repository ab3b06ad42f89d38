"""Cases of fused ranking, and their scores by brute force in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from rl4rec_cli.ranking import blocks, counting, exact_scores, fused, fusing, reciprocal
from rl4rec_cli.ranking import ranks as ranking

STORAGES = ["fp32", "fp16", "int8"]
FUSIONS = ["logsumexp", "max", "mean", "rrf"]
SMALL = {
    "_TILE_SCORES": 64,
    "_TILE_ROWS": 16,
    "_COLUMNS": 8,
    "QUERIES": 8,
    "_PAIR_ELEMENTS": 40,
    "_NEAR_PAIRS": 7,
    "_PAIR_SCORES": 9,
    "_SCORES": 1,
    "_SHARED_WORK": 0,
    "_SHARED_SCORES": 0,
}


def small_blocks(patch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        for module in (blocks, counting, ranking, exact_scores, fused, fusing, reciprocal):
            if hasattr(module, name):
                patch.setattr(module, name, value)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Integers and denominators that make them floats; their dot products are exact in int64 and in float64."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d, users = draw(st.integers(1, 90)), draw(st.integers(1, 33)), draw(st.integers(1, 10))
    kind, denominator = draw(st.sampled_from([("coarse", 4), ("spread", 2**18), ("near", 2**18)]))
    items = rng.integers(-2, 3, (n, d)) if kind == "coarse" else rng.integers(-(2**18), 2**18, (n, d))
    if kind == "near":
        items = items[:1] + rng.integers(-1, 2, (n, d))
    for _ in range(draw(st.integers(0, 10))):  # equal vectors, anywhere
        items[rng.integers(n)] = items[rng.integers(n)]
    counts = rng.integers(1, draw(st.sampled_from([1, 2, 4, 16])) + 1, users)
    if draw(st.booleans()):
        counts[:] = counts[0]
    total = int(counts.sum())
    queries = rng.integers(-(2**18), 2**18, (total, d))
    if draw(st.booleans()):
        queries = rng.integers(-1, 2, (total, d)) * 2**17  # equal fused scores of unequal queries
    for _ in range(draw(st.integers(0, 4))):
        queries[rng.integers(total)] = queries[rng.integers(total)]
    queries[rng.random(total) < draw(st.sampled_from([0, 0.2, 1]))] = 0
    masks = [list(map(int, rng.integers(0, n, rng.integers(0, 2 * n)))) for _ in range(users)]
    weights = rng.normal(0, draw(st.sampled_from([0.1, 3, 1000])), total)
    return {
        "items": items,
        "item_denominator": denominator,
        "queries": queries,
        "counts": counts,
        "targets": rng.integers(0, n, users),
        "masks": draw(st.sampled_from([None, masks])),
        "weights": draw(st.sampled_from([None, weights, np.round(weights)])),
        "fusion": draw(st.sampled_from(FUSIONS)),
        "scale": draw(st.sampled_from([10.0, 0.5, 3.0, 200.0])),
        "storage": draw(st.sampled_from(STORAGES)),
        "k": draw(st.integers(1, 100)),
        "is_small": draw(st.booleans()),
        "threads": draw(st.integers(1, 3)),
    }


def brute_scores(case: dict[str, Any], user: int, kept: np.ndarray) -> np.ndarray:
    """Fused scores of all items, by the definition, from float64 scores; `kept` are the items that are ranked."""
    first = int(case["counts"][:user].sum())
    rows = [i for i in range(first, first + int(case["counts"][user])) if case["queries"][i].any()]
    rows = rows or [first]
    units = case["item_denominator"] * 2**18
    scores = case["queries"][rows].astype(np.int64) @ case["items"].astype(np.int64).T / units
    weights = np.zeros(len(rows)) if case["weights"] is None else case["weights"][rows]
    weights = weights - weights.max()
    fused_N = np.zeros(len(case["items"]))
    if case["fusion"] == "rrf":
        sums = [0] * len(fused_N)
        for row, weight in zip(scores, weights, strict=True):
            for item in range(len(fused_N)):
                rank = int((row[kept] >= row[item]).sum())
                sums[item] += int(np.rint(np.exp(weight) * 2.0**56 / (60 + rank)))
        return np.array(sums)
    if case["fusion"] == "mean":
        total = 0.0
        for weight in weights:
            total += np.exp(weight)
        for row, weight in zip(scores, weights, strict=True):
            fused_N += np.exp(weight) / total * row
        return fused_N
    scale = case["scale"]
    moved = scores + (weights / scale)[:, None]
    peak = moved.max(0)
    if case["fusion"] == "max":
        return peak
    for row in moved:
        fused_N += np.exp(scale * (row - peak))
    return peak + np.log(fused_N) / scale


def floats(values: np.ndarray, denominator: int) -> torch.Tensor:
    return torch.from_numpy((values / denominator).astype(np.float32))


def unit_vectors(count: int, dim: int, seed: int) -> torch.Tensor:
    vectors = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)
