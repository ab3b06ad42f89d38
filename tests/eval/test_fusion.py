"""Fusion: against brute force in float64, at its ends, and that a weight never sees the users it is measured on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl4rec_cli.errors import DataError
from rl4rec_cli.eval.fused_scores import VectorsWithVectors, fuse
from rl4rec_cli.eval.fusion import WEIGHTS, choose_weight, cross_fitted
from rl4rec_cli.eval.scoring import VectorScores
from rl4rec_cli.ranking.ranks import ItemMatrix, target_ranks

USERS, ITEMS = 40, 90


def vectors(seed: int, users: int = USERS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Text queries and items of unit length, and a sequence model's of any length and off centre."""
    draw = torch.Generator().manual_seed(seed)
    text, text_items = torch.randn(users, 12, generator=draw), torch.randn(ITEMS, 12, generator=draw)
    sequence, sequence_items = torch.randn(users, 7, generator=draw) * 9, torch.randn(ITEMS, 7, generator=draw) + 2
    unit = torch.nn.functional.normalize
    return unit(text, dim=1), unit(text_items, dim=1), sequence, sequence_items


def joined(
    text: torch.Tensor, text_items: torch.Tensor, sequence: torch.Tensor, sequence_items: torch.Tensor
) -> VectorsWithVectors:
    first, second = (VectorScores(q, ItemMatrix(v)) for q, v in ((text, text_items), (sequence, sequence_items)))
    fused = fuse(first, second)
    assert isinstance(fused, VectorsWithVectors)
    return fused


def targets_and_masks(seed: int, users: int = USERS) -> tuple[list[int], list[list[int]]]:
    draw = np.random.default_rng(seed)
    masks = [draw.choice(ITEMS, draw.integers(0, 6), replace=False).tolist() for _ in range(users)]
    return draw.integers(0, ITEMS, users).tolist(), masks


def brute_force(
    parts: tuple[torch.Tensor, ...], weight: float, targets: list[int], masks: list[list[int]]
) -> list[int]:
    text, text_items, sequence, sequence_items = (part.double().numpy() for part in parts)
    ranks = []
    for row, target in enumerate(targets):
        fused = np.zeros(ITEMS)
        for share, scores in (
            (weight, text_items @ text[row]),
            (1 - weight, sequence_items @ sequence[row]),
        ):
            fused += share * (scores - scores.mean()) / scores.std()
        rivals = [i for i in range(ITEMS) if i != target and i not in masks[row]]
        ranks.append(1 + sum(fused[i] >= fused[target] for i in rivals))
    return ranks


@given(seed=st.integers(0, 10_000), weight=st.floats(0.01, 0.99))
def test_ranks_are_those_of_summed_z_scores(seed: int, weight: float) -> None:
    parts = vectors(seed)
    targets, masks = targets_and_masks(seed)
    found = joined(*parts).at(weight).ranks(targets, masks)
    assert found.ranks.tolist() == brute_force(parts, weight, targets, masks)
    assert found.scorable.all()


def test_the_deviation_is_that_of_the_scores() -> None:
    parts = vectors(0)
    fused = joined(*parts)
    for found, queries, items in ((fused.first_sd_B, *parts[:2]), (fused.second_sd_B, *parts[2:])):
        wanted = (queries.double() @ items.double().T).std(dim=1, correction=0)
        assert np.allclose(found, wanted, rtol=1e-12)


def test_weights_0_and_1_are_the_parts_alone() -> None:
    text, text_items, sequence, sequence_items = vectors(1)
    sequence_items[30:40] = sequence_items[29]
    targets, masks = targets_and_masks(1)
    targets[:10] = [29, 35] * 5
    # Whole numbers, whose scores tie exactly though the vectors differ: a query rounded after scaling breaks the tie.
    for vectors_, items in ((text, text_items), (sequence, sequence_items)):
        for row in range(20, 40):
            vectors_[row] = torch.tensor([row, 1.0] + [0.0] * (vectors_.shape[1] - 2))
            items[row] = torch.tensor([1.0, 0.0] + [0.0] * (vectors_.shape[1] - 2))
            items[row + 40] = torch.tensor([0.0, row] + [0.0] * (vectors_.shape[1] - 2))
            targets[row], masks[row] = row, [i for i in range(ITEMS) if i != row + 40]
    fused = joined(text, text_items, sequence, sequence_items)
    for weight, queries, items in ((1.0, text, text_items), (0.0, sequence, sequence_items)):
        alone = target_ranks(queries, ItemMatrix(items), torch.tensor(targets), masks)
        assert fused.at(weight).ranks(targets, masks).ranks.tolist() == alone.tolist()
        assert alone[20:].tolist() == [2] * 20
    # So is a part that remains alone because the other one says nothing.
    blank = joined(torch.zeros_like(text), text_items, sequence, sequence_items)
    assert blank.at(0.3).ranks(targets, masks).ranks.tolist() == alone.tolist()


