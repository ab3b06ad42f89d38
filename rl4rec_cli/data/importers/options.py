"""The choices of an import.

Decides: their names, defaults and ranges.
Hides: how they are written on the command line.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from rl4rec_cli.errors import ConfigError

DUPLICATES = ("first", "last", "none")
TIME_UNITS = ("auto", "s", "ms", "us", "ns", "iso")
TITLE_OPTIONS = frozenset({"titles", "title", "item", "separator", "encoding"})
"""The file of `--titles` and how to read it, for sources that may lack titles."""
LEAST_LENGTH = 3
"""A training part, a validation target and a test target."""


@dataclass(frozen=True)
class ImportOptions:
    """What an import does with the rows of its source. None: the source's own, or what its files suggest."""

    min_rating: float | None = None
    """Rows rated lower are dropped; None keeps all."""
    duplicates: str | None = None
    """Of a user's rows of one item: `first` and `last` in time keep one, `none` drops none of them."""
    k_core: int = 5
    """Users and items with fewer rows are dropped until none is left; 0 or 1 drops none."""
    min_length: int = LEAST_LENGTH
    """Users with fewer rows are dropped, too."""
    ties: str = "shuffle:0"
    """Order of a user's rows of one time: `file`, `shuffle:SEED` or `item` (by the source's id)."""
    split_time: str | None = None
    """ISO 8601 or seconds since 1970: what lies before trains, what comes then is to be predicted."""
    keep_ids: bool = False
    """Items are numbered by the source's ids in their order; by default at random, by a fixed seed."""
    title_from: str | None = None
    """Field, or template, that names items without a title; None drops them."""
    text: str | None = None
    """Template of the items' text; None: the source's own."""
    leaks: bool = False
    """Also keep fields that tell what nobody knew at the time, such as lists of what others bought."""
    name: str | None = None
    """The dataset's name; None: that of the folder."""
    user: str | None = None
    item: str | None = None
    time: str | None = None
    rating: str | None = None
    title: str | None = None
    """Columns of sources whose columns are not fixed; None: the only one that can be it."""
    titles: str | None = None
    """File with the items of such a source."""
    separator: str | None = None
    encoding: str | None = None
    time_unit: str | None = None

    OWN = ("user", "item", "time", "rating", "title", "titles", "separator", "encoding", "time_unit")
    """Options that only some sources take."""

    def __post_init__(self) -> None:
        for name, allowed in (("duplicates", DUPLICATES), ("time_unit", TIME_UNITS)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ConfigError(f"{flag(name)} is {value!r}", hint=f"it is one of {', '.join(allowed)}")
        for name, least in (("k_core", 0), ("min_length", LEAST_LENGTH)):
            if getattr(self, name) < least:
                raise ConfigError(f"{flag(name)} is {getattr(self, name)}", hint=f"it must be at least {least}")
        if self.min_rating is not None and not math.isfinite(self.min_rating):
            raise ConfigError(f"--min-rating is {self.min_rating}", hint="it must be a number")
        if self.separator is not None and (not self.separator or set(self.separator) & set('"\r\n')):
            raise ConfigError(f"--separator is {self.separator!r}", hint="such as ',', ';', '|', tab or '::'")
        if self.tie_seed is None and self.ties not in ("file", "item"):
            raise ConfigError(f"--ties is {self.ties!r}", hint="it is file, item or shuffle:SEED, as in shuffle:0")

    @property
    def tie_seed(self) -> int | None:
        """The seed of `shuffle:SEED`; None for another order."""
        word, _, seed = self.ties.partition(":")
        return int(seed) if word == "shuffle" and seed.isdecimal() else None

    def check_own(self, source: str, takes: frozenset[str]) -> None:
        """Refuses options that a source has no use for.

        Raises:
            ConfigError: one of them is set.
        """
        for name in self.OWN:
            if getattr(self, name) is not None and name not in takes:
                raise ConfigError(
                    f"{flag(name)} is not an option of {source}, whose files have one form",
                    hint="leave it out; the source csv takes files of any columns",
                )

    def check_titles(self, *names: str) -> None:
        """Refuses options that tell how to read the file of `--titles`, where it is not named.

        Raises:
            ConfigError: one of them is set.
        """
        for name in names:
            if self.titles is None and getattr(self, name) is not None:
                raise ConfigError(f"{flag(name)} goes with --titles FILE here", hint="name the file, or leave it out")

    def as_json(self) -> dict[str, Any]:
        """What is set, by name; unset ones are left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def flag(name: str) -> str:
    """Returns an option as it is typed."""
    return "--" + name.replace("_", "-")
