"""Files written whole.

Decides: a file is written beside its name, synced and renamed, so that a reader sees the old one or the new one; it has
the mode that a new file has here; JSON is strict, numbers that are not finite become null.
Hides: temporary names, modes, and what a disk refuses.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rl4rec_cli import console
from rl4rec_cli.errors import ConfigError, RunError


def write_text(path: Path, text: str) -> None:
    """Write a whole file beside and rename it.

    Raises:
        RunError: it cannot be written; what was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot write it: {error.strerror or error}") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON; see `write_text`."""
    write_text(path, json.dumps(strict(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write strict JSON lines; see `write_text`."""
    write_text(path, "".join(json.dumps(strict(r), ensure_ascii=False, allow_nan=False) + "\n" for r in records))


def strict(value: Any) -> Any:
    """The same value in plain JSON types; numbers that are not finite become null."""
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
    """Find out before the work that a file cannot be written.

    Raises:
        ConfigError: it cannot.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder", hint="name a file in it")
    if path.exists() and not path.is_file():  # a file is written beside and renamed: it would take a device's place
        raise ConfigError(f"{path}: is a device or a FIFO, not a file", hint="name a file")
    if (reason := why_unwritable(path)) is not None:
        raise ConfigError(f"{path}: cannot be written: {reason}", hint="name a file in a folder that can be written in")


def why_unwritable(path: Path) -> str | None:
    """Why a file or folder cannot be made: the nearest folder that is there is tried; None where it can."""
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    try:
        with tempfile.TemporaryFile(dir=above):
            return None
    except OSError as error:
        return error.strerror or str(error)


def warn_unwritable(folder: Path) -> None:
    """Say before the work that its results can be shown, but not kept there."""
    if (reason := why_unwritable(folder / "result")) is not None:
        console.log(f"warning: {folder}: nothing can be written there ({reason}): results are shown, not kept")


@contextmanager
def kept_after(keep: Callable[[], None], place: Path) -> Iterator[None]:
    """Show in the body what was measured; then it is written down. That one of the two fails never costs the other.

    Args:
        keep: writes it.
        place: where, for the message.

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
