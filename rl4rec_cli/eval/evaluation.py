"""The result of an evaluation: methods over the same users, the verdict on them, and its files.

Decides: which differences are tested (the subject against every other method that knows as little, and the best hybrid
with it against the best one without it; Holm over all of them), what is reported beside the means, and which claims are
made: a method is better only if its interval excludes 0 and its p value, adjusted over all comparisons, is below .05;
otherwise "no difference shown".
Hides: nothing of the ranks: every number here can be computed again from the per-user records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from rl4rec_cli.errors import DataError
from rl4rec_cli.eval.metrics import headline, means, per_user
from rl4rec_cli.eval.scoring import FUSION, TEXTS, WEIGHED
from rl4rec_cli.eval.statistics import Difference, holm, paired_difference, reads
from rl4rec_cli.eval.tables import against
from rl4rec_cli.files.locks import exclusive
from rl4rec_cli.files.writing import write_json, write_jsonl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.data.dataset import Example, Split
    from rl4rec_cli.eval.probes import Probe
    from rl4rec_cli.eval.scoring import Measured

Name = TypeVar("Name", str, tuple[str, str])
CACHED = "cached"
"""The note of a measurement from the cache, which is no part of the result."""


@dataclass
class Evaluation:
    """All methods over the same examples. It is filled method by method and read when all are measured."""

    split: Split
    examples: list[Example]
    ks: tuple[int, ...]
    slices: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Parts of the examples by name, `[B]` each, with means of their own."""
    methods: list[Measured] = field(default_factory=list)
    subject: str | None = None
    """The method to compare with all others; None if there are only baselines."""
    behaviour: dict[str, dict[str, float]] = field(default_factory=dict)
    """What each method recommends and writes, see `behaviour.py`."""
    probes: list[Probe] = field(default_factory=list)
    kept_in: Path | None = None
    """The folder of its files; None if it belongs to no run."""
    about: dict[str, Any] = field(default_factory=dict)
    """Dataset digest, audit, openings of the test split: whatever a reader needs to trust the rest."""

    unit: ClassVar[str] = "users"
    """What is measured, in words."""

    def method(self, name: str) -> Measured | None:
        return next((m for m in self.methods if m.name == name), None)

    def metric(self, name: str) -> NDArray[np.float64]:
        """Returns the headline metric of a method, `[B]`.

        Raises:
            DataError: no such method.
        """
        method = self.method(name)
        if method is None:
            raise DataError(f"no {name!r} among {[m.name for m in self.methods]}")
        return self.per_user(method)[self.headline]

    def per_user(self, method: Any) -> dict[str, NDArray[np.float64]]:
        """Returns every metric of a method, `[B]` each."""
        return per_user(method.ranking, self.ks)

    def means(self, method: Any, chosen: NDArray[np.bool_] | None = None) -> dict[str, float]:
        """Returns every metric of a method averaged over all users, or over those of the mask `chosen`."""
        return means(method.ranking, self.ks, chosen)

    @property
    def headline(self) -> str:
        """The metric that is compared, see `metrics.headline`."""
        return headline(self.ks)

    def difference(self, ours: str, theirs: str) -> Difference:
        """Returns the paired difference of two methods in the headline metric."""
        return paired_difference(self.metric(ours), self.metric(theirs))

    @property
    def differences(self) -> dict[str, dict[str, Any]]:
        """The subject minus every other method but ceilings, with p values adjusted over all that is tested (Holm)."""
        return {theirs: d for (ours, theirs), d in self._tested().items() if ours == self.subject}

    @property
    def hybrids(self) -> dict[str, Any] | None:
        """The best hybrid with the policy (`ours`) minus the best one without it (`theirs`), as in `differences`.

        None if one of them was not measured.
        """
        pair = self._hybrid_pair()
        return None if pair is None else {"ours": pair[0], "theirs": pair[1], **self._tested()[pair]}

    def _hybrid_pair(self) -> tuple[str, str] | None:
        hybrids = [method for method in self.methods if method.is_hybrid or method.is_partner]
        best = [
            max(names, key=lambda name: float(self.metric(name).mean()), default=None)
            for names in ([m.name for m in hybrids if m.kind == kind] for kind in ("policy", "baseline"))
        ]
        return None if self.subject is None or best[0] is None or best[1] is None else (best[0], best[1])

    def _tested(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Returns all tested differences, by the two methods."""
        if self.subject is None:
            return {}
        others = [m.name for m in self.methods if m.name != self.subject and m.kind != "ceiling"]
        pairs = [(self.subject, other) for other in others]
        pair = self._hybrid_pair()
        return compare_all({(a, b): self.difference(a, b) for a, b in [*pairs, *([pair] if pair is not None else [])]})

    @property
    def verdict(self) -> str:
        """A sentence on whether the subject beats the best baseline and what it started from, and by how much.

        It says what the subject adds to the best hybrid, and names failed probes. Without a subject it names the best
        baseline.
        """
        means = {m.name: float(self.metric(m.name).mean()) for m in self.methods}
        where = f"on {len(self.examples):,} {self.split} {self.unit}"
        baselines = [m.name for m in self.methods if m.kind == "baseline"]
        best = max(baselines, key=means.__getitem__, default=None)
        metric, ours = self.headline, self.subject
        if ours is None:
            if best is None:
                return "nothing but ceilings was measured."
            return f"{where} the best baseline is {best} ({metric} {means[best]:.4f}); no policy was measured."
        parts, differences = [], self.differences
        for role, other in (("the best baseline", best), ("what it started from", self._start())):
            if other is not None:
                parts.append(against(differences[other], f"{role}, {other} ({means[other]:.4f})"))
        texts = self._texts_of(ours)
        by_several = f" with {texts} completions of each user" if texts != 1 else ""
        text = f"{where} {ours} reaches {metric} {means[ours]:.4f}{by_several}"
        text += f": {', and '.join(parts)}" if parts else ", and nothing was measured beside it"
        if (hybrids := self.hybrids) is not None:
            with_it, without_it = hybrids["ours"], hybrids["theirs"]
            method = self.method(without_it)
            best_other = "the best" if method is not None and method.is_partner else "the best hybrid"
            other = f"{best_other} without it, {without_it} ({means[without_it]:.4f})"
            text += f"; the best hybrid with it, {with_it}, reaches {means[with_it]:.4f}, {against(hybrids, other)}"
        failures = [probe.finding for probe in self.probes if probe.passed is False]
        if failures:
            text += "; BUT " + ", and ".join(failures)
        return text + "."

    def _start(self) -> str | None:
        from rl4rec_cli.config.trainer import trainer_sections

        names = {section.start_name for section in trainer_sections().values()}
        return next((m.name for m in self.methods if m.name in names and m.name != self.subject), None)

    def as_json(self) -> dict[str, Any]:
        """Returns the result without the per-user records."""
        return {
            "split": self.split,
            "users": len(self.examples),
            "metric": self.headline,
            "verdict": self.verdict,
            "subject": self.subject,
            "methods": {m.name: self.means(m) for m in self.methods},
            "kinds": {m.name: m.kind for m in self.methods},
            "notes": {
                m.name: notes for m in self.methods if (notes := {k: v for k, v in m.notes.items() if k != CACHED})
            },
            "slices": {
                name: {"users": int(in_slice.sum())}
                | {m.name: self.means(m, in_slice)[self.headline] for m in self.methods}
                for name, in_slice in self.slices.items()
            },
            "differences": self.differences,
            **({"hybrids": hybrids} if (hybrids := self.hybrids) is not None else {}),
            "behaviour": self.behaviour,
            **self._texts(),
            "probes": [probe.as_json() for probe in self.probes],
            **self.about,
        }

    def _texts_of(self, name: str) -> object:
        """Returns how many completions of each user a method ranks as one."""
        method = self.method(name)
        return 1 if method is None else method.notes.get(TEXTS, 1)

    def _texts(self) -> dict[str, Any]:
        """Returns what a result says where methods rank several completions of each user as one; else nothing."""
        names = [method.name for method in self.methods if TEXTS in method.notes]
        if not names:
            return {}
        texts, fusion = (next(m.notes[key] for m in self.methods if key in m.notes) for key in (TEXTS, FUSION))
        weights = next((m.notes[WEIGHED] for m in self.methods if WEIGHED in m.notes), None)
        weighed = "" if weights is None else f", weighed by {weights}"
        line = f"{texts} completions of each user are ranked as one, by {fusion}{weighed}: {', '.join(names)}."
        more = {} if weights is None else {WEIGHED: weights}
        return {TEXTS: texts, FUSION: fusion, **more, "texts_line": line}

    def records(self) -> list[dict[str, Any]]:
        """Returns one record per user: target, and every method's rank and text."""
        return [
            {
                "user": example.user,
                "target": example.target,
                "ranks": {m.name: int(m.ranking.ranks[row]) for m in self.methods},
                "texts": {m.name: m.written(row) for m in self.methods if m.texts is not None},
                **({"log_probs": log_probs} if (log_probs := self._log_probs(row)) else {}),
            }
            for row, example in enumerate(self.examples)
        ]

    def _log_probs(self, row: int) -> dict[str, list[float]]:
        return {m.name: m.log_probs[row] for m in self.methods if m.log_probs is not None}


def compare_all(differences: Mapping[Name, Difference]) -> dict[Name, dict[str, Any]]:
    """Returns differences as JSON, each with its p value adjusted over all of them and its reading."""
    p_values = holm([d.p_value for d in differences.values()])
    return {
        name: {**d._asdict(), "p_holm": float(p), "reads": reads(d, float(p))}
        for (name, d), p in zip(differences.items(), p_values, strict=True)
    }


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Writes `SPLIT.json` and `SPLIT_users.jsonl` under a lock, so that both are of one evaluation."""
    result, records = evaluation.as_json(), evaluation.records()
    with exclusive(folder / evaluation.split):
        write_json(folder / f"{evaluation.split}.json", result)
        write_jsonl(folder / f"{evaluation.split}_users.jsonl", records)
