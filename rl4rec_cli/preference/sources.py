"""Where preference data come from: files, folders saved by `datasets`, the Hub.

Decides: what a word means (a file or folder that is there, else a short name, else a name of the Hub), and that records
are read one after the other, each with its place for messages.
Hides: formats, `datasets`, and the Hub's errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli.config.schema import closest
from rl4rec_cli.data.parsing import StrictJson, json_flaw
from rl4rec_cli.errors import ConfigError, DataError, first_line
from rl4rec_cli.files.kinds import recognise
from rl4rec_cli.files.paths import expand
from rl4rec_cli.files.reading import check_regular
from rl4rec_cli.preference.records import RecordError
from rl4rec_cli.shell import command_line

if TYPE_CHECKING:
    from rl4rec_cli.config.pairs import PairsSection

_HEAD = 512
_BATCH = 1024
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FORMS = "a .jsonl, .json or .parquet file, or a folder saved by datasets"


@dataclass(frozen=True)
class Published:
    """A data set of the Hub that has a short name."""

    hub: str
    split: str
    note: str = ""
    """What the user should know of it."""


PUBLISHED = {
    "ultrafeedback": Published("HuggingFaceH4/ultrafeedback_binarized", "train_prefs"),
    "ultrafeedback_large": Published("argilla/ultrafeedback-binarized-preferences-cleaned", "train"),
    "hh_rlhf": Published("Anthropic/hh-rlhf", "train"),
    "openai_summarize": Published(
        "trl-lib/tldr-preference",
        "train",
        "openai/summarize_from_feedback is a loading script, which datasets no longer runs: the same comparisons are "
        "read from trl-lib/tldr-preference",
    ),
}
"""Short names."""


@dataclass(frozen=True)
class Source:
    """Records, and where each is."""

    name: str
    """Of the data set, fit for file names."""
    records: Iterator[tuple[str, Any]]
    """Pairs of a place, such as `my.jsonl:3`, and a record; instead of one that cannot be read, a `RecordError`."""
    is_own: bool
    """The user's own file or folder."""
    note: str = ""


def open_source(named: str, section: PairsSection) -> Source:
    """Returns the records that a word names.

    Raises:
        DataError: there is no such file and no such data set, or it has another form. The iterator raises it, too.
        ConfigError: a setting is for data sets of the Hub, and this is a file.
    """
    path = expand(named)
    if path.is_file() or path.is_dir():
        records = _saved(path, section.split) if path.is_dir() else _file(path, section)
        return Source(_name(path.name if path.is_dir() else path.stem), records, is_own=True)
    published = PUBLISHED.get(named)
    hub = published.hub if published is not None else named
    if not is_published(named):
        match = closest(named, PUBLISHED)
        raise DataError(
            f"{named}: no such file or folder" + (f"; did you mean {match}?" if match else ""),
            hint=f"give {_FORMS}, {', '.join(PUBLISHED)}, or a name of the Hub (OWNER/NAME)",
        )
    split = section.split or (published.split if published is not None else "train")
    records = _hub(hub, section.subset, split, streaming=section.streaming)
    note = published.note if published is not None else ""
    return Source(_name(named.rpartition("/")[2]), records, is_own=False, note=note)


def is_published(named: str) -> bool:
    """Returns whether a word is a short name or a name of the Hub, and no file or folder here."""
    if expand(named).exists():
        return False
    return named in PUBLISHED or (bool(_HUB_NAME.fullmatch(named)) and Path(named).suffix not in _READERS)


def _name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).lstrip("-.+") or "pairs"


