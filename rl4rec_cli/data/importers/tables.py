"""Blocks of raw files as Polars frames: delimited text, JSON lines, Parquet.

Decides: every value is read as text (importers know what it means), and every row knows its line; a block that Polars
refuses is read again line by line, so that one broken row is one dropped row; bytes that are no text are an error.
Hides: Polars' readers.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from rl4rec_cli.data.importers.files import Advance, Block, RawFile, read_blocks
from rl4rec_cli.data.importers.rows import RowTable
from rl4rec_cli.errors import DataError

LINE = "\x00line"
"""Column with the number of a row's line in its file, from 1; of Parquet the number of the row.

No column of a file has this name, so that a source may have one named `line`.
"""
_UNIT = "\x1f"  # what stands for a separator of several bytes, which Polars does not take

# The usual limit is 131,072 characters: a longer description is no broken row.
csv.field_size_limit(1 << 30)


@dataclass(frozen=True)
class Delimited:
    """A form of delimited text.

    `columns` names all columns of a file without header; None: the first line does. `quote` is false where a double
    quote is an ordinary character.
    """

    separator: str = ","
    columns: tuple[str, ...] | None = None
    quote: bool = True
    encoding: str = "utf-8"


def header(file: RawFile, form: Delimited) -> list[str]:
    """Returns the names of a file's columns.

    Raises:
        DataError: the file cannot be read, or two columns have one name.
    """
    if form.columns is not None:
        return list(form.columns)
    first = _decode(file, Block(1, file.head().partition(b"\n")[0]), form.encoding).rstrip("\r")
    if "\r" in first:
        raise DataError(f"{file}:1: its lines end in CR alone", hint="tr '\\r' '\\n' < FILE > NEW")
    names = next(csv.reader([first], delimiter=form.separator), []) if form.quote else first.split(form.separator)
    names = [name.strip() for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{file}:1: two columns are named {twice[0]!r}", hint="give each column a name of its own")
    return names


def read_delimited(
    file: RawFile, form: Delimited, wanted: Sequence[str], *, table: RowTable, advance: Advance
) -> Iterator[pl.DataFrame]:
    """Yields the wanted columns as text, in the order of the file, with the column `line`.

    An empty field is null. Blank lines are left out. Rows with more fields than columns are dropped and counted.

    Raises:
        DataError: the file cannot be read, lacks a wanted column, or is no text in its encoding.
    """
    names = header(file, form)
    check_columns(file, names, wanted)
    skip = 0 if form.columns is not None else 1
    for block in read_blocks(file, advance=advance, quoted=form.quote):
        text = _decode(file, block, form.encoding)
        frame = _read_block(file, Block(block.line, text.encode()), text, form, names, skip, table)
        skip = 0
        if len(names) > 1 and block.line == 1 and frame.height and _is_empty(frame.select(names[1:])):
            raise DataError(
                f"{file}: its lines have one field, not {len(names)}",
                hint=f"another separator than {form.separator!r}, or another file?",
            )
        table.read += frame.height
        yield frame.select(*dict.fromkeys(wanted), LINE)


def _read_block(
    file: RawFile, block: Block, text: str, form: Delimited, names: list[str], skip: int, table: RowTable
) -> pl.DataFrame:
    data, separator = block.data, form.separator
    if len(separator.encode()) > 1:
        data, separator = data.replace(separator.encode(), _UNIT.encode()), _UNIT
    schema = dict.fromkeys(names, pl.String)
    try:
        frame = pl.read_csv(
            data,
            has_header=False,
            skip_rows=skip,
            schema=schema,
            separator=separator,
            quote_char='"' if form.quote else None,
        )
        if frame.height != data.count(b"\n") - skip:  # line ends within quotes: only a slow reader knows the lines
            raise pl.exceptions.ComputeError("rows are not lines")
        frame = frame.with_columns(pl.int_range(block.line + skip, pl.len() + block.line + skip).alias(LINE))
    except pl.exceptions.NoDataError:
        frame = pl.DataFrame(schema=schema | {LINE: pl.Int64})
    except pl.exceptions.PolarsError:
        frame = _read_slowly(file, block.line, text, form, names, skip, table)
    is_blank = pl.all_horizontal(pl.col(name).is_null() for name in names)
    return frame.filter(~is_blank)


def _read_slowly(
    file: RawFile, line: int, text: str, form: Delimited, names: list[str], skip: int, table: RowTable
) -> pl.DataFrame:
    lines = text.split("\n")[:-1]
    rows: list[list[Any]] = []
    if form.quote:
        records = _quoted_records(lines, form.separator)
    else:
        records = ((place, one.rstrip("\r").split(form.separator)) for place, one in enumerate(lines))
    for place, fields in records:
        if place < skip or not fields or not any(fields):
            continue
        if isinstance(fields, str):
            table.drop_broken(f"{file}:{line + place}", fields)
        elif len(fields) > len(names):
            table.drop_broken(f"{file}:{line + place}", f"{len(fields)} fields for {len(names)} columns")
        else:
            rows.append([*(field or None for field in fields), *[None] * (len(names) - len(fields)), line + place])
    table.check_broken(f"another separator than {form.separator!r}, or another file?")
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String) | {LINE: pl.Int64}, orient="row")


def _quoted_records(lines: Sequence[str], separator: str) -> Iterator[tuple[int, list[str] | str]]:
    """Yields the first line of each record, and its fields or what is wrong with it.

    A quote that is never closed would swallow all rows after it: that line alone is broken, and reading goes on with
    the next one.
    """
    start = 0
    while start < len(lines):
        rest = (f"{lines[place]}\n" for place in range(start, len(lines)))
        reader = csv.reader(rest, delimiter=separator, strict=True)
        place = start
        try:
            for fields in reader:
                yield place, fields
                place = start + reader.line_num
        except csv.Error as error:
            is_open = str(error) == "unexpected end of data"
            yield place, "its quote is never closed" if is_open else f"no CSV: {error}"
            start = place + 1
        else:
            return


def _is_empty(frame: pl.DataFrame) -> bool:
    return all(column.null_count() == frame.height for column in frame)


def check_columns(file: RawFile, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuses a file without a wanted column, and names those that are there.

    Raises:
        DataError: a column is missing.
    """
    missing = [name for name in wanted if name not in names]
    if missing:
        there = ", ".join(names[:30]) or "none"
        raise DataError(f"{file}: no column {missing[0]!r}", hint=f"columns that are there: {there[:600]}")


