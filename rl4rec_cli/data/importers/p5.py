"""The form of P5 and S3-Rec: `sequential_data.txt` with `datamaps.json` and `CAT_item2attributes.json`.

Decides: rows are in order; an item's id is the one of its publisher (`id2item`), where `datamaps.json` is there.
Hides: numbers of attributes. The form has no titles: `--titles FILE` or `--title-from` names items. Its ids follow the
sequences, so that `--keep-ids` gives answers away. Published at <https://github.com/jeykigung/P5>.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import polars as pl

from rl4rec_cli.data.importers.csv import read_titles
from rl4rec_cli.data.importers.files import RawFile, read_blocks
from rl4rec_cli.data.importers.importer import Importer
from rl4rec_cli.data.importers.options import TITLE_OPTIONS, ImportOptions
from rl4rec_cli.data.importers.rows import RowTable
from rl4rec_cli.data.importers.tables import LINE
from rl4rec_cli.errors import DataError


class P5(Importer):
    """Sequences without times, and items with attributes."""

    takes: ClassVar[frozenset[str]] = TITLE_OPTIONS
    text = "{title}.[ Attributes: {attributes}.]"

    def __init__(self, files: Sequence[RawFile], options: ImportOptions, table: RowTable) -> None:
        super().__init__(files, options, table)
        options.check_titles(*sorted(TITLE_OPTIONS - {"titles"}))

    def interactions(self) -> Iterator[pl.DataFrame]:
        file = self.one_file("sequences", "sequential_data.txt")
        number = self.use(file)
        names = self._maps().get("id2item", {})
        with self.reading(file) as advance:
            for block in read_blocks(file, advance=advance):
                rows = []
                for line, data in enumerate(block.data.split(b"\n")[:-1], start=block.line):
                    try:
                        user, *items = data.decode("utf-8").split() or [""]
                    except UnicodeDecodeError:
                        raise DataError(f"{file}:{line}: not valid utf-8", hint="is it the right file?") from None
                    rows += [(user, names.get(item, item), number, line) for item in items]
                self.table.read += len(rows)
                schema = {"user": pl.String, "item": pl.String, "file": pl.UInt16, LINE: pl.UInt32}
                yield pl.DataFrame(rows, schema=schema, orient="row")

    def items(self, wanted: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        maps = self._maps()
        names, attributes = maps.get("id2item", {}), maps.get("id2attribute", {})
        titled = read_titles(self, self.options.item or "item", wanted)
        for file in (file for file in self.files if file.name.endswith("item2attributes.json")):
            for number, numbers in read_json(self, file).items():
                if (source_id := names.get(number, number)) in wanted:
                    own = {"attributes": [str(attributes.get(str(one), one)) for one in numbers]}
                    yield source_id, {**titled.get(source_id, {}), **own}
                    wanted = set(wanted) - {source_id}
        yield from ((source_id, titled.get(source_id, {})) for source_id in wanted)

    def _maps(self) -> dict[str, Any]:
        file = next((file for file in self.files if file.name == "datamaps.json"), None)
        if file is None:
            return {}
        maps = read_json(self, file)
        for name in ("id2item", "id2attribute"):
            if not isinstance(maps.get(name, {}), dict):
                raise DataError(f"{file}: {name} is no JSON object", hint="is it the right file?")
        return maps


def read_json(importer: Importer, file: RawFile) -> dict[str, Any]:
    """Returns the JSON object that a whole file is.

    Raises:
        DataError: it is none.
    """
    with importer.reading(file) as advance:
        data = b"".join(block.data for block in read_blocks(file, advance=advance))
    try:
        value = json.loads(data)
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{file}{line}: not JSON: {error}", hint="download it again") from error
    if not isinstance(value, dict):
        raise DataError(f"{file}: no JSON object", hint="is it the right file?")
    return value
