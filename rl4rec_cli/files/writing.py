"""Files written whole.

Decides: a file is written beside its name, synced and renamed, so that a reader sees the old one or the new one; it has
the mode that a new file has here; JSON is strict, numbers that are not finite become null.
Hides: temporary names, modes, and what a disk refuses.
"""

from __future__ import annotations

import json
import math
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rl4rec_cli import console
from rl4rec_cli.errors import ConfigError, RunError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside a file for the body or a library to write, and puts it in the file's place at the end.

    The new file is synced first and has the mode that a new file has in its folder, whatever the library gave it:
    safetensors writes files that only their owner may read.

    Raises:
        OSError: it cannot be written. The file that was there before is untouched, as it is when the body raises.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # of a killed process that had the same number
        mode = new_file_mode(temporary)
        yield temporary
        if temporary.stat().st_mode != mode:
            temporary.chmod(stat.S_IMODE(mode))
        sync(temporary)
        temporary.replace(path)
    finally:
        with suppress(OSError):  # where it cannot even be removed, the reason is being raised
            temporary.unlink(missing_ok=True)


def new_file_mode(path: Path) -> int:
    """Makes an empty file and returns its mode, which the process's umask and the folder decide.

    Raises:
        OSError: the file exists, or cannot be made.
    """
    with path.open("xb") as file:
        return os.fstat(file.fileno()).st_mode


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk.

    Raises:
        OSError: it cannot be.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a whole file.

    Raises:
        RunError: it cannot be written; what was there before is untouched.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise RunError(f"{path}: cannot write it: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a whole file of UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON; see `write_text`."""
    write_text(path, json.dumps(strict(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes strict JSON lines; see `write_text`."""
    write_text(path, "".join(json.dumps(strict(r), ensure_ascii=False, allow_nan=False) + "\n" for r in records))


def strict(value: Any) -> Any:
    """Converts a value to plain JSON types; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def check_writable(path: Path) -> None:
    """Checks before the work that a file can be written.

    Raises:
        ConfigError: it cannot be.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder", hint="name a file in it")
    if path.exists() and not path.is_file():  # a file is written beside and renamed: it would take a device's place
        raise ConfigError(f"{path}: is a device or a FIFO, not a file", hint="name a file")
    if (reason := why_unwritable(path)) is not None:
        raise ConfigError(f"{path}: cannot be written: {reason}", hint="name a file in a folder that can be written in")


def why_unwritable(path: Path) -> str | None:
    """Returns why a file or folder cannot be made, or None. Tries the nearest folder above it that exists."""
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    try:
        with tempfile.TemporaryFile(dir=above):
            return None
    except OSError as error:
        return error.strerror or str(error)


def warn_unwritable(folder: Path) -> None:
    """Warns before the work if its results can be shown but not saved in a folder."""
    if (reason := why_unwritable(folder / "result")) is not None:
        console.log(f"warning: {folder}: nothing can be written there ({reason}): results are shown, not kept")


@contextmanager
def kept_after(keep: Callable[[], None], place: Path) -> Iterator[None]:
    """Saves a measurement after the body has shown it. If one of the two fails, the other is still done.

    Args:
        keep: saves it.
        place: where it is saved, for the message.

    Raises:
        RunError: it cannot be written.
    """
    try:
        yield
    finally:
        try:
            keep()
        except RunError as error:
            raise RunError(
                f"what was measured is shown, but not kept: {error.message}",
                hint=f"keep what was shown; make room or a place that can be written at {place}, and measure again",
            ) from error
