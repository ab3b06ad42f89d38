"""Folders written whole, with a manifest.

Decides: a folder is written beside its name, synced and renamed, and holds a manifest of its files: names, sizes and
SHA-256. What was killed half-way has no manifest, what a disk or a copy damaged differs from it.
Hides: temporary names, swapping of folders, and how each library words a full disk.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rl4rec_cli.files.digests import sha256, sha256_of_file
from rl4rec_cli.files.reading import parse_json, read_bytes
from rl4rec_cli.files.writing import new_file_mode, sync

MANIFEST = "manifest.json"


def write_folder(folder: Path, fill: Callable[[Path], None], *, size: int) -> None:
    """Writes a whole folder with its manifest. It replaces an existing one of this name.

    Args:
        fill: writes the files into an empty folder.
        size: how many bytes the folder needs, about. If the disk has fewer, nothing is written.

    Raises:
        OSError: it cannot be written; what was there before is untouched, and nothing is left beside it.
    """
    with new_folder(folder, size=size) as temporary:
        try:
            fill(temporary)
        except Exception as error:  # safetensors and tokenizers have no class of their own for what a disk refuses
            if number := re.search(r"\(os error (\d+)\)", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
            raise
        manifest = {
            str(path.relative_to(temporary)): {"size": path.stat().st_size, "sha256": sha256_of_file(path)}
            for path in _files_in(temporary)
        }
        (temporary / MANIFEST).write_text(json.dumps({"files": manifest}, indent=1) + "\n")


@contextmanager
def new_folder(folder: Path, *, size: int = 0) -> Iterator[Path]:
    """An empty folder beside `folder` for the body to fill; at the end it takes the place of `folder`.

    Its files have the mode that a new file has there, and are synced before.

    Args:
        size: how many bytes the folder needs, about. If the disk has fewer, nothing is written.

    Raises:
        OSError: it cannot be written. What was there before is untouched, as it is when the body raises.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had the same number
        free = shutil.disk_usage(folder.parent).free
        if free < size:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({free:,} bytes are free)")
        temporary.mkdir()
        probe = temporary / ".mode"
        mode = new_file_mode(probe)
        probe.unlink()
        yield temporary
        for path in _files_in(temporary):
            if path.stat().st_mode != mode:
                path.chmod(stat.S_IMODE(mode))
            sync(path)
        sync(temporary)
        _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def torch_save(value: Any, path: Path) -> None:
    """Saves by `torch.save`, but raises the error of the disk: torch itself says "unexpected pos 64 vs 0".

    Raises:
        OSError: it cannot be written.
    """
    import torch

    with path.open("wb") as file:
        stream = _RememberingFile(file)
        try:
            torch.save(value, stream)  # type: ignore[arg-type]
        except RuntimeError as error:
            if stream.error is not None:
                raise stream.error from error
            raise


class _RememberingFile:
    """A file that remembers the error of a write."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def problems(
    folder: Path, *, but: frozenset[str] = frozenset(), only: Callable[[str], bool] = lambda name: True
) -> list[str]:
    """Returns what is missing in a folder or differs from its manifest; empty if the folder is whole.

    Args:
        but: files that may be missing.
        only: which files to check, by their names in the folder.
    """
    try:
        files = parse_json(read_bytes(folder / MANIFEST))["files"]
        entries = [(str(n), int(file["size"]), str(file["sha256"])) for n, file in files.items() if only(str(n))]
    except FileNotFoundError:
        return [f"no {MANIFEST}" if folder.is_dir() else "no such folder"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST} is damaged"]
    flaws = []
    for name, size, digest in entries:
        path = folder / name
        try:
            if not path.is_file():
                flaws += [] if name in but else [f"{name} is missing"]
            elif path.stat().st_size != size:
                flaws.append(f"{name} has {path.stat().st_size:,} bytes instead of {size:,}")
            elif sha256_of_file(path) != digest:
                flaws.append(f"{name} is not what was written")
        except OSError as error:
            flaws.append(f"{name}: {error.strerror or error}")
    return flaws


def written_digest(folder: Path, *, only: Callable[[str], bool]) -> str | None:
    """Returns one digest (hex) of a folder's files as its manifest lists them, or None if it lists none.

    Args:
        only: which files count, by their names in the folder.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        lines = sorted(f"{name} {file['sha256']}" for name, file in files.items() if only(str(name)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # whoever loads the folder says so
        return None
    return sha256("\n".join(lines).encode()) if lines else None


def _put_in_place(new: Path, folder: Path) -> None:
    """Gives a finished folder its name, then removes the folder that had the name before.

    Raises:
        OSError: it cannot; the folder that was there is untouched.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise NotADirectoryError(errno.ENOTDIR, "there is something here that is not a folder", str(folder))
    old = new.with_suffix(".old")
    if not folder.exists():
        new.replace(folder)
    elif _swap(new, folder):
        new.replace(old)
    else:
        # Two steps where the filesystem cannot swap: a crash between them leaves both, under their hidden names.
        folder.replace(old)
        try:
            new.replace(folder)
        except OSError:
            old.replace(folder)
            raise
    with suppress(OSError):  # in place is in place
        sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _swap(one: Path, other: Path) -> bool:
    """Exchanges two names in one step by Linux's renameat2; returns False if that cannot be done."""
    here, exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
