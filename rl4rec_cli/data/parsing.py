"""Bytes, encodings and JSON of dataset files, and the wording of their faults.

Decides: UTF-8 only (a byte-order mark and CRLF are accepted), JSON without duplicate keys, NaN, broken characters or
bottomless nesting, and how long a text may be. Hides: where Python's own readers are laxer than that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rl4rec_cli.errors import DataError
from rl4rec_cli.files import reading
from rl4rec_cli.files.kinds import recognise

MAX_TEXT_BYTES = 1 << 20
"""Longest title, text or prompt in UTF-8 bytes. Exactly 1 MiB is accepted."""
MAX_DEPTH = 50
"""Deepest nesting of lists and objects."""

_BOM = b"\xef\xbb\xbf"
_UTF8_HINT = "save the file as UTF-8, e.g. iconv -f LATIN1 -t UTF-8 OLD > NEW"


class Problems:
    """Collects problems, with at most a few distinct hints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self._hints: dict[str, None] = {}

    def add(self, where: str, reason: str, *, field: str | None = None, hint: str | None = None) -> None:
        self.lines.append(f"{where}: {reason}" if field is None else f"{where}: {short(field, quote=False)}: {reason}")
        if hint:
            self._hints.setdefault(hint)

    def name(self, path: Path) -> str:
        """Returns a file's name in the dataset's folder, else its path."""
        return path.name if path.parent == self.folder else str(path)

    def raise_any(self) -> None:
        if self.lines:
            count = f"{len(self.lines)} problem{'s' if len(self.lines) > 1 else ''}"
            raise DataError(
                f"{self.folder}: {count}", hint="; ".join(list(self._hints)[:3]) or None, problems=self.lines
            )


def without_mark(raw: bytes) -> bytes:
    return raw.removeprefix(_BOM)


def read_bytes(path: Path, problems: Problems, hint: str) -> bytes | None:
    """Returns the file's bytes, or notes the problem and returns None."""
    try:
        raw = reading.read_bytes(path)
    except FileNotFoundError:
        problems.add(problems.name(path), "the file is missing", hint=hint)
        return None
    except OSError as error:
        problems.add(problems.name(path), f"cannot be read: {error.strerror or error}")
        return None
    if (odd := recognise(raw)) is not None:
        problems.add(problems.name(path), f"the file is {odd.what}", hint=odd.way_out(path))
        return None
    if not without_mark(raw).strip():
        problems.add(problems.name(path), "the file is empty", hint=hint)
        return None
    return raw


def json_document(raw: bytes) -> str | None:
    """Describes a file of one JSON array, or one object over several lines, instead of lines of JSON; else None.

    It parses the whole file only if the first line is no JSON: files have gigabytes.
    """
    text = without_mark(raw).lstrip()
    first = text.partition(b"\n")[0]
    if not first.startswith((b"[", b"{")):
        return None
    try:
        value: Any = json.loads(first)
    except (ValueError, RecursionError):
        pass
    else:
        return "one JSON array" if isinstance(value, list) and any(isinstance(one, dict) for one in value) else None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return "one JSON array" if isinstance(value, list) else "one JSON object over several lines"


def read_lines(name: str, raw: bytes, problems: Problems) -> Iterator[tuple[int, str | None]]:
    """Yields (line number, text) of every line that is not blank; the text is None where it is no UTF-8."""
    offset = 0
    # Not str.splitlines: that also splits at U+2028 and others, which are ordinary characters inside a title.
    for number, line in enumerate(raw.split(b"\n"), start=1):
        start = len(_BOM) if number == 1 and line.startswith(_BOM) else 0
        try:
            text: str | None = line[start:].decode("utf-8").strip()
        except UnicodeDecodeError as error:
            at = start + error.start
            reason = f"not valid UTF-8: byte 0x{line[at]:02x} at offset {at} of the line, {offset + at} of the file"
            problems.add(f"{name}:{number}", reason, hint=_UTF8_HINT)
            text = None
        offset += len(line) + 1
        if text is None or text:
            yield number, text


