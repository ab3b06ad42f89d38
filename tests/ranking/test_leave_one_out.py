"""Ranks without each of a user's queries, against brute force in float64 and against the ranks of fewer queries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fused_cases import FUSIONS, STORAGES, brute_scores, cases, floats, small_blocks, unit_vectors
from hypothesis import given, settings

from rl4rec_cli.errors import DataError, EmbeddingError
from rl4rec_cli.ranking import blocks, fused, fusing, leave_one_out
from rl4rec_cli.ranking.fused import fused_target_ranks
from rl4rec_cli.ranking.leave_one_out import leave_one_out_ranks
from rl4rec_cli.ranking.ranks import ItemMatrix


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def brute_rank(case: dict[str, Any], user: int, queries: np.ndarray) -> int:
    """Rank of the user's target by some of the queries; by a zero query where there is none."""
    first = int(case["counts"][:user].sum())
    others = np.zeros_like(case["queries"])
    others[first : first + len(queries)] = queries
    counts = case["counts"].copy()
    counts[user] = max(1, len(queries))
    target = case["targets"][user]
    kept = np.ones(len(case["items"]), dtype=bool)
    kept[(case["masks"] or [[]] * len(counts))[user]] = False
    kept[target] = True
    scores = brute_scores({**case, "queries": others, "counts": counts}, user, kept)
    return int((scores[kept] >= scores[target]).sum())


@settings(max_examples=400, deadline=None)
@given(cases())
def test_ranks_without_each_query_equal_brute_force(case: dict[str, Any]) -> None:
    case["weights"] = None
    whole, without, first = [], [], 0
    for user, count in enumerate(case["counts"]):
        own = case["queries"][first : first + count]
        whole.append(brute_rank(case, user, own))
        without += [brute_rank(case, user, np.delete(own, turn, 0)) for turn in range(count)]
        first += int(count)
    torch.set_num_threads(case["threads"])
    items = ItemMatrix(floats(case["items"], case["item_denominator"]), storage=case["storage"])
    queries, targets = floats(case["queries"], 2**18), torch.from_numpy(case["targets"])
    with pytest.MonkeyPatch.context() as patch:
        if case["is_small"]:
            small_blocks(patch)
        how = {"fusion": case["fusion"], "scale": case["scale"]}
        ranks = leave_one_out_ranks(queries, case["counts"], items, targets, case["masks"], **how)
    assert [part.dtype for part in ranks] == [torch.int64] * 2
    assert ranks[0].tolist() == whole
    assert ranks[1].tolist() == without


@pytest.mark.parametrize("fusion", FUSIONS)
def test_ranks_are_those_of_fewer_queries(fusion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every storage, with blocks of any size, with shifted exponentials, with torch instead of numpy."""
    rng = np.random.default_rng(3)
    vectors = unit_vectors(2000, 96, 1)
    vectors[rng.integers(0, 2000, 300)] = vectors[5].clone()
    counts = rng.integers(1, 9, 25)
    total = int(counts.sum())
    queries = unit_vectors(total, 96, 2) + 0.6 * vectors[rng.integers(0, 2000, total)]
    queries[rng.integers(total, size=9)] = 0
    targets = torch.from_numpy(rng.integers(0, 2000, 25))
    masks = [list(map(int, rng.integers(0, 2000, 30))) for _ in range(25)]
    items = ItemMatrix(vectors)
    wanted = fused_target_ranks(queries, counts, items, targets, masks, fusion=fusion)
    edges = np.append(0, np.cumsum(counts))
    fewer, sizes, users = [], [], []
    for user in range(25):
        own = queries[edges[user] : edges[user + 1]]
        for turn in range(len(own)):
            rest = torch.cat([own[:turn], own[turn + 1 :]])
            rest = rest if len(rest) else torch.zeros(1, 96)
            fewer.append(rest)
            sizes.append(len(rest))
            users.append(user)
    wanted_without = fused_target_ranks(
        torch.cat(fewer), sizes, items, targets[users], [masks[user] for user in users], fusion=fusion
    )
    assert (wanted_without != wanted[users]).sum() > total / 2

    def check(storage: Any) -> None:
        matrix = ItemMatrix(vectors, storage=storage)
        whole, without = leave_one_out_ranks(queries, counts, matrix, targets, masks, fusion=fusion)
        assert torch.equal(whole, wanted)
        assert torch.equal(without, wanted_without)

    for storage in STORAGES:
        check(storage)
    monkeypatch.setattr(blocks, "int8_pays", lambda: False)
    check("int8")
    monkeypatch.setattr(leave_one_out, "SMALL_EXPONENT", 0.0)
    check("fp32")
    monkeypatch.setattr(fusing, "FEW", 0)
    check("fp32")
    monkeypatch.setattr(leave_one_out, "SMALL_EXPONENT", fused.SMALL_EXPONENT)
    check("fp32")
    small_blocks(monkeypatch)
    for storage in STORAGES:
        check(storage)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_only_query_that_says_something(fusion: Any) -> None:
    vectors, queries = unit_vectors(50, 8, 1), unit_vectors(5, 8, 2)
    queries[1:4] = 0
    masks = [[1, 2, 2, 7], [], [3]]
    whole, without = leave_one_out_ranks(
        queries, [2, 2, 1], ItemMatrix(vectors), torch.tensor([7, 8, 9]), masks, fusion=fusion
    )
    assert without.tolist() == [48, whole[0], whole[1], whole[1], 49]
    assert whole[1] == 50
    assert max(whole[0], whole[2]) < 48


@pytest.mark.parametrize("fusion", ["logsumexp", "max", "mean"])
def test_every_query_is_multiplied_once(fusion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = 0

    def counted(block: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        nonlocal columns
        columns += len(block) * len(queries)
        return block @ queries.T

    monkeypatch.setattr(fused, "product", counted)
    monkeypatch.setattr(leave_one_out, "product", counted)
    leave_one_out_ranks(
        unit_vectors(64, 16, 1), [8] * 8, ItemMatrix(unit_vectors(3000, 16, 2)), torch.arange(8), fusion=fusion
    )
    assert columns == 3000 * 64


@pytest.mark.parametrize("fusion", FUSIONS)
def test_nobody_and_bad_input(fusion: Any) -> None:
    items, none = ItemMatrix(unit_vectors(10, 4, 1)), torch.zeros(0, dtype=torch.long)
    whole, without = leave_one_out_ranks(torch.zeros(0, 4), [], items, none, fusion=fusion)
    assert (whole.shape, without.shape) == ((0,), (0,))
    queries = unit_vectors(3, 4, 2)
    with pytest.raises(DataError):
        leave_one_out_ranks(queries, [2, 2], items, torch.tensor([1, 2]), fusion=fusion)
    with pytest.raises(DataError):
        leave_one_out_ranks(queries, [2, 1], items, torch.tensor([1, 20]), fusion=fusion)
    queries[1, 0] = torch.nan
    with pytest.raises(EmbeddingError, match="text 1"):
        leave_one_out_ranks(queries, [2, 1], items, torch.tensor([1, 2]), fusion=fusion)
