"""What policies reach on held-out prompts: rewards, each part of them, and lengths.

Decides: which figures are reported, and that the answers of the data stand beside the policies: `rejected` as the
baseline, `chosen` as a ceiling.
Hides: generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rl4rec_cli import console
from rl4rec_cli.eval import measuring
from rl4rec_cli.eval.evaluation import Evaluation, save_evaluation
from rl4rec_cli.eval.policies import sampling_of
from rl4rec_cli.files.digests import sha256
from rl4rec_cli.files.writing import kept_after
from rl4rec_cli.plan.phases import Phase, during
from rl4rec_cli.preference.judge import judge_probes
from rl4rec_cli.preference.measured import METRIC, PairMeasured
from rl4rec_cli.train.validation import Measurements

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.preference.data import PairsDataset
    from rl4rec_cli.preference.environment import PairEnvironment
    from rl4rec_cli.preference.judge import Judge
    from rl4rec_cli.preference.records import Pair
    from rl4rec_cli.runs.folder import Run
    from rl4rec_cli.train.trackers import Reports

REJECTED, CHOSEN = "rejected", "chosen"


@dataclass
class PairEvaluation(Evaluation):
    """All methods over the same held-out prompts."""

    unit: ClassVar[str] = "prompts"

    @property
    def headline(self) -> str:
        """The reward."""
        return METRIC

    def per_user(self, method: Any) -> dict[str, NDArray[np.float64]]:
        """Returns every figure of a method, `[B]` each."""
        figures: dict[str, NDArray[np.float64]] = method.figures
        return figures

    def means(self, method: Any, chosen: NDArray[np.bool_] | None = None) -> dict[str, float]:
        """Returns every figure of a method averaged over all prompts, or over those of the mask `chosen`."""
        return _means(method.figures, chosen)

    def as_json(self) -> dict[str, Any]:
        """Returns the result without the records."""
        return {**super().as_json(), "unit": self.unit}

    def records(self) -> list[dict[str, Any]]:
        """Returns one record per prompt: every method's text and reward."""
        pairs: Sequence[Any] = self.examples
        methods: Sequence[Any] = self.methods
        return [
            {
                "prompt": [turn._asdict() for turn in pair.prompt],
                "texts": {m.name: m.texts[row] for m in methods},
                "rewards": {m.name: float(m.scores.rewards[row]) for m in methods},
            }
            for row, pair in enumerate(pairs)
        ]


def _means(figures: Mapping[str, NDArray[np.float64]], chosen: NDArray[np.bool_] | None = None) -> dict[str, float]:
    return {name: float(values.mean() if chosen is None else values[chosen].mean()) for name, values in figures.items()}


def choose_pairs(pairs: Sequence[Pair], count: int | None) -> list[Pair]:
    """Draws the held-out pairs to measure, one of each prompt. A smaller draw is part of a larger one."""
    first = list({pair.key: pair for pair in reversed(pairs)}.values())[::-1]
    chosen = sorted(first, key=lambda pair: sha256(pair.key.encode("utf-8", "surrogatepass")))[:count]
    keys = {pair.key for pair in chosen}
    return [pair for pair in first if pair.key in keys]


@during(Phase.MEASURING)
def answer(
    name: str, policy: Policy, config: RunConfig, environment: PairEnvironment, pairs: Sequence[Pair]
) -> list[str]:
    """Returns a policy's completion for each pair's prompt. The run's seed decides it where it is sampled."""
    from transformers import set_seed

    from rl4rec_cli.policy.generation import generate_texts

    prompts = [environment.builder.build(pair).ids for pair in pairs]
    set_seed(config.run.seed)
    with console.progress(len(prompts), f"Writing completions: {name}") as advance:
        return generate_texts(policy, prompts, sampling_of(config), batch_size=config.eval.batch_size, progress=advance)


class PairOutcome:
    """The evaluation of a run, which fills as the run measures.

    Args:
        environment: prompts and rewards.
        held_out: pairs that fit the prompt's limit.
        judge: asked about the tuned policy's answers.
    """

    def __init__(
        self,
        config: RunConfig,
        environment: PairEnvironment,
        dataset: PairsDataset,
        held_out: Sequence[Pair],
        judge: Judge | None = None,
    ) -> None:
        self._config, self._environment, self._judge = config, environment, judge
        self._pairs = choose_pairs(held_out, config.eval.users)
        self.evaluations: dict[str, Evaluation] = {}
        if self._pairs:
            about = {"dataset": dataset.name, "dataset_digest": dataset.digest}
            examples: list[Any] = self._pairs
            self.evaluations[dataset.name] = PairEvaluation("validation", examples, (), about=about)

    def measure_baselines(self) -> None:
        """Scores the answers of the data."""
        for name, kind in ((REJECTED, "baseline"), (CHOSEN, "ceiling")):
            self._add(name, [getattr(pair, name) for pair in self._pairs], kind)

    def measure(self, name: str, policy: Policy) -> None:
        """Measures the policy as it is."""
        if self._pairs:
            self._add(name, answer(name, policy, self._config, self._environment, self._pairs), "policy")

    def _add(self, name: str, texts: list[str], kind: str) -> None:
        for evaluation in self.evaluations.values():
            methods: list[Any] = evaluation.methods
            methods.append(PairMeasured(name, texts, self._environment.scorer.score(texts, self._pairs), kind))

    def finish(self, run: Run) -> None:
        """Compares the tuned policy, which was measured last, with the other methods."""
        if not self.evaluations:
            console.log("Nothing is measured: no prompts are held out (data.pairs.held_out)")
        for evaluation in self.evaluations.values():
            evaluation.subject = self._config.trainer.tuned_name
            if self._judge is not None:
                start: Any = evaluation.method(self._config.trainer.start_name)
                ours: Any = evaluation.method(evaluation.subject)
                evaluation.probes = judge_probes(self._judge, self._pairs, ours, start)
                evaluation.about["probes_line"] = f"The judge is {self._judge.name}."
            measuring.note_checkpoint(evaluation, run, run.final)

    def show_and_save(self, run: Run, reports: Reports, show: Callable[[], None]) -> None:
        """Shows the evaluation, then writes and reports it.

        Raises:
            RunError: a file cannot be written.
        """
        with ExitStack() as stack:
            for name, evaluation in self.evaluations.items():
                folder = run.results(name)
                stack.enter_context(kept_after(partial(_save, evaluation, run, name, reports), folder))
            show()


def _save(evaluation: Evaluation, run: Run, name: str, reports: Reports) -> None:
    save_evaluation(evaluation, run.results(name))
    reports.final(evaluation)


class HeldOut(Measurements):
    """Measures a policy on held-out prompts during training.

    Args:
        held_out: pairs that fit the prompt's limit.
        report: gets every record of `validation_log.jsonl`.
    """

    def __init__(
        self,
        run: Run,
        policy: Policy,
        environment: PairEnvironment,
        held_out: Sequence[Pair],
        *,
        report: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        section = run.config.eval
        self._policy, self._environment = policy, environment
        self._pairs = choose_pairs(held_out, section.step_users)
        every = section.steps if self._pairs else None
        super().__init__(run, every=every, users=len(self._pairs), metric=METRIC, report=report)

    def figures(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns the means of the figures."""
        texts = answer("validation", self._policy, self._run.config, self._environment, self._pairs)
        measured = PairMeasured("validation", texts, self._environment.scorer.score(texts, self._pairs), "policy")
        return _means(measured.figures), {}
