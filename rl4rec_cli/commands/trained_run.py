"""What training runs are given and what they return, whatever their task and whatever they train.

Decides: what a run asks of its task.
Hides: which tasks there are (`config/tasks.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from rl4rec_cli.data.dataset import joint_digest

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.eval.evaluation import Evaluation
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.retrieval.retriever import VectorRetriever
    from rl4rec_cli.runs.folder import Run
    from rl4rec_cli.train.environments import PolicyData
    from rl4rec_cli.train.trackers import Reports
    from rl4rec_cli.train.validation import Measurements


class Data(Protocol):
    """A dataset of any task."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def has_validation(self) -> bool: ...

    @property
    def has_test(self) -> bool: ...


class Measuring(Protocol):
    """The evaluations of a run, which fill as it measures."""

    evaluations: dict[str, Evaluation]

    def measure_baselines(self) -> None: ...

    def measure(self, name: str, policy: Any) -> None: ...

    def finish(self, run: Run) -> None: ...

    def show_and_save(self, run: Run, reports: Reports, show: Callable[[], None]) -> None: ...


class Course(Protocol):
    """What a policy learns from in one run, and how it is measured."""

    @property
    def environments(self) -> Sequence[PolicyData]:
        """What supervised fine-tuning sees."""

    @property
    def outcome(self) -> Measuring: ...

    @property
    def prompts(self) -> str:
        """The identity of the training prompts."""

    @property
    def measures_start(self) -> bool:
        """Whether the policy is measured before reinforcement learning, too."""

    def keep(self, run: Run, *, allow_partial: bool) -> None:
        """Writes into the run's folder what a resumed run needs, or checks that it is the same."""

    def learnable(self, policy: Policy, run: Run) -> Sequence[PolicyData]:
        """Returns what reinforcement learning sees of the environments."""

    def validation(self, policy: Policy, run: Run, report: Callable[[Mapping[str, Any]], None]) -> Measurements:
        """Returns what measures the policy during training."""


class RunData(Protocol):
    """What runs need before any policy. All seeds share it."""

    @property
    def datasets(self) -> Sequence[Any]: ...

    @property
    def digest(self) -> str: ...

    @property
    def digests(self) -> dict[str, str]:
        """By the datasets' names."""

    def start(self, config: RunConfig) -> Callable[[RunConfig, Any], Course]:
        """Opens what scores a run's completions, before its policy is loaded.

        Returns:
            A function of the configuration and the policy's tokenizer.
        """


class TaskModule(Protocol):
    """A module of `commands` that `config/tasks.py` names."""

    def is_here(self, config: RunConfig) -> bool:
        """Whether the data are read without the Hub."""

    def open_data(self, config: RunConfig) -> Sequence[Any]:
        """Opens the datasets."""

    def sizes(self, dataset: Any) -> str:
        """Returns how large a dataset is, in a line."""

    def describe(self, config: RunConfig, datasets: Sequence[Any]) -> dict[str, str]:
        """Logs what the datasets are. Returns what results say of each, by its name."""

    def check(self, config: RunConfig, datasets: Sequence[Any]) -> None:
        """Raises what would otherwise end a run later, and is of this task alone. Imports nothing heavy."""

    def number_of_examples(self, config: RunConfig, datasets: Sequence[Any]) -> int:
        """Counts the training examples."""

    def announce(self, config: RunConfig) -> None:
        """Logs whose code runs."""

    def opened(self, config: RunConfig, datasets: Sequence[Any], about: dict[str, str]) -> AbstractContextManager[Any]:
        """Opens what all seeds share."""

    def next_commands(self, run: Run, datasets: Sequence[Any]) -> str:
        """Returns the commands that the user may want next."""


def task_of(config: RunConfig) -> TaskModule:
    """Returns the module of a configuration's task."""
    module: Any = import_module(f"rl4rec_cli.commands.{config.task.module}")
    return module


@dataclass(frozen=True)
class CatalogueData:
    """Catalogues, and what ranks in them."""

    datasets: list[Any]
    audits: dict[str, str]
    retrievers: dict[str, VectorRetriever]

    @property
    def digest(self) -> str:
        return joint_digest(self.datasets)

    @property
    def digests(self) -> dict[str, str]:
        """By the datasets' names."""
        return {dataset.name: dataset.digest for dataset in self.datasets}


@dataclass(frozen=True)
class TrainedRun:
    """A finished run and its results on what is held out."""

    run: Run
    evaluations: dict[str, Evaluation]
    """By the datasets' names."""
    datasets: Sequence[Any]
    seconds: float


Show = Callable[[TrainedRun], None]
"""Shows what a run reached before it is written, so that a full disk costs nobody what was measured."""
