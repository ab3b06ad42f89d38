"""Names of methods as a plot has room for them.

Decides: long names lose what they share, at both ends, and then their middle; two names never become equal.
Hides: where a name may be cut. The tables beside the plots hold the whole names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import takewhile

from rl4rec_cli import console

LONGEST = 26
_BREAKS = re.compile(r"(?<=[-_/., ])")


def short_names(labels: Iterable[str]) -> dict[str, str]:
    """Returns a name of at most `LONGEST` characters for each label."""
    clean = {label: console.clean(label).strip() for label in dict.fromkeys(labels)}
    long = [label for label, text in clean.items() if len(text) > LONGEST]
    parts = {label: _BREAKS.split(clean[label]) for label in long}
    head, tail = _shared(list(parts.values()))
    names: dict[str, str] = {}
    for label, text in clean.items():
        if label in parts:
            own = "".join(parts[label][head : len(parts[label]) - tail])
            text = _without_middle(f"{'…' if head else ''}{own}{'…' if tail else ''}")
        names[label] = _apart(text, set(names.values()))
    return names


def _shared(names: list[list[str]]) -> tuple[int, int]:
    """Returns how many first and how many last parts all names share. Every name keeps at least one part."""
    if len(names) < 2:
        return 0, 0
    least = min(map(len, names)) - 1
    head = min(_same(zip(*names, strict=False)), least)
    tail = min(_same(zip(*(name[::-1] for name in names), strict=False)), least - head)
    return head, tail


def _same(columns: Iterable[tuple[str, ...]]) -> int:
    """Returns how many leading columns hold the same part in every row."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _without_middle(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    before = (LONGEST - 1) // 2
    return f"{text[:before]}…{text[before + 1 - LONGEST :]}"


def _apart(text: str, taken: set[str]) -> str:
    """Returns the name, with a number at its end if another name has become equal."""
    number, name = 2, text
    while name in taken:
        end = f" ({number})"
        name, number = f"{text[: LONGEST - len(end)]}{end}", number + 1
    return name
