"""Files of records, a line each: JSON objects, or Python literals that older publishers wrote.

Decides: a literal is read by `ast.literal_eval`, which runs nothing; which file has which role is told by the fields of
its first record, so that the order of files does not matter.
Hides: how a line is parsed.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice, product
from typing import Any

from rl4rec_cli.data.importers.files import Advance, RawFile, read_blocks
from rl4rec_cli.data.importers.importer import Importer
from rl4rec_cli.data.importers.rows import RowTable
from rl4rec_cli.data.importers.tables import as_text, json_records
from rl4rec_cli.errors import DataError


def first_record(file: RawFile) -> dict[str, Any] | None:
    """Returns the first record of a file; None where its first lines are none."""
    lines = (line for line in file.head(1 << 22).split(b"\n") if line.strip())
    for line, parse in product(islice(lines, 5), (json.loads, _literal)):
        try:
            record = parse(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            return record
    return None


def _literal(line: bytes) -> Any:
    try:
        return ast.literal_eval(line.decode("utf-8").strip())
    except (SyntaxError, TypeError, MemoryError) as error:
        raise ValueError(str(error)) from error


def read_items(
    file: RawFile, key: str, wanted: Collection[str], *, table: RowTable, advance: Advance, literals: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (id, record) of the wanted items of a file of records. Broken lines are dropped and counted.

    Args:
        key: field with the id.
        table: counts lines read and broken.
        literals: the lines are Python literals. Only those of wanted items are parsed: that takes 50 µs each.

    Raises:
        DataError: more than one line in a hundred is broken.
    """
    for block in read_blocks(file, advance=advance):
        if not literals:
            for _, record in json_records(file, block, table):
                table.read += 1
                source_id = as_text(record.get(key))
                if source_id is not None and source_id in wanted:
                    yield source_id, record
            continue
        for line, data in enumerate(block.data.split(b"\n")[:-1], start=block.line):
            if not data.strip():
                continue
            table.read += 1
            if not any(token in wanted for token in _ids(data, key)):
                continue
            try:
                record = _literal(data)
            except (ValueError, RecursionError) as error:
                table.read -= 1
                table.drop_broken(f"{file}:{line}", f"no Python literal: {error}")
                table.check_broken("is it the right file?")
                continue
            if isinstance(record, dict) and str(record.get(key)) in wanted:
                yield str(record[key]), record


def read_literals(file: RawFile, *, table: RowTable, advance: Advance) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Yields (line, record) of a file of Python literals in lists; broken lines are dropped and counted.

    Raises:
        DataError: more than one line in a hundred is broken.
    """
    for block in read_blocks(file, advance=advance):
        records = []
        for line, data in enumerate(block.data.split(b"\n")[:-1], start=block.line):
            if not data.strip():
                continue
            try:
                record = _literal(data)
            except (ValueError, RecursionError) as error:
                table.drop_broken(f"{file}:{line}", f"no Python literal: {error}")
                continue
            if isinstance(record, dict):
                records.append((line, record))
            else:
                table.drop_broken(f"{file}:{line}", "no record")
        table.read += len(records)
        table.check_broken("is it the right file?")
        yield records


def _ids(data: bytes, key: str) -> list[str]:
    """Returns what may be the id in a line, without parsing it."""
    name = f"{key}'".encode()
    ids = []
    start = data.find(name)
    while start >= 0:
        part = data[start + len(name) : start + len(name) + 200].lstrip(b": u")
        quote = part[:1]
        end = part.find(quote, 1) if quote in (b"'", b'"') else -1
        ids.append(part[1:end].decode("utf-8", "replace") if end > 0 else part.split(b",")[0].strip(b" }").decode())
        start = data.find(name, start + 1)
    return ids


def by_role(
    importer: Importer,
    roles: Mapping[str, Callable[[Mapping[str, Any]], bool]],
    *,
    needed: Collection[str],
    others: Collection[RawFile] = (),
) -> dict[str, list[RawFile]]:
    """Sorts an importer's files of records by what their first record is.

    Args:
        roles: what tells a role, tried in this order. Files of no role are an error.
        needed: roles without which there is no import.
        others: files that are no files of records.

    Raises:
        DataError: a file has no role, or a needed role has no file.
    """
    files: dict[str, list[RawFile]] = {role: [] for role in roles}
    for file in (file for file in importer.files if file not in others):
        record = first_record(file)
        role = next((role for role, is_it in roles.items() if record is not None and is_it(record)), None)
        if role is None:
            there = "no record" if record is None else f"fields {', '.join(list(record)[:12])}"
            raise DataError(
                f"{file}: neither {' nor '.join(roles)} of this source: its first line has {there}",
                hint="name the files of this source alone; `rl4rec data import --help` lists the sources",
            )
        files[role].append(file)
    for role in needed:
        if not files[role]:
            raise DataError(
                f"no {role} among {', '.join(str(file) for file in importer.files)}",
                hint=f"name the file of the {role}, too",
            )
    return files
