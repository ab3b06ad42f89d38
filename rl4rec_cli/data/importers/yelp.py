"""Yelp's open data: `yelp_academic_dataset_review.json` and `yelp_academic_dataset_business.json`.

Decides: users review a business again, so repeats stay; dates without a zone are UTC.
Hides: categories in one string. Published at <https://business.yelp.com/data/resources/open-dataset/>.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from rl4rec_cli.data.importers.files import RawFile
from rl4rec_cli.data.importers.importer import Importer
from rl4rec_cli.data.importers.options import ImportOptions
from rl4rec_cli.data.importers.records import by_role, read_items
from rl4rec_cli.data.importers.rows import RowTable
from rl4rec_cli.data.importers.tables import read_json_lines
from rl4rec_cli.data.importers.times import TimeReader

_COLUMNS = {"user": "user_id", "item": "business_id", "time": "date", "rating": "stars"}
_SHOWN = ("city", "state", "address", "stars", "review_count", "is_open")


class Yelp(Importer):
    """Reviews of businesses. What the folder has besides (tips, check-ins, users) is not read."""

    duplicates = "none"
    text = "{title}.[ Categories: {categories}.][ City: {city}.]"

    def __init__(self, files: Sequence[RawFile], options: ImportOptions, table: RowTable) -> None:
        super().__init__(files, options, table)
        self.times = TimeReader("iso")
        roles = {
            "reviews": lambda record: {"user_id", "business_id", "stars", "date"} <= record.keys(),
            "businesses": lambda record: {"business_id", "name", "categories"} <= record.keys(),
            "others": lambda record: bool({"user_id", "business_id"} & record.keys()),
        }
        self._files = by_role(self, roles, needed=("reviews", "businesses"))

    def interactions(self) -> Iterator[pl.DataFrame]:
        for file in self._files["reviews"]:
            with self.reading(file) as advance:
                frames = read_json_lines(file, list(_COLUMNS.values()), table=self.table, advance=advance)
                yield from self.rows_of(file, frames, _COLUMNS, self.times)

    def items(self, wanted: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for file in self._files["businesses"]:
            with self.reading(file) as advance:
                for source_id, record in read_items(file, "business_id", wanted, table=self.lines, advance=advance):
                    categories = [one.strip() for one in (record.get("categories") or "").split(",") if one.strip()]
                    fields = {name: record.get(name) for name in _SHOWN}
                    yield source_id, {"title": record.get("name"), "categories": categories, **fields}
