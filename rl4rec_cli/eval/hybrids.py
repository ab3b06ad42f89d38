"""Hybrids: one ranking by what a text says and by what a sequence model knows.

Decides: that a hybrid with the policy stands beside one without it, by the same sequence model and rules, so that their
difference is what the policy adds; and that validation users choose the weight. On the validation split each half of
the users chooses it for the other half. Where nobody can choose a weight, it says so before anything is measured.
Hides: what is kept in the cache, and which weights are tried (`fusion.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from rl4rec_cli.config.registries import HYBRIDS
from rl4rec_cli.data.dataset import Example
from rl4rec_cli.errors import DataError
from rl4rec_cli.eval.baseline import Baseline, ScoreBaseline, Subject, open_baseline
from rl4rec_cli.eval.baselines import open_sasrec_scores, open_transitions
from rl4rec_cli.eval.examples import choose_examples
from rl4rec_cli.eval.scoring import Measured, SparseScores, Task, VectorScores, measure
from rl4rec_cli.eval.vector_method import VectorMethod
from rl4rec_cli.files.digests import sha256_of_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.data.dataset import Dataset, Fit, Split
    from rl4rec_cli.eval.fused_scores import Fused
    from rl4rec_cli.eval.fused_texts import FusedTexts

    ScoreExamples = Callable[[Sequence[Example]], VectorScores | SparseScores]

CHOOSERS = 5_000
"""Validation users who choose the weight for a result on the test split, and for recommendations."""
_CODE = ("hybrids", "fusion", "fused_scores", "fused_texts", "mixed_texts", "spreads")
"""Modules whose text decides a hybrid's ranks."""
_WITHOUT = "leave out --fuse (eval.fuse), or this baseline"


class Fusion(Baseline):
    """A sequence model's scores joined to text retrieval: to the last item's text, and to the policy's completions.

    Args:
        sequence_model: name of the baseline that scores by what followed what.
        open_scores: opens it for a task's dataset: returns a function from any examples to their scores.
    """

    is_chosen = True

    def __init__(self, sequence_model: str, open_scores: Callable[[Task], ScoreExamples]) -> None:
        self.sequence_model = sequence_model
        self.open_scores = open_scores

    @property
    def label(self) -> str:
        """The sequence model's name in tables."""
        return self._model().shown_name

    def name_with(self, method: str) -> str:
        """Returns the name in tables of a method's hybrid."""
        return f"{method} + {self.label}"

    @property
    def own_name(self) -> str:
        """The name in tables of the hybrid without a policy."""
        return self.name_with(_last_item().shown_name)

    def check(
        self,
        dataset: Dataset,
        examples: Sequence[Example],
        split: Split,
        weights: Mapping[str, float] | None = None,
        *,
        method: str | None = None,
    ) -> None:
        """Checks that the sequence model has something to learn from, and that somebody can choose a weight.

        Args:
            weights: those that are not to be chosen, by the name of what is fused.
            method: the name of the only one that is fused; None: the last item, and others.

        Raises:
            DataError: no training part has two items, the validation targets are trained on, or there are fewer than
                two validation users.
        """
        refusal = f"dataset {dataset.name}: {self.label} cannot be fused"
        if all(len(part) < 2 for part in dataset.training_parts):
            raise DataError(f"{refusal}: no training part has two items, so nothing follows anything", hint=_WITHOUT)
        if not dataset.has_validation:
            if weights and (method or _last_item().shown_name) in weights:
                return
            raise DataError(
                f"{refusal}: validation users choose the weight, and what is trained has seen their targets "
                f"(data.fit={dataset.fit})",
                hint="name the weights that data.fit=train chose, of each that is fused"
                f"{'' if method else ' and of the last item'}: "
                f"--set 'eval.fuse_weights={{{method or _last_item().shown_name}: 0.85}}'; or {_WITHOUT}",
            )
        users = examples if split == "validation" else choosers(dataset)
        if len(users) < 2:
            there = f"{len(users)} validation user{'' if len(users) == 1 else 's'}"
            raise DataError(
                f"{refusal}: validation users choose the weight, and there are fewer than two ({there})",
                hint=f"measure more users (eval.users), or {_WITHOUT}" if split == "validation" else _WITHOUT,
            )

    def measure(self, task: Task, split: Split) -> Measured:
        """Measures the hybrid without the policy: the sequence model and the last item's text."""
        return self.measure_with(last_item(task), task, split)

    def measure_joined(self, subject: Subject) -> Measured:
        """Measures the hybrid with the policy."""
        method = subject.models.vector_method(subject.name, subject.checkpoint)
        return self.measure_with(method, subject.task, subject.split)

    def measure_with(self, method: VectorMethod, task: Task, split: Split) -> Measured:
        """Measures the hybrid of a method, or reads it from the cache.

        Raises:
            DataError: as `check`.
        """
        given = self._given(method, task)
        if given is None:
            self.check(task.dataset, task.examples, split, method=method.name)

        def compute() -> Measured:
            fused, notes = self._fused(method, task)
            if given is not None:
                weights_B = np.full(len(task.examples), given)
            elif split == "validation":
                from rl4rec_cli.eval.fusion import cross_fitted

                weights_B = cross_fitted(fused, *_targets_and_masks(task)).weights
            else:
                weights_B = np.full(len(task.examples), self.choose(method, task))
            notes["weights"] = sorted(set(weights_B.tolist()))
            return self._measure(method, task, fused, weights_B, notes)

        what = f"measured on {split}" if given is None else f"measured with {given!r}"
        return self._kept(method, task, what, compute)

    def _given(self, method: VectorMethod, task: Task) -> float | None:
        """Returns the weight that is not to be chosen, or None.

        Raises:
            DataError: it is not named, and nobody can choose it.
        """
        given = task.fuse_weights.get(method.name)
        if given is None and not task.dataset.has_validation:
            self.check(task.dataset, (), "test", method=method.name)
        return given

    def choose(self, method: VectorMethod, task: Task) -> float:
        """Returns the weight of the method's own scores that validation users choose. The cache keeps it.

        Raises:
            DataError: as `check`.
        """
        if (given := self._given(method, task)) is not None:
            return given
        self.check(task.dataset, (), "test", method=method.name)
        chooser = replace(task, examples=choosers(task.dataset))

        def compute() -> Measured:
            from rl4rec_cli.eval.fusion import choose_weight

            fused, notes = self._fused(method, chooser)
            weight, scores = choose_weight(fused, *_targets_and_masks(chooser))
            tried = {f"{tried_weight:g}": score for tried_weight, score in scores.items()}
            return self._measure(method, chooser, fused, weight, {**notes, "weights": [weight], "ndcg@10": tried})

        kept = self._kept(method, chooser, "weight", compute)
        return cast("list[float]", kept.notes["weights"])[0]

    def open_hybrid(self, method: VectorMethod, task: Task) -> Hybrid:
        """Returns the hybrid of a method for histories of today, with the weight that validation users choose.

        Raises:
            DataError: as `check`.
        """
        weight = self.choose(method, task)
        scores, fitted_on = self._scores_of_today(task)
        return Hybrid(self.label, weight, scores, fitted_on)

    def _scores_of_today(self, task: Task) -> tuple[ScoreExamples, Fit]:
        """Returns the sequence model's scores of histories of today, and what it was fitted on: all that is known."""
        everything = replace(task.dataset, fit="everything")
        return self.open_scores(replace(task, dataset=everything)), everything.fit

    def model_key(self, task: Task) -> dict[str, object]:
        """Returns what the sequence model's scores depend on besides the dataset and the examples."""
        return self._model().key(task)

    def _model(self) -> ScoreBaseline:
        return cast(ScoreBaseline, open_baseline(self.sequence_model))

    def _fused(self, method: VectorMethod, task: Task) -> tuple[Fused, dict[str, object]]:
        """Returns the two scores joined, and notes on how the sequence model was made."""
        from rl4rec_cli.eval.fused_scores import fuse

        own = method.scores(task.examples)  # a policy that cannot be loaded fails before a model is trained
        theirs = self.open_scores(task)(task.examples)
        return fuse(own, theirs), {self.sequence_model: theirs.notes} if theirs.notes else {}

    def _measure(
        self, method: VectorMethod, task: Task, fused: Fused, weight: object, notes: dict[str, object]
    ) -> Measured:
        """Measures the fused scores; `weight` as for `Fused.at`."""
        scored = fused.at(weight)  # type: ignore[arg-type]
        name = self.name_with(method.name)
        return measure(name, scored, task.dataset, task.examples, kind=method.kind, notes=notes)

    def _kept(self, method: VectorMethod, task: Task, what: str, compute: Callable[[], Measured]) -> Measured:
        from rl4rec_cli.eval.cache import cached

        folder = Path(__file__).parent
        key: dict[str, object] = {
            "hybrid": what,
            "method": method.key(task.examples),
            "sequence model": self.model_key(task),
            "code": [sha256_of_file(folder / f"{name}.py") for name in _CODE],
        }
        return replace(cached(task, key, compute), is_hybrid=True)


