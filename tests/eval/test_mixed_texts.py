"""Several texts of a user fused with a sequence model: against brute force in float64, at the ends, and at ties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl4rec_cli.errors import DataError
from rl4rec_cli.eval import mixed_texts
from rl4rec_cli.eval.fused_scores import fuse
from rl4rec_cli.eval.fused_texts import FusedTexts
from rl4rec_cli.eval.fusion import WEIGHTS, choose_weight, cross_fitted
from rl4rec_cli.eval.mixed_texts import TextsWithSequence
from rl4rec_cli.eval.scoring import SparseScores, VectorScores
from rl4rec_cli.ranking import products, reciprocal
from rl4rec_cli.ranking.ranks import ItemMatrix

RULES = ("logsumexp", "max", "mean", "rrf")
ITEMS, USERS = 60, 12


class Case:
    """Texts that are their own numbers of rows of a table of vectors; "" is blank."""

    def __init__(self, seed: int, fusion: Any, *, sparse: bool, storage: Any = "fp32", weighed: bool = False) -> None:
        draw = np.random.default_rng(seed)
        table = draw.normal(size=(80, 6)).astype(np.float32)
        self.table = table / np.linalg.norm(table, axis=1, keepdims=True)
        items = draw.normal(size=(ITEMS, 6)).astype(np.float32)
        self.items = items / np.linalg.norm(items, axis=1, keepdims=True)
        self.sequence_items = draw.normal(size=(ITEMS, 4)).astype(np.float32) + 1
        self.base = draw.integers(0, 9, ITEMS) / 17.0
        # One and the same item, three times.
        for same in (7, 30):
            self.items[same], self.sequence_items[same], self.base[same] = (
                part[3] for part in (self.items, self.sequence_items, self.base)
            )
        self.queries = (draw.normal(size=(USERS, 4)) * 5).astype(np.float32)
        self.extras: list[dict[int, float]] = [
            {int(i): float(draw.integers(1, 4)) for i in draw.integers(0, ITEMS, 5) if i not in (3, 7, 30)}
            for _ in range(USERS)
        ]
        self.texts = [[str(i) for i in draw.integers(0, 80, draw.integers(1, 6))] for _ in range(USERS)]
        self.texts[0] = ["5", "5", "", "9"]
        self.texts[1] = ["", ""]
        self.texts[2] = ["11"]
        self.targets = draw.integers(0, ITEMS, USERS).tolist()
        self.targets[3:6] = [3, 7, 30]
        self.masks = [draw.choice(ITEMS, draw.integers(0, 6), replace=False).tolist() for _ in range(USERS)]
        self.masks[4] = [3, 7]  # the target stands in the history
        self.fusion = fusion
        self.second: Any = VectorScores(
            torch.from_numpy(self.queries), ItemMatrix(torch.from_numpy(self.sequence_items))
        )
        if sparse:
            self.second = SparseScores(USERS, self.base, self._extra)
        self.sparse = sparse
        chances = -3 * draw.random(80)
        self.log_weights = [[float(chances[int(t or 0)]) for t in texts] for texts in self.texts] if weighed else None
        matrix = ItemMatrix(torch.from_numpy(self.items), storage=storage)
        self.first = FusedTexts(self.texts, self._embed, matrix, fusion, self.log_weights)

    def _extra(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return np.array([*self.extras[row]], np.int64), np.array([*self.extras[row].values()], np.float64)

    def _embed(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.table[int(t)] if t else np.zeros(6, np.float32) for t in texts]))

    def by_texts(self, user: int, mask: Sequence[int]) -> np.ndarray:
        """The texts' one score of all items, by the formulas."""
        vectors = [self.table[int(t)].astype(np.float64) for t in dict.fromkeys(self.texts[user]) if t]
        scores = np.array([[v @ item.astype(np.float64) for item in self.items] for v in vectors])
        if not len(scores):
            return np.zeros(ITEMS)
        own = self.log_weights[user] if self.log_weights is not None else [0.0] * len(self.texts[user])
        by_text = {t: weight for t, weight in zip(self.texts[user], own, strict=True) if t}
        weights = np.exp([by_text[t] for t in dict.fromkeys(self.texts[user]) if t])[:, None]
        if self.fusion == "logsumexp":
            return np.log((weights * np.exp(10 * scores)).sum(0)) / 10
        if self.fusion == "max":
            return (scores + np.log(weights) / 10).max(0)
        if self.fusion == "mean":
            return (weights * scores).sum(0) / weights.sum()
        counted = [i for i in range(ITEMS) if i not in mask]
        # Equal items tie but for the rounding of this brute force.
        ranks = np.array([(row[counted] >= row[:, None] - 1e-12).sum(1) for row in scores])
        return (weights / weights.max() / (60 + ranks)).sum(0)

    def by_sequence(self, user: int) -> np.ndarray:
        if not self.sparse:
            return self.sequence_items.astype(np.float64) @ self.queries[user].astype(np.float64)
        row = self.base.copy()
        for item, more in self.extras[user].items():
            row[item] += more
        return row

    def mixed(self, user: int, weight: float, mask: Sequence[int]) -> np.ndarray:
        total = np.zeros(ITEMS)
        for share, scores in ((weight, self.by_texts(user, mask)), (1 - weight, self.by_sequence(user))):
            if scores.std() > 1e-9:
                total += share * (scores - scores.mean()) / scores.std()
        return total


