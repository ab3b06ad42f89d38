"""Ranks and top-k against brute force in exact integers and in float64."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl4rec_cli.errors import DataError, EmbeddingError
from rl4rec_cli.ranking import blocks, counting, exact_scores, item_matrix, products, ranks, threads
from rl4rec_cli.ranking.ranks import ItemMatrix, count_at_least, pair_scores, score_matrix, search, target_ranks

STORAGES = ["fp32", "fp16", "int8"]
KNOBS = {
    "_TILE_SCORES": 1 << 18,
    "QUERIES": 1024,
    "_PAIR_ELEMENTS": 1 << 16,
    "_NEAR_PAIRS": 1 << 14,
    "_SHARED_WORK": 1 << 27,
    "_SHARED_SCORES": 1 << 23,
}
SHARED = {"_SHARED_WORK": 0, "_SHARED_SCORES": 0}
SMALL_BLOCKS = {"_TILE_SCORES": 64, "QUERIES": 8, "_PAIR_ELEMENTS": 40, "_NEAR_PAIRS": 7, **SHARED}


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in KNOBS:
        for module in (counting, ranks, exact_scores, blocks):
            monkeypatch.setattr(module, name, getattr(module, name, None), raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def set_knobs(**values: int) -> None:
    for name, value in values.items():
        owners = [
            module for module in (counting, ranks, exact_scores, blocks) if getattr(module, name, None) is not None
        ]
        assert owners, name
        for module in owners:
            setattr(module, name, value)


def exact_catalogue(rng: np.random.Generator, n: int, d: int, kind: str) -> tuple[np.ndarray, int]:
    """Integer vectors and the denominator that makes them floats; dot products of them are exact in int64."""
    if kind == "coarse":  # few values: ties everywhere
        return rng.integers(-2, 3, (n, d)), 4
    if kind == "spread":
        return rng.integers(-(2**18), 2**18, (n, d)), 2**18
    # "near": all within float32 rounding of one another, which only more than float32 can tell apart
    return rng.integers(2**17, 2**18, (1, d)) + rng.integers(-1, 2, (n, d)), 2**18


def brute_ranks(
    queries: np.ndarray, items: np.ndarray, targets: np.ndarray, masks: list[list[int]] | None
) -> np.ndarray:
    scores = queries.astype(np.int64) @ items.astype(np.int64).T
    ranks = []
    for b, target in enumerate(targets):
        counted = np.ones(len(items), dtype=bool)
        counted[(masks or [[]] * len(targets))[b]] = False
        counted[target] = False
        ranks.append(1 + int((scores[b][counted] >= scores[b][target]).sum()))
    return np.array(ranks)


def brute_search(
    queries: np.ndarray, items: np.ndarray, k: int, exclude: list[list[int]] | None
) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.int64) @ items.astype(np.int64).T
    ids = np.full((len(queries), min(k, len(items))), -1)
    best = np.full(ids.shape, -np.inf)
    for b in range(len(queries)):
        left = sorted(set(range(len(items))) - set((exclude or [[]] * len(queries))[b]))
        chosen = sorted(left, key=lambda i: (-scores[b, i], i))[:k]
        ids[b, : len(chosen)] = chosen
        best[b, : len(chosen)] = scores[b, chosen]
    return ids, best


def floats(values: np.ndarray, denominator: int) -> torch.Tensor:
    return torch.from_numpy((values / denominator).astype(np.float32))


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d, b = draw(st.integers(1, 90)), draw(st.integers(1, 33)), draw(st.integers(1, 12))
    items, denominator = exact_catalogue(rng, n, d, draw(st.sampled_from(["coarse", "spread", "near"])))
    for _ in range(draw(st.integers(0, 10))):  # duplicates, anywhere
        items[rng.integers(n)] = items[rng.integers(n)]
    if draw(st.booleans()):
        items[rng.integers(n)] = 0
    queries = rng.integers(-(2**18), 2**18, (b, d))
    if draw(st.booleans()):
        queries[rng.integers(b)] = 0
    masks = [list(map(int, rng.integers(0, n, rng.integers(0, 3 * n)))) for _ in range(b)]
    return {
        "items": items,
        "queries": queries,
        "denominator": denominator,
        "targets": rng.integers(0, n, b),
        "masks": draw(st.sampled_from([None, masks])),
        "storage": draw(st.sampled_from(STORAGES)),
        "k": draw(st.integers(1, 100)),
        "knobs": draw(st.sampled_from([KNOBS, SMALL_BLOCKS])),
        "threads": draw(st.integers(1, 3)),
    }


@settings(max_examples=250, deadline=None)
@given(cases())
def test_ranks_equal_exact_brute_force(case: dict[str, Any]) -> None:
    set_knobs(**case["knobs"])
    torch.set_num_threads(case["threads"])
    items = ItemMatrix(floats(case["items"], case["denominator"]), storage=case["storage"])
    ranks = target_ranks(floats(case["queries"], 2**18), items, torch.from_numpy(case["targets"]), case["masks"])
    expected = brute_ranks(case["queries"], case["items"], case["targets"], case["masks"])
    assert ranks.dtype == torch.int64
    np.testing.assert_array_equal(ranks.numpy(), expected)


@settings(max_examples=250, deadline=None)
@given(cases())
def test_search_equals_exact_brute_force(case: dict[str, Any]) -> None:
    set_knobs(**case["knobs"])
    torch.set_num_threads(case["threads"])
    items = ItemMatrix(floats(case["items"], case["denominator"]), storage=case["storage"])
    ids, scores = search(floats(case["queries"], 2**18), items, case["k"], case["masks"])
    expected_ids, expected = brute_search(case["queries"], case["items"], case["k"], case["masks"])
    assert ids.dtype == torch.int64
    assert scores.dtype == torch.float32
    np.testing.assert_array_equal(ids.numpy(), expected_ids)
    np.testing.assert_array_equal(scores.numpy(), (expected / case["denominator"] / 2**18).astype(np.float32))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("copies", [1, 40])
def test_ranks_equal_float64_on_real_valued_vectors(storage: Any, copies: int) -> None:
    """Many items and dimensions; duplicate vectors spread over the catalogue tie exactly with the target."""
    rng = torch.Generator().manual_seed(3)
    vectors = torch.nn.functional.normalize(torch.randn(6000, 200, generator=rng), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(70, 200, generator=rng), dim=1)
    targets = torch.randint(0, 6000, (70,), generator=rng)
    vectors[torch.randperm(6000, generator=rng)[:copies]] = vectors[targets[0]].clone()
    items = ItemMatrix(vectors, storage=storage)
    scores = queries.double() @ vectors.double().T
    # 1e-13: above the rounding of this float64 product, far below any gap between different items.
    expected = (scores >= scores.gather(1, targets[:, None]) - 1e-13).sum(1)
    assert torch.equal(target_ranks(queries, items, targets), expected)
    assert expected[0] > copies - 2


@pytest.mark.parametrize("storage", STORAGES)
def test_block_batch_and_order_never_change_a_rank(storage: Any) -> None:
    rng = np.random.default_rng(5)
    values, denominator = exact_catalogue(rng, 300, 48, "near")
    values[rng.integers(0, 300, 80)] = values[0]
    vectors, queries = floats(values, denominator), torch.randn(21, 48, generator=torch.Generator().manual_seed(1))
    targets = torch.from_numpy(rng.integers(0, 300, 21))
    masks = [list(map(int, rng.integers(0, 300, 100))) for _ in range(21)]
    items = ItemMatrix(vectors, storage=storage)
    ranks, (ids, scores) = target_ranks(queries, items, targets, masks), search(queries, items, 30, masks)

    one_by_one = [target_ranks(queries[i : i + 1], items, targets[i : i + 1], masks[i : i + 1]) for i in range(21)]
    assert torch.equal(torch.cat(one_by_one), ranks)

    set_knobs(**SMALL_BLOCKS)
    assert torch.equal(target_ranks(queries, items, targets, masks), ranks)
    again_ids, again_scores = search(queries, items, 30, masks)
    assert torch.equal(again_ids, ids)
    assert torch.equal(again_scores, scores)

    order = torch.from_numpy(rng.permutation(300))
    place = torch.argsort(order)
    shuffled = ItemMatrix(vectors[order], storage=storage)
    moved = [place[torch.tensor(mask)].tolist() for mask in masks]
    assert torch.equal(target_ranks(queries, shuffled, place[targets], moved), ranks)


def test_int8_where_products_of_codes_are_wrong() -> None:
    """oneDNN held to instructions that add in 16 bits, as processors without VNNI do: codes are not multiplied then."""
    code = (
        "import torch\n"
        "from rl4rec_cli.ranking import products\n"
        "from rl4rec_cli.ranking.ranks import ItemMatrix, search, target_ranks\n"
        "vectors = torch.rand(300, 48, generator=torch.Generator().manual_seed(1))\n"  # of one sign: large sums
        "queries, targets = vectors[:40] + 0.01, torch.arange(40, 80)\n"
        "exact, coded = (ItemMatrix(vectors, storage=s) for s in ('fp32', 'int8'))\n"
        "assert torch.equal(target_ranks(queries, coded, targets), target_ranks(queries, exact, targets))\n"
        "assert torch.equal(search(queries, coded, 9)[0], search(queries, exact, 9)[0])\n"
        "print(products.int8_pays())\n"
    )
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if platform.machine() == "x86_64":
        assert done.stdout == "False\n"


def test_int8_is_exact_where_codes_are_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "int8_pays", lambda: False)
    monkeypatch.setattr(blocks, "int8_product", None)  # not to be called
    rng = np.random.default_rng(7)
    values, denominator = exact_catalogue(rng, 300, 48, "near")
    queries, targets = rng.integers(-(2**18), 2**18, (24, 48)), rng.integers(0, 300, 24)
    items = ItemMatrix(floats(values, denominator), storage="int8")
    ranks = target_ranks(floats(queries, 2**18), items, torch.from_numpy(targets))
    np.testing.assert_array_equal(ranks.numpy(), brute_ranks(queries, values, targets, None))


def test_shards_add_up() -> None:
    vectors, queries = torch.randn(300, 24), torch.randn(9, 24)
    vectors[250] = vectors[3]
    whole = ItemMatrix(vectors)
    targets = torch.tensor([3, 250, 1, 2, 99, 100, 101, 200, 299])
    goals = pair_scores(queries, whole, targets)
    counts = sum(count_at_least(queries, ItemMatrix(part), goals) for part in torch.split(vectors, [100, 1, 199]))
    # Each target counts itself.
    assert torch.equal(torch.as_tensor(counts), target_ranks(queries, whole, targets))


def test_sign_and_scale_of_scores_do_not_matter() -> None:
    vectors, queries = torch.randn(200, 16), torch.randn(8, 16)
    targets = torch.arange(8)
    items = ItemMatrix(vectors)
    ranks = target_ranks(queries, items, targets)
    for scale in (1e-30, 1e-3, 1e30):
        assert torch.equal(target_ranks(queries * 2.0 ** round(np.log2(scale)), items, targets), ranks)
    for scale in (2.0**-50, 2.0**50):
        scaled = ItemMatrix(vectors * scale)
        assert torch.equal(target_ranks(queries, scaled, targets), ranks)
        assert torch.equal(search(queries, scaled, 5)[0], search(queries, items, 5)[0])

    flipped = ItemMatrix(-vectors)
    assert torch.equal(target_ranks(queries, flipped, targets), 201 - ranks)


def test_a_query_of_the_smallest_or_largest_numbers_is_the_same_direction() -> None:
    signs = torch.tensor([[1.0, -1.0, 0.0, 1.0], [0.0, 1.0, 1.0, -1.0]])
    items, targets = ItemMatrix(torch.randn(50, 4)), torch.tensor([3, 40])
    ranks = target_ranks(signs, items, targets)
    for power in (-149, -148, -127, -126, 126, 127):
        scaled = torch.ldexp(signs.double(), torch.tensor(power)).float()
        assert torch.equal(target_ranks(scaled, items, targets), ranks)


def test_ties_count_against_the_target() -> None:
    items = ItemMatrix(torch.ones(50, 8))
    assert target_ranks(torch.ones(2, 8), items, torch.tensor([0, 49])).tolist() == [50, 50]
    assert search(torch.ones(1, 8), items, 4)[0].tolist() == [[0, 1, 2, 3]]


def test_zero_query_ranks_last_among_the_unmasked() -> None:
    items = ItemMatrix(torch.randn(50, 8))
    ranks = target_ranks(torch.zeros(2, 8), items, torch.tensor([3, 4]), [[], [1, 1, 2, 4]])
    assert ranks.tolist() == [50, 48]
    ids, scores = search(torch.zeros(1, 8), items, 3, [[1]])
    assert ids.tolist() == [[0, 2, 3]]
    assert scores.tolist() == [[0.0, 0.0, 0.0]]


def test_mask_never_hides_the_target_and_counts_duplicates_once() -> None:
    items = ItemMatrix(torch.eye(4) * torch.tensor([[4.0], [3.0], [2.0], [1.0]]))
    queries, targets = torch.ones(1, 4), torch.tensor([2])
    assert target_ranks(queries, items, targets).item() == 3
    assert target_ranks(queries, items, targets, [[0, 0, 2, 0]]).item() == 2
    assert target_ranks(queries, items, targets, [[0, 1, 2, 3]]).item() == 1


def test_search_pads_where_too_few_items_remain() -> None:
    items = ItemMatrix(torch.eye(3))
    ids, scores = search(torch.tensor([[1.0, 2.0, 3.0]]), items, 10, [[2]])
    assert ids.tolist() == [[1, 0, -1]]
    assert scores.tolist() == [[2.0, 1.0, -np.inf]]


def test_one_item_and_no_query() -> None:
    items = ItemMatrix(torch.ones(1, 3))
    assert target_ranks(-torch.ones(1, 3), items, torch.tensor([0]), [[0]]).tolist() == [1]
    assert target_ranks(torch.ones(0, 3), items, torch.zeros(0, dtype=torch.int64)).shape == (0,)
    assert search(torch.ones(0, 3), items, 5)[0].shape == (0, 1)
    assert score_matrix(torch.ones(0, 3), items).shape == (0, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_query_is_named(bad: float) -> None:
    items = ItemMatrix(torch.randn(20, 4))
    queries = torch.randn(3, 4)
    queries[1, 2] = bad
    for call in (
        lambda: target_ranks(queries, items, torch.zeros(3, dtype=torch.int64)),
        lambda: search(queries, items, 2),
        lambda: score_matrix(queries, items),
    ):
        with pytest.raises(EmbeddingError, match="text 1 is not finite"):
            call()
    with pytest.raises(EmbeddingError, match="text 2 does not fit float32"):
        search(torch.tensor([[1e38] * 4, [-3e38] * 4, [1e39] * 4], dtype=torch.float64), items, 2)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_item_is_named(storage: Any, bad: float) -> None:
    vectors = torch.randn(600, 4)
    vectors[513, 1] = bad
    with pytest.raises(EmbeddingError, match="item embedding 513 is not finite"):
        ItemMatrix(vectors, storage=storage)


def test_wrong_ids_and_shapes_are_errors() -> None:
    items, queries = ItemMatrix(torch.randn(20, 4)), torch.randn(2, 4)
    good = torch.tensor([0, 1])
    for targets in ([0, 20], [-1, 0], [0], [0.0, 1.0], [[0], [1]]):
        with pytest.raises(DataError):
            target_ranks(queries, items, torch.tensor(targets))
    for masks in ([[0], [20]], [[-1], []], [[0]], [[0.5], []], [[], [], []]):
        with pytest.raises(DataError):
            target_ranks(queries, items, good, masks)
        with pytest.raises(DataError):
            search(queries, items, 2, masks)
    for wrong in (torch.randn(2, 5), torch.randn(4), torch.ones(2, 4, dtype=torch.int64)):
        with pytest.raises(EmbeddingError):
            target_ranks(wrong, items, good)
    with pytest.raises(DataError):
        search(queries, items, 0)
    for wrong in (torch.randn(4), torch.randn(0, 4), torch.randn(4, 0), torch.ones(2, 2, dtype=torch.int32)):
        with pytest.raises(EmbeddingError):
            ItemMatrix(wrong)
    with pytest.raises(EmbeddingError, match="storage"):
        ItemMatrix(torch.randn(4, 4), storage="fp8")  # type: ignore[arg-type]
    with pytest.raises(EmbeddingError, match="item embedding 1 is too long"):
        ItemMatrix(torch.tensor([[1.0], [1e30]]))
    with pytest.raises(EmbeddingError, match="item embedding 2 does not fit storage fp16"):
        ItemMatrix(torch.tensor([[1.0], [2.0], [1e6]]), storage="fp16")


@pytest.mark.parametrize("onednn", [True, False])
def test_callers_settings_neither_matter_nor_change(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast, bf16 inside float32 products and gradients are all alive inside a trainer."""
    if not onednn:
        monkeypatch.setattr(products, "_has_onednn", lambda: False)
    vectors, queries = torch.randn(400, 64), torch.randn(16, 64)
    items, targets = ItemMatrix(vectors), torch.arange(16)
    ranks, found = target_ranks(queries, items, targets), search(queries, items, 20)
    matrix = score_matrix(queries, items)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            learning = queries.clone().requires_grad_()
            assert torch.equal(target_ranks(learning, items, targets), ranks)
            assert torch.equal(search(learning, items, 20)[0], found[0])
            assert torch.equal(score_matrix(learning, items), matrix)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("few_threads", [0, 4])
