"""Microsoft's news data MIND: `behaviors.tsv` and `news.tsv`.

Decides: a user's sequence is the history, which has no times and is the same in all of a user's lines, then the clicks
by time; so there are no times, and rows are in order.
Hides: impressions. Published at <https://msnews.github.io>.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import polars as pl

from rl4rec_cli.data.importers.importer import Importer
from rl4rec_cli.data.importers.tables import LINE, Delimited, read_delimited
from rl4rec_cli.data.importers.times import TimeReader
from rl4rec_cli.errors import DataError

_BEHAVIORS = Delimited("\t", ("impression", "user", "time", "history", "impressions"), quote=False)
_SHOWN = ("id", "category", "subcategory", "title", "abstract", "url")
_NEWS = Delimited("\t", (*_SHOWN, "title_entities", "abstract_entities"), quote=False)


class Mind(Importer):
    """Clicks on news. Several `behaviors.tsv` and `news.tsv`, such as those of train and dev, are read together."""

    text = "{title}.[ Category: {category} > {subcategory}.]"

    def interactions(self) -> Iterator[pl.DataFrame]:
        files = [file for file in self.files if file.name == "behaviors.tsv"]
        if not files:
            self.one_file("behaviors", "behaviors.tsv")  # says what is there
        reader = TimeReader("iso", forms=("%m/%d/%Y %I:%M:%S %p",))
        frames = []
        for file in files:
            number = self.use(file)
            with self.reading(file) as advance:
                for frame in read_delimited(
                    file, _BEHAVIORS, _BEHAVIORS.columns or (), table=self.lines, advance=advance
                ):
                    times = reader.read(frame["time"])
                    if times.null_count():
                        line = frame.filter(times.is_null())[LINE][0]
                        raise DataError(f"{file}:{line}: the time cannot be read", hint="11/11/2019 9:05:58 AM is one")
                    frames.append(frame.with_columns(times, pl.lit(number, dtype=pl.UInt16).alias("file")))
        behaviors = pl.concat(frames).sort("user", "time", maintain_order=True)
        clicks = behaviors.select(
            "user",
            "file",
            LINE,
            pl.col("impressions").str.extract_all(r"\S+-1\b").alias("item"),
            pl.lit(1).alias("late"),
        )
        clicks = clicks.explode("item").with_columns(pl.col("item").str.strip_suffix("-1"))
        histories = behaviors.unique("user", keep="first", maintain_order=True).select(
            "user", "file", LINE, pl.col("history").str.split(" ").alias("item"), pl.lit(0).alias("late")
        )
        rows = pl.concat([histories.explode("item"), clicks]).filter(pl.col("item").is_not_null())
        rows = rows.sort("user", "late", maintain_order=True).with_columns(pl.col(LINE).cast(pl.UInt32))
        self.table.read += rows.height
        self.notes["order"] = "the history, then the clicks by time"
        yield rows.select("user", "item", "file", LINE)

    def items(self, wanted: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        files = [file for file in self.files if file.name == "news.tsv"]
        if not files:
            self.one_file("news", "news.tsv")
        for file in files:
            with self.reading(file) as advance:
                for frame in read_delimited(file, _NEWS, _SHOWN, table=self.lines, advance=advance):
                    for record in frame.drop(LINE).iter_rows(named=True):
                        if record["id"] in wanted:
                            yield record.pop("id"), record
