"""Logs of JSON lines.

Decides: a line is written whole and at once, by however many processes; a last line that a kill or a full disk cut is
no record.
Hides: how lines are appended and parsed.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from rl4rec_cli.errors import RunError
from rl4rec_cli.files.reading import parse_json, read_bytes
from rl4rec_cli.files.writing import strict


class JsonLines:
    """An append-only log of strict JSON lines, each written whole and at once, by however many processes.

    Args:
        also: is called with every record after it is written.
    """

    def __init__(self, path: Path, *, also: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        self.path = path
        self._also = also
        self._file: IO[bytes] = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a record as one line.

        Raises:
            RunError: it cannot be written.
        """
        try:
            line = json.dumps(strict(record), ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
            # One call, which appends: lines of another process never come between.
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RunError(f"{self.path}: cannot write it: {error.strerror or error}") from error
        if self._also is not None:
            self._also(record)

    def close(self) -> None:
        self._file.close()


def read_jsonl(path: Path, flaw_of: Callable[[dict[str, Any]], str] = lambda record: "") -> list[dict[str, Any]]:
    """Returns the records of a log, without a last line that a kill or a full disk cut.

    Args:
        flaw_of: why an object is no record of this log; empty if it is one.

    Raises:
        RunError: it cannot be read, or a line in between is no record.
    """
    records = []
    try:
        lines = read_bytes(path).split(b"\n")
    except OSError as error:
        raise RunError(f"{path}: cannot read it: {error.strerror or error}") from error
    hint = "put back what was there, or remove the line"
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise RunError(f"{path}:{number}: not JSON: {error}", hint=hint) from error
        if flaw := flaw_of(record) if isinstance(record, dict) else "is no JSON object":
            raise RunError(f"{path}:{number}: {flaw}", hint=hint)
        records.append(record)
    return records


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns the records of a log that may still grow, and how many lines are none (half a line of a killed run).

    Raises:
        RunError: it is there and cannot be read.
    """
    records: list[dict[str, Any]] = []
    damaged = 0
    try:
        lines = read_bytes(path).decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise RunError(f"{path}: cannot read it: {error.strerror or error}") from error
    for line in filter(str.strip, lines):
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            damaged += 1
    return records, damaged
