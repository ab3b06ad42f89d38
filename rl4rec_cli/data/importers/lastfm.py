"""LastFM of HetRec 2011: `user_taggedartists-timestamps.dat` and `artists.dat`.

Decides: a user chooses an artist when tagging it for the first time; listening counts (`user_artists.dat`) have no
time, so nothing comes of them; tags are what users wrote at all times, so they are no text of an artist.
Hides: tables without quoting. Published at <https://grouplens.org/datasets/hetrec-2011/>.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from rl4rec_cli.data.importers.files import RawFile
from rl4rec_cli.data.importers.importer import Importer
from rl4rec_cli.data.importers.options import ImportOptions
from rl4rec_cli.data.importers.rows import RowTable
from rl4rec_cli.data.importers.tables import Delimited, read_delimited
from rl4rec_cli.data.importers.times import TimeReader

_TABLE = Delimited("\t", quote=False)
_COLUMNS = {"user": "userID", "item": "artistID", "time": "timestamp"}


class LastFM(Importer):
    """Artists that users tagged, with times in milliseconds."""

    text = "{title}."

    def __init__(self, files: Sequence[RawFile], options: ImportOptions, table: RowTable) -> None:
        super().__init__(files, options, table)
        self.times = TimeReader("ms")

    def interactions(self) -> Iterator[pl.DataFrame]:
        file = self.one_file("taggings with times", "user_taggedartists-timestamps.dat")
        with self.reading(file) as advance:
            frames = read_delimited(file, _TABLE, list(_COLUMNS.values()), table=self.table, advance=advance)
            yield from self.rows_of(file, frames, _COLUMNS, self.times)

    def items(self, wanted: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        file = self.one_file("artists", "artists.dat")
        with self.reading(file) as advance:
            for frame in read_delimited(file, _TABLE, ["id", "name", "url"], table=self.lines, advance=advance):
                for source_id, name, url, _ in frame.iter_rows():
                    if source_id in wanted:
                        yield source_id, {"title": name, "url": url}
