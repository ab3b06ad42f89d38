"""Run folders.

Decides: what a run leaves on disk and where.
Hides: file names, JSON lines, atomic writes.

```
runs/NAME/
    config.yaml             the resolved configuration, itself a recipe
    env.json                versions, command, time, environment variables that can change a run
    datasets.json           digests of what it is trained on
    training_log.jsonl      one line per logged step of the run's own algorithm
    warm_start_log.jsonl    the same of its warm start, whose steps are counted for themselves
    rollouts.jsonl          some texts of every step, with ranks and rewards
    checkpoints/            checkpoint_start, checkpoint_step_N, checkpoint_best, checkpoint_final; checkpoint_base,
                            where the tiny policy got an adapter
    eval/                   results and per-user records; of several datasets, a folder for each
```
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.errors import ConfigError, RunError
from rl4rec_cli.files.names import file_name
from rl4rec_cli.files.reading import parse_json, read_bytes, read_object
from rl4rec_cli.shell import rl4rec
from rl4rec_cli.variables import recorded_variables

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig

VERSIONS_OF = (
    *("rl4rec", "torch", "transformers", "trl", "peft", "accelerate", "sentence-transformers", "scikit-learn"),
    *("bitsandbytes", "unsloth", "unsloth_zoo"),
)

BASE = "checkpoint_base"


DATASETS = "datasets.json"
"""See `data/provenance.py`."""
TRAINING_LOG = "training_log.jsonl"
WARM_START_LOG = "warm_start_log.jsonl"
BEGIN = "# The configuration of a run. Its last line says so."
END = "# end"


class Run:
    """A run folder and the configuration it was made with."""

    def __init__(self, folder: Path, config: RunConfig, *, digest: str = "") -> None:
        self.folder = folder
        self.config = config
        self.digest = digest
        """Of the dataset it is trained on."""

    def environment(self) -> dict[str, Any]:
        """What `env.json` says of how it was begun; empty where that is missing or damaged."""
        try:
            return read_object(self.folder / "env.json")
        except RunError:
            return {}

    @property
    def day(self) -> str | None:
        """The day it was begun on, as `2026-11-26`; None where that is not known."""
        started = str(self.environment().get("started", ""))[:10]
        return started if re.fullmatch(r"\d{4}-\d{2}-\d{2}", started) else None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def start(self) -> Path:
        """The policy before reinforcement learning, kept where a warm start made it."""
        return self.checkpoints / "checkpoint_start"

    @property
    def base(self) -> Path:
        """What the adapter of a tiny policy is trained over: the policy as it was built, and warm-started."""
        return self.checkpoints / BASE

    @property
    def final(self) -> Path:
        return self.checkpoints / "checkpoint_final"

    def results(self, dataset: str) -> Path:
        """Where evaluations on one of its datasets, by its name, are kept."""
        return self.folder / "eval" / (dataset if len(self.config.data.paths) > 1 else "")

    def step(self, number: int) -> Path:
        return self.checkpoints / f"checkpoint_step_{number}"

    def warm(self, number: int) -> Path:
        """A step of the warm start, kept until `start` stands there."""
        return self.checkpoints / f"checkpoint_warm_{number}"

    @property
    def best(self) -> Path:
        """The step that did best on validation users."""
        return self.checkpoints / "checkpoint_best"

    def steps(self) -> list[Path]:
        """Periodic checkpoints, oldest first."""
        return self._numbered("step")

    def warm_steps(self) -> list[Path]:
        """Periodic checkpoints of the warm start, oldest first."""
        return self._numbered("warm")

    def _numbered(self, kind: str) -> list[Path]:
        found = [(int(m[1]), p) for p in self.checkpoints.glob(f"checkpoint_{kind}_*") if (m := _NUMBER.search(p.name))]
        return [path for _, path in sorted(found)]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes into the folder meanwhile.

        Raises:
            RunError: another process does.
        """
        path = self.folder / ".lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunError(f"{path}: cannot write it: {error.strerror or error}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise RunError(f"{path}: cannot lock it: {error.strerror or error}") from error
                owner = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
                raise RunError(
                    f"{self.folder}: another process trains this run{f' ({owner})' if owner else ''}",
                    hint="wait for it to end, or stop it",
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)  # and with it the lock; the file stays: removing it would let two in

    def in_use(self) -> bool:
        """Whether a process holds `locked`."""
        try:
            descriptor = os.open(self.folder / ".lock", os.O_RDONLY)
        except OSError:  # no lock, or one of somebody else
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
        finally:
            os.close(descriptor)
        return False

    def newest_checkpoint(self) -> Path:
        """The final checkpoint, else the last periodic one.

        Raises:
            RunError: there is none yet.
        """
        if self.final.is_dir():
            return self.final
        steps = self.steps()
        if not steps:
            raise RunError(f"{self.folder}: no checkpoint in it yet", hint="train it to the end, or name a checkpoint")
        return steps[-1]


_NUMBER = re.compile(r"_(\d+)$")


