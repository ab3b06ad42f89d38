"""Resolves a word of a command line to a run, a checkpoint or a model, with the settings to measure it with.

Decides: that a run brings its configuration; recipes, flags and settings override it, but cannot change the model.
Hides: where runs keep their configuration and checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.config.algorithms import DEFAULT_ALGORITHM
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.registries import BASELINES
from rl4rec_cli.data.opening import find_path
from rl4rec_cli.errors import ConfigError, RunError
from rl4rec_cli.eval.checkpoint import find_checkpoint
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.runs.making import open_run
from rl4rec_cli.shell import quote, rl4rec

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import PolicySection
    from rl4rec_cli.config.sections import DataSection, RunConfig


def find_run(target: str, checkpoint: str | None = None) -> tuple[Run, str] | None:
    """Returns the run and the checkpoint of a path to a run folder or to one of its checkpoints; None for others.

    Args:
        checkpoint: name of a run folder's checkpoint, see `find_checkpoint`.

    Raises:
        RunError: a run without a checkpoint, or without this one.
        ConfigError: path and `checkpoint` both name a checkpoint, or `checkpoint` can be none's name.
    """
    path = Path(target)
    if (path / "config.yaml").is_file():
        run = open_run(path)
        return run, str(find_checkpoint(run, checkpoint))
    whole = path.resolve()  # from inside `checkpoints` too, where the path does not name the run
    if whole.parent.name != "checkpoints" or not (whole.parent.parent / "config.yaml").is_file():
        return None
    if checkpoint is not None:
        raise ConfigError(f"--checkpoint {checkpoint}: {target} is a checkpoint already", hint="name the run's folder")
    if not path.is_dir():
        there = ", ".join(sorted(p.name for p in whole.parent.glob("checkpoint_*"))) or "none"
        raise RunError(f"{path}: no such checkpoint", hint=f"there: {there}")
    return open_run(whole.parent.parent if path.parent.name != "checkpoints" else path.parent.parent), str(path)


def baseline_names(text: str) -> list[str]:
    """Returns the names that `--baselines` means: `default`, `all` (of rl4rec's own), `none`, or names with commas."""
    from rl4rec_cli.config.evaluation import EvalSection

    groups = {"none": [], "default": list(EvalSection().baselines), "all": list(BASELINES.built_in)}
    return groups[text] if text in groups else [name.strip() for name in text.split(",")]


@dataclass(frozen=True)
class Overrides:
    """Overrides of the settings of a run or a model; None keeps a setting.

    Attributes:
        split: `validation` or `test`.
        users: number of users to measure.
        baselines: `default`, `all`, `none`, or names with commas.
        fuse: `sasrec`, `transitions`, `history` or `none`.
        recipes: names or files; later ones win.
        sets: settings as `KEY=VALUE`; they win over all else.
        dataset: a folder, or the name of one of the run's datasets or of one in `data/`.
        checkpoint: name of a run's checkpoint, see `find_checkpoint`.
        sequential_file, prompt_file: replace the dataset folder's files.
    """

    split: str | None = None
    users: int | None = None
    baselines: str | None = None
    recipes: Sequence[str] = ()
    sets: Sequence[str] = ()
    dataset: str | None = None
    checkpoint: str | None = None
    sequential_file: str | None = None
    prompt_file: str | None = None
    fuse: str | None = None

    def flags(self, data: DataSection | None) -> dict[str, Any]:
        """Returns its values as a layer of settings.

        Args:
            data: the run's section, whose datasets come first in the search for a name.
        """
        names = baseline_names(self.baselines) if self.baselines is not None else None
        eval_settings = {"split": self.split, "users": self.users, "baselines": names, "fuse": self.fuse}
        flags: dict[str, Any] = {"eval": {key: value for key, value in eval_settings.items() if value is not None}}
        if self.dataset is not None:
            path = find_path(data, self.dataset) if data is not None else self.dataset
            flags["data"] = {"path": path, "synthetic": None}
        files = {"sequential_file": self.sequential_file, "prompt_file": self.prompt_file}
        if data_files := {name: file for name, file in files.items() if file is not None}:
            flags["data"] = flags.get("data", {}) | data_files
        return flags


def resolve_target(target: str | None, overrides: Overrides | None = None) -> tuple[Run | None, str | None, RunConfig]:
    """Returns the run (None for a model), the checkpoint or model, and the configuration of a target.

    Args:
        target: None for the configuration alone.

    Raises:
        RunError: neither a run nor a model with a dataset. ConfigError: invalid settings, or a run whose task has no
            catalogue.
    """
    overrides = overrides or Overrides()
    checkpoint = overrides.checkpoint
    at = find_run(target, checkpoint) if target is not None else None
    if at is not None and not at[0].config.task.has_catalogue:
        raise ConfigError(
            f"{at[0].folder}: is a run of the task {at[0].config.run.task}, and this ranks in a catalogue",
            hint=f"its own measurements: {rl4rec('report', at[0].folder)}",
        )
    if at is None and checkpoint is not None:
        raise ConfigError(f"--checkpoint {checkpoint}: {target or 'nothing'} is no run", hint="name a run's folder")
    flags = overrides.flags(at[0].config.data if at is not None else None)
    layers: dict[str, Any] = {"flags": flags, "sets": overrides.sets, "allow_custom_rewards": True}
    if at is not None:
        run, folder = at
        recipes = [str(run.folder / "config.yaml"), *overrides.recipes]
        config = load_config(algorithm=None, recipes=recipes, is_run=True, **layers)
        if config.policy.model != run.config.policy.model:  # the starting policy is measured too, by the run's setting
            console.log(f"policy.model={config.policy.model} is left out: a run is measured with the model it trained")
            own = config.policy.model_copy(update={"model": run.config.policy.model})
            config = config.model_copy(update={"policy": own})
        return run, folder, config
    if target is not None:
        flags["policy"] = {"model": target}
    config = load_config(algorithm=DEFAULT_ALGORITHM, recipes=overrides.recipes, **layers)
    if target is not None:
        _check_no_run(target, config)
    if target is not None and config.data.path is None and config.data.synthetic is None:
        raise RunError(
            f"{target}: not a run folder or a checkpoint of one, and a model needs a dataset to be measured on",
            hint=rl4rec("eval", target, "--dataset", "PATH"),
        )
    return None, target, config


def untrained(run: Run | None, section: PolicySection) -> str | None:
    """Returns a run's policy before reinforcement learning, or None for a plain model."""
    if run is None:
        return None
    return str(run.start) if run.start.is_dir() else section.model


def _check_no_run(target: str, config: RunConfig) -> None:
    """Raises RunError for a run that is named without its folder: it would be taken for a model of the Hub."""
    folder = Path(config.run.output_dir) / target
    if not Path(target).exists() and (folder / "config.yaml").is_file():
        raise RunError(f"{target}: no run or model of this name here", hint=f"the run: {quote(folder)}")
