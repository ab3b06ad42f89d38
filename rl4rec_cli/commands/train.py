"""Training runs from configuration to table.

Decides: the order of the steps: data, checks, retrieval, and one run after the other.
Hides: what is trained: a policy (`train_policy.py`) or a retriever (`train_retriever.py`); and for which task.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.commands import train_policy, train_retriever
from rl4rec_cli.commands.run_checks import of_seed, with_whole_paths
from rl4rec_cli.commands.trained_run import Show, TrainedRun, task_of
from rl4rec_cli.data.dataset import joint_digest
from rl4rec_cli.data.provenance import keep_datasets
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.train.arguments import number_of_steps
from rl4rec_cli.train.checkpoints import check_data, find_place, keep_recipe
from rl4rec_cli.variables import settings_win

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig

__all__ = ["TrainedRun", "next_commands", "train"]


@settings_win()
def train(
    config: RunConfig,
    seeds: Sequence[int] = (),
    *,
    resume: Path | None = None,
    allow_partial: bool = False,
    show: Show = lambda trained: None,
) -> list[TrainedRun]:
    """Trains once per seed, and measures each run. Returns nothing if the run to resume is finished.

    Args:
        seeds: one run for each. Without seeds, one run with the configuration's seed.
        resume: a run folder to resume, with its seed, instead of making one.
        allow_partial: resume with a changed recipe, or without the optimiser's or the random state.
        show: called for each run as soon as it is measured.

    Raises:
        ConfigError: the environment shows that several processes were started.
        Rl4RecError: see the parts. What was trained before an error stays in the run folder.
    """
    from rl4rec_cli.policy.sources import with_own_adapter

    # Everything that can be wrong with the input is found before anything heavy is imported.
    seeds = seeds or (config.run.seed,)
    task = task_of(config)
    datasets = task.open_data(config)
    config, kind = with_whole_paths(config), _kind(config)
    if resume is None:
        config = config.model_copy(update={"policy": with_own_adapter(config.policy)})
    about = task.describe(config, datasets)
    configs = [of_seed(config, seed, len(seeds)) for seed in seeds]
    for own in configs:
        kind.check(own, datasets, is_new=resume is None)
    kind.announce(config)
    if resume is not None:
        return _resume(configs[0], resume, datasets, about, show, allow_partial=allow_partial)
    kind.prepare(config, is_new=True)
    with task.opened(config, datasets, about) as data:
        return [kind.train_one(own, data, show) for own in configs]


def _kind(config: RunConfig) -> Any:
    """Returns the module that trains what the algorithm trains."""
    return train_policy if config.trainer.trains_policy else train_retriever


def next_commands(run: Run, datasets: Sequence[Any]) -> str:
    """Returns the commands that the user may want next."""
    return task_of(run.config).next_commands(run, datasets)


def _resume(
    config: RunConfig, folder: Path, datasets: Sequence[Any], about: dict[str, str], show: Show, *, allow_partial: bool
) -> list[TrainedRun]:
    task, kind, phases = task_of(config), _kind(config), [phase.algorithm for phase in config.trainer.phases]
    digests = {dataset.name: dataset.digest for dataset in datasets}
    run = Run(folder, config, digest=joint_digest(datasets))
    with run.locked():
        most = number_of_steps(config.trainer, task.number_of_examples(config, datasets))
        place = find_place(run, phases, allow_partial=allow_partial, most=most)
        check_data(run, digests, allow_partial=allow_partial)
        measured = [dataset.name for dataset in datasets if dataset.has_validation]
        is_measured = all((run.results(name) / "validation.json").is_file() for name in measured)
        if place.phase == len(phases) and is_measured:
            console.log(f"Run {folder} is finished: there is nothing to go on with")
            console.log(next_commands(run, datasets))
            return []
        kind.prepare(config, is_new=False)
        keep_datasets(run.folder, digests)
        keep_recipe(run)
        console.quiet_libraries()
        with task.opened(config, datasets, about) as opened:
            return [kind.train_one(config, opened, show, run, place, allow_partial=allow_partial)]
