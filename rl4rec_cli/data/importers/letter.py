"""The form of LC-Rec, LETTER and MiniOneRec: `X.inter.json` with `X.item.json`, or their CSV.

Decides: rows are in order; of the CSV's several lines of a user the longest history with its target is the sequence.
Hides: lists and descriptions that are Python literals. Published at <https://github.com/HonghuiBao2000/LETTER> and
<https://github.com/AkaliKong/MiniOneRec>.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import polars as pl

from rl4rec_cli.data.importers.files import RawFile
from rl4rec_cli.data.importers.importer import Importer
from rl4rec_cli.data.importers.p5 import read_json
from rl4rec_cli.data.importers.tables import LINE, Delimited, read_delimited
from rl4rec_cli.errors import DataError

_COLUMNS = ("user_id", "history_item_id", "item_id", "history_item_title", "item_title")
_SCHEMA = {"user": pl.String, "item": pl.String, "file": pl.UInt16, LINE: pl.UInt32}


class Letter(Importer):
    """Sequences without times, and items with titles."""

    text = "{title}.[ Brand: {brand}.][ Categories: {categories}.]"

    def interactions(self) -> Iterator[pl.DataFrame]:
        self._titles: dict[str, str] = {}
        tables = [file for file in self.files if file.name.endswith(".csv")]
        if tables:
            rows = [row for _, own in sorted(self._longest(tables).items()) for row in own]
        else:
            hits = [file for file in self.files if file.name.endswith(".inter.json")]
            if len(hits) != 1:
                there = ", ".join(file.name for file in self.files[:20])
                raise DataError(f"one X.inter.json, or CSV, is needed; there are {there}", hint="name the one to read")
            number = self.use(hits[0])
            sequences = read_json(self, hits[0])
            for user, items in sequences.items():
                if not isinstance(items, list) or not all(isinstance(item, str | int) for item in items):
                    raise DataError(f"{hits[0]}: user {user} has no list of items", hint="is it the right file?")
            rows = [(user, str(item), number, 1) for user, items in sequences.items() for item in items]
        self.table.read += len(rows)
        yield pl.DataFrame(rows, schema=_SCHEMA, orient="row")

    def _longest(self, tables: list[RawFile]) -> dict[str, list[tuple[str, str, int, int]]]:
        """Returns the rows of each user: the longest history with its target."""
        sequences: dict[str, list[tuple[str, str, int, int]]] = {}
        for file in tables:
            number = self.use(file)
            with self.reading(file) as advance:
                for frame in read_delimited(file, Delimited(), _COLUMNS, table=self.lines, advance=advance):
                    for user, history, item, names, name, line in frame.iter_rows():
                        items = [*_list(history, file, line), item]
                        titles = [*(_list(names, file, line) or [None] * (len(items) - 1)), name]
                        if len(titles) != len(items):
                            flaw = f"{len(items) - 1} items and {len(titles) - 1} titles in the history"
                            raise DataError(f"{file}:{line}: {flaw}", hint="is it the right file?")
                        pairs = zip(map(str, items), titles, strict=True)
                        self._titles.update((one, str(title)) for one, title in pairs if title is not None)
                        if len(items) > len(sequences.get(user, ())):
                            sequences[user] = [(user, str(one), number, line) for one in items]
        self.notes["order"] = "the longest line of each user"
        return sequences

    def items(self, wanted: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        yield from ((one, {"title": title}) for one, title in self._titles.items() if one in wanted)
        for file in (file for file in self.files if file.name.endswith(".item.json")):
            for source_id, fields in read_json(self, file).items():
                if not isinstance(fields, dict):
                    raise DataError(f"{file}: item {source_id} is no JSON object", hint="is it the right file?")
                if source_id in wanted:
                    yield source_id, {name: _plain(value) for name, value in fields.items()}


def _list(text: str | None, file: RawFile, line: int) -> list[Any]:
    try:
        value = ast.literal_eval(text or "[]")
    except (ValueError, SyntaxError) as error:
        raise DataError(f"{file}:{line}: no Python list: {(text or '')[:60]}", hint="is it the right file?") from error
    return value if isinstance(value, list) else [value]


def _plain(value: Any) -> Any:
    """Returns the text of a description that is written as a Python list."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            parts = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
        return " ".join(map(str, parts)) if isinstance(parts, list) else value
    return value
