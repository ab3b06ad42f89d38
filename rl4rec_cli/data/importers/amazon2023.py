"""Amazon review data of 2023: raw `CAT.jsonl.gz`, or benchmark CSV, whole or split; with `meta_CAT.jsonl.gz`.

Decides: an item is its `parent_asin`; `CAT.train.csv`, `CAT.valid.csv` and `CAT.test.csv` are the split.
Hides: times in milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import polars as pl

from rl4rec_cli.data.importers.amazon import Amazon, joined, path
from rl4rec_cli.data.importers.files import RawFile
from rl4rec_cli.data.importers.tables import Delimited
from rl4rec_cli.errors import DataError

_PARTS = {"train": 0, "valid": 1, "test": 2}


class Amazon2023(Amazon):
    """Times are milliseconds; counts over all times stand in `rating_number` and `average_rating`."""

    unit = "ms"
    columns: ClassVar[Mapping[str, str]] = {
        "user": "user_id",
        "item": "parent_asin",
        "time": "timestamp",
        "rating": "rating",
    }
    key = "parent_asin"
    ratings = Delimited()
    text = "{title}.[ Brand: {store}.][ Categories: {categories}.]"

    def check_rows(self, tables: Sequence[RawFile], reviews: Sequence[RawFile]) -> None:
        parts = [_part(file) for file in tables]
        self.is_split = any(part is not None for part in parts)
        if not self.is_split:
            super().check_rows(tables, reviews)
        elif reviews or sorted(part for part in parts if part) != sorted(_PARTS) or None in parts:
            there = ", ".join(str(file) for file in (*tables, *reviews))
            raise DataError(
                f"a split has one file each of .train, .valid and .test; there are {there}", hint="name these three"
            )
        if self.is_split:
            self.notes["parts of the split"] = ", ".join(sorted(file.name for file in tables))

    def interactions(self) -> Iterator[pl.DataFrame]:
        for frame in super().interactions():
            if not self.is_split:
                yield frame
                continue
            part = _part(self.used[frame["file"][0]]) if frame.height else None
            yield frame.with_columns(pl.lit(_PARTS[part or "train"], dtype=pl.UInt8).alias("part"))

    def is_metadata(self, record: Mapping[str, Any]) -> bool:
        return "user_id" not in record and "title" in record

    def fields(self, record: Mapping[str, Any]) -> dict[str, Any]:
        hidden = ("parent_asin", "images", "videos", "details", "features", "subtitle", "author")
        fields = {name: value for name, value in record.items() if name not in hidden}
        fields["categories"] = path(record.get("categories"))
        fields["description"] = joined(record.get("description"))
        fields["features"] = joined(record.get("features"))
        return {name: value for name, value in fields.items() if value not in (None, "", [])}


def _part(file: RawFile) -> str | None:
    match = re.search(r"\.(train|valid|test)\.csv$", file.name)
    return match[1] if match else None
