"""Records every opening of the test split.

Decides: the contents of a record, and what makes it untrustworthy.
Hides: the file and its chain of digests.

`runs/NAME/test_openings.jsonl` has one line per opening, each with the digest of the line before; the first one has
the digest of the run's own `env.json`. A result on the test split repeats the number and digest of its opening, so a
record that was shortened, edited or removed is noticed as long as one such result is left. **The limit**: whoever
deletes the record together with every result on the test split, or copies the run folder beforehand, is not noticed;
the chain is against forgetting, not against fraud.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import __version__
from rl4rec_cli.errors import RunError
from rl4rec_cli.files.digests import sha256, sha256_of_json
from rl4rec_cli.files.locks import exclusive
from rl4rec_cli.files.reading import parse_json, read_bytes
from rl4rec_cli.files.writing import write_text

if TYPE_CHECKING:
    from rl4rec_cli.runs.folder import Run

FILE = "test_openings.jsonl"


@dataclass(frozen=True)
class Openings:
    """The openings of a run's test split.

    Attributes:
        records: one per opening, oldest first.
        problem: why the record cannot be trusted; None where it can.
    """

    records: tuple[dict[str, Any], ...]
    problem: str | None = None

    @property
    def count(self) -> int:
        return len(self.records)

    def line(self) -> str:
        """`Test split opened 2 times (2026-05-01T10:00:00+00:00, …).`"""
        times = f"{self.count} time{'s' if self.count != 1 else ''}"
        when = f" ({', '.join(str(r.get('time')) for r in self.records)})" if self.records else ""
        warning = f" WARNING: {self.problem}." if self.problem else ""
        return f"Test split opened {times}{when}.{warning}"

    def as_json(self) -> dict[str, Any]:
        last = self.records[-1]["digest"] if self.records else None
        return {"count": self.count, "digest": last, "problem": self.problem}


def record_opening(run: Run) -> Openings:
    """Records an opening of the test split, before anything of the split is read.

    It appends to a damaged record without mending it; `problem` tells of the damage.

    Returns:
        All openings, this one included.

    Raises:
        RunError: the record cannot be written; the split stays closed.
    """
    path = run.folder / FILE
    try:
        with exclusive(path):
            _append(run, path)
            return read_openings(run)
    except RunError as error:
        raise RunError(
            f"the test split stays closed, as its opening cannot be recorded: {error.message}",
            hint=error.hint or "copy the run folder to where it can be written, and open it there",
        ) from error


def _append(run: Run, path: Path) -> None:
    lines = _text(path).splitlines()
    record = {
        "opening": len(lines) + 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "version": __version__,
        "recipe": sha256((run.folder / "config.yaml").read_bytes()),
        "command": sys.argv[1:],
        "previous": sha256(lines[-1].encode()) if lines else _genesis(run),
    }
    whole = {**record, "digest": sha256_of_json(record)}
    write_text(path, "".join(f"{line}\n" for line in [*lines, json.dumps(whole)]))


def read_openings(run: Run) -> Openings:
    """Reads the openings so far.

    Raises:
        RunError: the record exists and cannot be read.
    """
    # Results first: a result is written after the record of its opening, so that none can lack its record here.
    results = _results(run)
    previous, records, problem = _genesis(run), [], None
    for number, line in enumerate(_text(run.folder / FILE).splitlines(), start=1):
        try:
            record = parse_json(line)
            good = isinstance(record, dict) and record.get("previous") == previous and record["opening"] == number
            good = good and record["digest"] == sha256_of_json({k: v for k, v in record.items() if k != "digest"})
        except (ValueError, KeyError):
            record, good = {"time": "unreadable", "digest": None}, False
        if not good and problem is None:
            problem = f"line {number} of {FILE} was changed, or one before it was removed"
        is_record = isinstance(record, dict) and isinstance(record.get("digest"), str | None)
        records.append({"digest": None, **record} if is_record else {"time": "unreadable", "digest": None})
        previous = sha256(line.encode())
    digests = {record["digest"] for record in records}
    for result, opening in results:
        if opening.get("digest") is not None and opening["digest"] not in digests and problem is None:
            where = result.relative_to(run.folder)
            problem = (
                f"{where} came from opening {opening.get('count')}, which {FILE} does not have: it was cut or removed"
            )
    return Openings(tuple(records), problem)


def _results(run: Run) -> list[tuple[Path, dict[str, Any]]]:
    """Returns the file of every result on the test split, with the opening that it records; empty if it has none."""
    results = []
    for path in sorted((run.folder / "eval").rglob("test.json")):
        try:
            opening = parse_json(read_bytes(path)).get("test_openings")
        except (OSError, ValueError, AttributeError):  # a damaged result has no opening
            opening = None
        is_opening = isinstance(opening, dict) and isinstance(opening.get("digest"), str | None)
        results.append((path, opening if is_opening else {}))
    return results


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise RunError(f"{path}: cannot read it: {error.strerror or error}") from error


def _genesis(run: Run) -> str:
    """Returns the digest that ties a record to its run: one copied from another run does not match."""
    environment = run.folder / "env.json"
    return sha256(environment.read_bytes()) if environment.is_file() else "0" * 64


def _commit() -> str | None:
    """Returns the commit of rl4rec's own source, or None if it does not run from a clone."""
    here = Path(__file__)
    try:
        # Installed into an environment inside somebody's repository, the commit would be of that one.
        for command in (["git", "ls-files", "--error-unmatch", here.name], ["git", "rev-parse", "HEAD"]):
            answer = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, timeout=10)
            if answer.returncode:
                return None
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
