"""`FILE.part`: the work of an unfinished job, beside the file that it will write.

Decides: one process at a time writes to it; a job that is ended leaves it, and the same command goes on from it.
Hides: its lock, which is on the file itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl4rec_cli.errors import RunError
from rl4rec_cli.files.locks import take_lock
from rl4rec_cli.files.reading import check_regular


def part_of(path: Path) -> Path:
    """The part file of a file."""
    return path.with_name(path.name + ".part")


@contextmanager
def held(part: Path) -> Iterator[None]:
    """Lets no other process write to the part file meanwhile. Makes it, and removes it if it stays empty.

    Raises:
        RunError: another process writes to it, or it cannot be written.
    """
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        if part.exists():
            check_regular(part)
    except OSError as error:
        raise RunError(f"{part}: cannot write it: {error.strerror or error}") from error
    if (descriptor := take_lock(part)) is None:
        raise RunError(f"{part}: another process writes to it", hint="wait for it to end, or stop it")
    try:
        yield
    finally:
        if part.exists() and not part.stat().st_size:  # nothing was begun
            part.unlink()
        os.close(descriptor)