class JsonLines:
    """An append-only log of strict JSON lines, each written whole and at once, by however many processes.

    Args:
        also: gets every record that is written.
    """

    def __init__(self, path: Path, *, also: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        self.path = path
        self._also = also
        self._file: IO[bytes] = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            RunError: it cannot be written.
        """
        try:
            line = json.dumps(strict(record), ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
            # One call, which appends: lines of another process never come between.
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RunError(f"{self.path}: cannot write it: {error.strerror or error}") from error
        if self._also is not None:
            self._also(record)

    def close(self) -> None:
        self._file.close()


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


def read_jsonl(path: Path, flaw_of: Callable[[dict[str, Any]], str] = lambda record: "") -> list[dict[str, Any]]:
    """The whole lines of a log; a last line that a kill or a full disk cut is left out.

    Args:
        flaw_of: what keeps a record from being one of this log; empty where nothing does.

    Raises:
        RunError: it cannot be read, or a line in between is no record.
    """
    records = []
    try:
        lines = read_bytes(path).split(b"\n")
    except OSError as error:
        raise RunError(f"{path}: cannot read it: {error.strerror or error}") from error
    hint = "put back what was there, or remove the line"
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise RunError(f"{path}:{number}: not JSON: {error}", hint=hint) from error
        if flaw := flaw_of(record) if isinstance(record, dict) else "is no JSON object":
            raise RunError(f"{path}:{number}: {flaw}", hint=hint)
        records.append(record)
    return records


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a log that may still be written, and how many of its lines are none (half a line of a killed run).

    Raises:
        RunError: it is there and cannot be read.
    """
    records: list[dict[str, Any]] = []
    damaged = 0
    try:
        lines = read_bytes(path).decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise RunError(f"{path}: cannot read it: {error.strerror or error}") from error
    for line in filter(str.strip, lines):
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            damaged += 1
    return records, damaged


def run_name(config: RunConfig, dataset: str) -> str:
    """Algorithm, dataset, model, seed and time."""
    model = Path(config.policy.model).name
    when = datetime.now().strftime("%Y%m%d-%H%M%S")
    parts = [config.trainer.algorithm, *map(file_name, dataset.split("+")), file_name(model)]
    return "-".join([*parts, f"s{config.run.seed}", when])


def check_new(config: RunConfig) -> None:
    """Find out before the work that a run of this name is there already, or that none can be made.

    Raises:
        RunError: so it is.
    """
    folder = Path(config.run.output_dir) / (config.run.name or "")
    if config.run.name is not None and os.path.lexists(folder):
        raise _exists(folder)
    if (reason := why_unwritable(folder / "config.yaml")) is not None:
        raise RunError(
            f"{folder}: cannot make the run folder: {reason}", hint="name another folder for runs with --output"
        )


def _exists(folder: Path) -> RunError:
    return RunError(f"{folder}: this run is there already", hint="choose another run.name or --output")


def create_run(
    config: RunConfig,
    *,
    dataset: str,
    digest: str = "",
    datasets: Mapping[str, str] | None = None,
    prompts: str = "",
) -> Run:
    """Make a run folder with its configuration and environment.

    Args:
        dataset: its name.
        digest: its identity.
        datasets: digests of all that it is trained on, by their names.
        prompts: identity of the prompts it is trained on.

    Raises:
        RunError: the folder exists already, or cannot be made.
    """
    folder = Path(config.run.output_dir) / (config.run.name or run_name(config, dataset))
    try:
        folder.mkdir(parents=True, exist_ok=False)
    except OSError as error:
        if os.path.lexists(folder):
            raise _exists(folder) from None
        raise RunError(f"{folder}: cannot make the run folder: {error.strerror or error}") from error
    if datasets is not None:
        write_json(folder / DATASETS, {"datasets": datasets})
    write_text(folder / "config.yaml", recipe_text(config))
    write_json(folder / "env.json", environment() | {"prompts": prompts})
    return Run(folder, config, digest=digest)


def recipe_text(config: RunConfig) -> str:
    """The `config.yaml` of a run: a recipe whose end can be told to be missing."""
    from rl4rec_cli.config.layering import dump_config

    return f"{BEGIN}\n{dump_config(config)}{END}\n"


def recipe_of(folder: Path) -> Path:
    """The recipe a run folder was made with.

    Raises:
        RunError: not a run folder, or the recipe's end is missing.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise RunError(f"{folder}: not a run folder (no config.yaml)", hint="runs are made by `rl4rec train`")
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise RunError(f"{path}: cannot read it: {error.strerror or error}") from error
    values = [line for line in lines if line.strip() and not line.startswith("#")]
    # Runs of older versions have neither line.
    if not values or (BEGIN in lines[:1] and END not in lines):
        raise RunError(
            f"{path}: is cut: {f'its last line, `{END}`, is missing' if values else 'there is no setting in it'}",
            hint="put back what was there; every checkpoint that training can go on from has a copy, recipe.yaml",
        )
    return path


def open_run(path: str | Path) -> Run:
    """An existing run folder.

    Raises:
        RunError: not a run folder. ConfigError: its configuration is damaged.
    """
    from rl4rec_cli.config.layering import load_config

    folder = Path(path)
    # Opening a run runs no reward code, so a run trained with one can be opened without naming it again.
    config = load_config(algorithm=None, recipes=[str(recipe_of(folder))], allow_custom_rewards=True)
    return Run(folder, config)


def resume_command(run: Run) -> str:
    """What goes on with a run, from any folder that its own path is right in."""
    rewards = run.config.reward.functions
    # Code is run only where this very command names it.
    named = [word for name, weight in rewards.items() for word in ("--reward", f"{whole_reward(name)}={weight:g}")]
    has_code = any(":" in name for name in rewards)
    return rl4rec("train", run.config.trainer.algorithm, "--resume", run.folder, *(named if has_code else ()))


def whole_reward(name: str) -> str:
    """A reward's name with the whole path of the file that it is in, where it is in one."""
    file, colon, attribute = name.rpartition(":")
    is_file = file.endswith(".py") and Path(file).expanduser().is_file()
    return f"{Path(file).expanduser().resolve()}{colon}{attribute}" if is_file else name


def environment() -> dict[str, Any]:
    """What a result depends on besides the configuration."""
    versions: dict[str, str | None] = {}
    for name in VERSIONS_OF:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
        **recorded_variables(),
    }
