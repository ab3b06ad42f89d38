"""What becomes of the rows of a source: how many are read, how many are dropped and why.

Decides: a dropped row is counted under one reason, with the first place where that happened; a file in which more than
one row in a hundred cannot be read at all is another file than it seems, which is an error.
Hides: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rl4rec_cli.errors import DataError

BROKEN_SHARE = 0.01
"""Largest share of rows that cannot be read. Published files have some broken lines in millions."""


@dataclass
class Drop:
    """Rows dropped for one reason. `first` is the first place, as `file:line: what`; empty where none is one row's."""

    reason: str
    rows: int = 0
    first: str = ""


@dataclass
class RowTable:
    """Counts of one import. Reasons stand in the order in which they first occurred."""

    read: int = 0
    drops: dict[str, Drop] = field(default_factory=dict)
    broken: int = 0

    def drop(self, reason: str, rows: int, first: str = "") -> None:
        """Counts rows as dropped; none is no drop."""
        if rows:
            entry = self.drops.setdefault(reason, Drop(reason))
            entry.rows += rows
            entry.first = entry.first or first

    def drop_broken(self, place: str, flaw: str) -> None:
        """Counts one row that cannot be read, which is a row read, too."""
        self.read += 1
        self.broken += 1
        self.drop("cannot be read", 1, f"{place}: {flaw}")

    def check_broken(self, hint: str) -> None:
        """Refuses a source whose rows mostly cannot be read.

        Raises:
            DataError: more than one row in a hundred is broken.
        """
        if self.broken > max(BROKEN_SHARE * self.read, 3):
            first = self.drops["cannot be read"].first
            raise DataError(f"{self.broken:,} of {self.read:,} rows cannot be read, the first at {first}", hint=hint)

    @property
    def left(self) -> int:
        return self.read - sum(entry.rows for entry in self.drops.values())

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types: `{"read": N, "dropped": [{"reason", "rows", "first"}, …], "left": N}`."""
        dropped = [{"reason": d.reason, "rows": d.rows, "first": d.first} for d in self.drops.values()]
        return {"read": self.read, "dropped": dropped, "left": self.left}
