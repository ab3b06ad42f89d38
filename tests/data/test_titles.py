"""What people type as titles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl4rec_cli.data.titles import TitleIndex

TITLES = ("Steins;Gate the Movie", "Bella&#39;s Hairband &quot;New&quot;", "rose", "Gate", "a; b; c", "a", "ROSE")


@pytest.mark.parametrize(
    ("typed", "items"),
    [
        ("Steins;Gate the Movie", [0]),
        ("steins;gate  the movie", [0]),
        ("rose; Steins;Gate the Movie ;Gate", [2, 0, 3]),
        ("Bella&#39;s Hairband &quot;New&quot;", [1]),
        ('Bella\'s Hairband "New"; rose', [1, 2]),
        ("Bella&#39;s Hairband &quot;New&quot;; rose", [1, 2]),
        ("a; b; c", [4]),
        ("a; a; b; c; a", [5, 4, 5]),
        ("a; b", [5, None]),
        (" ;; rose ; ", [2]),
        (";", []),
    ],
)
def test_a_title_with_semicolons_is_one_title(typed: str, items: list[int | None]) -> None:
    index = TitleIndex(TITLES)
    assert [index.find(title) for title in index.split(typed)] == items


@given(titles=st.lists(st.text(min_size=1).filter(lambda t: t.strip("; \t") and t.strip()), min_size=1))
def test_every_title_is_found_as_it_stands(titles: list[str]) -> None:
    index = TitleIndex(titles)
    for title in titles:
        (read,) = index.split(title)
        assert index.find(read) == index.find(title)
