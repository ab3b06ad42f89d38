"""What a run's policy reaches on the validation users of each of its datasets.

Decides: that every dataset has an evaluation of its own, as if it were alone, in `eval/` or, where there are several,
in `eval/NAME/`; that the mean over datasets counts each alike, however many users it has.
Hides: which evaluation belongs to which dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.eval import measuring
from rl4rec_cli.eval.baseline import measure_baselines, open_baselines
from rl4rec_cli.eval.evaluation import save_evaluation
from rl4rec_cli.eval.policies import measure_policy
from rl4rec_cli.files.writing import kept_after
from rl4rec_cli.shell import rl4rec

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.eval.evaluation import Evaluation
    from rl4rec_cli.eval.policies import Measurable
    from rl4rec_cli.runs.folder import Run
    from rl4rec_cli.train.environments import TrainingData
    from rl4rec_cli.train.trackers import Reports


class Outcome:
    """The evaluations of a run, one per dataset, which fill as the run measures.

    Args:
        audits: the line of the leakage audit for each dataset.

    Raises:
        DataError: a dataset has no validation users.
    """

    def __init__(self, config: RunConfig, environments: Sequence[TrainingData], audits: Mapping[str, str]) -> None:
        self._config = config
        self._datasets = [one.dataset for one in environments]
        self._environments = [one for one in environments if one.dataset.has_validation]
        self.evaluations: dict[str, Evaluation] = {}
        """By the datasets' names; none of a dataset whose validation targets are trained on."""
        for environment in self._environments:
            evaluation = measuring.start_evaluation(config.eval, environment.dataset, "validation")
            evaluation.about["audit"] = audits[environment.name]
            self.evaluations[environment.name] = evaluation

    def measure_baselines(self) -> None:
        for environment in self._environments:
            evaluation = self.evaluations[environment.name]
            task = measuring.open_task(
                self._config.eval, environment.dataset, environment.retriever, evaluation.examples
            )
            names, hybrid = self._config.eval.baselines, environment.hybrid
            evaluation.methods.extend(measure_baselines(open_baselines(names), task, "validation"))
            if hybrid is not None and hybrid.fusion.name not in names:
                evaluation.methods.append(hybrid.fusion.measure(task, "validation"))

    def measure(self, name: str, policy: Measurable) -> None:
        """Measures the policy as it is."""
        for environment in self._environments:
            evaluation, own = self.evaluations[environment.name], (environment.dataset, environment.retriever)
            evaluation.methods.append(measure_policy(name, policy, self._config, *own, evaluation.examples))

    def finish(self, run: Run) -> None:
        """Compares the tuned policy, which was measured last, with the other methods."""
        if not self.evaluations:
            is_measurable = all(dataset.has_test for dataset in self._datasets)
            targets = "validation targets" if is_measurable else "validation and test targets"
            on_test = f" On the test split: {rl4rec('eval', run.folder, '--split', 'test')}" if is_measurable else ""
            console.log(f"Nothing is measured here: the {targets} are trained on (data.fit).{on_test}")
        for environment in self._environments:
            evaluation = self.evaluations[environment.name]
            evaluation.subject = self._config.trainer.tuned_name
            if environment.hybrid is not None:
                tuned = evaluation.methods[-1]
                evaluation.methods.append(
                    environment.hybrid.measure(tuned, evaluation.examples, self._config.generation)
                )
            measuring.finish(evaluation, environment.dataset)
            measuring.note_checkpoint(evaluation, run, run.final)

    def show_and_save(self, run: Run, reports: Reports, show: Callable[[], None]) -> None:
        """Shows the evaluations, then writes and reports them.

        Raises:
            RunError: a file cannot be written.
        """
        with ExitStack() as stack:
            for name in self.evaluations:
                stack.enter_context(kept_after(partial(self._save, name, run, reports), run.results(name)))
            show()

    def _save(self, name: str, run: Run, reports: Reports) -> None:
        evaluation = self.evaluations[name]
        save_evaluation(evaluation, run.results(name))
        reports.final(evaluation, dataset=name if len(self._environments) > 1 else None)
