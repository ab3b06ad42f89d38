"""What a policy is compared with, and what others ask of it.

A baseline is a function that scores the catalogue, marked by `scores`; one that is itself a policy, or is joined to
one, subclasses `Baseline`. Both are found by their names in `config/registries.py` or as plug-ins.

Decides: what is asked of a baseline, and that a measurement is kept under what it depends on.
Hides: where baselines come from. Nothing heavy is imported here.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rl4rec_cli.config.registries import BASELINES
from rl4rec_cli.errors import PluginError
from rl4rec_cli.plan.phases import Phase, during

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Split
    from rl4rec_cli.eval.policies import Models
    from rl4rec_cli.eval.scoring import Kind, Measured, Scored, Task


@dataclass(frozen=True)
class Subject:
    """The policy that is compared with the baselines, for those that need it.

    Attributes:
        name: in tables.
        checkpoint: folder or Hub name of its model.
        start: the model that its training started from; None for a model that is no run's.
        start_name: in tables.
    """

    name: str
    checkpoint: str
    start: str | None
    start_name: str
    models: Models
    config: RunConfig
    task: Task
    split: Split


class Baseline:
    """What others ask of a baseline.

    Attributes:
        name: by which it was named.
        package: of a plug-in, with its version; empty for rl4rec's own.
        is_start: it is the policy that training starts from, which training measures at its start.
        in_brief: it is shown where there is room for few.
    """

    name = ""
    package = ""
    is_start = False
    in_brief = False

    @property
    def needs_policy(self) -> bool:
        """Whether it cannot be measured alone."""
        return type(self).measure is Baseline.measure

    def measure(self, task: Task, split: Split) -> Measured | None:
        """Measures it alone; None if it needs the policy."""
        return None

    def measure_before(self, subject: Subject) -> Measured | None:
        """Measures it with the subject's models, before the subject; None if nothing of it comes there."""
        return None

    def measure_joined(self, subject: Subject) -> Measured | None:
        """Measures it joined to the subject, which was measured already; None if it is not joined."""
        return None


class ScoreBaseline(Baseline):
    """A baseline that scores the catalogue for every example. Made by `scores`.

    Attributes:
        score: makes the scores.
        label: in tables; the name without underscores when absent.
        kind: `ceiling` if it knows the target.
        reads_vectors: its scores depend on the items' vectors.
        is_seeded: it is trained here, from the task's seed.
        is_kept: its measurement is kept between evaluations.
        score_texts: the same for any texts as queries (items' texts, queries to scores), by which probes rank what a
            policy wrote a second time; None if it cannot.
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
        score_texts: Callable[[Sequence[str], Sequence[str]], Scored] | None = None,
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
        """Measures it, or reads what was measured on the same data, users and vectors."""
        from rl4rec_cli.eval.cache import cached
        from rl4rec_cli.eval.scoring import measure

        label = self.label or self.name.replace("_", " ")

        def compute() -> Measured:
            return measure(label, self.score(task), task.dataset, task.examples, kind=self.kind)

        if not self.is_kept:
            return replace(compute(), in_brief=self.in_brief)
        key: dict[str, object] = {
            "baseline": self.name,
            "vectors": task.retriever.digest if self.reads_vectors else "",
            "seed": task.seed if self.is_seeded else None,
        }
        if self.package:
            key["package"] = self.package
        return replace(cached(task, key, compute), in_brief=self.in_brief)


def scores(**facts: Any) -> Callable[[Callable[[Task], Scored]], ScoreBaseline]:
    """Marks a function from a `Task` to `Scored` as a baseline, with what `ScoreBaseline` asks of it."""
    return lambda function: ScoreBaseline(function, **facts)


def open_baseline(name: str) -> Baseline:
    """A baseline by name. A plug-in's plain function is measured anew each time: who wrote it may still change it.

    Raises:
        ConfigError: there is none, or several packages offer one. PluginError: a plug-in cannot be imported, or is no
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
    """Baselines by name, see `open_baseline`."""
    return [open_baseline(name) for name in names]


@during(Phase.MEASURING)
def measure_baselines(names: Iterable[str], task: Task, split: Split) -> list[Measured]:
    """Measures baselines alone; those that need a policy are left out."""
    alone = (baseline.measure(task, split) for baseline in open_baselines(names))
    return [measurement for measurement in alone if measurement is not None]


def lone_names() -> list[str]:
    """Names that can be compared alone: of baselines that need no policy. Plug-ins are not opened to ask them."""
    own = set(BASELINES.built_in)
    return [name for name in BASELINES.names() if name not in own or not open_baseline(name).needs_policy]
