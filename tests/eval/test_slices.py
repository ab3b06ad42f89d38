"""Hot and cold targets, by hand."""

from __future__ import annotations

import math

import numpy as np

from rl4rec_cli.eval.metrics import means, target_slices
from rl4rec_cli.retrieval.retriever import Ranking


def test_the_fifth_chosen_most_is_hot_and_ties_with_it_are_too() -> None:
    counts = np.array([5, 1, 9, 0, 5, 2, 0, 1, 0, 0])  # the fifth of ten items is two: 9 and one of the fives
    found = target_slices(counts, [2, 0, 4, 5, 3])
    assert found["hot"].tolist() == [True, True, True, False, False]
    assert found["cold"].tolist() == [False, False, False, True, True]


def test_every_target_is_in_one_slice_also_in_a_catalogue_of_one() -> None:
    assert target_slices(np.array([3]), [0, 0])["hot"].tolist() == [True, True]


def test_means_of_a_slice_and_of_nobody() -> None:
    ranking = Ranking(np.array([1, 3, 50]), np.array([True, True, True]))
    assert means(ranking, (10,), np.array([False, True, True]))["ndcg@10"] == 0.25
    assert math.isnan(means(ranking, (10,), np.zeros(3, np.bool_))["ndcg@10"])
