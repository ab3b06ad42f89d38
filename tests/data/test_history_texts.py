"""Texts of histories: what fits is read, and what does not fit is dropped from the oldest side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl4rec_cli.config.sections import PromptSection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.history_texts import HistoryTexts
from rl4rec_cli.errors import ConfigError


def _words(texts: Sequence[str]) -> list[int]:
    """A tokenizer that makes a token of each word, with one before and one behind."""
    return [len(text.split()) + 2 for text in texts]


def test_items_are_written_as_in_a_prompt(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(titles=["red", "blue", "green"], sequences=[[0, 1, 2, 0, 1]])
    section = PromptSection(item_template="<{title}>", separator="; ", max_history=2)
    texts = HistoryTexts(section, dataset, count=_words, limit=None, before="query: ")
    assert texts.write([0, 1, 2]) == "query: <blue>; <green>"
    newest_first = section.model_copy(update={"order": "newest_first"})
    assert HistoryTexts(newest_first, dataset, count=_words, limit=9).write([0, 1, 2]) == "<green>; <blue>"
    with pytest.raises(ConfigError, match=r"prompt\.item_template"):
        HistoryTexts(PromptSection(item_template="{nothing}"), dataset, count=_words, limit=9)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(3, 30))
def test_the_newest_items_that_fit_are_read(lengths: list[int], limit: int) -> None:
    items = tuple({"item_id": i, "title": " ".join([f"w{i}"] * n), "text": "x"} for i, n in enumerate(lengths))
    dataset = Dataset("made", items, ("u",), ((0,) * 4,), prompts={}, mask_history=True, meta={})
    history = list(range(len(items)))
    text = HistoryTexts(PromptSection(separator=" "), dataset, count=_words, limit=limit).write(history)
    fits = [start for start in history if sum(lengths[start:]) + 2 <= limit]
    first = min(fits, default=len(history) - 1)  # where nothing fits the last item is left
    assert text == " ".join(str(items[i]["title"]) for i in history[first:])
