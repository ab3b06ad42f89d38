"""Files that several processes change: one at a time, the others wait.

Decides: that whoever reads a file and writes it anew, or writes several files that belong together, holds this lock
for all of it.
Hides: the lock's file, `.NAME.lock` beside, which stays: removing it would let two in.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl4rec_cli.errors import RunError


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Nobody else is in here with the same path meanwhile; others wait.

    Args:
        path: what is changed; it need not be there yet.

    Raises:
        RunError: the lock cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(f"{path}: cannot write it: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise RunError(f"{path}: cannot lock it: {error.strerror or error}") from error
        yield
    finally:
        os.close(descriptor)  # and with it the lock
