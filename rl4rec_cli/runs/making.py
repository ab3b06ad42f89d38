"""Making a run folder and opening one.

Decides: how a run is named, that none takes another's place, and when the recipe of one is whole.
Hides: the first and last line of `config.yaml`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rl4rec_cli.errors import RunError
from rl4rec_cli.files.names import file_name
from rl4rec_cli.files.paths import expand
from rl4rec_cli.files.writing import why_unwritable, write_json, write_text
from rl4rec_cli.runs.environment import environment
from rl4rec_cli.runs.folder import DATASETS, Run
from rl4rec_cli.shell import rl4rec

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig, RunSection

BEGIN = "# The configuration of a run. Its last line says so."
END = "# end"


def run_name(config: RunConfig, dataset: str) -> str:
    """A name for a run: algorithm, dataset, model, seed and time."""
    model = Path(config.policy.model).name if config.trainer.trains_policy else config.retrieval.label
    when = datetime.now().strftime("%Y%m%d-%H%M%S")
    parts = [config.trainer.algorithm, *map(file_name, dataset.split("+")), file_name(model)]
    return "-".join([*parts, f"s{config.run.seed}", when])


def check_new(section: RunSection) -> None:
    """Checks before the work that a run of this name can be made.

    Raises:
        RunError: it is there already, or its folder cannot be made.
    """
    folder = Path(section.output_dir) / (section.name or "")
    if section.name is not None and os.path.lexists(folder):
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
    """Makes a run folder with its configuration and environment.

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
    """The text of `config.yaml`: a recipe whose last line shows that it is whole."""
    from rl4rec_cli.config.layering import dump_config

    return f"{BEGIN}\n{dump_config(config)}{END}\n"


def recipe_of(folder: Path) -> Path:
    """Returns the path of the recipe that a run folder was made with.

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
    """Opens an existing run folder.

    Raises:
        RunError: not a run folder. ConfigError: its configuration is damaged.
    """
    from rl4rec_cli.config.layering import load_config

    folder = Path(path)
    # Opening a run runs no reward code, so a run trained with one can be opened without naming it again.
    config = load_config(algorithm=None, recipes=[str(recipe_of(folder))], allow_custom_rewards=True, is_run=True)
    return Run(folder, config)


def run_of(checkpoint: str | Path) -> Run | None:
    """Opens the run that a folder is a checkpoint of; None for any other folder, and for names of the Hub.

    Raises:
        RunError, ConfigError: as `open_run`.
    """
    folder = expand(str(checkpoint)).resolve()
    run = folder.parent.parent
    is_checkpoint = folder.is_dir() and folder.parent.name == "checkpoints" and (run / "config.yaml").is_file()
    return open_run(run) if is_checkpoint else None


def resume_command(run: Run) -> str:
    """The command that resumes a run, from any folder in which the run's path is right."""
    rewards = run.config.reward.functions
    # Code is run only where this very command names it.
    flags = [word for name, weight in rewards.items() for word in ("--reward", f"{whole_reward(name)}={weight:g}")]
    has_code = any(":" in name for name in rewards)
    return rl4rec("train", run.config.trainer.algorithm, "--resume", run.folder, *(flags if has_code else ()))


def whole_reward(name: str) -> str:
    """A reward's name, with the whole path of its file or folder if it is in one."""
    file, colon, attribute = name.rpartition(":")
    if not colon and "/" in name and expand(name).is_dir():  # a reward model
        return str(expand(name).resolve())
    is_file = file.endswith(".py") and expand(file).is_file()
    return f"{expand(file).resolve()}{colon}{attribute}" if is_file else name
