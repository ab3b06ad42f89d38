"""What an importer is.

Decides: an importer yields rows of users and items, and descriptions of items; everything else is the same for all
sources (`importing.py`).
Hides: progress, and which files were read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import polars as pl

from rl4rec_cli import console
from rl4rec_cli.data.importers.files import Advance, RawFile
from rl4rec_cli.data.importers.options import ImportOptions
from rl4rec_cli.data.importers.rows import RowTable
from rl4rec_cli.data.importers.tables import LINE
from rl4rec_cli.data.importers.times import TimeReader
from rl4rec_cli.errors import DataError

FILE = "file"
"""Column with the position of a row's file in `Importer.used`."""


class Importer(ABC):
    """Reads one source. A subclass says what it is, and yields rows and items.

    Args:
        files: all files that the user named, folders and archives opened.
        options: the import's choices.
        table: counts rows read and dropped.
    """

    takes: ClassVar[frozenset[str]] = frozenset()
    """Options of `ImportOptions.OWN` that it reads."""
    duplicates: ClassVar[Literal["first", "last", "none"]] = "first"
    """What becomes of repeats unless the user says: `none` where users choose an item again."""
    text: ClassVar[str | None] = None
    """Template of the items' text; None: the title and every field that is text."""
    is_split: bool = False
    """Whether its rows carry the `part` of a split by its publisher."""

    def __init__(self, files: Sequence[RawFile], options: ImportOptions, table: RowTable) -> None:
        self.files = list(files)
        self.options = options
        self.table = table
        self.times: TimeReader | None = None
        """Reads its times; None where it has none: rows are in order."""
        self.lines = RowTable()
        """Counts what is read of files whose lines are no rows: those of items, and those of whole sequences."""
        self.used: list[RawFile] = []
        self.notes: dict[str, Any] = {}
        """What it chose by itself, to be printed and kept."""

    @abstractmethod
    def interactions(self) -> Iterator[pl.DataFrame]:
        """Yields rows in the order of the files, made by `rows_of`.

        Raises:
            DataError: files are missing or are not of this source.
        """

    @abstractmethod
    def items(self, wanted: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yields (source's id, fields) of the wanted items; those that the source does not describe are missing.

        An item may come several times. The field `title` is its title.

        Raises:
            DataError: files are missing or are not of this source.
        """

    def rows_of(
        self, file: RawFile, frames: Iterator[pl.DataFrame], columns: Mapping[str, str], times: TimeReader | None
    ) -> Iterator[pl.DataFrame]:
        """Yields frames in the form that all sources share.

        Args:
            frames: text columns and `LINE`.
            columns: what `user`, `item`, `time`, `rating` and `title` are called there.
            times: reads the times; None: there are none.
        """
        number = self.use(file)
        for frame in frames:
            frame = frame.select(
                pl.col(columns["user"]).str.strip_chars().alias("user"),
                pl.col(columns["item"]).str.strip_chars().alias("item"),
                *(pl.col(columns[name]).alias(name) for name in ("time", "rating", "title") if name in columns),
                pl.lit(number, dtype=pl.UInt16).alias(FILE),
                pl.col(LINE).cast(pl.UInt32),
            )
            if times is not None:
                frame = frame.with_columns(times.read(frame["time"]))
            if "rating" in columns:
                frame = frame.with_columns(pl.col("rating").cast(pl.Float64, strict=False))
                # Polars holds NaN to be larger than any rating.
                frame = frame.with_columns(pl.when(pl.col("rating").is_finite()).then(pl.col("rating")))
            yield frame

    def use(self, file: RawFile) -> int:
        """Notes that a file is read, and returns its number."""
        if file not in self.used:
            self.used.append(file)
        return self.used.index(file)

    @contextmanager
    def reading(self, file: RawFile) -> Iterator[Advance]:
        """Shows how far a file is read, with rows, rate and time left."""
        self.use(file)

        def lines_read() -> int:
            return self.table.read + self.lines.read

        before = lines_read()
        with console.progress(file.size, f"reading {file.name}", rows=lambda: lines_read() - before) as advance:
            yield advance

    def place(self, file: int, line: int) -> str:
        """Returns `file:line` of a row."""
        return f"{self.used[file]}:{line}"

    def one_file(self, what: str, *names: str) -> RawFile:
        """Returns the only file of one of these names.

        Raises:
            DataError: there is none, or there are several.
        """
        hits = [file for file in self.files if file.name in names]
        if len(hits) == 1:
            return hits[0]
        there = ", ".join(dict.fromkeys(file.name for file in self.files[:20])) or "none"
        if not hits:
            raise DataError(f"no {what}: none of the files is {' or '.join(names)}", hint=f"there are {there}")
        raise DataError(f"several files of {what}: {hits[0]}, {hits[1]}", hint="name the one to read")
