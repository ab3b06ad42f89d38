"""A finished run that goes on to more steps.

Decides: what a final checkpoint records of itself, so that a run can tell a longer recipe; that it stays until the
longer run is done; and that results of the shorter run then move aside, so that nobody takes them for the longer one's.
Hides: where results lie.

`checkpoints.py` decides which recipe is a longer one, `resumable.py` what the learning rate does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.config.layering import dump_config
from rl4rec_cli.data.opening import dataset_name
from rl4rec_cli.errors import RunError
from rl4rec_cli.train.checkpoints import PROGRESS, RECIPE, final_steps

if TYPE_CHECKING:
    from rl4rec_cli.runs.folder import Run
    from rl4rec_cli.train.learner import Learner


def write_final(
    learner: Learner, run: Run, *, steps: int, beside: Callable[[Path], None] = lambda folder: None
) -> None:
    """Writes `checkpoint_final`. Replaces one of fewer steps, and first puts its results aside.

    Args:
        steps: of the run's last phase.
        beside: writes more files into its argument, the folder.

    Raises:
        PolicyError, RunError: it cannot be written; the checkpoint and results from before are untouched.
    """

    def more(folder: Path) -> None:
        (folder / RECIPE).write_text(dump_config(run.config), encoding="utf-8")
        progress = {"phase": run.config.trainer.algorithm, "step": steps, "dataset": run.digest}
        (folder / PROGRESS).write_text(json.dumps(progress, indent=1) + "\n", encoding="utf-8")
        beside(folder)

    if run.final.is_dir():
        _put_results_aside(run, final_steps(run))
    learner.write(run.final, more)


def _put_results_aside(run: Run, steps: int | None) -> None:
    """Puts the results aside, so that a run killed before its next evaluation has none of another policy."""
    paths = run.config.data.paths
    for folder in {run.results(dataset_name(path)) for path in paths} or {run.results("")}:
        results = [path for path in folder.glob("[!.]*") if path.is_file()]
        aside = folder / f"after_step_{steps}"
        try:
            for path in results:
                aside.mkdir(exist_ok=True)
                path.replace(aside / path.name)
        except OSError as error:
            raise RunError(f"{aside}: cannot put results there: {error.strerror or error}") from error
        if results:
            console.log(f"Results of the first {steps} steps are in {aside}")