def rank(scores: np.ndarray, target: int, mask: Sequence[int]) -> int:
    rivals = [i for i in range(len(scores)) if i != target and i not in mask]
    return 1 + sum(scores[i] >= scores[target] - 1e-12 for i in rivals)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    fusion=st.sampled_from(RULES),
    sparse=st.booleans(),
    weight=st.floats(0.01, 0.99),
    at_once=st.sampled_from([1, 100, 1 << 19]),
    storage=st.sampled_from(["fp32", "int8"]),
    weighed=st.booleans(),
)
def test_ranks_and_the_best_are_those_of_summed_z_scores(
    seed: int, fusion: Any, sparse: bool, weight: float, at_once: int, storage: Any, weighed: bool
) -> None:
    case = Case(seed, fusion, sparse=sparse, storage=storage, weighed=weighed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reciprocal, "_SCORES", at_once)
        patch.setattr(products, "_DOUBLES", at_once)
        fused = fuse(case.first, case.second)
        assert isinstance(fused, TextsWithSequence)
        ranking = fused.at(weight).ranks(case.targets, case.masks)
        ids_BK, scores_BK = fused.at(weight).best(8, case.masks)
    assert ranking.scorable.all()
    for user in range(USERS):
        target, mask = case.targets[user], case.masks[user]
        others = [i for i in mask if i != target]
        assert ranking.ranks[user] == rank(case.mixed(user, weight, others), target, mask)
        scores = case.mixed(user, weight, mask).round(11)
        left = sorted((i for i in range(ITEMS) if i not in mask), key=lambda i: (-scores[i], i))[:8]
        assert ids_BK[user].tolist() == left
        assert (np.diff(scores_BK[user]) <= 0).all()


@pytest.mark.parametrize("fusion", RULES)
@pytest.mark.parametrize("sparse", [False, True])
def test_weights_0_and_1_are_the_parts_alone(fusion: Any, sparse: bool) -> None:
    case = Case(1, fusion, sparse=sparse)
    fused = fuse(case.first, case.second)
    for weight, alone in ((1.0, case.first), (0.0, case.second)):
        both, wanted = fused.at(weight).ranks(case.targets, case.masks), alone.ranks(case.targets, case.masks)
        assert both.ranks.tolist() == wanted.ranks.tolist()
        assert both.scorable.tolist() == wanted.scorable.tolist()
        scorable = wanted.scorable
        assert (fused.at(weight).top(5, case.masks)[scorable] == alone.top(5, case.masks)[scorable]).all()
    assert not fused.at(1.0).ranks(case.targets, case.masks).scorable[1]
    # Recommendations see by it that nothing could be ranked: by no rule do blank texts score above 0.
    ids_BK, scores_BK = fused.at(1.0).best(3, case.masks)  # type: ignore[union-attr]
    assert not scores_BK[1].any()
    assert scores_BK[0].all()
    assert (ids_BK >= 0).all()
    # A blank text leaves the sequence model.
    blank = fused.at(0.6).ranks(case.targets, case.masks)
    assert blank.scorable[1]
    assert blank.ranks[1] == case.second.ranks(case.targets, case.masks).ranks[1]


@pytest.mark.parametrize("sparse", [False, True])
def test_one_text_is_ranked_as_without_the_rule(sparse: bool) -> None:
    """By the rules that give one text its own score; reciprocal ranks are another score of one text, too."""
    for fusion in ("logsumexp", "max", "mean"):
        case = Case(2, fusion, sparse=sparse)
        texts = [[texts[-1]] * 3 for texts in case.texts]
        several = FusedTexts(texts, case._embed, case.first.items, fusion)  # type: ignore[arg-type]
        one = VectorScores(case._embed([text for text, *_ in texts]), case.first.items)
        for weight in (0.2, 0.7, 1.0):
            found = fuse(several, case.second).at(weight).ranks(case.targets, case.masks)
            wanted = fuse(one, case.second).at(weight).ranks(case.targets, case.masks)
            assert found.ranks.tolist() == wanted.ranks.tolist()


