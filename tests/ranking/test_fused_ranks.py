"""Ranks and top-k of several queries fused into one score, against brute force in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fused_cases import FUSIONS, STORAGES, brute_scores, cases, floats, small_blocks, unit_vectors
from hypothesis import given, settings

from rl4rec_cli.errors import DataError, EmbeddingError
from rl4rec_cli.ranking import blocks, fused, fusing, reciprocal
from rl4rec_cli.ranking.fused import fused_search, fused_target_ranks
from rl4rec_cli.ranking.ranks import ItemMatrix, search, target_ranks


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def options(case: dict[str, Any]) -> dict[str, Any]:
    weights = None if case["weights"] is None else torch.from_numpy(case["weights"])
    return {"fusion": case["fusion"], "scale": case["scale"], "log_weights_Q": weights}


@settings(max_examples=400, deadline=None)
@given(cases())
def test_fused_ranks_equal_brute_force(case: dict[str, Any]) -> None:
    expected = []
    for user, target in enumerate(case["targets"]):
        kept = np.ones(len(case["items"]), dtype=bool)
        kept[(case["masks"] or [[]] * len(case["targets"]))[user]] = False
        kept[target] = True
        scores = brute_scores(case, user, kept)
        expected.append(int((scores[kept] >= scores[target]).sum()))
    torch.set_num_threads(case["threads"])
    items = ItemMatrix(floats(case["items"], case["item_denominator"]), storage=case["storage"])
    with pytest.MonkeyPatch.context() as patch:
        if case["is_small"]:
            small_blocks(patch)
        queries, targets = floats(case["queries"], 2**18), torch.from_numpy(case["targets"])
        ranks = fused_target_ranks(queries, case["counts"], items, targets, case["masks"], **options(case))
    assert ranks.dtype == torch.int64
    assert ranks.tolist() == expected


@settings(max_examples=400, deadline=None)
@given(cases())
def test_fused_search_equals_brute_force(case: dict[str, Any]) -> None:
    users, n = len(case["counts"]), len(case["items"])
    expected_ids = np.full((users, min(case["k"], n)), -1)
    expected = np.full(expected_ids.shape, -np.inf)
    for user in range(users):
        kept = np.ones(n, dtype=bool)
        kept[(case["masks"] or [[]] * users)[user]] = False
        scores = brute_scores(case, user, kept)
        best = sorted(np.flatnonzero(kept), key=lambda i: (-scores[i], i))[: case["k"]]
        expected_ids[user, : len(best)], expected[user, : len(best)] = best, scores[best]
    if case["fusion"] == "rrf":
        expected *= 2.0**-56
    torch.set_num_threads(case["threads"])
    items = ItemMatrix(floats(case["items"], case["item_denominator"]), storage=case["storage"])
    with pytest.MonkeyPatch.context() as patch:
        if case["is_small"]:
            small_blocks(patch)
        queries = floats(case["queries"], 2**18)
        ids, scores = fused_search(queries, case["counts"], items, case["k"], case["masks"], **options(case))
    assert (ids.dtype, scores.dtype) == (torch.int64, torch.float32)
    np.testing.assert_array_equal(ids.numpy(), expected_ids)
    np.testing.assert_array_equal(scores.numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_query_each_gives_the_ranks_of_one_query(fusion: Any, storage: Any) -> None:
    """Beside a user of two, so that nothing is passed on; weights of one query say nothing."""
    vectors, queries = unit_vectors(3000, 48, 1), unit_vectors(41, 48, 2)
    vectors[100:200] = vectors[7].clone()
    queries[:3] = vectors[[7, 150, 400]]
    queries[5] = 0
    items, targets = ItemMatrix(vectors, storage=storage), torch.arange(100, 140)
    masks = [[1, 2, target] for target in targets.tolist()]
    counts, weights = [1] * 39 + [2], torch.randn(41)
    expected = target_ranks(queries[:39], items, targets[:39], masks[:39])
    for log_weights in (None, weights):
        ranks = fused_target_ranks(queries, counts, items, targets, masks, fusion=fusion, log_weights_Q=log_weights)
        assert torch.equal(ranks[:39], expected)
        alone = fused_target_ranks(
            queries[:39],
            [1] * 39,
            items,
            targets[:39],
            masks[:39],
            fusion=fusion,
            log_weights_Q=None if log_weights is None else log_weights[:39],
        )
        assert torch.equal(alone, expected)
        ids, scores = fused_search(queries, counts, items, 9, masks, fusion=fusion, log_weights_Q=log_weights)
        wanted, cosines = search(queries[:39], items, 9, masks[:39])
        assert torch.equal(ids[:39], wanted)
        if fusion != "rrf":
            assert torch.equal(scores[:39], cosines)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_storage_block_and_batch_never_change_a_fused_rank(fusion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    vectors = unit_vectors(2000, 96, 1)
    vectors[rng.integers(0, 2000, 300)] = vectors[5].clone()
    counts = rng.integers(1, 9, 25)
    queries = unit_vectors(int(counts.sum()), 96, 2) + 0.6 * vectors[rng.integers(0, 2000, counts.sum())]
    targets = torch.from_numpy(rng.integers(0, 2000, 25))
    masks = [list(map(int, rng.integers(0, 2000, 30))) for _ in range(25)]
    weights = torch.from_numpy(rng.normal(-5, 2, counts.sum()))
    how = {"fusion": fusion, "log_weights_Q": weights}
    ranks = fused_target_ranks(queries, counts, ItemMatrix(vectors), targets, masks, **how)
    ids, scores = fused_search(queries, counts, ItemMatrix(vectors), 30, masks, **how)
    assert len(set(ranks.tolist())) > 15

    edges = np.append(0, np.cumsum(counts))
    for user in range(25):
        part = slice(edges[user], edges[user + 1])
        own = {"fusion": fusion, "log_weights_Q": weights[part]}
        alone = fused_target_ranks(
            queries[part], counts[user : user + 1], ItemMatrix(vectors), targets[user : user + 1], [masks[user]], **own
        )
        assert alone.item() == ranks[user]
    small_blocks(monkeypatch)
    for storage in STORAGES:
        items = ItemMatrix(vectors, storage=storage)  # type: ignore[arg-type]
        assert torch.equal(fused_target_ranks(queries, counts, items, targets, masks, **how), ranks)
        again_ids, again_scores = fused_search(queries, counts, items, 30, masks, **how)
        assert torch.equal(again_ids, ids)
        assert torch.equal(again_scores, scores)


def test_other_ways_to_add_up_give_the_same_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch instead of numpy, shifted exponentials instead of plain ones, codes that are not multiplied."""
    vectors, queries = unit_vectors(3000, 64, 1), unit_vectors(90, 64, 2)
    targets, counts = torch.arange(20), [1, 8] * 10
    items, coded = ItemMatrix(vectors), ItemMatrix(vectors, storage="int8")
    ranks = fused_target_ranks(queries, counts, items, targets)
    monkeypatch.setattr(blocks, "int8_pays", lambda: False)
    assert torch.equal(fused_target_ranks(queries, counts, coded, targets), ranks)
    monkeypatch.setattr(fusing, "FEW", 0)
    assert torch.equal(fused_target_ranks(queries, counts, items, targets), ranks)
    monkeypatch.setattr(fused, "SMALL_EXPONENT", 0.0)
    assert torch.equal(fused_target_ranks(queries, counts, items, targets), ranks)


