"""Steam's reviews and games: `steam_reviews.json.gz` and `steam_games.json.gz`.

Decides: a user is the `user_id`, or the `username` where that is absent; a game without `title` has its `app_name`.
Hides: lines that are Python literals, which takes about 50 µs each. Published at
<https://cseweb.ucsd.edu/~jmcauley/datasets.html>.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from rl4rec_cli.data.importers.files import Advance, RawFile
from rl4rec_cli.data.importers.importer import Importer
from rl4rec_cli.data.importers.options import ImportOptions
from rl4rec_cli.data.importers.records import by_role, read_items, read_literals
from rl4rec_cli.data.importers.rows import RowTable
from rl4rec_cli.data.importers.tables import LINE
from rl4rec_cli.data.importers.times import TimeReader

_SHOWN = ("genres", "tags", "specs", "developer", "publisher", "price", "release_date")
_NAMES = ("user", "item", "time")


class Steam(Importer):
    """Reviews by day, and games."""

    text = "{title}.[ Genres: {genres}.][ Tags: {tags}.]"

    def __init__(self, files: Sequence[RawFile], options: ImportOptions, table: RowTable) -> None:
        super().__init__(files, options, table)
        self.times = TimeReader("iso")
        roles = {
            "reviews": lambda record: {"product_id", "date"} <= record.keys(),
            "games": lambda record: "id" in record and bool({"app_name", "title"} & record.keys()),
        }
        self._files = by_role(self, roles, needed=("reviews", "games"))

    def interactions(self) -> Iterator[pl.DataFrame]:
        for file in self._files["reviews"]:
            with self.reading(file) as advance:
                yield from self.rows_of(file, self._frames(file, advance), {n: n for n in _NAMES}, self.times)

    def _frames(self, file: RawFile, advance: Advance) -> Iterator[pl.DataFrame]:
        for records in read_literals(file, table=self.table, advance=advance):
            rows = [
                (_text(one.get("user_id") or one.get("username")), _text(one.get("product_id")), one.get("date"), line)
                for line, one in records
            ]
            schema = {**dict.fromkeys(_NAMES, pl.String), LINE: pl.Int64}
            yield pl.DataFrame(rows, schema=schema, orient="row", strict=False)

    def items(self, wanted: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for file in self._files["games"]:
            with self.reading(file) as advance:
                for source_id, record in read_items(
                    file, "id", wanted, table=self.lines, advance=advance, literals=True
                ):
                    fields = {name: record.get(name) for name in _SHOWN}
                    yield source_id, {"title": record.get("title") or record.get("app_name"), **fields}


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) else None
