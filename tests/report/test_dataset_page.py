"""The page of a dataset: what it counts by hand, hostile titles, and data of odd shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pages import HOSTILE, Page, check_page, draw_quietly, needs_browser

from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.stats import dataset_stats
from rl4rec_cli.report.dataset_page import as_html

Make = Callable[..., Dataset]
DAY = 86_400.0


def shown(dataset: Dataset) -> tuple[Page, str]:
    """The checked page and its words."""
    found = check_page(as_html(dataset, dataset_stats(dataset)))
    return found, " ".join(" ".join(found.texts).split())


def with_times(dataset: Dataset, times: Sequence[Sequence[float]], **more: Any) -> Dataset:
    return replace(dataset, times=tuple(map(tuple, times)), **more)


@pytest.fixture
def small(make_dataset: Make) -> Dataset:
    return make_dataset(["Hat", "Scarf", "Boots", "Belt", "Coat"], sequences=[[0, 1, 2], [0, 2, 1, 3], [0, 3, 2, 1]])


def test_what_the_pictures_say_is_counted(small: Dataset) -> None:
    times = [[0, 0, 60], [DAY, DAY, 2 * DAY, 2 * DAY], [0, 90, 2 * DAY, 100 * DAY]]
    found, words = shown(with_times(small, times))
    assert found.tags.count("svg") == found.tags.count("figure") == 4
    assert "3 users, 5 items, 11 interactions" in words
    assert "From 3 to 4 items; half of the users have 4 or fewer." in words
    assert "The most popular tenth of the items (1) has 27% of the choices." in words
    assert "1 items were never chosen" not in words
    assert "1 item was never chosen" in words
    # Of 8 neighbours, 3 have one time; of the 3 test targets, one has that of the item before.
    assert "33.3 % of the test targets have the time of the item before" in words
    assert "Of all items that follow another it is 37.5 %." in words
    # The training part: 0, 0, 1 and 1 days, 0 days and 90 s.
    assert "Half of the training part was chosen by 1970-01-01, half of the test targets by 1970-01-03." in words
    assert "Hat 3 27.3%" in words
    assert "targets tied in time test 1" in words


def test_without_times_that_is_said(small: Dataset) -> None:
    found, words = shown(small)
    assert found.tags.count("svg") == 2
    assert "has no times (times.txt)" in words
    assert "Choices of the import" not in words


def test_users_who_only_train_count(small: Dataset) -> None:
    times = [[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4], [0]]
    _, words = shown(with_times(small, times, training_only_users=("only",), training_only=((4,),)))
    assert "From 1 to 4 items" in words
    assert "never chosen" not in words


def test_titles_and_notes_stay_text(make_dataset: Make) -> None:
    note = {"choices": {HOSTILE: HOSTILE}, "rows": {"read": 7, "dropped": [{"reason": HOSTILE, "rows": 3}], "left": 4}}
    dataset = make_dataset([HOSTILE, "b", "c"], sequences=[[0, 1, 2]], name=HOSTILE)
    _, words = shown(replace(dataset, meta={"import": note}))
    assert words.count("<script>alert(1)</script>") >= 4
    assert "7 read" in words


@pytest.mark.parametrize("note", [None, [], "text", {}, {"choices": [], "rows": {"dropped": {}}}])
def test_an_edited_note_of_an_import_is_left_out(note: Any, small: Dataset) -> None:
    _, words = shown(replace(small, meta={"import": note}))
    assert "Choices of the import" not in words
    assert "Rows of the source" not in words


@pytest.mark.parametrize("moment", [-62_104_060_800.0, 0.0, 1.5e9, 253_370_764_799.0])
def test_one_moment_alone(moment: float, small: Dataset) -> None:
    found, words = shown(with_times(small, [[moment] * len(s) for s in small.sequences]))
    assert found.tags.count("svg") == 4
    assert "100.0 % of the test targets" in words


def test_long_sequences_and_many_items(make_dataset: Make) -> None:
    rows = [range(3), range(40), range(400), range(3000)]
    found, words = shown(make_dataset([f"t{i}" for i in range(3000)], sequences=rows))
    assert "From 3 to 3,000 items" in words
    assert found.tags.count("svg") == 2


def test_the_same_dataset_gives_the_same_page(small: Dataset) -> None:
    timed = with_times(small, [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]])
    assert as_html(timed, dataset_stats(timed)) == as_html(timed, dataset_stats(timed))


@needs_browser
def test_a_browser_draws_it(tmp_path: Path, small: Dataset) -> None:
    timed = with_times(small, [[0, 0, 60], [0, 1, 2, 3], [0, DAY, 2 * DAY, 800 * DAY]])
    (tmp_path / "page.html").write_text(as_html(timed, dataset_stats(timed)))
    assert draw_quietly(tmp_path / "page.html", 400, "dark").tags.count("svg") == 4
