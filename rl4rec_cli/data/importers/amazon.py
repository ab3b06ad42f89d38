"""What the Amazon review data of 2014, 2018 and 2023 share.

Decides: how a category path and lists of paragraphs become fields of an item.
Hides: nothing. Published at <https://cseweb.ucsd.edu/~jmcauley/datasets.html>.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import polars as pl

from rl4rec_cli.data.importers.files import RawFile
from rl4rec_cli.data.importers.importer import Importer
from rl4rec_cli.data.importers.options import ImportOptions
from rl4rec_cli.data.importers.records import by_role, read_items
from rl4rec_cli.data.importers.rows import RowTable
from rl4rec_cli.data.importers.tables import Delimited, read_delimited, read_json_lines
from rl4rec_cli.data.importers.times import TimeReader
from rl4rec_cli.errors import DataError


class Amazon(Importer):
    """Reviews (or ratings as CSV) and metadata, in any order."""

    text = "{title}.[ Brand: {brand}.][ Categories: {categories}.]"
    unit: ClassVar[str] = "s"
    columns: ClassVar[Mapping[str, str]] = {
        "user": "reviewerID",
        "item": "asin",
        "time": "unixReviewTime",
        "rating": "overall",
    }
    """What `user`, `item`, `time` and `rating` are called in reviews; so they are in 2014 and 2018."""
    key: ClassVar[str] = "asin"
    """Field of metadata with the item's id."""
    ratings: ClassVar[Delimited]
    """Form of the ratings without text."""
    literals: ClassVar[bool] = False
    """Whether metadata are Python literals."""

    def __init__(self, files: Sequence[RawFile], options: ImportOptions, table: RowTable) -> None:
        super().__init__(files, options, table)
        self.times = TimeReader(self.unit)
        tables = [file for file in self.files if self.is_table(file)]
        roles = by_role(
            self,
            {
                "reviews": lambda record: self.columns["user"] in record and self.columns["rating"] in record,
                "metadata": lambda record: self.key in record and self.is_metadata(record),
            },
            needed=("metadata",) if options.title_from is None else (),
            others=tables,
        )
        self._reviews, self._tables, self._metadata = roles["reviews"], tables, roles["metadata"]
        self.check_rows(tables, roles["reviews"])

    def check_rows(self, tables: Sequence[RawFile], reviews: Sequence[RawFile]) -> None:
        """Refuses anything but one file of rows.

        Raises:
            DataError: there is none, or there are several.
        """
        if len(tables) + len(reviews) != 1:
            there = ", ".join(str(file) for file in (*tables, *reviews)) or "metadata alone"
            raise DataError(f"one file of reviews or ratings is needed; there are {there}", hint="name the one to read")

    def is_table(self, file: RawFile) -> bool:
        """Returns whether a file is of ratings as CSV."""
        return not file.head(64).lstrip().startswith(b"{") and b"," in file.head().partition(b"\n")[0]

    @abstractmethod
    def is_metadata(self, record: Mapping[str, Any]) -> bool:
        """Returns whether a record with an item's id is of this year's metadata."""

    @abstractmethod
    def fields(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Returns an item's fields from its metadata."""

    def interactions(self) -> Iterator[pl.DataFrame]:
        for file in self._reviews:
            with self.reading(file) as advance:
                frames = read_json_lines(file, list(self.columns.values()), table=self.table, advance=advance)
                yield from self.rows_of(file, frames, self.columns, self.times)
        for file in self._tables:
            with self.reading(file) as advance:
                names = {name: name for name in ("user", "item", "time", "rating")}
                columns = names if self.ratings.columns is not None else self.columns
                wanted = list(columns.values())
                frames = read_delimited(file, self.ratings, wanted, table=self.table, advance=advance)
                yield from self.rows_of(file, frames, columns, self.times)

    def items(self, wanted: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for file in self._metadata:
            with self.reading(file) as advance:
                for source_id, record in read_items(
                    file, self.key, wanted, table=self.lines, advance=advance, literals=self.literals
                ):
                    yield source_id, self.fields(record)


def joined(value: Any) -> Any:
    """Returns paragraphs as one text."""
    return " ".join(map(str, value)) if isinstance(value, list) else value


def path(value: Any) -> Any:
    """Returns a category path `[a, b]` as `a > b`."""
    return " > ".join(map(str, value)) if isinstance(value, list) else value
