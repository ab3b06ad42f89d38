"""Run folders.

Decides: what a run leaves on disk and where.
Hides: file names.

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

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli.errors import RunError
from rl4rec_cli.files.locks import is_locked, read_owner, release_lock, take_lock, write_owner
from rl4rec_cli.files.reading import read_object

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig

BASE = "checkpoint_base"
DATASETS = "datasets.json"
"""See `data/provenance.py`."""
TRAINING_LOG = "training_log.jsonl"
WARM_START_LOG = "warm_start_log.jsonl"
_LOCK = ".lock"
_NUMBER = re.compile(r"_(\d+)$")


class Run:
    """A run folder and the configuration it was made with."""

    def __init__(self, folder: Path, config: RunConfig, *, digest: str = "") -> None:
        self.folder = folder
        self.config = config
        self.digest = digest
        """Of the dataset that it is trained on."""

    def environment(self) -> dict[str, Any]:
        """The record of `env.json`, or an empty one if that is missing or damaged."""
        try:
            return read_object(self.folder / "env.json")
        except RunError:
            return {}

    @property
    def day(self) -> str | None:
        """The day the run began on, as `2026-11-26`, or None if that is not known."""
        started = str(self.environment().get("started", ""))[:10]
        return started if re.fullmatch(r"\d{4}-\d{2}-\d{2}", started) else None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def start(self) -> Path:
        """The policy before reinforcement learning, if a warm start made it."""
        return self.checkpoints / "checkpoint_start"

    @property
    def base(self) -> Path:
        """The weights below the adapter of a tiny policy: as it was built and warm-started."""
        return self.checkpoints / BASE

    @property
    def final(self) -> Path:
        return self.checkpoints / "checkpoint_final"

    def results(self, dataset: str) -> Path:
        """The folder of the evaluations on one of its datasets, which is named."""
        return self.folder / "eval" / (dataset if len(self.config.data.paths) > 1 else "")

    def step(self, number: int) -> Path:
        return self.checkpoints / f"checkpoint_step_{number}"

    def warm(self, number: int) -> Path:
        """A step of the warm start. It stays until `start` is there."""
        return self.checkpoints / f"checkpoint_warm_{number}"

    @property
    def best(self) -> Path:
        """The step with the best result on validation users."""
        return self.checkpoints / "checkpoint_best"

    def steps(self) -> list[Path]:
        """Periodic checkpoints, oldest first."""
        return self._numbered("step")

    def warm_steps(self) -> list[Path]:
        """Periodic checkpoints of the warm start, oldest first."""
        return self._numbered("warm")

    def _numbered(self, kind: str) -> list[Path]:
        pairs = [(int(m[1]), p) for p in self.checkpoints.glob(f"checkpoint_{kind}_*") if (m := _NUMBER.search(p.name))]
        return [path for _, path in sorted(pairs)]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lets no other process train in the folder meanwhile.

        Raises:
            RunError: another process holds the lock; the message names it.
        """
        path = self.folder / _LOCK
        if (descriptor := take_lock(path)) is None:
            owner = read_owner(path)
            raise RunError(
                f"{self.folder}: another process trains this run{f' ({owner})' if owner else ''}",
                hint="wait for it to end, or stop it",
            )
        try:
            write_owner(descriptor)
            yield
        finally:
            release_lock(path, descriptor)

    def in_use(self) -> bool:
        """Whether a process trains this run."""
        return is_locked(self.folder / _LOCK)

    def newest_checkpoint(self) -> Path:
        """Returns the final checkpoint, or the last periodic one if there is none.

        Raises:
            RunError: there is none yet.
        """
        if self.final.is_dir():
            return self.final
        steps = self.steps()
        if not steps:
            raise RunError(f"{self.folder}: no checkpoint in it yet", hint="train it to the end, or name a checkpoint")
        return steps[-1]
