"""Run folders.

Decides: what a run leaves on disk and where.
Hides: file names, JSON lines, atomic writes.

```
runs/NAME/
    config.yaml             the resolved configuration, itself a recipe
    env.json                versions, command, time
    training_log.jsonl      one line per logged step
    rollouts.jsonl          some texts of every step, with ranks and rewards
    checkpoints/            checkpoint_start, checkpoint_step_N, checkpoint_final
    eval/                   results and per-user records
```
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rl4rec_cli.errors import RunError

if TYPE_CHECKING:
    from rl4rec_cli.config import RunConfig

VERSIONS_OF = ("rl4rec", "torch", "transformers", "trl", "peft", "accelerate", "sentence-transformers", "scikit-learn")


class Run:
    """A run folder and the configuration it was made with."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder = folder
        self.config = config

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def start(self) -> Path:
        """The policy before reinforcement learning, kept where a warm start made it."""
        return self.checkpoints / "checkpoint_start"

    @property
    def final(self) -> Path:
        return self.checkpoints / "checkpoint_final"

    def step(self, number: int) -> Path:
        return self.checkpoints / f"checkpoint_step_{number}"

    def warm(self, number: int) -> Path:
        return self.checkpoints / f"checkpoint_warm_{number}"

    def steps(self) -> list[Path]:
        """Periodic checkpoints, oldest first."""
        found = [(int(m[1]), p) for p in self.checkpoints.glob("checkpoint_step_*") if (m := _STEP.match(p.name))]
        return [path for _, path in sorted(found)]

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


_STEP = re.compile(r"^checkpoint_step_(\d+)$")


class JsonLines:
    """An append-only log of strict JSON lines, each written whole and flushed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            RunError: it cannot be written.
        """
        try:
            self._file.write(json.dumps(strict(record), ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunError(f"{self.path}: cannot write it: {error.strerror or error}") from error

    def close(self) -> None:
        with suppress(OSError):  # what a failed write left in the buffer
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


def run_name(config: RunConfig, dataset: str) -> str:
    """Algorithm, dataset, model, seed and time."""
    model = Path(config.policy.model).name
    when = datetime.now().strftime("%Y%m%d-%H%M%S")
    parts = [config.trainer.algorithm, dataset, model, f"s{config.run.seed}", when]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def check_new(config: RunConfig) -> None:
    """Find out before the work that a run of this name is there already.

    Raises:
        RunError: it is.
    """
    if config.run.name is not None and os.path.lexists(Path(config.run.output_dir) / config.run.name):
        raise _exists(Path(config.run.output_dir) / config.run.name)


def _exists(folder: Path) -> RunError:
    return RunError(f"{folder}: this run is there already", hint="choose another run.name or --output")


def create_run(config: RunConfig, *, dataset: str) -> Run:
    """Make a run folder with its configuration and environment.

    Raises:
        RunError: the folder exists already, or cannot be made.
    """
    from rl4rec_cli.layering import dump_config

    folder = Path(config.run.output_dir) / (config.run.name or run_name(config, dataset))
    try:
        folder.mkdir(parents=True, exist_ok=False)
    except OSError as error:
        if os.path.lexists(folder):
            raise _exists(folder) from None
        raise RunError(f"{folder}: cannot make the run folder: {error.strerror or error}") from error
    write_text(folder / "config.yaml", dump_config(config))
    write_json(folder / "env.json", environment())
    return Run(folder, config)


def open_run(path: str | Path) -> Run:
    """An existing run folder.

    Raises:
        RunError: not a run folder. ConfigError: its configuration is damaged.
    """
    from rl4rec_cli.layering import load_config

    folder = Path(path)
    if not (folder / "config.yaml").is_file():
        raise RunError(f"{folder}: not a run folder (no config.yaml)", hint="runs are made by `rl4rec train`")
    # Opening a run runs no reward code, so a run trained with one can be opened without naming it again.
    config = load_config(algorithm=None, recipes=[str(folder / "config.yaml")], allow_custom_rewards=True)
    return Run(folder, config)


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
    }