class StrictJson:
    """Reads JSON strictly: it notes duplicate keys and numbers that are not finite, which Python's reader accepts."""

    def __init__(self) -> None:
        self._duplicates: dict[str, None] = {}
        self._nonfinite = False
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._pairs, parse_constant=self._number, parse_float=self._number
        )

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys: set[str] = set()
            for key, _ in pairs:
                if key in keys:
                    self._duplicates.setdefault(key)
                keys.add(key)
        return value

    def _number(self, text: str) -> float:
        value = float(text)
        self._nonfinite |= not math.isfinite(value)  # "1e999" reads as infinity too
        return value

    def parse(self, text: str) -> tuple[Any, list[tuple[str | None, str]]]:
        """Returns the value and its flaws as (field, reason). Raises ValueError if the text is no JSON at all."""
        self._duplicates.clear()
        self._nonfinite = False
        try:
            value = self._decoder.decode(text)
        except RecursionError:
            raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
        if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        flaws: list[tuple[str | None, str]] = [(key, "the key stands twice in one object") for key in self._duplicates]
        if self._nonfinite:
            reason = "a number that is not finite (NaN, Infinity or too large); leave it out or write null"
            flaws += [(field, reason) for field in _fields_failing(value, allow_nan=False)]
        if "\\u" in text:
            reason = "half of a surrogate pair (\\ud800 to \\udfff), which is no character"
            flaws += [(field, reason) for field in _fields_failing(value)]
        return value, flaws


def _fields_failing(value: Any, *, allow_nan: bool = True) -> Iterator[str | None]:
    """Yields the top-level fields that strict JSON in UTF-8 cannot hold."""
    for field, part in value.items() if isinstance(value, dict) else [(None, value)]:
        try:
            json.dumps([field, part], ensure_ascii=False, allow_nan=allow_nan).encode("utf-8")
        except ValueError:  # UnicodeEncodeError among them
            yield field


def _depth(value: Any) -> int:
    """Returns how deep containers are nested. This is a loop, because the limit is there to prevent recursion."""
    depth, layer = 0, [value]
    while layer := [part for part in layer if isinstance(part, (dict, list))]:
        depth += 1
        layer = [inner for part in layer for inner in (part.values() if isinstance(part, dict) else part)]
    return depth


def json_flaw(error: ValueError) -> str:
    """Describes what is wrong with a text that `StrictJson.parse` refused."""
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg} at column {error.colno}"
    if "nested" in str(error):
        return str(error)
    return "not valid JSON: a number has too many digits"  # the interpreter's limit on converting integers


def kind(value: Any) -> str:
    """Describes a JSON value for a message."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, str):
        return f"the text {short(value)}"
    if isinstance(value, (int, float)):
        return f"the number {short(str(value), quote=False)}"
    return "a list" if isinstance(value, list) else "an object"


def short(text: str, *, quote: bool = True) -> str:
    """Cuts `text` for a message, and escapes control and broken characters (they would reach the terminal)."""
    text = text if len(text) <= 40 else text[:40] + "…"
    quotation = json.dumps(text, ensure_ascii=not text.isprintable())
    return quotation if quote else quotation[1:-1] if not text.isprintable() else text


def some(values: Sequence[object], total: int | None = None, most: int = 5) -> str:
    """Lists the first few of `values`, and how many there are in all."""
    total = len(values) if total is None else total
    text = ", ".join(map(str, values[:most]))
    return text if total <= most else f"{text}, … ({total:,} in all)"


def text_flaw(value: Any) -> str | None:
    """Says why `value` is no usable text, or returns None."""
    if not isinstance(value, str):
        return f"must be text, is {kind(value)}"
    if not value.strip():
        return "is empty"
    # Four bytes is the most a character takes, so most texts need no encoding to be known short enough.
    if len(value) * 4 > MAX_TEXT_BYTES and (size := len(value.encode("utf-8", "replace"))) > MAX_TEXT_BYTES:
        return f"is {size:,} bytes long; at most {MAX_TEXT_BYTES:,} are allowed"
    return None
