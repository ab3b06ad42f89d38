"""RecBole's atomic files: `X.inter`, with `X.item` if there is one; or `X.train.inter`, `.valid.inter`, `.test.inter`.

Decides: columns are known by the names before their types; of benchmark files with `item_id_list` the longest line of a
user is the sequence, and rows are in order.
Hides: types in headers. Published at <https://recbole.io/dataset_list.html>.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import polars as pl

from rl4rec_cli.data.importers.csv import read_titles
from rl4rec_cli.data.importers.files import RawFile
from rl4rec_cli.data.importers.importer import Importer
from rl4rec_cli.data.importers.options import TITLE_OPTIONS, ImportOptions
from rl4rec_cli.data.importers.rows import RowTable
from rl4rec_cli.data.importers.tables import LINE, Delimited, header, read_delimited
from rl4rec_cli.data.importers.times import TimeReader
from rl4rec_cli.errors import DataError

_TYPES = ("token", "token_seq", "float", "float_seq")
_TITLES = ("title", "movie_title", "item_name", "name", "artist_name", "app_name")
_LIST = "item_id_list"


class RecBole(Importer):
    """Interactions, and items if there are any; `--titles FILE` or `--title-from item` names those without a title."""

    takes: ClassVar[frozenset[str]] = TITLE_OPTIONS | {"user", "time", "rating", "time_unit"}

    def __init__(self, files: Sequence[RawFile], options: ImportOptions, table: RowTable) -> None:
        super().__init__(files, options, table)
        options.check_titles("encoding")
        separator = options.separator or "\t"
        self._form = Delimited("\t" if separator in ("\\t", "tab") else separator, quote=False)

    def _columns(self, file: RawFile) -> dict[str, str]:
        """Returns what columns are called with their types, by their names without."""
        names = header(file, self._form)
        untyped = [name for name in names if name.count(":") != 1 or name.rpartition(":")[2] not in _TYPES]
        if untyped:
            raise DataError(
                f"{file}:1: column {untyped[0][:60]!r} has no type",
                hint=f"a header is `user_id:token` …, with tabs between (else --separator); types: {', '.join(_TYPES)}",
            )
        return {name.rpartition(":")[0]: name for name in names}

    def interactions(self) -> Iterator[pl.DataFrame]:
        files = [file for file in self.files if file.name.endswith(".inter")]
        if not files:
            raise DataError(f"no .inter among {', '.join(file.name for file in self.files[:20])}", hint="name X.inter")
        lists = [file for file in files if _LIST in self._columns(file)]
        if lists:
            yield self._sequences(lists)
            return
        if len(files) > 1:
            raise DataError(f"several .inter without {_LIST}: {files[0]}, {files[1]}", hint="name the one to read")
        names = self._columns(files[0])
        columns = {}
        for what, usual in (("user", "user_id"), ("item", "item_id"), ("time", "timestamp"), ("rating", "rating")):
            name = getattr(self.options, what) or usual
            if name in names:
                columns[what] = names[name]
            elif what in ("user", "item") or getattr(self.options, what) not in (None, "none"):
                raise DataError(f"{files[0]}: no column {name!r}", hint=f"columns that are there: {', '.join(names)}")
        self.times = TimeReader(self.options.time_unit or "auto") if "time" in columns else None
        with self.reading(files[0]) as advance:
            frames = read_delimited(files[0], self._form, list(columns.values()), table=self.table, advance=advance)
            yield from self.rows_of(files[0], frames, columns, self.times)

    def _sequences(self, files: Sequence[RawFile]) -> pl.DataFrame:
        """Returns the rows of benchmark files: the longest line of each user."""
        frames = []
        for file in files:
            number = self.use(file)
            names = self._columns(file)
            wanted = [
                names.get(self.options.user or "user_id", "user_id"),
                names[_LIST],
                names.get("item_id", "item_id"),
            ]
            with self.reading(file) as advance:
                for frame in read_delimited(file, self._form, wanted, table=self.lines, advance=advance):
                    history = pl.col(wanted[1]).fill_null("").str.split(" ")
                    items = pl.concat_list(history, pl.col(wanted[2])).list.eval(
                        pl.element().filter(pl.element() != "")
                    )
                    frames.append(
                        frame.select(
                            pl.col(wanted[0]).alias("user"),
                            items.alias("item"),
                            pl.lit(number, dtype=pl.UInt16).alias("file"),
                            pl.col(LINE).cast(pl.UInt32),
                        )
                    )
        lines = pl.concat(frames).with_columns(pl.col("item").list.len().alias("length"))
        longest = lines.sort("length", descending=True, maintain_order=True).unique("user", keep="first")
        rows = longest.sort("user").explode("item").select("user", "item", "file", LINE)
        self.table.read += rows.height
        self.notes["order"] = "the longest line of each user"
        return rows

    def items(self, wanted: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        titled = read_titles(self, self.options.item or "item_id", wanted)
        for file in (file for file in self.files if file.name.endswith(".item")):
            names = self._columns(file)
            named = self.options.title if self.options.titles is None else None
            title = named or next((name for name in _TITLES if name in names), None)
            if "item_id" not in names or (title is not None and title not in names):
                raise DataError(f"{file}: no column {title or 'item_id'!r}", hint=f"there are {', '.join(names)}")
            with self.reading(file) as advance:
                for frame in read_delimited(file, self._form, list(names.values()), table=self.lines, advance=advance):
                    for record in frame.drop(LINE).iter_rows(named=True):
                        if record[names["item_id"]] in wanted:
                            fields = {name: _value(record[typed], typed) for name, typed in names.items()}
                            if title is not None:
                                fields["title"] = record[names[title]]
                                fields.pop(title if title != "title" else "", None)
                            source_id = fields.pop("item_id")
                            yield source_id, {**fields, **titled.pop(source_id, {})}
        yield from titled.items()


def _value(text: str | None, typed: str) -> Any:
    kind = typed.rpartition(":")[2]
    if text is None or kind == "token":
        return text
    if kind == "token_seq":
        return text.split(" ")
    try:
        numbers = [float(one) for one in text.split(" ")]
    except ValueError:
        return text
    return numbers if kind == "float_seq" else numbers[0]
