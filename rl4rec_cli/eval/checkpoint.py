"""Chooses the checkpoint of a run to measure, recommend with or export, and describes it.

Decides: that it is the last step, unless the command names another. How long a run trains is part of its recipe. The
best step is the largest of several noisy figures on a few validation users, and its figures on these are too high.
Hides: the files of checkpoints and their metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl4rec_cli.errors import ConfigError, RunError
from rl4rec_cli.files.folders import written_digest
from rl4rec_cli.files.reading import object_flaw, read_object
from rl4rec_cli.runs.folder import Run

_WEIGHTS = (".safetensors", ".bin")
NAMES = "best, final, start or step_N"


def find_checkpoint(run: Run, name: str | None) -> Path:
    """Returns the checkpoint that a word names (`best`, `step_40`, `checkpoint_step_40`), or the last step for None.

    Raises:
        ConfigError: no checkpoint can have this name. RunError: the run has none of this name, or none at all.
    """
    if name is None:
        return run.newest_checkpoint()
    short = name.removeprefix("checkpoint_")
    is_step = short.startswith("step_") and short.removeprefix("step_").isdigit()
    if short not in ("best", "final", "start") and not is_step:
        raise ConfigError(f"--checkpoint {name}: must be {NAMES}")
    folder = run.checkpoints / f"checkpoint_{short}"
    if not folder.is_dir():
        raise RunError(f"{run.folder}: no checkpoint {short} in it", hint=f"there: {listed(run)}")
    return folder


def listed(run: Run) -> str:
    """Returns the names of a run's checkpoints, as `--checkpoint` takes them."""
    there = [folder for folder in (run.start, *run.steps(), run.best, run.final) if folder.is_dir()]
    return ", ".join(folder.name.removeprefix("checkpoint_") for folder in there) or "none"


def describe_checkpoint(run: Run, folder: Path) -> dict[str, Any]:
    """Describes a checkpoint for results.

    Returns:
        `name`; `weights`, the digest of its weights as the manifest has it; for the best one also `step`, `metric`,
        `value` and `users` of its choice, and so for the last one where training ends with its best; for any other last
        one `best_step`, the step of the best one, if there is one.
    """
    name = folder.resolve().name
    about: dict[str, Any] = {"name": name}
    if (weights := _weights(folder)) is not None:
        about["weights"] = weights
    best = _chosen(run.best)
    is_best = name == run.best.name or (name == run.final.name and run.config.trainer.keeps_best)
    if is_best and best:
        about |= best
    elif name == run.final.name and best:
        about["best_step"] = best["step"]
    return about


def is_of(result: Mapping[str, Any], folder: Path) -> bool:
    """Whether a stored result belongs to the weights that a checkpoint has now.

    A run that went on has other weights under the same names. A result without a digest counts as the checkpoint's.
    """
    result_weights, now = (result.get("checkpoint") or {}).get("weights"), _weights(folder)
    return result_weights is None or now is None or result_weights == now


def _weights(folder: Path) -> str | None:
    digest = written_digest(
        folder, only=lambda name: name.startswith(("model", "adapter", "retriever")) and name.endswith(_WEIGHTS)
    )
    return digest and digest[:16]


def _chosen(best: Path) -> dict[str, Any]:
    try:
        values = read_object(best / "validation.json", {"step": int})
    except RunError:  # there is no best one, or it is damaged, and loading it raises the reason
        return {}
    metric = next((key for key in values if "@" in key and "/" not in key), None)
    if metric is None or object_flaw(values, {metric: (int, float)}):
        return {}
    several = {key: values[key] for key in ("texts_per_user",) if key in values}
    return {"step": values["step"], "metric": metric, "value": values[metric], "users": values.get("users"), **several}


def checkpoint_line(about: Mapping[str, Any], *, split: str | None = None) -> str:
    """Returns what `describe_checkpoint` found as one line.

    Args:
        split: the split to measure with it.
    """
    name = about["name"]
    if "metric" in about:
        users = f"{about['users']:,} validation users" if isinstance(about.get("users"), int) else "validation users"
        if "texts_per_user" in about:
            users += f" with {about['texts_per_user']} completions each"
        line = f"Checkpoint: {name}, after step {about['step']:,}: the best {about['metric']} on {users}"
        if split == "validation":
            line += ", who are among those measured here: its figures read too high"
        return f"{line}."
    if "best_step" in about:
        return (
            f"Checkpoint: {name}, the last step. The best step on validation users was {about['best_step']:,}: "
            "--checkpoint best"
        )
    return f"Checkpoint: {name}."
