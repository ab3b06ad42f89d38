"""The interface of baselines, which a policy is compared with.

A baseline is a function that scores the catalogue, marked by `scores`; one that is itself a policy, or is joined to
one, subclasses `Baseline`. `config/registries.py` and plug-ins name them.

Decides: the interface, and that the cache keeps a measurement under everything it depends on.
Hides: where baselines come from. Nothing heavy is imported here.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli.config.registries import BASELINES
from rl4rec_cli.errors import PluginError
from rl4rec_cli.files.digests import sha256_of_file
from rl4rec_cli.plan.phases import Phase, during

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset, Example, Split
    from rl4rec_cli.eval.policies import Models, Retrievers
    from rl4rec_cli.eval.scoring import Kind, Measured, Scored, SparseScores, Task


@dataclass(frozen=True)
class Subject:
    """The policy to compare with the baselines, for those that need it.

    Attributes:
        name: its name in tables.
        checkpoint: folder or Hub name of its model.
        start: the model that its training started from; None for a model that is no run's.
        start_name: that model's name in tables.
    """

    name: str
    checkpoint: str
    start: str | None
    start_name: str
    models: Models | Retrievers
    config: RunConfig
    task: Task
    split: Split


class Baseline:
    """The interface of a baseline.

    Attributes:
        name: its name in settings and on the command line.
        package: a plug-in's package with its version; empty for rl4rec's own.
        is_start: it is the policy that training starts from, which training measures at its start.
        is_chosen: validation users choose a part of it (a weight, a prompt) for the test split, too.
        in_brief: brief overviews show it.
    """

    name = ""
    package = ""
    is_start = False
    is_chosen = False
    in_brief = False

    @property
    def needs_policy(self) -> bool:
        """Whether it can be measured only with a policy."""
        return type(self).measure is Baseline.measure

    def check(
        self, dataset: Dataset, examples: Sequence[Example], split: Split, weights: Mapping[str, float] | None = None
    ) -> None:
        """Checks before anything is measured whether it can be, on these examples of a split.

        Args:
            weights: `eval.fuse_weights`.

        Raises:
            DataError: it cannot.
        """

    def measure(self, task: Task, split: Split) -> Measured | None:
        """Measures it alone; None if it needs the policy."""
        return None

    def measure_before(self, subject: Subject) -> Measured | None:
        """Measures it with the subject's models, before the subject; None if it is measured otherwise."""
        return None

    def measure_joined(self, subject: Subject) -> Measured | None:
        """Measures it joined to the subject, after the subject; None if it is not joined."""
        return None


class ScoreBaseline(Baseline):
    """A baseline that scores the catalogue for every example. `scores` makes it.

    Attributes:
        score: returns the scores of a task.
        label: its name in tables; its `name` without underscores when absent.
        kind: `ceiling` if it knows the target.
        reads_vectors: its scores depend on the items' vectors.
        is_seeded: rl4rec trains it, from the task's seed.
        is_kept: the cache keeps its measurement between evaluations.
        score_texts: scores any texts as queries (items' texts, queries to scores), so that probes can rank a policy's
            completions a second time; None if it cannot.
    """

    def __init__(
        self,
        score: Callable[[Task], Scored],
        *,
        label: str = "",
        kind: Kind = "baseline",
        reads_vectors: bool = True,
        is_seeded: bool = False,
        is_kept: bool = True,
        in_brief: bool = False,
        score_texts: Callable[[Sequence[str], Sequence[str]], SparseScores] | None = None,
    ) -> None:
        self.score = score
        self.label = label
        self.kind: Kind = kind
        self.reads_vectors = reads_vectors
        self.is_seeded = is_seeded
        self.is_kept = is_kept
        self.score_texts = score_texts
        self.in_brief = in_brief

    def measure(self, task: Task, split: Split) -> Measured:
        """Measures it, or reads the cached measurement of the same code, data, users and vectors."""
        from rl4rec_cli.eval.cache import cached
        from rl4rec_cli.eval.scoring import measure

        def compute() -> Measured:
            return measure(self.shown_name, self.score(task), task.dataset, task.examples, kind=self.kind)

        measurement = cached(task, self.key(task), compute) if self.is_kept else compute()
        return replace(measurement, in_brief=self.in_brief)

    @property
    def shown_name(self) -> str:
        """Its name in tables."""
        return self.label or self.name.replace("_", " ")

    def key(self, task: Task) -> dict[str, object]:
        """Returns what its scores depend on besides the dataset and the examples."""
        key: dict[str, object] = {
            "baseline": self.name,
            "vectors": task.retriever.digest if self.reads_vectors else "",
            "seed": task.seed if self.is_seeded else None,
        }
        if self.package:
            key["package"] = self.package
        elif source := inspect.getsourcefile(inspect.unwrap(self.score)):
            key["code"] = sha256_of_file(Path(source))
        return key


def scores(**facts: Any) -> Callable[[Callable[[Task], Scored]], ScoreBaseline]:
    """Marks a function from a `Task` to `Scored` as a baseline, with the arguments of `ScoreBaseline`."""
    return lambda function: ScoreBaseline(function, **facts)


def open_baseline(name: str) -> Baseline:
    """Loads a baseline by name. The cache keeps nothing of a plug-in's plain function: its code may still change.

    Raises:
        ConfigError: no package or several packages offer it. PluginError: a plug-in cannot be imported, or is no
            baseline.
    """
    code, plugin = BASELINES.load(name), BASELINES.plugin(name)
    if isinstance(code, Baseline):
        baseline = copy.copy(code)
    elif callable(code) and not inspect.isclass(code):
        baseline = ScoreBaseline(code, is_kept=False)
    else:
        raise PluginError(
            f"baseline {name}: {BASELINES.target(name)} is neither a function nor a Baseline",
            hint="give a function from a Task to Scored, see rl4rec_cli.eval.baselines",
        )
    baseline.name = name
    baseline.package = plugin.package if plugin is not None else ""
    return baseline


def open_baselines(names: Iterable[str]) -> list[Baseline]:
    """Loads baselines by name, see `open_baseline`."""
    return [open_baseline(name) for name in names]


@during(Phase.MEASURING)
def measure_baselines(baselines: Iterable[Baseline], task: Task, split: Split) -> list[Measured]:
    """Measures baselines alone, and leaves out those that need a policy."""
    alone = (baseline.measure(task, split) for baseline in baselines)
    return [measurement for measurement in alone if measurement is not None]


def lone_names() -> list[str]:
    """Returns the names of baselines that need no policy, and of all plug-ins, which it does not import."""
    own = set(BASELINES.built_in)
    return [name for name in BASELINES.names() if name not in own or not open_baseline(name).needs_policy]
