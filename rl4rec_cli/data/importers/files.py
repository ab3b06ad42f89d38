"""Raw files as their publishers pack them: plain, gzip, zstd, in a zip archive or in a folder.

Decides: a file is recognised by its first bytes, never by its name; it is read in blocks of whole lines, each of which
knows the number of its first line; what is cut short, damaged or no text is an error that names file and line.
Hides: decompression, and where lines end.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from rl4rec_cli.errors import DataError
from rl4rec_cli.files.kinds import recognise
from rl4rec_cli.files.paths import expand
from rl4rec_cli.files.reading import check_regular

BLOCK = 1 << 24
"""Bytes of a block after decompression, about: large enough for all cores, small beside the rows that stay."""
_PACKED = {b"\x1f\x8b\x08": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_SUFFIX = re.compile(r"\.(?:gz|gzip|zst|zstd)$")
_BOM = b"\xef\xbb\xbf"
_PARQUET = b"PAR1"

Advance = Callable[[int], None]
"""Told how many bytes of the files as they are have been read since the last call."""


class Block(NamedTuple):
    """Whole lines of a file. `line` is the number of the first, from 1; `data` ends with a line end."""

    line: int
    data: bytes


@dataclass(frozen=True)
class RawFile:
    """A file to import, or a member of a zip archive."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}:{self.member}"

    @property
    def name(self) -> str:
        """Its name without folders and without what a compression adds: `ratings.csv`."""
        return _SUFFIX.sub("", Path(self.member or self.path.name).name)

    @property
    def size(self) -> int:
        """Its bytes as it lies there, for the progress; of a member the packed ones."""
        if self.member is None:
            return self.path.stat().st_size
        with zipfile.ZipFile(self.path) as archive:
            return archive.getinfo(self.member).compress_size

    def head(self, count: int = 1 << 16) -> bytes:
        """Returns its first bytes, decompressed.

        Raises:
            DataError: it cannot be read, or is neither text nor Parquet.
        """
        with _opened(self) as (stream, _), _readable(self, lambda: 1):
            data = bytes(stream.read(count))
        if not data.startswith(_PARQUET) and (odd := recognise(data[:512])) is not None:
            raise DataError(f"{self}: the file is {odd.what}", hint=odd.way_out(self.path))
        return data.removeprefix(_BOM)


def find_files(paths: Sequence[str | Path]) -> list[RawFile]:
    """Returns the files that paths name: themselves, all below a folder, all in a zip archive; in order, by name.

    Raises:
        DataError: a path does not exist, is no file or folder, or is a damaged archive.
    """
    files: list[RawFile] = []
    real: set[Path] = set()
    for path in (expand(one) for one in paths):
        if path.is_dir():
            inside = [one for one in sorted(path.rglob("*")) if one.is_file() and not _is_hidden(one, path)]
            if not inside:
                raise DataError(f"{path}: the folder is empty", hint="name the folder with the files as downloaded")
            files += [RawFile(one) for one in inside]
            real |= _unseen(inside, real)
            continue
        try:
            check_regular(path)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file or folder", hint="download it first: nothing is fetched") from None
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from error
        files += _members(path) if zipfile.is_zipfile(path) else [RawFile(path)]
        real |= _unseen([path], real)
    return files


def _unseen(paths: Sequence[Path], real: Collection[Path]) -> set[Path]:
    """Returns the real paths of files, if none is there already: its rows would count twice.

    Raises:
        DataError: one is named twice.
    """
    own: set[Path] = set()
    for path in paths:
        if (whole := path.resolve()) in real or whole in own:
            raise DataError(f"{path}: this file is named twice", hint="name it once")
        own.add(whole)
    return own


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.relative_to(root).parts)


def _members(path: Path) -> list[RawFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [one.filename for one in archive.infolist() if not one.is_dir()]
            names = [name for name in names if not _is_hidden(Path(name), Path())]
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: a damaged zip archive: {error}", hint="download it again") from error
    if not names:
        raise DataError(f"{path}: the archive is empty", hint="download it again")
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise DataError(f"{path}: the archive holds two files named {twice}", hint="unpack it, and name one of them")
    return [RawFile(path, name) for name in sorted(names)]


def read_blocks(file: RawFile, *, advance: Advance, quoted: bool = False) -> Iterator[Block]:
    """Yields all lines of a file in blocks, decompressed, without a byte-order mark.

    Args:
        advance: is told what has been read.
        quoted: line ends between double quotes do not end a block, as in CSV.

    Raises:
        DataError: the file cannot be read, is cut short, damaged or empty, or is no text.
    """
    line, rest = 1, b""
    with _opened(file) as (stream, position), _readable(file, lambda: line + rest.count(b"\n")):
        seen = 0
        while chunk := bytes(stream.read(BLOCK)):
            if line == 1 and not rest:
                chunk = chunk.removeprefix(_BOM)
                if (odd := recognise(chunk[:512])) is not None:
                    raise DataError(f"{file}: the file is {odd.what}", hint=odd.way_out(file.path))
            advance(position() - seen)
            seen = position()
            rest += chunk
            if (end := _last_line_end(rest, quoted=quoted)) > 0:
                block, rest = Block(line, rest[:end]), rest[end:]
                yield block
                line += block.data.count(b"\n")
        advance(file.size - seen)
        if rest.strip():
            yield Block(line, rest if rest.endswith(b"\n") else rest + b"\n")
        elif line == 1:
            raise DataError(f"{file}: the file is empty", hint="download it again")


def _last_line_end(data: bytes, *, quoted: bool) -> int:
    """Returns where the last whole line ends; 0 if none does."""
    end = data.rfind(b"\n")
    if quoted and data.count(b'"', 0, end + 1) % 2:  # within quotes: back to before they opened
        end = data.rfind(b"\n", 0, max(data.rfind(b'"', 0, end + 1), 0))
    return end + 1


@contextmanager
def _opened(file: RawFile) -> Iterator[tuple[Any, Callable[[], int]]]:
    """Yields a stream of decompressed bytes, and what says how many of the file as it is have been read."""
    import pyarrow as pa

    try:
        with file.path.open("rb") as raw:
            if file.member is None:
                yield _decompressed(raw, pa), raw.tell
                return
            with zipfile.ZipFile(raw) as archive, archive.open(file.member) as member:
                start = raw.tell()
                yield _decompressed(member, pa), lambda: raw.tell() - start
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # damaged; a method unknown; encrypted
        raise DataError(f"{file}: cannot be unpacked: {error}", hint="unpack it, or download it again") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def _decompressed(raw: IO[bytes], pa: Any) -> Any:
    head = raw.read(4)
    raw.seek(0)
    packing = next((name for signature, name in _PACKED.items() if head.startswith(signature)), None)
    return raw if packing is None else pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), packing)


@contextmanager
def _readable(file: RawFile, line: Callable[[], int]) -> Iterator[None]:
    """Words the errors of decompression."""
    try:
        yield
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        is_short = isinstance(error, EOFError) or "runcated" in str(error)
        what = "cut short" if is_short else f"damaged ({error})"
        raise DataError(
            f"{file}:{line():,}: the compressed file is {what}", hint="download it again, and compare its size"
        ) from error