def _file(path: Path, section: PairsSection) -> Iterator[tuple[str, Any]]:
    for key in ("split", "subset", "streaming"):
        if getattr(section, key):
            raise ConfigError(
                f"data.pairs.{key}: {path} is a file, and has none"
                if key != "streaming"
                else f"data.pairs.streaming: {path} is a file, which is read line by line anyway",
                hint="leave it out",
            )
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise DataError(f"{path}: not a file that is read here", hint=f"give {_FORMS}")
    try:
        check_regular(path)
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    odd = recognise(head)
    if odd is not None and reader is not _parquet:
        raise DataError(f"{path} is {odd.what}", hint=odd.way_out(path))
    if not head.strip():
        raise DataError(f"{path}: the file is empty", hint=f"give {_FORMS}")
    return reader(path)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Reads JSON lines."""
    parser = StrictJson()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                yield where, RecordError(f"not valid UTF-8: byte 0x{line[error.start]:02x} at offset {error.start}")
                continue
            yield where, _parsed(parser, text)


def _parsed(parser: StrictJson, text: str) -> Any:
    try:
        value, flaws = parser.parse(text.strip())
    except ValueError as error:
        return RecordError(json_flaw(error))
    if flaws:
        return RecordError("; ".join(f"{field}: {reason}" if field else reason for field, reason in flaws))
    return value


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    """Reads a JSON array, or JSON lines under another ending."""
    with path.open("rb") as file:
        is_array = file.read(_HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    if not is_array:
        yield from _lines(path)
        return
    try:
        value = _parsed(StrictJson(), path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid UTF-8 (byte {error.start})", hint="save the file as UTF-8") from error
    if isinstance(value, RecordError):
        raise DataError(f"{path}: {value.message}", hint="a .json file is one array of records; .jsonl has one a line")
    for number, record in enumerate(value, start=1):
        yield f"{path}: record {number}", record


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        rows = (row for batch in ParquetFile(path).iter_batches(_BATCH) for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"{path}: row {number}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {first_line(error)}") from error


_READERS = {".jsonl": _lines, ".ndjson": _lines, ".json": _json, ".parquet": _parquet}


def _saved(folder: Path, split: str | None) -> Iterator[tuple[str, Any]]:
    """Reads a folder that `save_to_disk` of `datasets` wrote."""
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(str(folder))
    except Exception as error:  # a folder can be damaged in many ways, and each library below has errors of its own
        raise DataError(
            f"{folder}: not a folder saved by datasets: {first_line(error)}", hint=f"give {_FORMS}"
        ) from error
    if isinstance(data, DatasetDict):
        name = split or ("train" if "train" in data else next(iter(data)))
        if name not in data:
            raise DataError(f"{folder}: there is no split {name!r}", hint=f"it has {', '.join(data)}")
        data = data[name]
    elif split is not None:
        raise ConfigError(f"data.pairs.split: {folder} has no splits", hint="leave it out")
    return ((f"{folder}: row {number}", row) for number, row in enumerate(data, start=1))


def _hub(name: str, subset: str | None, split: str, *, streaming: bool) -> Iterator[tuple[str, Any]]:
    """Reads a data set of the Hub, or of its cache."""
    from datasets import load_dataset

    try:
        data = load_dataset(name, subset, split=split, streaming=streaming)
        for number, row in enumerate(data, start=1):
            yield f"{name}, record {number}", row
    except Exception as error:  # the libraries below have errors of their own
        raise _explained(error, name) from error


def _explained(error: Exception, name: str) -> DataError:
    """Returns the error in words, with the way out."""
    from datasets.exceptions import DatasetNotFoundError

    said = first_line(error)
    if "scripts are no longer supported" in said:
        own = next((one for one, published in PUBLISHED.items() if name in published.note), None)
        converted = "the Parquet files that the Hub made of it (branch refs/convert/parquet), as a local file"
        return DataError(
            f"{name}: this data set is a loading script, which datasets ≥ 4 does not run",
            hint=f"give {command_line('--dataset', own)}, or {converted}" if own else f"give {converted}",
        )
    if isinstance(error, DatasetNotFoundError):
        return DataError(
            f"{name}: no such file here, and no such data set on the Hub that this account may read",
            hint="check the name; `hf auth login` for a private or gated one",
        )
    if isinstance(error, ConnectionError | TimeoutError):
        download = command_line("hf", "download", "--repo-type", "dataset", name)
        return DataError(
            f"{name}: the Hub cannot be reached, and the data set is not in its cache: {said}",
            hint=f"run `{download}` where it can be reached, and give the file: --dataset FILE.parquet",
        )
    return DataError(
        f"{name}: cannot be read: {type(error).__name__}: {said}", hint="data.pairs.split, data.pairs.subset"
    )
