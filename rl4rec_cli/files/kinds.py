"""Recognises files that are not what their names say, by their first bytes.

Decides: which kinds are known, and the way out of each: pointers of Git LFS, compressed files, web pages, empty files.
Hides: their signatures.

A compressed file, or the pointer that a clone without Git LFS leaves, fails in its reader with an error about
characters or JSON that does not name the cause.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from rl4rec_cli.shell import quote

_HEAD = 512
_MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.gguf", "merges.txt", "vocab.txt")


class FileKind(NamedTuple):
    what: str
    """As in "is a Git LFS pointer"."""
    hint: str
    """The way out; `FILE` stands for the file's name."""

    def way_out(self, path: Path) -> str:
        return self.hint.replace("FILE", quote(path.name))


LFS = FileKind(
    "a Git LFS pointer, not the file itself",
    "get the file: `git lfs pull` in its repository, or download it (`hf download NAME` for a model of the Hub)",
)
ZIP = FileKind("a zip archive", "unpack it: unzip FILE")
UTF16 = FileKind("UTF-16, not UTF-8", "save the file as UTF-8, e.g. iconv -f UTF-16 -t UTF-8 FILE > NEW")


def _packed(program: str) -> FileKind:
    return FileKind(f"compressed by {program}", f"unpack it: {program} -dc FILE > NEW, then give NEW its name")


_PAGE = FileKind(
    "a web page (HTML), not the file itself",
    "download it again by its direct address (on the Hub with `resolve` in the place of `blob`)",
)
_SIGNATURES: tuple[tuple[re.Pattern[bytes], FileKind], ...] = (
    (re.compile(rb"version https://git-lfs\.github\.com/spec/"), LFS),
    (re.compile(rb"\x1f\x8b\x08"), _packed("gzip")),
    (re.compile(rb"\x28\xb5\x2f\xfd"), _packed("zstd")),
    (re.compile(rb"\xfd7zXZ\0"), _packed("xz")),
    (re.compile(rb"BZh[1-9]1AY&SY"), _packed("bzip2")),
    (re.compile(rb"PK\x03\x04"), ZIP),
    (re.compile(rb"PAR1[\0-\x1f]"), FileKind("an Apache Parquet table", "write it as text, e.g. by pandas")),
    (re.compile(rb"(\xff\xfe|\xfe\xff)(?!\0\0)"), UTF16),
    (re.compile(rb"\s*<(!doctype\s+html|html[\s>])", re.IGNORECASE), _PAGE),
)


def recognise(head: bytes) -> FileKind | None:
    """Returns the kind of a file that begins with these bytes, or None for text, JSON and unknown kinds."""
    return next((kind for signature, kind in _SIGNATURES if signature.match(head)), None)


def recognise_file(path: Path, *, expected: tuple[FileKind, ...] = ()) -> FileKind | None:
    """As `recognise`, for a file.

    Args:
        expected: kinds that it may be.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        kind = recognise(file.read(_HEAD))
    return None if kind in expected else kind


def odd_file(folder: Path) -> tuple[Path, str, str] | None:
    """Returns the first file of a model's folder that is not what its name says, its kind, and the way out.

    Raises:
        OSError: a file cannot be read.
    """
    for path in sorted(path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()):
        if not path.stat().st_size:
            return path, "empty", "get the file again"
        # What torch.save writes is a zip archive.
        if kind := recognise_file(path, expected=(ZIP,) if path.suffix == ".bin" else ()):
            return path, kind.what, kind.way_out(path)
    return None
