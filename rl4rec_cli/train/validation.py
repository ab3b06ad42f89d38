"""How the policy does on held-out users during training.

Decides: which users (a fixed draw of the validation split, never the test split), how often, and which step was best:
of several datasets by the mean over them, in which each counts alike however many users it has.
Hides: that this is the evaluation that `rl4rec eval` makes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec_cli import console
from rl4rec_cli.eval.examples import choose_examples
from rl4rec_cli.eval.metrics import headline, means
from rl4rec_cli.eval.policies import measure_policy
from rl4rec_cli.files.logs import JsonLines
from rl4rec_cli.files.writing import write_json

if TYPE_CHECKING:
    from pathlib import Path

    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.eval.policies import Measurable
    from rl4rec_cli.runs.folder import Run
    from rl4rec_cli.train.environments import TrainingData

LOG = "validation_log.jsonl"


class Measurements(ABC):
    """Measures every `eval.steps` steps, and at the last one. A subclass says what is measured.

    Args:
        every: steps between two measurements; None: never.
        users: how many users, or prompts, are measured.
        metric: name of the figure by which steps are compared.
        report: gets every record of `validation_log.jsonl`.
    """

    def __init__(
        self,
        run: Run,
        *,
        every: int | None,
        users: int,
        metric: str,
        report: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._report = report
        self._run = run
        self._every = every
        self._users = users
        self.metric = metric
        self.values: list[tuple[int, float]] = []
        """Step and metric, in order."""
        self._own: dict[str, float] = {}

    @abstractmethod
    def figures(self) -> tuple[dict[str, float], dict[str, float]]:
        """Measures. Returns the figures, and those of each dataset by `metric/NAME` where there are several."""

    def about(self) -> dict[str, Any]:
        """Returns what is measured besides one completion of each user, for records."""
        return {}

    def remark(self) -> str:
        """Returns the same for the terminal's line."""
        return ""

    def is_due(self, step: int, last: int) -> bool:
        if self._every is None or (self.values and self.values[-1][0] >= step):
            return False
        return step % self._every == 0 or (step == last and last > self._every)

    def measure(self, phase: str, step: int) -> bool:
        """Measures the policy as it is, and returns whether it is better than at every step before."""
        metrics, by_dataset = self.figures()
        self._own = {key: value for key, value in by_dataset.items() if key.startswith(f"{self.metric}/")}
        value = metrics[self.metric]
        is_best = all(value > before for _, before in self.values)
        self.values.append((step, value))
        log = JsonLines(self._run.folder / LOG, also=self._report)
        try:
            about = {"phase": phase, "step": step, "users": self._users, "best": is_best, **self.about()}
            log.write({**about, **metrics, **by_dataset})
        finally:
            log.close()
        best_step, best = max(self.values, key=lambda pair: (pair[1], -pair[0]))
        so_far = "the best so far" if is_best else f"best {best:.4f} after step {best_step:,}"
        apart = ", ".join(f"{key.partition('/')[2]} {value:.4f}" for key, value in self._own.items())
        mean = f" (mean of {apart})" if apart else ""
        console.log(f"Validation after step {step:,}: {self.metric} {value:.4f}{mean}{self.remark()}, {so_far}")
        return is_best

    @property
    def since_best(self) -> int:
        """Measurements since the best one."""
        values = [value for _, value in self.values]
        return len(values) - 1 - values.index(max(values)) if values else 0

    def course(self) -> tuple[str, list[tuple[int, float]]]:
        """Returns the metric's name, and its steps and values so far."""
        return self.metric, self.values

    def best_line(self) -> str:
        """Names the best step so far and its folder; empty before the first measurement."""
        if not self.values:
            return ""
        step, value = max(self.values, key=lambda pair: (pair[1], -pair[0]))
        return f"best {self.metric} {value:.4f} after step {step:,}, in {self._run.best}"

    def describe(self, folder: Path) -> None:
        """Writes a checkpoint's metrics into its folder."""
        step, value = self.values[-1]
        about = {"step": step, self.metric: value, **self._own, "users": self._users, **self.about()}
        write_json(folder / "validation.json", about)

    def state(self) -> dict[str, Any]:
        return {"values": [list(pair) for pair in self.values]}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.values = [(int(step), float(value)) for step, value in state["values"]]


class Validation(Measurements):
    """Measures a policy or a retriever on validation users.

    Args:
        report: gets every record of `validation_log.jsonl`.
    """

    def __init__(
        self,
        run: Run,
        policy: Measurable,
        environments: Sequence[TrainingData],
        *,
        report: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._policy, self._environments = policy, environments
        config: RunConfig = run.config
        has_users = all(one.dataset.has_validation for one in environments)
        step_users = config.eval.step_users
        self._examples = [
            choose_examples(one.dataset, "validation", step_users) if has_users else [] for one in environments
        ]
        super().__init__(
            run,
            every=config.eval.steps if has_users else None,
            users=sum(map(len, self._examples)),
            metric=headline(config.eval.ks),
            report=report,
        )

    def figures(self) -> tuple[dict[str, float], dict[str, float]]:
        """Measures on every dataset. Returns means over the datasets, and the metrics of each."""
        config = self._run.config
        each: dict[str, dict[str, float]] = {}
        for environment, examples in zip(self._environments, self._examples, strict=True):
            own = (environment.dataset, environment.retriever, examples)
            join = environment.hybrid.join if environment.hybrid is not None else None
            measured = measure_policy("validation", self._policy, config, *own, join=join)
            each[environment.name] = means(measured.ranking, config.eval.ks)
        metrics = {name: float(np.mean([one[name] for one in each.values()])) for name in next(iter(each.values()))}
        return metrics, {f"{name}/{of}": one[name] for of, one in each.items() for name in one if len(each) > 1}

    def about(self) -> dict[str, Any]:
        """Says what is ranked besides one completion of each user: several as one, or a sequence model's scores."""
        texts = self._run.config.generation.texts_per_user
        about: dict[str, Any] = {} if texts == 1 else {"texts_per_user": texts}
        if hybrids := [one.hybrid for one in self._environments if one.hybrid is not None]:
            about |= {"fuse": hybrids[0].label, "fuse_weight": [hybrid.weight for hybrid in hybrids]}
        return about

    def remark(self) -> str:
        """Returns the same in words."""
        about = self.about()
        several = f" ({texts} completions of each user)" if (texts := about.get("texts_per_user")) else ""
        return several + (f" (together with {fuse})" if (fuse := about.get("fuse")) else "")
