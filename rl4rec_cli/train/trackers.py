"""Where a run's numbers go besides its folder: TensorBoard, Weights & Biases, Trackio.

Decides: that they get the numbers of `training_log.jsonl` under the same names, of `warm_start_log.jsonl` under
`warm_start/`, of validation users under `validation/`, of the last evaluation under `final/`; that the run names a
tracker which fails and goes on without it, for a run is worth more than its picture.
Hides: each library's interface, and that they want settings that keep the machine's and the user's affairs out of them.
"""

from __future__ import annotations

import importlib.util
import math
import netrc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from rl4rec_cli import console
from rl4rec_cli.errors import ConfigError, RunError
from rl4rec_cli.files.digests import sha256_of_file
from rl4rec_cli.files.paths import expand
from rl4rec_cli.shell import command_line

if TYPE_CHECKING:
    from rl4rec_cli.eval.evaluation import Evaluation
    from rl4rec_cli.runs.folder import Run

WARM_START = "warm_start"
FINAL = "final"


class Tracker(Protocol):
    """One of the libraries."""

    def log(self, numbers: Mapping[str, float], *, step: int, group: str) -> None:
        """Takes the numbers of a step; each group (`""`, `warm_start`) counts its own steps."""

    def finish(self, final: Mapping[str, float], *, failed: bool) -> None: ...


def check_trackers(names: Sequence[str]) -> None:
    """Checks before the work that the libraries are installed and need no login, without importing them.

    Raises:
        ConfigError: a library is not installed, or would ask for a login.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--report-to {name}: {name} is not installed", hint=f"pip install 'rl4rec[{name}]'")
    if "wandb" in names and not _has_wandb_login():
        raise ConfigError("--report-to wandb: nobody is logged in", hint=_HINTS["wandb"])


def _has_wandb_login() -> bool:
    """Returns whether W&B starts without asking: it is offline, or has a key in the environment or in `.netrc`."""
    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in ("online", "run", "shared") or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    files = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for file in map(expand, files):
        try:
            if netrc.netrc(file).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):  # none, or one that wandb cannot read either
            continue
    return False


class Reports:
    """Gives every number to every tracker."""

    def __init__(self, trackers: Mapping[str, Tracker], algorithm: str) -> None:
        self._trackers = dict(trackers)
        self._algorithm = algorithm
        self._final: dict[str, float] = {}

    def step(self, record: Mapping[str, Any]) -> None:
        """Takes a line of `training_log.jsonl` or `warm_start_log.jsonl`."""
        group = "" if record["phase"] == self._algorithm else WARM_START
        numbers = _numbers(record)
        if "health" in record:
            numbers = {"step": numbers["step"], f"health/{record['health']}": 1.0}
        self._log({f"{group}/{name}" if group else name: value for name, value in numbers.items()}, record, group)

    def validation(self, record: Mapping[str, Any]) -> None:
        """Takes a line of `validation_log.jsonl`."""
        numbers = {name: value for name, value in _numbers(record).items() if name != "step"}
        measurements = {f"validation/{name}": value for name, value in numbers.items()}
        self._log({"step": float(record["step"]), **measurements}, record, "")

    def final(self, evaluation: Evaluation, *, dataset: str | None = None) -> None:
        """Takes every method's metrics on the validation split; `dataset` names one of several datasets."""
        place = FINAL if dataset is None else f"{FINAL}/{dataset}"
        for name, metrics in evaluation.as_json()["methods"].items():
            self._final.update({f"{place}/{name}/{key}": value for key, value in _numbers(metrics).items()})

    def finish(self, *, failed: bool) -> None:
        for name in list(self._trackers):
            with self._leaving(name):
                self._trackers[name].finish(self._final, failed=failed)

    def _log(self, numbers: Mapping[str, float], record: Mapping[str, Any], group: str) -> None:
        for name in list(self._trackers):
            with self._leaving(name):
                self._trackers[name].log(numbers, step=int(record["step"]), group=group)

    @contextmanager
    def _leaving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            del self._trackers[name]
            reason = " ".join(str(error).split())
            console.log(f"{name} failed and gets no more numbers: {type(error).__name__}: {reason}")


@contextmanager
def open_reports(run: Run, *, done: int = 0) -> Iterator[Reports]:
    """Begins to report a run, or goes on with it after `done` steps of its last phase.

    Raises:
        RunError: a tracker cannot be started.
    """
    section = run.config.logging
    trackers: dict[str, Tracker] = {}
    reports = None
    try:
        for name in section.report_to:
            try:
                trackers[name] = _TRACKERS[name](run, done)
            except Exception as error:
                reason = " ".join(str(error).split())
                raise RunError(f"--report-to {name}: cannot start it: {reason}", hint=_HINTS.get(name)) from error
        reports = Reports(trackers, run.config.trainer.algorithm)
        yield reports
    except BaseException:
        (reports or Reports(trackers, "")).finish(failed=True)
        raise
    reports.finish(failed=False)