def test_each_user_may_have_a_weight() -> None:
    fused = joined(*vectors(2))
    targets, masks = targets_and_masks(2)
    weights = np.tile([0.0, 0.3, 0.8, 1.0], USERS // 4)
    together = fused.at(weights).ranks(targets, masks).ranks
    for weight in set(weights.tolist()):
        alone = fused.at(weight).ranks(targets, masks).ranks
        assert (together[weights == weight] == alone[weights == weight]).all()


def test_scale_and_shift_of_a_part_change_nothing() -> None:
    text, text_items, sequence, sequence_items = vectors(3)
    targets, masks = targets_and_masks(3)
    one = joined(text, text_items, sequence, sequence_items).at(0.4).ranks(targets, masks).ranks
    scaled = joined(text * 50, text_items, sequence, sequence_items * 0.01).at(0.4).ranks(targets, masks).ranks
    moved = joined(text, text_items + 3, sequence, sequence_items).at(0.4).ranks(targets, masks).ranks
    assert (one == scaled).all()
    assert (one == moved).all()


def test_a_text_that_says_nothing_leaves_the_sequence_model() -> None:
    text, text_items, sequence, sequence_items = vectors(4)
    text[3] = 0
    targets, masks = targets_and_masks(4)
    fused = joined(text, text_items, sequence, sequence_items)
    found, alone = fused.at(0.6).ranks(targets, masks), fused.at(0.0).ranks(targets, masks)
    assert found.ranks[3] == alone.ranks[3]
    assert found.scorable.all()
    # Nothing at all: not scorable, and last by ties.
    only_text = fused.at(1.0).ranks(targets, [[]] * USERS)
    assert not only_text.scorable[3]
    assert only_text.ranks[3] == ITEMS
    # Items that are alike but for rounding tell nothing either: it must not be blown up to a score.
    alike = text_items[:1] * (1 + 1e-7 * torch.randn(ITEMS, 12, generator=torch.Generator().manual_seed(0)))
    assert len(alike.unique(dim=0)) > 10
    flat = joined(text, alike, sequence, sequence_items)
    assert not flat.first_sd_B.any()
    assert (flat.at(0.6).ranks(targets, masks).ranks == alone.ranks).all()


def planted(users: int, best: str, seed: int = 5) -> tuple[VectorsWithVectors, list[int]]:
    """Each user's target is the first item by one of the parts, or by both summed."""
    parts = vectors(seed, users)
    fused = joined(*parts)
    weight = {"text": 1.0, "sequence": 0.0, "both": 0.5}[best]
    scores = fused.at(weight).queries_BD @ torch.cat([parts[1], parts[3]], dim=1).T
    return fused, scores.argmax(1).tolist()


@pytest.mark.parametrize(("best", "low", "high"), [("text", 0.9, 1.0), ("sequence", 0.0, 0.1), ("both", 0.4, 0.6)])
def test_the_weight_that_is_right_is_chosen(best: str, low: float, high: float) -> None:
    fused, targets = planted(200, best)
    choice = choose_weight(fused, targets, None)
    assert low <= choice.weight <= high
    assert choice.scores[choice.weight] == max(choice.scores.values()) == pytest.approx(1.0, abs=0.02)
    assert tuple(choice.scores) == WEIGHTS
    # Equally good weights: the lowest.
    assert choose_weight(fused, targets, None, weights=[0.5, 0.5]).weight == 0.5


def test_a_users_weight_is_chosen_without_its_own_half() -> None:
    # One half of the users wants what the text says, the other what the sequence model says.
    fused, by_text = planted(200, "text")
    _, by_sequence = planted(200, "sequence")
    folds = cross_fitted(fused, by_text, None).folds
    assert sorted(np.bincount(folds)) == [100, 100]
    targets = [by_text[row] if fold else by_sequence[row] for row, fold in enumerate(folds)]
    found = cross_fitted(fused, targets, None)
    assert (found.folds == folds).all()
    # Each half gets the weight that is right for the other: had it seen its own targets, it would be the reverse.
    assert (found.weights[folds == 1] <= 0.1).all()
    assert (found.weights[folds == 0] >= 0.9).all()
    for row in range(0, 200, 37):
        wanted = fused.at(float(found.weights[row])).ranks(targets, None).ranks[row]
        assert found.ranking.ranks[row] == wanted
    # Changing a user's target changes no weight in its own half.
    changed = list(targets)
    for row in np.flatnonzero(folds == 0):
        changed[row] = (changed[row] + 1) % ITEMS
    assert (cross_fitted(fused, changed, None).weights[folds == 0] == found.weights[folds == 0]).all()


def test_wrong_arguments_are_named() -> None:
    text, text_items, sequence, sequence_items = vectors(6)
    with pytest.raises(DataError, match="40 users and 90 items with those of 39 users and 90 items"):
        joined(text, text_items, sequence[1:], sequence_items)
    with pytest.raises(DataError, match="from 0 to 1"):
        joined(text, text_items, sequence, sequence_items).at(1.1).ranks([0] * USERS, None)
    one = joined(text[:1], text_items, sequence[:1], sequence_items)
    with pytest.raises(DataError, match="fewer than two"):
        cross_fitted(one, [0], None)
