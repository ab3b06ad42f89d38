"""Dot products fused with sparse scores: against brute force in float64, with ties, masks and users who lack a part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl4rec_cli.errors import DataError
from rl4rec_cli.eval import fused_scores
from rl4rec_cli.eval.fused_scores import MixedScores, VectorsWithSparse, fuse
from rl4rec_cli.eval.fusion import choose_weight, cross_fitted
from rl4rec_cli.eval.scoring import SparseScores, VectorScores
from rl4rec_cli.eval.spreads import sparse_deviations
from rl4rec_cli.ranking.ranks import ItemMatrix

Extras = list[dict[int, float]]


def sparse_scores(base: Sequence[float], extras: Extras) -> SparseScores:
    def extra(row: int) -> tuple[np.ndarray, np.ndarray]:
        return np.array([*extras[row]], np.int64), np.array([*extras[row].values()], np.float64)

    return SparseScores(len(extras), np.array(base, np.float64), extra)


def whole_rows(base: Sequence[float], extras: Extras) -> np.ndarray:
    rows = np.tile(np.array(base, np.float64), (len(extras), 1))
    for row, extra in enumerate(extras):
        for item, more in extra.items():
            rows[row, item] += more
    return rows


def joined(queries: np.ndarray, items: np.ndarray, base: Sequence[float], extras: Extras) -> VectorsWithSparse:
    vectors = VectorScores(torch.from_numpy(queries).float(), ItemMatrix(torch.from_numpy(items).float()))
    fused = fuse(vectors, sparse_scores(base, extras))
    assert isinstance(fused, VectorsWithSparse)
    return fused


def rank(scores: np.ndarray, target: int, mask: Sequence[int], slack: float = 0.0) -> int:
    rivals = [i for i in range(len(scores)) if i != target and i not in mask]
    return 1 + sum(scores[i] >= scores[target] - slack for i in rivals)


@st.composite
def whole_numbers(draw: Any) -> dict[str, Any]:
    """Scores of small whole numbers, which tie often and add up exactly; more users than are held at a time."""
    users, items, dim = draw(st.integers(1, 5)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    cell, ids = st.integers(-2, 2), st.integers(0, items - 1)

    def matrix(rows: int) -> np.ndarray:
        flat = draw(st.lists(cell, min_size=rows * dim, max_size=rows * dim))
        return np.array(flat, np.float64).reshape(rows, dim)

    return {
        "queries": matrix(users),
        "items": matrix(items),
        "base": draw(st.lists(cell.map(float), min_size=items, max_size=items)),
        "extras": [draw(st.dictionaries(ids, cell.map(float), max_size=items)) for _ in range(users)],
        "targets": [draw(ids) for _ in range(users)],
        "masks": [draw(st.lists(ids, max_size=items)) for _ in range(users)] if draw(st.booleans()) else None,
        "k": draw(st.integers(1, 12)),
    }


@settings(max_examples=300)
@given(given_scores=whole_numbers(), share=st.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_ranks_and_the_best_are_those_of_brute_force(given_scores: dict[str, Any], share: float) -> None:
    """With a share that is a whole number, or a half, nothing is rounded anywhere: every tie is one."""
    queries, items, base, extras, targets, masks, k = given_scores.values()
    users = len(queries)
    fused = joined(queries, items, base, extras)
    scored = MixedScores(fused, np.full(users, 0.25), np.full(users, 0.25 * share))
    ranking = scored.ranks(targets, masks)
    ids_BK, scores_BK = scored.best(k, masks)
    wanted = queries @ items.T + share * whole_rows(base, extras)
    for row in range(users):
        mask = masks[row] if masks is not None else []
        assert ranking.ranks[row] == rank(wanted[row], targets[row], mask)
        left = sorted((i for i in range(len(items)) if i not in mask), key=lambda i: (-wanted[row, i], i))[:k]
        missing = min(k, len(items)) - len(left)
        assert ids_BK[row].tolist() == left + [-1] * missing
        assert scores_BK[row].tolist() == [0.25 * wanted[row, i] for i in left] + [-np.inf] * missing
    assert ranking.scorable.all()
    assert (scored.top(k, masks) == ids_BK).all()


@given(seed=st.integers(0, 10_000), weight=st.floats(0.01, 0.99), at_once=st.sampled_from([1, 7, 2048]))
def test_ranks_are_those_of_summed_z_scores(seed: int, weight: float, at_once: int) -> None:
    draw = np.random.default_rng(seed)
    users, count = 20, 60
    queries, items = draw.normal(size=(users, 6)).astype(np.float32), draw.normal(size=(count, 6)).astype(np.float32)
    base = draw.integers(0, 9, count) / 17.0  # no float32
    items[7], base[7] = items[3], base[3]  # one and the same item, twice
    extras = [
        {int(i): float(draw.integers(1, 4)) for i in draw.integers(0, count, 5) if i not in (3, 7)}
        for _ in range(users)
    ]
    extras[1] = {}
    targets = draw.integers(0, count, users).tolist()
    targets[:4] = [3, 7, 3, 7]
    masks = [draw.choice(count, draw.integers(0, 6), replace=False).tolist() for _ in range(users)]
    masks[0] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_scores, "_USERS", at_once)
        patch.setattr(fused_scores, "_PAIRS", 2 * at_once)
        ranks_B = joined(queries, items, base, extras).at(weight).ranks(targets, masks).ranks
    dots, rows = queries.astype(np.float64) @ items.astype(np.float64).T, whole_rows(base, extras)
    for row, target in enumerate(targets):
        z_scores = [(s - s.mean()) / s.std() for s in (dots[row], rows[row])]
        wanted = weight * z_scores[0] + (1 - weight) * z_scores[1]
        # Sums that differ by the rounding of the share to float32 may stand either way round.
        assert rank(wanted, target, masks[row], -1e-5) <= ranks_B[row] <= rank(wanted, target, masks[row], 1e-5)
    twins = joined(queries[:1], items, base, extras[:1]).at(weight)
    with_twin, without_twin = (twins.ranks([3], [mask]).ranks[0] for mask in ([], [7]))
    assert with_twin == without_twin + 1, "equal scores tie exactly, against the target"


@given(data=st.data())
def test_the_deviation_is_that_of_whole_rows(data: st.DataObject) -> None:
    items = data.draw(st.integers(1, 8))
    numbers = st.floats(-100, 100).map(lambda x: round(x, 3)) | st.just(0.1)
    base = data.draw(st.lists(numbers, min_size=items, max_size=items) | st.just([0.1] * items))
    extras = [data.draw(st.dictionaries(st.integers(0, items - 1), numbers, max_size=items))]
    [deviation] = sparse_deviations(sparse_scores(base, extras))
    wanted = whole_rows(base, extras)[0].std()
    assert deviation == pytest.approx(wanted, rel=1e-6, abs=1e-4)
    if not base or (len(set(base)) == 1 and not any(extras[0].values())):
        assert deviation == 0, "all equal: the rounding of their mean is no deviation"


QUERIES = np.array([[1.0, 0.0], [0.0, 0.0], [0.3, -0.7]])
ITEMS = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [-1.0, 0.2]])


def test_weights_0_and_1_are_the_parts_alone() -> None:
    base, extras = [0.1, 0.1, 0.3, 0.0], [{0: 1.0}, {}, {3: 2.0, 1: 2.0}]
    fused, targets, masks = joined(QUERIES, ITEMS, base, extras), [1, 2, 1], [[0], [], []]
    for weight, alone in ((1.0, fused.vectors), (0.0, fused.sparse)):
        found, wanted = fused.at(weight).ranks(targets, masks), alone.ranks(targets, masks)
        assert found.ranks.tolist() == wanted.ranks.tolist()
        assert found.scorable.tolist() == wanted.scorable.tolist()
        assert fused.at(weight).top(3, masks).tolist() == alone.top(3, masks).tolist()
    assert not fused.at(1.0).ranks(targets, masks).scorable[1], "a blank text"
    # Each user may have a weight of their own.
    weights = np.array([1.0, 0.0, 0.0])
    mixed = fused.at(weights).ranks(targets, masks).ranks
    assert mixed.tolist() == [fused.at(w).ranks(targets, masks).ranks[row] for row, w in enumerate(weights)]


def test_who_lacks_a_part_is_ranked_by_the_other_alone() -> None:
    # User 0: no sparse score at all. User 1: a blank text. Neither has an influence on user 2.
    fused = joined(QUERIES, ITEMS, [0.0] * 4, [{}, {2: 1.0}, {3: 2.0}])
    assert fused.second_sd_B[0] == fused.first_sd_B[1] == 0
    targets = [1, 3, 0]
    found = fused.at(0.5).ranks(targets, None)
    assert found.ranks[0] == fused.vectors.ranks(targets, None).ranks[0]
    assert found.ranks[1] == fused.sparse.ranks(targets, None).ranks[1]
    assert found.scorable.all()
    # Nothing at all is unscorable, and recommends nothing.
    nothing = joined(QUERIES[1:2], ITEMS, [0.0] * 4, [{}]).at(0.5)
    assert nothing.ranks([0], None).ranks.tolist() == [4]
    assert not nothing.ranks([0], None).scorable.any()
    assert nothing.top(2, None).tolist() == [[-1, -1]]


def test_a_weight_is_chosen_on_other_users() -> None:
    draw = np.random.default_rng(0)
    queries, items = draw.normal(size=(80, 4)), draw.normal(size=(30, 4))
    by_text = (queries @ items.T).argmax(1).tolist()
    by_sparse = draw.integers(0, 30, 80).tolist()
    fused = joined(queries, items, [0.0] * 30, [{item: 1.0} for item in by_sparse])
    assert choose_weight(fused, by_text, None).weight >= 0.9
    assert choose_weight(fused, by_sparse, None).weight <= 0.5
    folds = cross_fitted(fused, by_text, None).folds
    found = cross_fitted(fused, np.where(folds, by_text, by_sparse).tolist(), None)
    assert found.weights[folds == 1].max() <= 0.5 < found.weights[folds == 0].min()
    assert (
        found.ranking.ranks.tolist()
        == fused.at(found.weights).ranks(np.where(folds, by_text, by_sparse).tolist(), None).ranks.tolist()
    )


def test_other_users_or_items_are_refused() -> None:
    vectors = VectorScores(torch.from_numpy(QUERIES).float(), ItemMatrix(torch.from_numpy(ITEMS).float()))
    with pytest.raises(DataError, match="3 users and 4 items with those of 3 users and 5 items"):
        fuse(vectors, sparse_scores([0.0] * 5, [{}] * 3))
    with pytest.raises(DataError, match="of 2 users and 4 items"):
        fuse(vectors, sparse_scores([0.0] * 4, [{}] * 2))
    with pytest.raises(DataError, match="from 0 to 1"):
        fuse(vectors, sparse_scores([0.0] * 4, [{}] * 3)).at(-0.1)