fusion = Fusion("sasrec", open_sasrec_scores)
fusion_transitions = Fusion("transitions", open_transitions)


@dataclass
class Hybrid:
    """A fusion whose weight is chosen, for histories of today. `Fusion.open_hybrid` makes it.

    Attributes:
        label: the sequence model's name in tables.
        weight: of the method's own scores.
        fitted_on: what the sequence model was fitted on.
    """

    label: str
    weight: float
    sequence_scores: ScoreExamples
    fitted_on: Fit = "everything"
    _last: Fused | None = None

    def best(
        self, own: VectorScores | FusedTexts, history: Sequence[int], k: int, *, mask: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns the ids and the fused scores of a history's `k` best items, best first, without those left out.

        Args:
            own: the method's own scores for this history.
            mask: leave out the history's items.
        """
        from rl4rec_cli.eval.fused_scores import fuse

        example = Example("", tuple(history), history[-1])  # scores do not read the target
        self._last = fuse(own, self.sequence_scores([example]), like=self._last)
        ids_1K, scores_1K = self._last.at(self.weight).best(k, [history] if mask else None)
        is_item = ids_1K[0] >= 0
        return ids_1K[0][is_item], scores_1K[0][is_item]


def open_fusion(sequence_model: str) -> Fusion | None:
    """Returns the fusion that `eval.fuse` names, or None for `none`."""
    name = HYBRIDS.get(sequence_model)
    return None if name is None else cast(Fusion, open_baseline(name))


def choosers(dataset: Dataset) -> list[Example]:
    """Returns the validation users who choose a weight for others.

    Raises:
        DataError: there is none.
    """
    return choose_examples(dataset, "validation", CHOOSERS)


def last_item(task: Task) -> VectorMethod:
    """Returns retrieval by the last item's text."""
    baseline = _last_item()

    def scores(examples: Sequence[Example]) -> VectorScores:
        return cast(VectorScores, baseline.score(replace(task, examples=examples)))

    return VectorMethod(baseline.shown_name, baseline.kind, scores, lambda examples: baseline.key(task))


def _last_item() -> ScoreBaseline:
    return cast(ScoreBaseline, open_baseline("last_item"))


def _targets_and_masks(task: Task) -> tuple[list[int], list[tuple[int, ...]] | None]:
    histories = [example.history for example in task.examples]
    return [example.target for example in task.examples], histories if task.dataset.mask_history else None
