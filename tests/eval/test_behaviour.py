"""What methods recommend and write, by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from rl4rec_cli.data.dataset import Dataset, Example
from rl4rec_cli.eval.behaviour import behaviour, user_slices
from rl4rec_cli.eval.scoring import Measured
from rl4rec_cli.retrieval.retriever import Ranking

Make = Callable[..., Dataset]
EXAMPLES = [Example("a", (0, 1), 2), Example("b", (3,), 4)]


def measured(top: list[list[int]], texts: list[str] | None = None) -> Measured:
    ranking = Ranking(np.ones(len(top), np.int64), np.ones(len(top), np.bool_))
    completions = [[text] for text in texts] if texts is not None else None
    return Measured("m", ranking, completions, "policy" if texts else "baseline", np.array(top))


def test_recommendations_by_hand(make_dataset: Make) -> None:
    counts = np.array([5, 0, 1, 0, 1, 0])
    found = behaviour(measured([[0, 1], [0, -1]]), make_dataset(), EXAMPLES, counts)
    assert found["coverage"] == pytest.approx(2 / 6)
    # 7 interactions and one more for each of 6 items: item 0 has 6 of 13, item 1 has 1.
    assert found["novelty"] == pytest.approx(-(2 * math.log2(6 / 13) + math.log2(1 / 13)) / 3)
    # 5, 0 and 5 are shown; 1 and 1 were chosen.
    assert found["popularity_bias"] == pytest.approx((10 / 3) / 1)
    assert set(found) == {"coverage", "novelty", "popularity_bias"}


def test_texts_by_hand(make_dataset: Make) -> None:
    dataset = make_dataset()  # rose hand cream, mint shower gel, lavender bath salt, cedar beard oil …
    texts = ["Rose mint soap", "rose cedar oil oil"]
    found = behaviour(measured([[0], [1]], texts), dataset, EXAMPLES, np.ones(6, np.int64))
    assert found["text_words"] == 3.5
    assert found["distinct_texts"] == 1.0
    # Rose and mint of three words; cedar, oil and oil of four.
    assert found["copy_rate"] == pytest.approx((2 / 3 + 3 / 4) / 2)
    same = behaviour(measured([[0], [1]], ["oil", "oil"]), dataset, EXAMPLES, np.ones(6, np.int64))
    assert same["distinct_texts"] == 0.5
    assert "copy_rate" not in behaviour(measured([[0], [1]], ["", ""]), dataset, EXAMPLES, np.ones(6, np.int64))


def test_every_one_of_several_texts_counts(make_dataset: Make) -> None:
    one = measured([[0], [1]], ["Rose mint soap", "rose cedar oil oil"])
    several = replace(one, texts=[["Rose mint soap", "oil"], ["rose cedar oil oil", "oil"]])
    found = behaviour(several, make_dataset(), EXAMPLES, np.ones(6, np.int64))
    assert found["text_words"] == (3 + 1 + 4 + 1) / 4
    assert found["distinct_texts"] == 0.75
    # "oil" is no word of the first user's history, and one of the second's.
    assert found["copy_rate"] == pytest.approx((2 / 3 + 0 + 3 / 4 + 1) / 4)


@pytest.mark.parametrize("lengths", [[1], [2, 2, 2], [1, 2, 3, 4, 5, 6], [3] * 9 + [4] * 2 + [80]])
def test_users_fall_into_one_part_each(lengths: list[int]) -> None:
    parts = user_slices([Example("u", tuple(range(n)), 0) for n in lengths])
    assert sum(chosen.astype(int) for chosen in parts.values()).tolist() == [1] * len(lengths)
    assert 1 <= len(parts) <= 3
    ends = [[lengths[i] for i in np.flatnonzero(chosen)] for chosen in parts.values()]
    assert all(max(a) < min(b) for a, b in itertools.pairwise(ends))
    for name, inside in zip(parts, ends, strict=True):
        assert name in (f"history {min(inside)}-{max(inside)}", f"history {min(inside)}")