def test_what_float64_products_get_wrong_never_changes_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = unit_vectors(2000, 200, 1), unit_vectors(30, 200, 2)
    vectors[400:900], queries[3:6] = vectors[7].clone(), queries[:3].clone()
    items, targets = ItemMatrix(vectors), torch.tensor([7, 500, *range(1000, 1008)])
    ranks = fused_target_ranks(queries, [3] * 10, items, targets, fusion="rrf")
    near = reciprocal.near_products
    noise = np.random.default_rng(1)

    def noisy(*arguments: Any) -> np.ndarray:
        scores = near(*arguments)
        return scores + noise.uniform(-1, 1, scores.shape) * 100 * 2.0**-53

    monkeypatch.setattr(reciprocal, "near_products", noisy)
    assert torch.equal(fused_target_ranks(queries, [3] * 10, items, targets, fusion="rrf"), ranks)
    assert ranks[0] == ranks[1] > 500


def test_fused_scores_are_those_of_the_formulas() -> None:
    vectors, queries = unit_vectors(500, 32, 1), unit_vectors(6, 32, 2)
    items, cosines = ItemMatrix(vectors), queries.double() @ vectors.double().T
    log_p = torch.tensor([-1.0, -2.0, -0.5, -3.0, -3.0, -4.0], dtype=torch.float64)
    for part, weights in ((cosines, None), (cosines, log_p)):
        shift = torch.zeros(6, dtype=torch.float64) if weights is None else weights
        first, second = shift[:4] - shift[:4].max(), shift[4:] - shift[4:].max()
        expected = {
            "logsumexp": [
                torch.logsumexp(10 * part[:4] + first[:, None], 0) / 10,
                torch.logsumexp(10 * part[4:] + second[:, None], 0) / 10,
            ],
            "max": [(part[:4] + first[:, None] / 10).amax(0), (part[4:] + second[:, None] / 10).amax(0)],
            "mean": [first.softmax(0) @ part[:4], second.softmax(0) @ part[4:]],
        }
        for fusion, rows in expected.items():
            ids, scores = fused_search(queries, [4, 2], items, 500, fusion=fusion, log_weights_Q=weights)  # type: ignore[arg-type]
            wanted = torch.stack(rows).sort(dim=1, descending=True)
            torch.testing.assert_close(scores.double(), wanted.values, rtol=0, atol=1e-6)
            assert torch.equal(ids, wanted.indices)


