"""How the policy does on held-out users while it is trained.

Decides: which users (a fixed draw of the validation split, never the test split), how often, and which step was best.
Hides: that this is the evaluation that `rl4rec eval` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.eval.evaluate import measure_policy
from rl4rec_cli.eval.examples import choose_examples
from rl4rec_cli.eval.metrics import means
from rl4rec_cli.runs import JsonLines, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from rl4rec_cli.config import RunConfig
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.retrieval.retriever import VectorRetriever
    from rl4rec_cli.runs import Run

LOG = "validation_log.jsonl"


class Validation:
    """Measures every `eval.steps` steps, and at the last one.

    Args:
        report: gets every record that is written to `validation_log.jsonl`.
    """

    def __init__(
        self,
        run: Run,
        policy: Policy,
        dataset: Dataset,
        retriever: VectorRetriever,
        *,
        report: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._report = report
        self._run, self._policy, self._dataset, self._retriever = run, policy, dataset, retriever
        config: RunConfig = run.config
        self._every = config.eval.steps
        self._examples = choose_examples(dataset, "validation", config.eval.step_users)
        self.metric = f"ndcg@{min(config.eval.ks, key=lambda k: abs(k - 10))}"
        self.values: list[tuple[int, float]] = []
        """Step and metric, in order."""

    def is_due(self, step: int, last: int) -> bool:
        if self._every is None or (self.values and self.values[-1][0] >= step):
            return False
        return step % self._every == 0 or (step == last and last > self._every)

    def measure(self, phase: str, step: int) -> bool:
        """Measure the policy as it is; whether no step before was as good."""
        config = self._run.config
        measured = measure_policy("validation", self._policy, config, self._dataset, self._retriever, self._examples)
        found = means(measured.ranking, config.eval.ks)
        value = found[self.metric]
        is_best = all(value > before for _, before in self.values)
        self.values.append((step, value))
        log = JsonLines(self._run.folder / LOG, also=self._report)
        try:
            log.write({"phase": phase, "step": step, "users": len(self._examples), "best": is_best, **found})
        finally:
            log.close()
        best_step, best = max(self.values, key=lambda pair: (pair[1], -pair[0]))
        so_far = "the best so far" if is_best else f"best {best:.4f} after step {best_step:,}"
        console.log(f"Validation after step {step:,}: {self.metric} {value:.4f}, {so_far}")
        return is_best

    def course(self) -> tuple[str, list[tuple[int, float]]]:
        """The metric's name, and steps and values so far."""
        return self.metric, self.values

    def describe(self, folder: Path) -> None:
        """Say in a checkpoint what it reached."""
        step, value = self.values[-1]
        write_json(folder / "validation.json", {"step": step, self.metric: value, "users": len(self._examples)})

    def state(self) -> dict[str, Any]:
        return {"values": [list(pair) for pair in self.values]}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.values = [(int(step), float(value)) for step, value in state["values"]]