@pytest.mark.parametrize("fusion", RULES)
def test_all_weights_are_tried_in_one_reading(fusion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(3, fusion, sparse=True)
    fused = fuse(case.first, case.second)
    each = [fused.at(weight).ranks(case.targets, case.masks).ranks.tolist() for weight in WEIGHTS]
    readings: list[int] = []
    read = mixed_texts.each_rows
    monkeypatch.setattr(mixed_texts, "each_rows", lambda *a, **more: (readings.append(1), read(*a, **more))[1])
    together = fused.rankings(WEIGHTS, case.targets, case.masks)
    assert [ranking.ranks.tolist() for ranking in together] == each
    choose_weight(fused, case.targets, case.masks)
    found = cross_fitted(fused, case.targets, case.masks)
    assert len(readings) == 3
    for user in range(USERS):
        assert (
            found.ranking.ranks[user]
            == fused.at(float(found.weights[user])).ranks(case.targets, case.masks).ranks[user]
        )


def test_users_are_taken_some_at_a_time_and_each_has_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(4, "logsumexp", sparse=False)
    weights = np.tile([0.0, 0.3, 0.8, 1.0], USERS // 4)
    whole = fuse(case.first, case.second).at(weights).ranks(case.targets, case.masks)
    monkeypatch.setattr("rl4rec_cli.eval.fused_texts._QUERIES", 3)
    again = fuse(case.first, case.second, like=fuse(case.first, case.second)).at(weights)
    assert again.ranks(case.targets, case.masks).ranks.tolist() == whole.ranks.tolist()
    assert again.notes == {"texts_per_user": 5, "fusion": "logsumexp"}
    for weight in set(weights.tolist()):
        alone = fuse(case.first, case.second).at(weight).ranks(case.targets, case.masks).ranks
        assert (whole.ranks[weights == weight] == alone[weights == weight]).all()


def test_texts_that_tell_items_apart_by_rounding_alone_are_left_out() -> None:
    case = Case(5, "logsumexp", sparse=False)
    alike = case.items[:1] * (1 + 1e-7 * np.random.default_rng(0).normal(size=(ITEMS, 6)).astype(np.float32))
    flat = FusedTexts(case.texts, case._embed, ItemMatrix(torch.from_numpy(alike)), "logsumexp")
    found = fuse(flat, case.second).at(0.6).ranks(case.targets, case.masks)
    assert found.ranks.tolist() == case.second.ranks(case.targets, case.masks).ranks.tolist()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    fusion=st.sampled_from(RULES),
    sparse=st.booleans(),
    weight=st.floats(0.01, 1.0),
    at_once=st.sampled_from([1, 100, 1 << 19]),
    texts_at_once=st.sampled_from([3, 1 << 14]),
)
def test_ranks_without_each_text_are_those_of_fewer_texts(
    seed: int, fusion: Any, sparse: bool, weight: float, at_once: int, texts_at_once: int
) -> None:
    case = Case(seed, fusion, sparse=sparse)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reciprocal, "_SCORES", at_once)
        patch.setattr(products, "_DOUBLES", at_once)
        patch.setattr("rl4rec_cli.eval.fused_texts._QUERIES", texts_at_once)
        fused = fuse(case.first, case.second)
        assert isinstance(fused, TextsWithSequence)
        whole, without = fused.leave_one_out(weight, case.targets, case.masks)
    every = fused.at(weight).ranks(case.targets, case.masks)
    assert whole.tolist() == every.ranks.tolist()
    expected = []
    for user in range(USERS):
        target, mask = case.targets[user], case.masks[user]
        others, different = [i for i in mask if i != target], list(dict.fromkeys(case.texts[user]))
        for text in different:
            rest = [t for t in different if t != text]
            if not text or not any(rest):  # nothing is lost, or nothing is left
                expected.append(int(every.ranks[user]))
                continue
            case.texts[user] = rest
            expected.append(rank(case.mixed(user, weight, others), target, mask))
        case.texts[user] = different
    assert without.tolist() == expected
    with pytest.raises(DataError, match="from 0 to 1"):
        fused.leave_one_out(1.5, case.targets, case.masks)


def test_wrong_arguments_are_named() -> None:
    case = Case(6, "max", sparse=True)
    fused = fuse(case.first, case.second)
    for attempt in (lambda: fused.at(1.1), lambda: fused.rankings([0.5, -0.1], case.targets, case.masks)):
        with pytest.raises(DataError, match="from 0 to 1"):
            attempt()
    with pytest.raises(DataError, match="cannot fuse scores of 12 users and 60 items with those of 3 users"):
        fuse(case.first, case.second.of(np.arange(3)))
