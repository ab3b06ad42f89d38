"""The task `recommendation`: completions are ranked in a catalogue.

Decides: what is checked of catalogues and settings of ranking before anything is loaded.
Hides: retrieval, scorers, hybrids and screening, from the one who trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.commands.trained_run import CatalogueData
from rl4rec_cli.data.opening import open_datasets
from rl4rec_cli.data.provenance import check_unseen
from rl4rec_cli.eval.baseline import open_baselines
from rl4rec_cli.eval.examples import choose_examples
from rl4rec_cli.plan.retriever import in_process
from rl4rec_cli.retrieval.embedder import find_embedder
from rl4rec_cli.shell import rl4rec
from rl4rec_cli.train.environments import check_datasets, open_environments, policy_writer, screen_environments
from rl4rec_cli.train.examples import number_of_training_examples
from rl4rec_cli.train.hybrids import check_hybrids, fuse_flag, keep_hybrids, open_hybrids

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.eval.training_hybrid import TrainingHybrid
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.rewards.scorer import Scorer
    from rl4rec_cli.runs.folder import Run
    from rl4rec_cli.train.environments import Environment
    from rl4rec_cli.train.validation import Validation


def is_here(config: RunConfig) -> bool:
    """Returns whether the data are on this machine: always."""
    return True


def open_data(config: RunConfig) -> list[Dataset]:
    """Opens the datasets.

    Raises:
        ConfigError, DataError: see `open_datasets`.
    """
    return open_datasets(config.data)


def sizes(dataset: Dataset) -> str:
    """Returns how large a dataset is, in a line."""
    return f"dataset {dataset.name}: {len(dataset.users):,} users, {dataset.num_items:,} items"


def describe(config: RunConfig, datasets: Sequence[Dataset]) -> dict[str, str]:
    """Logs the sizes of the datasets, and audits them. Returns the audits' lines, by the datasets' names."""
    from rl4rec_cli.eval import measuring

    audits = {}
    for dataset, path in zip(datasets, config.data.paths or (None,), strict=True):
        line = sizes(dataset)
        console.log(line[:1].upper() + line[1:])
        audits[dataset.name] = measuring.audit_line(config, dataset, path)
    return audits


def check(config: RunConfig, datasets: Sequence[Dataset]) -> None:
    """Raises what is wrong with the datasets, the sequence model of `reward.fuse` and the baselines.

    Raises:
        DataError: the sequence model cannot be fitted, a dataset has no validation users, a baseline cannot be measured
            on them, or the policy or the embedder was fitted on their targets. ConfigError: see `check_datasets`.
    """
    check_datasets(config, datasets)
    check_hybrids(config, datasets)
    for dataset in (one for one in datasets if one.has_validation):
        check_unseen(dataset, "validation", [config.policy.model, find_embedder(config.retrieval).model])
    baselines = open_baselines(config.eval.baselines)
    for dataset in datasets:
        if dataset.has_validation:
            examples = choose_examples(dataset, "validation", config.eval.users)
            for baseline in baselines:
                baseline.check(dataset, examples, "validation", config.eval.fuse_weights)


def number_of_examples(config: RunConfig, datasets: Sequence[Dataset]) -> int:
    """Counts the training examples of all datasets."""
    data, seed = config.training_data, config.run.seed
    return sum(number_of_training_examples(data, dataset, seed=seed) for dataset in datasets)


def announce(config: RunConfig) -> None:
    """Logs the code of rewards."""
    from rl4rec_cli.rewards.custom import code_line

    for line in filter(None, map(code_line, config.reward.functions)):
        console.log(line)


@contextmanager
def opened(config: RunConfig, datasets: list[Dataset], about: dict[str, str]) -> Iterator[CatalogueRunData]:
    """Opens the retrievers."""
    from rl4rec_cli.retrieval.opening import open_run_retrievers

    if not config.trainer.trains_policy:  # it is trained where the item vectors are: in this process
        config = config.model_copy(update={"retrieval": in_process(config.retrieval)})
    with open_run_retrievers(config, datasets) as retrievers:
        yield CatalogueRunData(datasets, about, {d.name: one for d, one in zip(datasets, retrievers, strict=True)})


def next_commands(run: Run, datasets: Sequence[Dataset]) -> str:
    """Returns the commands that the user may want next."""
    one = ("--dataset", datasets[0].name) if len(datasets) > 1 else ()
    measure = rl4rec("eval", run.folder, *one, "--split", "test", *fuse_flag(run.config))
    recommend = rl4rec("recommend", run.folder, *one, "--user", datasets[0].users[0])
    return f"Next: {measure}    or: {recommend}" if datasets[0].has_test else f"Next: {recommend}"


@dataclass(frozen=True)
class CatalogueRunData(CatalogueData):
    """Catalogues, and the course of a policy in them."""

    def start(self, config: RunConfig) -> Callable[[RunConfig, Any], CatalogueCourse]:
        """Opens hybrids and scorers."""
        from rl4rec_cli.rewards.credit import Groups
        from rl4rec_cli.rewards.scorer import open_scorers

        hybrids = open_hybrids(config, self.datasets, self.retrievers)
        scorers = open_scorers(self.retrievers, config.reward, hybrids, Groups.of(config))
        return lambda config, tokenizer: CatalogueCourse(config, tokenizer, self, scorers, hybrids)


class CatalogueCourse:
    """What a policy learns from and is measured on: its datasets' users."""

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Any,
        data: CatalogueData,
        scorers: Mapping[str, Scorer],
        hybrids: Mapping[str, TrainingHybrid],
    ) -> None:
        from rl4rec_cli.train.outcome import Outcome

        self._config, self._hybrids = config, hybrids
        self.environments: list[Environment] = open_environments(
            config, data.datasets, data.retrievers, scorers, tokenizer, hybrids
        )
        self.outcome = Outcome(config, self.environments, data.audits)

    @property
    def prompts(self) -> str:
        """Returns the identity of the training prompts."""
        return "+".join(one.builder.digest(one.examples) for one in self.environments)

    @property
    def measures_start(self) -> bool:
        """Returns whether a baseline is the policy that training starts from."""
        return any(baseline.is_start for baseline in open_baselines(self._config.eval.baselines))

    def keep(self, run: Run, *, allow_partial: bool) -> None:
        """Keeps the weights of hybrids."""
        keep_hybrids(run, self._hybrids, allow_partial=allow_partial)

    def learnable(self, policy: Policy, run: Run) -> list[Environment]:
        """Returns the environments with the examples that screening leaves."""
        write = policy_writer(policy, run.config)
        return screen_environments(run.config.trainer, self.environments, write=write, folder=run.folder)

    def validation(self, policy: Policy, run: Run, report: Callable[[Mapping[str, Any]], None]) -> Validation:
        """Returns what measures the policy on validation users."""
        from rl4rec_cli.train.validation import Validation

        return Validation(run, policy, self.environments, report=report)