class _TensorBoard:
    """Event files in the run folder: `tensorboard/` and, as steps are counted anew, `tensorboard/warm_start/`."""

    def __init__(self, run: Run, done: int) -> None:
        from rl4rec_cli.config.layering import dump_config

        self._folder = run.folder / "tensorboard"
        self._done = done
        self._last = done
        self._writers: dict[str, Any] = {}
        if not done:
            text = "".join(f"    {line}\n" for line in dump_config(run.config).splitlines())
            self._writer("").add_text("config", text)
        console.log(f"TensorBoard: {command_line('tensorboard', '--logdir', self._folder)}")

    def _writer(self, group: str) -> Any:
        if group not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            # Whatever was logged of steps that are made again is not shown.
            purge = self._done + 1 if self._done and not group else None
            self._writers[group] = SummaryWriter(str(self._folder / group), purge_step=purge)
        return self._writers[group]

    def log(self, numbers: Mapping[str, float], *, step: int, group: str) -> None:
        self._last = self._last if group else step
        writer = self._writer(group)
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def finish(self, final: Mapping[str, float], *, failed: bool) -> None:
        for name, value in final.items():
            self._writer("").add_scalar(name, value, self._last)
        for writer in self._writers.values():
            writer.close()


class _Wandb:
    """A run of its own in Weights & Biases; `WANDB_MODE=offline` keeps it in the run folder."""

    def __init__(self, run: Run, done: int) -> None:
        import wandb

        # Else it speaks of another product of theirs, in spite of `silent`, where vLLM has brought the package openai.
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        settings = wandb.Settings(
            silent=True,
            console="off",  # it would take the terminal's streams, and the log with whatever stands in it
            disable_git=True,
            save_code=False,
            x_disable_meta=True,  # command line, user and host
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        config = run.config.model_dump(mode="json")
        self._run: Any = wandb.init(
            project=run.config.logging.project,
            name=run.folder.name,
            id=_identity(run),
            resume="allow",
            dir=str(run.folder),
            config=config,
            settings=settings,
        )
        self._known: set[str] = set()
        upload = f"offline; to upload it: {command_line('wandb', 'sync', Path(self._run.dir).parent)}"
        console.log(f"Weights & Biases: {upload if self._run.offline else self._run.url}")

    def log(self, numbers: Mapping[str, float], *, step: int, group: str) -> None:
        # W&B's own counter never goes back, but a run that is resumed does, and a warm start counts for itself.
        counter = f"{group}/step" if group else "step"
        for name in numbers:
            if name not in self._known:
                self._known.add(name)
                if name == counter:
                    self._run.define_metric(name, hidden=True)
                else:
                    self._run.define_metric(name, step_metric=counter)
        self._run.log(dict(numbers))

    def finish(self, final: Mapping[str, float], *, failed: bool) -> None:
        self._run.summary.update(dict(final))
        self._run.finish(exit_code=int(failed))


class _Trackio:
    """A run in Trackio's local database (`TRACKIO_DIR`); `trackio show` draws it."""

    def __init__(self, run: Run, done: int) -> None:
        import trackio

        self._trackio: Any = trackio
        with redirect_stdout(None):  # it prints there, where results stand
            self._run: Any = trackio.init(
                project=run.config.logging.project,
                name=f"{run.folder.name}-{_identity(run)[-8:]}",
                config=run.config.model_dump(mode="json"),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        console.log(f"Trackio: {command_line('trackio', 'show', '--project', run.config.logging.project)}")

    def log(self, numbers: Mapping[str, float], *, step: int, group: str) -> None:
        # `step` is a word of its own, and is given apart; a warm start counts its own.
        self._run.log({name: value for name, value in numbers.items() if name != "step"}, step=step)

    def finish(self, final: Mapping[str, float], *, failed: bool) -> None:
        with redirect_stdout(None):
            if final:
                self._run.log(dict(final))
            self._trackio.finish()


_TRACKERS: Mapping[str, Any] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "trackio": _Trackio}
_HINTS = {"wandb": "log in with `wandb login`, or set WANDB_MODE=offline"}


def _identity(run: Run) -> str:
    """Returns a run's identity: the same when it resumes, another for a new run of the same name."""
    digest = sha256_of_file(run.folder / "env.json")
    return f"{run.folder.name[:100]}-{digest[:8]}"


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
