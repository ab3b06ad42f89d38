"""`FILE.part`: what a job has done so far, beside the file that it will write.

Decides: one process at a time writes to it; a job that is ended leaves it, and the same command goes on from it.
Hides: the lock.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl4rec_cli.errors import RunError
from rl4rec_cli.files.reading import check_regular


def part_of(path: Path) -> Path:
    """The part file of a file."""
    return path.with_name(path.name + ".part")


@contextmanager
def held(part: Path) -> Iterator[None]:
    """Nobody else writes to the file meanwhile. It is there while this lasts, and goes where it stayed empty.

    Raises:
        RunError: another process does, or it cannot be written.
    """
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        if part.exists():
            check_regular(part)
        file = part.open("a")
    except OSError as error:
        raise RunError(f"{part}: cannot write it: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"{part}: another process writes to it, or it cannot be locked ({error.strerror or error})",
                hint="wait for it to end, or stop it",
            ) from error
        try:
            yield
        finally:
            if part.exists() and not part.stat().st_size:  # nothing was begun
                part.unlink()
