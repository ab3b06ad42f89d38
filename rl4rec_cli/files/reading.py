"""Files that come from users, or that users may have changed.

Decides: that only a regular file is read (a FIFO would be waited for, a device may never end), and how a record that
is none is worded: file, line, and what is wrong with it.
Hides: encodings and JSON's own errors.
"""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl4rec_cli.errors import RunError

_KINDS = (
    (stat.S_ISFIFO, "is a named pipe, not a file"),
    (stat.S_ISCHR, "is a device, not a file"),
    (stat.S_ISBLK, "is a device, not a file"),
    (stat.S_ISSOCK, "is a socket, not a file"),
)
_NAMES = {dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number", bool: "true/false"}
_REMEDY = "files of a run are written by rl4rec; put back what was there, or a copy of the run"


def check_regular(path: Path) -> None:
    """Refuses a FIFO, a device or a socket, which reading would wait for.

    Raises:
        OSError: the path does not exist, or is neither a file nor a folder.
    """
    mode = path.stat().st_mode
    for is_kind, what in _KINDS:
        if is_kind(mode):
            raise OSError(errno.EINVAL, what, str(path))


def read_bytes(path: Path) -> bytes:
    """Reads the bytes of a regular file.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    check_regular(path)
    return path.read_bytes()


def parse_json(text: bytes | str) -> Any:
    """Parses a JSON value.

    Raises:
        ValueError: the text is not JSON, or is nested too deeply; the message says where.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_object(path: Path, wants: Mapping[str, type | tuple[type, ...]] | None = None) -> dict[str, Any]:
    """Reads the JSON object in a file of a run.

    Args:
        wants: required keys with the types of their values.

    Raises:
        RunError: it cannot be read, is no JSON object, or lacks one of the keys; with the line where it has one.
    """
    try:
        value = parse_json(read_bytes(path))
    except OSError as error:
        raise RunError(f"{path}: cannot read it: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise RunError(f"{path}:{error.lineno}: not JSON: {error.msg}", hint=_REMEDY) from error
    except ValueError as error:
        raise RunError(f"{path}: not JSON: {error}", hint=_REMEDY) from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: must be a JSON object, is {_kind(value)}", hint=_REMEDY)
    if problem := object_flaw(value, wants or {}):
        raise RunError(f"{path}: {problem}", hint=_REMEDY)
    return value


def object_flaw(value: Mapping[str, Any], wants: Mapping[str, type | tuple[type, ...]]) -> str:
    """Returns why an object is not such a record; empty if it is one."""
    for key, types in wants.items():
        own = value.get(key)
        is_wrong = isinstance(own, bool) and types is not bool  # to Python a truth is a number, too
        if key not in value:
            return f"`{key}` is missing"
        if is_wrong or not isinstance(own, types):
            one = types if isinstance(types, type) else types[-1]
            return f"`{key}` must be {_NAMES.get(one, one.__name__)}, is {_kind(own)}"
    return ""


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return _NAMES.get(type(value), type(value).__name__)
