"""Which of a run's checkpoints is measured, recommended with or exported, and what is said of it.

Decides: the last step, unless another checkpoint is named. How long a run trains is part of its recipe; the best step
is the largest of several noisy figures on a few validation users, and reads too high on these.
Hides: where checkpoints lie, and what they say of themselves.
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
    """The checkpoint that a word names, as `best`, `step_40` or `checkpoint_step_40`; without one the last step.

    Raises:
        ConfigError: the word can be no checkpoint's. RunError: the run has none of this name, or none at all.
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
    """The checkpoints of a run, as `--checkpoint` takes them."""
    there = [folder for folder in (run.start, *run.steps(), run.best, run.final) if folder.is_dir()]
    return ", ".join(folder.name.removeprefix("checkpoint_") for folder in there) or "none"


def describe_checkpoint(run: Run, folder: Path) -> dict[str, Any]:
    """What is known of a checkpoint, as it stands in every result.

    Returns:
        `name`; `weights`, a digest of what was written of them; of the best one what it was chosen by: `step`,
        `metric`, `value`, `users`; of the last one the step of the best one, where there is one, as `best_step`.
    """
    name = folder.resolve().name
    about: dict[str, Any] = {"name": name}
    if (weights := _weights(folder)) is not None:
        about["weights"] = weights
    best = _chosen(run.best)
    if name == run.best.name and best:
        about |= best
    elif name == run.final.name and best:
        about["best_step"] = best["step"]
    return about


def is_of(result: Mapping[str, Any], folder: Path) -> bool:
    """Whether a stored result is of the weights that a checkpoint has now.

    A run that went on has others under the same names. A result that says nothing of its weights is taken for it.
    """
    result_weights, now = (result.get("checkpoint") or {}).get("weights"), _weights(folder)
    return result_weights is None or now is None or result_weights == now


def _weights(folder: Path) -> str | None:
    digest = written_digest(folder, only=lambda name: name.startswith(("model", "adapter")) and name.endswith(_WEIGHTS))
    return digest and digest[:16]


def _chosen(best: Path) -> dict[str, Any]:
    try:
        values = read_object(best / "validation.json", {"step": int})
    except RunError:  # there is no best one, or it is damaged, which whoever loads it says
        return {}
    metric = next((key for key in values if "@" in key and "/" not in key), None)
    if metric is None or object_flaw(values, {metric: (int, float)}):
        return {}
    return {"step": values["step"], "metric": metric, "value": values[metric], "users": values.get("users")}


def checkpoint_line(about: Mapping[str, Any], *, split: str | None = None) -> str:
    """One line of what `describe_checkpoint` knows.

    Args:
        split: what is measured with it.
    """
    name = about["name"]
    if "metric" in about:
        users = f"{about['users']:,} validation users" if isinstance(about.get("users"), int) else "validation users"
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