@pytest.mark.parametrize("width", [8, 16, 512])
@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_flags(rows: int, width: int, few_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting and finding eight flags at a time, past 255 rows, by either library."""
    monkeypatch.setattr(products, "FEW", few_threads)
    scores = torch.randint(0, 4, (rows, width)).float()
    low, high = torch.randint(0, 3, (width,)).float(), torch.randint(3, 5, (width,)).float()
    maybe, sure = (products.Flags(scores, products.long_row(some.numpy(), rows)) for some in (low, high))
    assert maybe.counts().tolist() == (scores >= low).sum(0).tolist()
    assert maybe.total() == int((scores >= low).sum())
    for got, expected in ((maybe.where(), scores >= low), (maybe.where(but=sure), (scores >= low) & (scores < high))):
        assert np.array_equal(np.stack(got, axis=1), expected.nonzero().numpy())


@pytest.mark.parametrize("storage", STORAGES)
def test_score_matrix(storage: Any) -> None:
    set_knobs(**SMALL_BLOCKS)
    vectors, queries = torch.randn(333, 20), torch.randn(7, 20) * 100
    expected = queries.double() @ vectors.double().T
    scores = score_matrix(queries, ItemMatrix(vectors, storage=storage))
    assert scores.dtype == torch.float32
    assert scores.shape == (7, 333)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-6, atol=1e-3)


def test_scores_are_never_held_whole() -> None:
    """Every tile stays within its bound, whatever the catalogue and the batch."""
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    vectors, queries = torch.randn(40_000, 4), torch.randn(600, 4)
    items = ItemMatrix(vectors)
    with Watch():
        target_ranks(queries, items, torch.arange(600))
        search(queries, items, 5)
    assert item_matrix.GRANULE * 600 <= largest <= 1 << 21


def inside(
    seen: list[Any], monkeypatch: pytest.MonkeyPatch, *, fail_at: dict[int, BaseException] | None = None
) -> None:
    """Record thread and torch settings wherever a block is first touched; fail at the blocks that start so."""
    bounds = ItemMatrix.bounds
    met = threading.Barrier(2, timeout=30)

    def watched(self: ItemMatrix, start: int, stop: int) -> tuple[float, float]:
        if threading.get_ident() not in [one[0] for one in seen]:
            state = torch.get_num_threads(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
            seen.append((threading.get_ident(), *state))
            # Until both threads have begun, neither goes on: a single quick one would leave the other nothing to do.
            met.wait()
        if fail_at and start in fail_at:
            raise fail_at[start]
        return bounds(self, start, stop)

    monkeypatch.setattr(ItemMatrix, "bounds", watched)


def threads_elsewhere() -> int:
    """What torch gives to a thread that starts now."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("storage", STORAGES)
def test_threads_share_the_blocks_and_change_nothing(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(11)
    values, denominator = exact_catalogue(rng, 5000, 24, "near")
    values[rng.integers(0, 5000, 2000)] = values[7]
    vectors, queries = floats(values, denominator), torch.randn(30, 24, generator=torch.Generator().manual_seed(1))
    queries[3] = 0
    targets = torch.from_numpy(rng.integers(0, 5000, 30))
    masks = [list(map(int, rng.integers(0, 5000, 100))) for _ in range(30)]
    items = ItemMatrix(vectors, storage=storage)

    def everything() -> list[torch.Tensor]:
        counts = count_at_least(queries, items, pair_scores(queries, items, targets), masks)
        return [target_ranks(queries, items, targets, masks), counts, *search(queries, items, 50, masks)]

    torch.set_num_threads(1)
    alone, matrix = everything(), score_matrix(queries, items)
    set_knobs(**SHARED, _TILE_SCORES=1 << 13)
    torch.set_num_threads(2)
    seen: list[Any] = []
    with torch.autocast("cpu", dtype=torch.bfloat16), monkeypatch.context() as patch:
        inside(seen, patch)
        target_ranks(queries, items, targets)
    assert sorted(one[1:] for one in seen) == [(1, False, False)] * 2
    for _ in range(5):
        for got, expected in zip(everything(), alone, strict=True):
            assert torch.equal(got, expected)
    with torch.inference_mode():
        for got, expected in zip(everything(), alone, strict=True):
            assert torch.equal(got, expected)
    torch.testing.assert_close(score_matrix(queries, items), matrix, rtol=1e-6, atol=1e-6)
    assert torch.get_num_threads() == threads_elsewhere() == 2


def test_little_work_is_done_by_the_caller_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.threading, "Thread", None)
    torch.set_num_threads(2)
    items = ItemMatrix(torch.randn(3000, 8))
    assert target_ranks(torch.randn(4, 8), items, torch.arange(4)).shape == (4,)


def test_of_few_scores_torch_shares_out_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = torch.randn(20_000, 96), torch.randn(64, 96)
    items, targets = ItemMatrix(vectors), torch.arange(64)
    torch.set_num_threads(1)
    expected = target_ranks(queries, items, targets)
    monkeypatch.setattr(threads.threading, "Thread", None)
    torch.set_num_threads(2)
    seen: list[int] = []
    multiply = blocks.product
    monkeypatch.setattr(blocks, "product", lambda *two: seen.append(torch.get_num_threads()) or multiply(*two))
    assert torch.equal(target_ranks(queries, items, targets), expected)
    assert set(seen) == {2}


def test_an_error_in_any_thread_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first in the catalogue's order, whichever thread met it; settings are put back, no thread is left."""
    set_knobs(**SHARED, _TILE_SCORES=1 << 11)
    torch.set_num_threads(2)
    running = threading.active_count()
    # Blocks 0 and 1 are each in hand of one thread, and both fail: the earlier error it is, though it came later.
    items = ItemMatrix(torch.randn(5000, 8))
    for kind in (EmbeddingError, KeyboardInterrupt):
        with monkeypatch.context() as patch:
            inside([], patch, fail_at={0: kind("first"), 1024: EmbeddingError("second")})
            with pytest.raises(kind, match="first"):
                search(torch.randn(8, 8), items, 3)
    assert threading.active_count() == running
    assert torch.get_num_threads() == threads_elsewhere() == 2


def test_an_item_that_ties_with_those_of_another_thread_may_win() -> None:
    items = ItemMatrix(torch.ones(600, 8))
    queries = exact_scores.Queries(torch.zeros(1, 8), items)
    none = np.zeros(0, dtype=np.int64)
    floor = ranks._Floor(1)
    floor.raised(np.zeros(1))
    parts = blocks.Scan(queries, items, blocks.Mask(none, none), 1)
    assert ranks._top_some(parts, iter([(0, 256), (256, 600)]), 3, floor).ids.tolist() == [0, 1, 2]


def test_share_out_gives_every_job_once_and_in_order() -> None:
    torch.set_num_threads(3)
    with threads.one_core() as count:
        assert (count, torch.get_num_threads()) == (3, 1)
        parts = threads.share_out(range(1000), list, count)
    assert sorted(chain.from_iterable(parts)) == list(range(1000))
    assert all(part == sorted(part) for part in parts)
    assert len(parts) == 3
    torch.set_num_threads(threads.FEW + 1)
    with threads.one_core() as count:
        assert (count, torch.get_num_threads()) == (1, threads.FEW + 1)
