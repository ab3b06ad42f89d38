"""What people type as titles.

Decides: what is one title and what is a list of them. A text that is a title of the catalogue is that title, whatever
it contains. Any other text splits at semicolons, and neighbouring parts that are one title together stay together.
Hides: entities of HTML (`&#39;`), case and white space.
"""

from __future__ import annotations

import html
from collections.abc import Sequence


def title_key(title: str) -> str:
    """Returns the form in which titles are compared: entities decoded, case and white space folded."""
    return " ".join(html.unescape(title).casefold().split())


class TitleIndex:
    """Finds the titles of a catalogue by what people type.

    Args:
        titles: of the items, in their order; of two equal ones it finds the first.
    """

    def __init__(self, titles: Sequence[str]) -> None:
        self._items: dict[str, int] = {}
        for item, title in enumerate(titles):
            self._items.setdefault(title_key(title), item)

    def find(self, title: str) -> int | None:
        """Returns the item of exactly this title, or None if there is none."""
        return self._items.get(title_key(title))

    def split(self, text: str) -> list[str]:
        """Splits a text into titles, and prefers the longest that the catalogue has."""
        if self.find(text) is not None:
            return [text.strip()]
        parts = html.unescape(text).split(";")
        titles: list[str] = []
        place = 0
        while place < len(parts):
            ends = range(len(parts), place, -1)
            end = next((end for end in ends if self.find(";".join(parts[place:end])) is not None), place + 1)
            titles.append(";".join(parts[place:end]).strip())
            place = end
        return [title for title in titles if title]
