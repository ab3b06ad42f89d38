"""Histories as texts for an embedder: the items as a prompt shows them, without the words around them.

Decides: what the text of a history is, and that of one that is too long the oldest items are dropped.
Hides: counting tokens.

A tokenizer cuts texts at their end, which would drop the newest items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rl4rec_cli.data.prompts import item_renderer

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import PromptSection
    from rl4rec_cli.data.dataset import Dataset


class HistoryTexts:
    """Writes histories of one dataset by `prompt.item_template`, `separator`, `order` and `max_history`.

    Args:
        section: how items are written.
        count: returns the tokens of each text, special tokens included.
        limit: most tokens that the embedder reads; None: it has no limit.
        before: text that stands before every query (`retrieval.query_prompt`).

    Raises:
        ConfigError: the template names unknown fields.
    """

    def __init__(
        self,
        section: PromptSection,
        dataset: Dataset,
        *,
        count: Callable[[Sequence[str]], list[int]],
        limit: int | None,
        before: str = "",
    ) -> None:
        self._section = section = section.of(dataset.name)
        self._items = item_renderer(section.item_template, dataset, setting="prompt.item_template")
        self._count, self._limit = count, limit
        self.before = before
        self._lengths = count(self._items) if limit is not None else []

    def write(self, history: Sequence[int]) -> str:
        """Returns the text of the most recent items of a history (item ids, oldest first), as many as fit.

        Where not even the last item fits, the text is that item's: the embedder reads its beginning.
        """
        recent = list(history[-self._section.max_history :])
        text = self._written(recent)
        # A joint text has about as many tokens as its items: only where it may be too long is it counted itself.
        if self._limit is None or 2 * sum(self._lengths[item] for item in recent) <= self._limit:
            return text
        while len(recent) > 1 and self._count([text])[0] > self._limit:
            recent = recent[1:]
            text = self._written(recent)
        return text

    def _written(self, items: Sequence[int]) -> str:
        in_order = items if self._section.order == "oldest_first" else list(reversed(items))
        return self.before + self._section.separator.join(self._items[item] for item in in_order)
