"""Ranks and top-k on the device are those of brute force, and those of the CPU to the bit."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from rl4rec_cli import console
from rl4rec_cli.ranking import counting
from rl4rec_cli.ranking.fused import fused_search, fused_target_ranks
from rl4rec_cli.ranking.ranks import ItemMatrix, search, target_ranks

STORAGES = ["fp32", "fp16", "int8"]
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("storage", STORAGES)
def test_ranks_are_those_of_brute_force(storage: Any, device: str) -> None:
    # Small whole numbers: every product is exact in every storage and order of summing, and many are equal.
    count, rows = 3000, torch.arange(40)
    vectors = torch.randint(-1, 2, (count, 16)).float()
    vectors[:, 0] = 1  # no zero vector
    queries = torch.randint(-1, 2, (len(rows), 16)).float()
    queries[:, 1] = 1
    targets = torch.randint(0, count, (len(rows),))
    items = ItemMatrix(vectors, storage=storage, device=device)
    exact = queries.double() @ vectors.double().T
    expected = (exact >= exact[rows, targets][:, None]).sum(1)  # an equal item counts against the policy
    assert torch.equal(target_ranks(queries, items, targets), expected)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_device_gives_the_same_bits(storage: Any, device: str) -> None:
    vectors, queries = torch.randn(20_000, 96), torch.randn(64, 96)
    vectors[15_000:] = vectors[:5_000]
    targets = torch.randint(0, 20_000, (64,))
    on_cpu, there = ItemMatrix(vectors), ItemMatrix(vectors, storage=storage, device=device)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert torch.equal(target_ranks(queries, there, targets), target_ranks(queries, on_cpu, targets))
        for got, expected in zip(search(queries, there, 20), search(queries, on_cpu, 20), strict=True):
            assert torch.equal(got, expected)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("fusion", ["logsumexp", "max", "mean", "rrf"])
def test_several_queries_of_a_user_rank_as_on_the_cpu(fusion: Any, storage: Any, device: str) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(20_000, 96), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(90, 96), dim=1)
    vectors[15_000:] = vectors[:5_000].clone()
    targets, counts = torch.randint(0, 20_000, (20,)), [1, 8] * 10
    masks, how = torch.randint(0, 20_000, (20, 9)).tolist(), {"fusion": fusion, "log_weights_Q": torch.randn(90)}
    on_cpu, there = ItemMatrix(vectors), ItemMatrix(vectors, storage=storage, device=device)
    ranks = fused_target_ranks(queries, counts, there, targets, masks, **how)
    assert torch.equal(ranks, fused_target_ranks(queries, counts, on_cpu, targets, masks, **how))
    found, wanted = (fused_search(queries, counts, items, 20, masks, **how) for items in (there, on_cpu))
    for got, expected in zip(found, wanted, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton, which torch's CUDA build brings")
@pytest.mark.parametrize("storage", STORAGES)
def test_a_gpu_counts_by_the_kernel_what_it_counts_by_tiles(
    storage: Any, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cpu":
        pytest.skip("the kernel needs a CUDA device; Triton's interpreter runs it in tests/ranking/test_counting.py")
    vectors, queries = torch.randn(50_000, 96), torch.randn(100, 96)
    vectors[40_000:] = vectors[:10_000]
    queries[-1] = 0
    targets = torch.randint(0, 50_000, (100,))
    masks = [torch.randint(0, 50_000, (30,)).tolist() for _ in range(100)]
    expected = target_ranks(queries, ItemMatrix(vectors), targets, masks)
    items = ItemMatrix(vectors, storage=storage, device=device)
    if counting._kernel(items, 100) is None:
        pytest.skip(f"the kernel is not compiled for {storage} on this generation of GPUs")
    for is_quicker in (True, False):
        monkeypatch.setattr(counting, "_try_both", lambda *_, answer=is_quicker: answer)
        monkeypatch.setattr(counting, "_quicker", {})
        assert torch.equal(target_ranks(queries, items, targets, masks), expected)
    monkeypatch.undo()
    monkeypatch.setattr(counting, "_quicker", {})
    lines: list[str] = []
    monkeypatch.setattr(console, "log", lines.append)
    assert torch.equal(target_ranks(queries, items, targets, masks), expected)
    assert len(lines) == 1
    assert "(fused kernel " in lines[0], lines
