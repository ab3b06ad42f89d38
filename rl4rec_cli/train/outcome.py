"""What a run's policy reaches on the validation users of each of its datasets.

Decides: that every dataset has an evaluation of its own, as if it were alone, in `eval/` or, where there are several,
in `eval/NAME/`; that the mean over datasets counts each alike, however many users it has.
Hides: which evaluation belongs to which dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.eval import evaluate, evaluation
from rl4rec_cli.eval.baseline import measure_baselines
from rl4rec_cli.eval.policies import measure_policy
from rl4rec_cli.files.writing import kept_after

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.eval.evaluation import Evaluation
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.runs.folder import Run
    from rl4rec_cli.train.environments import Domain
    from rl4rec_cli.train.trackers import Reports


class Outcome:
    """The evaluations of a run, filled as things are measured.

    Args:
        audits: the leakage audit's line of each dataset.

    Raises:
        DataError: a dataset has no validation users.
    """

    def __init__(self, config: RunConfig, domains: Sequence[Domain], audits: Mapping[str, str]) -> None:
        self._config = config
        self._domains = domains
        self.evaluations: dict[str, Evaluation] = {}
        """By the datasets' names."""
        for domain in domains:
            found = evaluate.start_evaluation(config, domain.dataset, "validation")
            found.about["audit"] = audits[domain.name]
            self.evaluations[domain.name] = found

    def measure_baselines(self) -> None:
        for domain in self._domains:
            found = self.evaluations[domain.name]
            task = evaluate.open_task(self._config, domain.dataset, domain.retriever, found.examples)
            found.methods.extend(measure_baselines(self._config.eval.baselines, task, "validation"))

    def measure(self, name: str, policy: Policy) -> None:
        """Measure the policy as it is."""
        for domain in self._domains:
            found, own = self.evaluations[domain.name], (domain.dataset, domain.retriever)
            found.methods.append(measure_policy(name, policy, self._config, *own, found.examples))

    def finish(self, run: Run) -> None:
        """The tuned policy was measured last: compare."""
        for domain in self._domains:
            found = self.evaluations[domain.name]
            found.subject = evaluate.TUNED
            evaluate.finish(found, domain.dataset)
            evaluate.note_checkpoint(found, run, run.final)

    def show_and_save(self, run: Run, reports: Reports, seconds: float) -> None:
        """Print all tables, write what they show, and report it.

        Raises:
            RunError: it cannot be written.
        """
        with ExitStack() as stack:
            for name in self.evaluations:
                stack.enter_context(kept_after(partial(self._save, name, run, reports), run.results(name)))
            self._show(seconds)

    def _save(self, name: str, run: Run, reports: Reports) -> None:
        found = self.evaluations[name]
        evaluation.save_evaluation(found, run.results(name))
        reports.final(found, dataset=name if len(self._domains) > 1 else None)

    def _show(self, seconds: float) -> None:
        for number, (name, found) in enumerate(self.evaluations.items()):
            if number:
                console.result("")
            users, seed = f"{len(found.examples):,} users", f"seed {self._config.run.seed}"
            evaluation.print_evaluation(found, title=f"{name}, validation split, {users}, {seed} ({seconds:.0f} s)")
        if len(self.evaluations) > 1:
            evaluation.print_datasets(self.evaluations, start=evaluate.start_name(self._config))
