"""Locks on files: one process at a time, the others wait or are refused.

Decides: a lock is the kernel's (flock, taken by the package `filelock`), so that it ends with its process however that
ends; a lock's own file goes when it is released; one that cannot be taken is an error, never work without a lock.
Hides: descriptors, and the race between taking a lock and the removal of its file.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

from rl4rec_cli.errors import RunError


def take_lock(path: Path, *, wait: bool = False, mode: int = 0o666) -> int | None:
    """A descriptor that holds the lock on a file until it is closed or the process ends; None if another one holds it.

    Args:
        path: the file; it is made where it is missing, and its content is left alone.
        wait: for the process that holds it.
        mode: of the file where it is made, before the umask.

    Raises:
        RunError: the file cannot be opened, or its filesystem has no locks.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, mode)
        except OSError as error:
            raise RunError(f"{path}: cannot write it: {error.strerror or error}") from error
        try:
            is_held = lock_descriptor(descriptor, blocking=wait)
            if is_held and _is_at(path, descriptor):
                return descriptor
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise RunError(f"{path}: cannot lock it: {error.strerror or error}") from error
            raise
        os.close(descriptor)
        if not is_held:
            return None
        # Whoever held it removed or renamed the file meanwhile: this lock guards no name. Once more.


def release_lock(path: Path, descriptor: int) -> None:
    """Release a lock whose file holds nothing, and remove the file. One that stays does no harm."""
    with suppress(OSError):
        if _is_at(path, descriptor):
            path.unlink()  # while it is held: `take_lock` notices
    os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock on a file. False too where that cannot be found out."""
    try:
        descriptor = os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
    except OSError:  # no lock, or one of somebody else
        return False
    try:
        return not lock_descriptor(descriptor, blocking=False)
    except OSError:
        return False
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Nobody else is in here with the same path meanwhile; others wait. The lock's file is `.NAME.lock` beside.

    Whoever reads a file and writes it anew, or writes several files that belong together, holds this for all of it.

    Args:
        path: what is changed; it need not be there yet.

    Raises:
        RunError: the lock cannot be taken.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot write it: {error.strerror or error}") from error
    if (descriptor := take_lock(lock, wait=True)) is None:  # of waiting it never is
        raise RunError(f"{lock}: cannot lock it")
    try:
        yield
    finally:
        release_lock(lock, descriptor)


def write_owner(descriptor: int) -> None:
    """Write into a lock's file which process holds it, for `read_owner`."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)


def read_owner(path: Path) -> str:
    """Which process holds a lock, by its file; empty if that does not say."""
    try:
        with path.open("rb") as file:
            return file.read(100).decode(errors="replace").strip()
    except OSError:
        return ""


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
