"""Training runs from configuration to table.

Decides: the order of the steps: data, checks, retrieval, and one run after the other.
Hides: what is trained: a policy (`train_policy.py`) or a retriever (`train_retriever.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.commands import train_policy, train_retriever
from rl4rec_cli.commands.run_checks import of_seed, with_whole_paths
from rl4rec_cli.commands.trained_run import RunData, Show, TrainedRun
from rl4rec_cli.data.dataset import joint_digest
from rl4rec_cli.data.opening import open_datasets
from rl4rec_cli.data.provenance import keep_datasets
from rl4rec_cli.plan.retriever import in_process
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.shell import rl4rec
from rl4rec_cli.train.arguments import number_of_steps
from rl4rec_cli.train.checkpoints import check_data, find_place, keep_recipe
from rl4rec_cli.train.examples import number_of_training_examples
from rl4rec_cli.train.hybrids import fuse_flag
from rl4rec_cli.variables import settings_win

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset

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
    from rl4rec_cli.eval import measuring
    from rl4rec_cli.policy.sources import with_own_adapter

    # Everything that can be wrong with the input is found before anything heavy is imported.
    seeds = seeds or (config.run.seed,)
    datasets = open_datasets(config.data)
    config, kind = with_whole_paths(config), _kind(config)
    if resume is None:
        config = config.model_copy(update={"policy": with_own_adapter(config.policy)})
    audits = {}
    for dataset, path in zip(datasets, config.data.paths or (None,), strict=True):
        console.log(f"Dataset {dataset.name}: {len(dataset.users):,} users, {dataset.num_items:,} items")
        audits[dataset.name] = measuring.audit_line(config, dataset, path)
    configs = [of_seed(config, seed, len(seeds)) for seed in seeds]
    for own in configs:
        kind.check(own, datasets, is_new=resume is None)
    kind.announce(config)
    if resume is not None:
        return _resume(configs[0], resume, datasets, audits, show, allow_partial=allow_partial)
    kind.prepare(config, is_new=True)
    with _opened(config, datasets, audits) as data:
        return [kind.train_one(own, data, show) for own in configs]


def _kind(config: RunConfig) -> Any:
    """Returns the module that trains what the algorithm trains."""
    return train_policy if config.trainer.trains_policy else train_retriever


@contextmanager
def _opened(config: RunConfig, datasets: list[Dataset], audits: dict[str, str]) -> Iterator[RunData]:
    from rl4rec_cli.retrieval.opening import open_run_retrievers

    if not config.trainer.trains_policy:  # it is trained where the item vectors are: in this process
        config = config.model_copy(update={"retrieval": in_process(config.retrieval)})
    with open_run_retrievers(config, datasets) as retrievers:
        yield RunData(datasets, audits, {d.name: one for d, one in zip(datasets, retrievers, strict=True)})


def next_commands(run: Run, datasets: Sequence[Dataset]) -> str:
    """Returns the commands that the user may want next."""
    one = ("--dataset", datasets[0].name) if len(datasets) > 1 else ()
    measure = rl4rec("eval", run.folder, *one, "--split", "test", *fuse_flag(run.config))
    recommend = rl4rec("recommend", run.folder, *one, "--user", datasets[0].users[0])
    return f"Next: {measure}    or: {recommend}" if datasets[0].has_test else f"Next: {recommend}"


def _resume(
    config: RunConfig, folder: Path, datasets: list[Dataset], audits: dict[str, str], show: Show, *, allow_partial: bool
) -> list[TrainedRun]:
    kind, phases = _kind(config), [phase.algorithm for phase in config.trainer.phases]
    digests = {dataset.name: dataset.digest for dataset in datasets}
    run = Run(folder, config, digest=joint_digest(datasets))
    with run.locked():
        data, seed = config.training_data, config.run.seed
        examples = sum(number_of_training_examples(data, dataset, seed=seed) for dataset in datasets)
        most = number_of_steps(config.trainer, examples)
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
        with _opened(config, datasets, audits) as opened:
            return [kind.train_one(config, opened, show, run, place, allow_partial=allow_partial)]
