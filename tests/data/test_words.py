"""Words of all scripts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl4rec_cli.data.words import share_with_common_words, split, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Vitamin C, 5 ml (No_1)", ["vitamin", "c", "5", "ml", "no_1"]),
        ("Ｃａｆé ﬁne", ["café", "fine"]),
        ("口香糖 Mint", ["口", "香", "糖", "口香", "香糖", "mint"]),
        ("ABC口", ["abc", "口"]),
        ("हिन्दी किताब", ["हिन्दी", "किताब"]),
        ("крем для рук", ["крем", "для", "рук"]),
        ("한국어 책", ["한국어", "책"]),
        ("?!… –", []),
    ],
)
def test_words_of_every_script(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("one", "other"), [("世界地图", "世界旅行"), ("ครีมทามือ", "ครีมทาหน้า"), ("シャンプー", "シャンパン")]
)
def test_texts_without_blanks_have_parts_in_common(one: str, other: str) -> None:
    assert any(len(word) == 2 for word in set(words(one)) & set(words(other)))
    assert split(f"{one} {other}") == [*split(one), *split(other)]


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_plain_text_has_the_words_of_a_regular_expression(text: str) -> None:
    assert words(text) == re.findall(r"\w+", text.lower())


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        ([], 1),
        (["a b"], 1),
        (["a b", "b c", "d"], 2 / 3),
        (["a", "b", "c"], 0),
        (["a", "a", "b"], 0),
        (["", "a", "a b"], 1),
    ],
)
def test_share_of_texts_with_common_words(texts: list[str], share: float) -> None:
    assert share_with_common_words([words(text) for text in texts]) == pytest.approx(share)