def _decode(file: RawFile, block: Block, encoding: str) -> str:
    try:
        return block.data.decode(encoding)
    except UnicodeDecodeError as error:
        line = block.line + block.data.count(b"\n", 0, error.start)
        flaw = f"not valid {encoding}: byte 0x{block.data[error.start]:02x}"
        raise DataError(
            f"{file}:{line}: {flaw}", hint="--encoding latin-1 (or cp1252), if that is what it is"
        ) from error


def read_json_lines(
    file: RawFile, wanted: Sequence[str], *, table: RowTable, advance: Advance
) -> Iterator[pl.DataFrame]:
    """Yields fields of JSON lines as text, with the column `line`; what a line lacks is null. See `read_delimited`.

    Numbers are text: whole ones without a point, others as they stand there. NaN is null. Lines that are no JSON
    object, and those with a list or an object in a wanted field, are dropped and counted.
    """
    names = list(dict.fromkeys(wanted))
    schema = dict.fromkeys(names, pl.String)
    for block in read_blocks(file, advance=advance):
        try:
            frame = pl.read_ndjson(io.BytesIO(block.data), schema=schema)
            nested = pl.any_horizontal(pl.col(name).str.contains(r"^[\[{]") for name in names)
            if frame.height != block.data.count(b"\n") or frame.select(nested.any()).item():
                raise pl.exceptions.ComputeError("something is odd")
            frame = frame.with_columns(pl.int_range(block.line, pl.len() + block.line).alias(LINE))
        except pl.exceptions.PolarsError:
            frame = _read_json_slowly(file, block, names, table)
        table.read += frame.height
        yield frame


def _read_json_slowly(file: RawFile, block: Block, names: list[str], table: RowTable) -> pl.DataFrame:
    rows = []
    for line, record in json_records(file, block, table):
        values = [record.get(name) for name in names]
        bad = [name for name, value in zip(names, values, strict=True) if isinstance(value, list | dict)]
        if bad:
            kind = "a list" if isinstance(record[bad[0]], list) else "an object"
            table.drop_broken(f"{file}:{line}", f"{bad[0]} is {kind}")
        else:
            rows.append([*(as_text(value) for value in values), line])
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String) | {LINE: pl.Int64}, orient="row")


def json_records(file: RawFile, block: Block, table: RowTable) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line, object) of a block of JSON lines, and drops and counts what is none."""
    for line, data in enumerate(block.data.split(b"\n")[:-1], start=block.line):
        if not data.strip():
            continue
        try:
            record = json.loads(data)
        except (ValueError, RecursionError) as error:
            table.drop_broken(f"{file}:{line}", f"not JSON: {error}")
            continue
        if isinstance(record, dict):
            yield line, record
        else:
            table.drop_broken(f"{file}:{line}", "no JSON object")
    table.check_broken("is it the right file, with one JSON object on each line?")


def as_text(value: Any) -> str | None:
    """Returns the text that Polars' reader makes of a JSON value."""
    if isinstance(value, float):
        if value != value:
            return None
        value = int(value) if value.is_integer() else value
    return value if isinstance(value, str) or value is None else json.dumps(value)


def read_parquet(file: RawFile, wanted: Sequence[str], *, table: RowTable, advance: Advance) -> Iterator[pl.DataFrame]:
    """Yields columns of a Parquet table as text, with the number of the row as `line`. See `read_delimited`.

    Raises:
        DataError: it cannot be read, lacks a wanted column, or has one of lists or objects.
    """
    import pyarrow.parquet as pq

    try:
        source = pq.ParquetFile(file.path)
        check_columns(file, source.schema_arrow.names, wanted)
        line = 1
        for batch in source.iter_batches(columns=list(dict.fromkeys(wanted)), batch_size=1 << 18):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
            if nested:
                raise DataError(f"{file}: column {nested[0]!r} holds lists or objects", hint="name another column")
            texts = [_as_text(name, kind) for name, kind in frame.schema.items()]
            yield frame.select(*texts, pl.int_range(line, pl.len() + line).alias(LINE))
            table.read += frame.height
            advance(batch.nbytes)
            line += frame.height
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:  # pyarrow's own are of the first two
        raise DataError(f"{file}: not a readable Parquet table: {error}", hint="download it again") from error


def _as_text(name: str, kind: pl.DataType) -> pl.Expr:
    if isinstance(kind, pl.Datetime):
        return pl.col(name).dt.to_string("iso:strict").alias(name)
    if kind.is_float():  # whole numbers beside empty cells are floats in a table of pandas
        number = pl.col(name)
        is_whole = (number == number.floor()) & (number.abs() < 1 << 53)
        whole = number.cast(pl.Int64, strict=False).cast(pl.String)
        other = pl.when(number.is_nan()).then(None).otherwise(number.cast(pl.String))
        return pl.when(is_whole).then(whole).otherwise(other).alias(name)
    return pl.col(name).cast(pl.String)