def test_a_user_without_a_scorable_query_ranks_last() -> None:
    items, queries = ItemMatrix(unit_vectors(50, 8, 1)), torch.cat([torch.zeros(3, 8), unit_vectors(2, 8, 2)])
    for fusion in FUSIONS:
        ranks = fused_target_ranks(queries, [3, 2], items, torch.tensor([3, 4]), [[1, 3], []], fusion=fusion)  # type: ignore[arg-type]
        assert ranks[0] == 49
        ids, _ = fused_search(queries, [3, 2], items, 3, [[1], []], fusion=fusion)  # type: ignore[arg-type]
        assert ids[0].tolist() == [0, 2, 3]


def test_many_queries_of_one_user() -> None:
    vectors, queries = unit_vectors(700, 16, 1), unit_vectors(1500, 16, 2)
    for fusion in ("logsumexp", "max", "mean"):
        ranks = fused_target_ranks(queries, [1500], ItemMatrix(vectors), torch.tensor([9]), fusion=fusion)
        part = queries.double() @ vectors.double().T
        scores = {"logsumexp": torch.logsumexp(10 * part, 0), "max": part.amax(0), "mean": part.mean(0)}[fusion]
        assert ranks.item() == int((scores >= scores[9]).sum())


def test_no_user_nothing_comes() -> None:
    items, nobody = ItemMatrix(torch.ones(5, 3)), torch.ones(0, 3)
    for fusion in FUSIONS:
        for weights in (None, []):
            how: dict[str, Any] = {"fusion": fusion, "log_weights_Q": weights}
            none = torch.zeros(0, dtype=torch.int64)
            assert fused_target_ranks(nobody, [], items, none, **how).shape == (0,)
            assert fused_search(nobody, [], items, 9, **how)[0].shape == (0, 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_non_finite_query_of_a_user_is_named(fusion: Any, bad: float) -> None:
    items, queries = ItemMatrix(torch.randn(20, 4)), torch.randn(4, 4)
    queries[0], queries[2, 1] = 0, bad
    with pytest.raises(EmbeddingError, match="text 2 is not finite"):
        fused_target_ranks(queries, [2, 2], items, torch.tensor([0, 1]), fusion=fusion)
    with pytest.raises(EmbeddingError, match="text 2 is not finite"):
        fused_search(queries, [2, 2], items, 3, fusion=fusion)


def test_wrong_users_weights_and_rules_are_errors() -> None:
    items, queries, targets = ItemMatrix(torch.randn(20, 4)), torch.randn(3, 4), torch.tensor([0, 1])
    for counts in ([1, 1], [2, 2], [3, 0], [1, 1, 1], [1.0, 2.0], [[1, 2]]):
        with pytest.raises(DataError):
            fused_target_ranks(queries, counts, items, targets)  # type: ignore[arg-type]
    for wrong in ({"fusion": "median"}, {"scale": 0.0}, {"scale": np.inf}, {"log_weights_Q": [0.0]}):
        with pytest.raises(DataError):
            fused_target_ranks(queries, [1, 2], items, targets, **wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="log-weight -inf of text 1 is not finite"):
        fused_search(queries, [1, 2], items, 3, log_weights_Q=[0.0, -np.inf, 0.0])
    for masks in ([[0]], [[0], [20]]):
        with pytest.raises(DataError):
            fused_target_ranks(queries, [1, 2], items, targets, masks)
    with pytest.raises(DataError):
        fused_search(queries, [1, 2], items, 0)
    queries[2] *= 1e20
    with pytest.raises(EmbeddingError, match=r"text 2 has norm .*log-sum-exp at scale 10"):
        fused_target_ranks(queries, [1, 2], items, targets)
    assert fused_target_ranks(queries, [1, 2], items, targets, fusion="max").shape == (2,)


def test_fused_scores_are_never_held_whole() -> None:
    """No tensor of users x items, let alone of texts x items."""
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    vectors, queries = unit_vectors(40_000, 4, 1), unit_vectors(800, 4, 2)
    items = ItemMatrix(vectors)
    with Watch():
        for fusion in ("logsumexp", "max", "mean"):
            fused_target_ranks(queries, [8] * 100, items, torch.arange(100), fusion=fusion)
            fused_search(queries, [8] * 100, items, 5, fusion=fusion)
    assert 1 << 16 <= largest <= 1 << 18


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fused_memory_stays_below_one_score_for_each_user_and_item(fusion: Any) -> None:
    """numpy's memory, which tracemalloc sees; `rrf` holds some rows of the catalogue, whatever the users."""
    import tracemalloc

    torch.set_num_threads(1)
    vectors, queries = unit_vectors(30_000, 4, 1), unit_vectors(600, 4, 2)
    items, targets = ItemMatrix(vectors), torch.arange(300)
    counts, whole = [2] * 300, 300 * 30_000 * 4
    fused_target_ranks(queries, counts, items, targets, fusion=fusion)
    tracemalloc.start()
    try:
        fused_target_ranks(queries, counts, items, targets, fusion=fusion)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < whole / 3
