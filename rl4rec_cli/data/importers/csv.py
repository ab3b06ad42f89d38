"""Files of one's own: CSV, TSV, Parquet, JSON lines.

Decides: the form of a file is told by its content; a column that is not named by option is taken only if exactly one
can be it.
Hides: what columns are usually called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import polars as pl

from rl4rec_cli.data.importers.files import RawFile, find_files, read_blocks
from rl4rec_cli.data.importers.importer import Importer
from rl4rec_cli.data.importers.options import ImportOptions, flag
from rl4rec_cli.data.importers.rows import RowTable
from rl4rec_cli.data.importers.tables import (
    LINE,
    Delimited,
    as_text,
    header,
    json_records,
    read_delimited,
    read_json_lines,
    read_parquet,
)
from rl4rec_cli.data.importers.times import TimeReader
from rl4rec_cli.errors import ConfigError, DataError

_THINGS = (
    *("item", "movie", "product", "article", "track", "song", "book", "game", "news", "business", "artist", "video"),
    *("asin", "parentasin", "sku", "listing"),
)
_USUAL = {
    "user": {
        name + end
        for name in ("user", "customer", "reviewer", "listener", "visitor", "member", "session", "u")
        for end in ("", "id", "no")
    },
    "item": {thing + end for thing in _THINGS for end in ("", "id", "no")} | {"iid"},
    "time": {
        "time",
        "timestamp",
        "date",
        "datetime",
        "ts",
        "unixtime",
        "unixreviewtime",
        "playedat",
        "createdat",
        "at",
    },
    "rating": {"rating", "ratings", "stars", "score", "overall"},
    "title": {"title", "name", "itemname", "itemtitle", "productname", "producttitle", "trackname", "movietitle"},
}
"""Usual names of columns, without case and punctuation."""
_ABOUT = re.compile(r"(?:readme|licen[cs]e)(?:\.\w+)?$|.*\.md$|dataset_infos?\.json$", re.IGNORECASE)
"""Files that lie beside tables and tell of them, as in a data set of the Hub."""
_SEPARATORS = (",", "\t", ";", "|")


class Csv(Importer):
    """Rows of files of one form; items of the file that `--titles` names, or a column of titles."""

    takes: ClassVar[frozenset[str]] = frozenset(ImportOptions.OWN)
    duplicates = "first"

    def __init__(self, files: list[RawFile], options: ImportOptions, table: RowTable) -> None:
        super().__init__(files, options, table)
        self._item_column: str | None = None
        self.times = None if options.time == "none" else TimeReader(options.time_unit or "auto")

    def interactions(self) -> Iterator[pl.DataFrame]:
        first_columns: dict[str, str] | None = None
        tables = [file for file in self.files if not _ABOUT.match(file.name)] or self.files
        if left_out := dict.fromkeys(file.name for file in self.files if file not in tables):
            self.notes["files left out"] = ", ".join(left_out)
        for file in tables:
            columns = self._columns(file)
            if first_columns is None:
                first_columns = columns
                self._item_column = columns["item"]
                self.notes["columns"] = ", ".join(f"{what} {name}" for what, name in columns.items())
            elif columns != first_columns:
                raise DataError(
                    f"{file}: its columns are not those of {tables[0]}",
                    hint="name columns by --user, --item, …; the file of the items goes with --titles",
                )
            with self.reading(file) as advance:
                frames = self._frames(file, list(columns.values()), advance)
                yield from self.rows_of(file, frames, columns, self.times)

    def items(self, wanted: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if self.options.titles is None:
            return
        files = find_files([self.options.titles])
        for file in [file for file in files if not _ABOUT.match(file.name)] or files:
            names = self._names(file)
            key = self._item_column if self._item_column in names else self._guess(file, "item", names)
            title = self.options.title or self._guess(file, "title", names, needed=self.options.title_from is None)
            if key is None or (title is not None and title not in names):
                raise DataError(f"{file}: no column {title!r}", hint=f"columns that are there: {', '.join(names)}")
            with self.reading(file) as advance:
                for record in self._records(file, names, advance):
                    source_id = record.pop(key)
                    if source_id is None:
                        continue
                    if title is not None and title != "title":
                        record["title"] = record.pop(title, None)
                    yield (as_text(source_id) or "").strip(), record

    def _columns(self, file: RawFile) -> dict[str, str]:
        """Returns what columns a file of rows has for user, item, time, rating and title."""
        names = self._names(file)
        columns: dict[str, str] = {}
        for what in ("user", "item", "time", "rating", "title"):
            named = getattr(self.options, what)
            if what == "time" and self.times is None:
                continue
            if what == "title" and self.options.titles is not None:
                continue
            name = named or self._guess(file, what, names, needed=what in ("user", "item", "time"))
            if name is not None:
                if name not in names:
                    raise DataError(f"{file}: no column {name!r}", hint=f"columns that are there: {', '.join(names)}")
                columns[what] = name
        return columns

    def _guess(self, file: RawFile, what: str, names: list[str], *, needed: bool = True) -> str | None:
        """Returns the only column that can be this.

        Raises:
            DataError: none can, or several.
        """
        hits = [name for name in names if re.sub(r"[\W_]+", "", name.casefold()) in _USUAL[what]]
        if len(hits) == 1:
            return hits[0]
        if not hits and not needed:
            return None
        problem = f"columns {' and '.join(hits)} can both be the {what}" if hits else f"no column looks like the {what}"
        way = f"{flag(what)} NAME" + (", or --time none: rows are in order" if what == "time" else "")
        items = "; a file of items goes with --titles" if what == "user" and len(self.files) > 1 else ""
        raise DataError(f"{file}: {problem}", hint=f"name it: {way}; columns that are there: {', '.join(names)}{items}")

    def _names(self, file: RawFile) -> list[str]:
        kind = _kind(file)
        if kind == "parquet":
            import pyarrow.parquet as pq

            try:
                return list(pq.read_schema(file.path).names)
            except (OSError, ValueError) as error:
                raise DataError(f"{file}: not a readable Parquet table: {error}", hint="download it again") from error
        if kind == "json":
            line = file.head().partition(b"\n")[0]
            try:
                return list(json.loads(line))
            except ValueError as error:
                raise DataError(f"{file}:1: not JSON: {error}", hint="one JSON object on each line") from error
        return header(file, self._form(file))

    def _form(self, file: RawFile) -> Delimited:
        encoding = self.options.encoding or "utf-8"
        try:
            keeps_lines = b"\n,".decode(encoding, "replace") == "\n,"
        except LookupError:
            raise ConfigError(f"--encoding: {encoding!r} is unknown", hint="such as utf-8, latin-1, cp1252") from None
        except UnicodeError:  # idna
            keeps_lines = False
        if not keeps_lines:
            raise ConfigError(
                f"--encoding: lines of {encoding} do not end as those of ASCII do",
                hint=f"iconv -f {encoding} -t UTF-8 FILE > NEW",
            )
        if self.options.separator is not None:
            separator = {"\\t": "\t", "tab": "\t"}.get(self.options.separator, self.options.separator)
            return Delimited(separator, quote=len(separator.encode()) == 1, encoding=encoding)
        first = file.head().partition(b"\n")[0].decode(encoding, "replace")
        likely = [one for one in _SEPARATORS if one in first]
        if len(likely) != 1:
            many = " and ".join(map(repr, likely))
            problem = f"{many} can both be the separator" if likely else "the first line has no separator"
            raise DataError(f"{file}:1: {problem}", hint=f"--separator CHARACTER; the line is {first[:80]!r}")
        return Delimited(likely[0], encoding=encoding)

    def _frames(self, file: RawFile, wanted: list[str], advance: Any) -> Iterator[pl.DataFrame]:
        kind = _kind(file)
        if kind == "parquet":
            return read_parquet(file, wanted, table=self.table, advance=advance)
        if kind == "json":
            return read_json_lines(file, wanted, table=self.table, advance=advance)
        return read_delimited(file, self._form(file), wanted, table=self.table, advance=advance)

    def _records(self, file: RawFile, names: list[str], advance: Any) -> Iterator[dict[str, Any]]:
        """Yields the rows of a file of items."""
        kind = _kind(file)
        if kind == "json":
            for block in read_blocks(file, advance=advance):
                for _, record in json_records(file, block, self.lines):
                    self.lines.read += 1
                    yield record
        elif kind == "parquet":
            import pyarrow.parquet as pq

            for batch in pq.ParquetFile(file.path).iter_batches():
                yield from batch.to_pylist()
        else:
            for frame in read_delimited(file, self._form(file), names, table=self.lines, advance=advance):
                yield from frame.drop(LINE).iter_rows(named=True)


def read_titles(importer: Importer, item_column: str, wanted: Collection[str]) -> dict[str, dict[str, Any]]:
    """Returns what the file of `--titles` says of items, by the source's id, for a source that may lack titles.

    Args:
        importer: takes `TITLE_OPTIONS`.
        item_column: the column of ids, where the file has one of this name.

    Raises:
        DataError: the file is missing or damaged, or has no column of ids or titles.
    """
    options = importer.options
    if options.titles is None:
        return {}
    reader = Csv(importer.files, options, importer.table)
    reader.used, reader.lines, reader._item_column = importer.used, importer.lines, item_column
    fields_by_id: dict[str, dict[str, Any]] = {}
    for source_id, fields in reader.items(wanted):
        if source_id in wanted and not fields_by_id.get(source_id, {}).get("title"):
            fields_by_id[source_id] = {name: value for name, value in fields.items() if value not in (None, "")}
    return fields_by_id


def _kind(file: RawFile) -> str:
    head = file.head(64).lstrip()
    if head.startswith(b"PAR1"):
        if file.member is not None:
            raise DataError(f"{file}: a Parquet table in an archive", hint="unpack the archive")
        return "parquet"
    return "json" if head.startswith(b"{") else "text"
