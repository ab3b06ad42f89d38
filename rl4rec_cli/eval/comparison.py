"""The result of a comparison: several systems over the same users, and the verdict on them.

Decides: which differences are tested (every pair of up to three systems, else the first against every other, and each
hybrid against the one without a policy; Holm over all of them), which users are shown, and the role of seeds.
Hides: nothing of the ranks: every number can be computed again from the records.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec_cli.eval.checkpoint import describe_checkpoint
from rl4rec_cli.eval.evaluation import CACHED
from rl4rec_cli.eval.metrics import metric_names, per_user
from rl4rec_cli.eval.statistics import RESAMPLES, Difference, holm, paired_difference, reads, seeds_difference
from rl4rec_cli.eval.systems import System, differing_settings
from rl4rec_cli.eval.tables import against
from rl4rec_cli.files.logs import read_log
from rl4rec_cli.files.writing import strict
from rl4rec_cli.runs.folder import TRAINING_LOG

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.eval.evaluation import Evaluation
    from rl4rec_cli.eval.scoring import Measured

    Values = NDArray[np.float64]

EVERY_PAIR = 3
"""Systems up to which every pair is tested."""
SHOWN_USERS = 10
"""Users shown each way."""
MEAN_RESAMPLES = 2_000
"""Bootstrap samples for the interval of a single mean, which charts show and no test uses."""
SHOWN_HISTORY = 5
SHOWN_ITEMS = 3


@dataclass
class Comparison:
    """All systems over the same examples.

    Attributes:
        evaluation: examples, cut-offs, slices; its methods stay empty.
        measured: by system, one measurement for each of its seeds.
        about: what a reader needs to trust the rest.
    """

    evaluation: Evaluation
    dataset: Dataset
    systems: list[System]
    measured: dict[str, list[Measured]]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        return [c.label for c in self.systems]

    @property
    def _plain(self) -> list[System]:
        """The systems that are no policy's hybrid."""
        return [c for c in self.systems if c.without is None]

    def values(self, label: str) -> dict[str, Values]:
        """Returns every metric by name, `[seeds, users]`."""
        each = [per_user(m.ranking, self.evaluation.ks) for m in self.measured[label]]
        return {name: np.stack([values[name] for values in each]) for name in each[0]}

    @cached_property
    def headline(self) -> dict[str, Values]:
        """The compared metric by system, `[seeds, users]`."""
        return {label: self.values(label)[self.evaluation.headline] for label in self.labels}

    @cached_property
    def pairs(self) -> list[dict[str, Any]]:
        """The tested differences, `ours` minus `theirs`, with p values adjusted over all of them."""
        plain = [c.label for c in self._plain]
        names = list(itertools.combinations(plain, 2))
        if len(plain) > EVERY_PAIR:
            names = [(plain[0], other) for other in plain[1:]]
        names += [(c.label, c.without) for c in self.systems if c.without is not None]
        differences = [paired(*self._aligned(ours, theirs)) for ours, theirs in names]
        p_values = holm([d["p_value"] for d in differences])
        return [
            self._read({"ours": ours, "theirs": theirs, **d, "p_holm": float(p)})
            for (ours, theirs), d, p in zip(names, differences, p_values, strict=True)
        ]

    def _aligned(self, ours: str, theirs: str) -> tuple[Values, Values]:
        """Returns both systems' values `[seeds, users]`, with the seeds that both have in the same rows."""
        seeds = {c.label: c.seeds for c in self.systems}
        both = set(seeds[ours]) & set(seeds[theirs])

        def rows(label: str) -> Values:
            values, own = self.headline[label], seeds[label]
            if len(values) == 1:
                return values
            return values[sorted(range(len(values)), key=lambda row: (own[row] not in both, own[row]))]

        return rows(ours), rows(theirs)

    def _read(self, pair: dict[str, Any]) -> dict[str, Any]:
        interval = Difference(pair["mean"], pair["low"], pair["high"])
        pair["reads"] = reads(interval, pair["p_holm"])
        ours, theirs = (float(self.headline[pair[side]].mean()) for side in ("ours", "theirs"))
        where = f"on {len(self.evaluation.examples):,} {self.evaluation.split} users"
        difference = against(pair, f"{pair['theirs']} ({theirs:.4f})")
        pair["verdict"] = f"{where} {pair['ours']} reaches {self.evaluation.headline} {ours:.4f}, {difference}."
        return pair

    def most_different(self, ours: str, theirs: str, count: int = SHOWN_USERS) -> dict[str, list[dict[str, Any]]]:
        """Returns the users whom one system serves best compared with the other, each way.

        The compared metric orders them, then the rank.
        """
        gain_B = self._gains(ours, theirs)
        nearer_B = self._log_ranks(theirs) - self._log_ranks(ours)
        order = np.lexsort((-nearer_B, -gain_B))
        better = [int(i) for i in order if (gain_B[i], nearer_B[i]) > (0, 0)][:count]
        worse = [int(i) for i in order[::-1] if (gain_B[i], nearer_B[i]) < (0, 0)][:count]
        return {
            "ours_better": [self._user(row, (ours, theirs), float(gain_B[row])) for row in better],
            "theirs_better": [self._user(row, (ours, theirs), float(gain_B[row])) for row in worse],
        }

    def _gains(self, ours: str, theirs: str) -> Values:
        return averaged(self.headline[ours]) - averaged(self.headline[theirs])

    def _log_ranks(self, label: str) -> Values:
        logs: Values = np.mean([np.log(m.ranking.ranks) for m in self.measured[label]], axis=0)
        return logs

    def _user(self, row: int, labels: Sequence[str], difference: float) -> dict[str, Any]:
        example, titles = self.evaluation.examples[row], [str(item["title"]) for item in self.dataset.items]
        sides = {
            label: [
                {
                    "rank": int(m.ranking.ranks[row]),
                    "text": None if m.texts is None else " | ".join(m.texts[row]),
                    "best": [titles[i] for i in m.top_BK[row][:SHOWN_ITEMS] if i >= 0],
                }
                for m in self.measured[label]
            ]
            for label in labels
        }
        return {
            "user": example.user,
            "difference": difference,
            "history": [titles[i] for i in example.history[-SHOWN_HISTORY:]],
            "history_length": len(example.history),
            "target": titles[example.target],
            "sides": sides,
        }

    def records(self) -> list[dict[str, Any]]:
        """One record per user: target, the first pair's difference, all ranks and texts, one for each seed."""
        ours, theirs = self.labels[:2]
        gains_B = self._gains(ours, theirs)
        return [
            {
                "user": example.user,
                "target": example.target,
                "difference": float(gains_B[row]),
                "ranks": {label: [int(m.ranking.ranks[row]) for m in each] for label, each in self.measured.items()},
                "texts": {
                    label: [m.written(row) for m in each if m.texts is not None]
                    for label, each in self.measured.items()
                    if each[0].texts is not None
                },
            }
            for row, example in enumerate(self.evaluation.examples)
        ]

    @cached_property
    def report(self) -> dict[str, Any]:
        """`as_json` in plain JSON types, made once: its intervals take seconds."""
        report: dict[str, Any] = strict(self.as_json())
        return report

    def as_json(self) -> dict[str, Any]:
        """Returns the whole result, from which the page and the Markdown file are made."""
        from rl4rec_cli.eval.baselines import training_counts
        from rl4rec_cli.eval.behaviour import behaviour

        evaluation, counts = self.evaluation, training_counts(self.dataset)
        values = {label: self.values(label) for label in self.labels}
        names, users = metric_names(evaluation.ks), len(evaluation.examples)
        means = {label: {n: float(values[label][n].mean()) for n in names} for label in self.labels}
        spans = {label: {n: interval(values[label][n]) for n in names} for label in self.labels}
        conduct = {
            label: _average([behaviour(m, self.dataset, evaluation.examples, counts) for m in each])
            for label, each in self.measured.items()
        }
        ours, theirs = self.labels[:2]
        return {
            "split": evaluation.split,
            "users": users,
            "metric": evaluation.headline,
            "ks": list(evaluation.ks),
            "items": self.dataset.num_items,
            "verdicts": [pair["verdict"] for pair in self.pairs],
            "methods": means,
            "intervals": spans,
            "contestants": {c.label: self._about(c) for c in self.systems},
            "tested": self._tested(),
            "pairs": self.pairs,
            "most_different": {"ours": ours, "theirs": theirs, **self.most_different(ours, theirs)},
            "slices": {
                name: {"users": int(in_slice.sum())}
                | {label: _mean(self.headline[label][:, in_slice]) for label in self.labels}
                for name, in_slice in evaluation.slices.items()
            },
            "behaviour": conduct,
            "settings": differing_settings(self._plain),
            "rewards": {c.label: curves for c in self._plain if (curves := reward_curves(c))},
            **evaluation.about,
            **self.about,
            "records": self.records(),
        }

    def _tested(self) -> str:
        """Returns in words which pairs are tested."""
        plain, bases = self._plain, dict.fromkeys(c.without for c in self.systems if c.without is not None)
        text = "every pair" if len(plain) <= EVERY_PAIR else f"{plain[0].label} against every other"
        return ", ".join([text, *(f"each hybrid against {base}" for base in bases)])

    def _about(self, system: System) -> dict[str, Any]:
        each = self.measured[system.label]
        notes = [{k: v for k, v in m.notes.items() if k != CACHED} for m in each]
        return {
            "kind": "ceiling" if each[0].kind == "ceiling" else system.kind,
            "is": [e.model if e.model is not None else m.name for e, m in zip(system.members, each, strict=True)],
            "checkpoints": [
                describe_checkpoint(e.run, Path(e.model))
                for e in system.members
                if e.run is not None and e.model is not None
            ],
            "seeds": system.seeds,
            "notes": [note for note in notes if note],
        }


def paired(ours_SB: Values, theirs_SB: Values, *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Returns `ours - theirs` as a `Difference`'s fields, and `seeds` with the results that need several seeds.

    With several seeds on one side or both, mean, interval and p hold for other seeds and users
    (`statistics.seeds_difference`). Wins, losses and effect size are those of each user's average over the seeds.
    `users_needed` is None: no number of users makes up for too few seeds.

    Args:
        ours_SB, theirs_SB: `[seeds, users]`, equally many seeds or 1 on one side.
        resamples: see `statistics.paired_difference`.
    """
    is_single = len(ours_SB) == len(theirs_SB) == 1
    # With seeds, interval and p come from elsewhere: those made here are not to cost anything.
    own = resamples if is_single else 1
    whole = {**paired_difference(averaged(ours_SB), averaged(theirs_SB), resamples=own)._asdict(), "seeds": None}
    if is_single:
        return whole
    if len(ours_SB) == 1:  # as if exchanged, then mirrored
        over, sign = seeds_difference(theirs_SB, ours_SB[0], resamples=resamples), -1.0
    else:
        theirs = theirs_SB if len(theirs_SB) > 1 else theirs_SB[0]
        over, sign = seeds_difference(ours_SB, theirs, resamples=resamples), 1.0
    low, high = sorted((sign * over.low, sign * over.high))
    users_low, users_high = sorted((sign * over.users_low, sign * over.users_high))
    seeds = {
        "count": len(over.seed_means),
        "means": [sign * mean for mean in over.seed_means],
        "std": over.seed_std,
        "users_low": users_low,
        "users_high": users_high,
        "users_p_value": over.users_p_value,
    }
    p_value = over.p_value if math.isfinite(over.p_value) else 1.0  # one user tells nothing of others
    return {**whole, "low": low, "high": high, "p_value": p_value, "users_needed": None, "seeds": seeds}


def averaged(values_SB: Values) -> Values:
    """Returns each user's mean over the seeds, rounded so that equal values in another order tie exactly."""
    means_B: Values = values_SB.mean(axis=0)
    return means_B if len(values_SB) == 1 else np.round(means_B, 12)


def interval(values_SB: Values) -> list[float]:
    """Returns the 95 % interval of a metric's mean, over seeds too if there are several, cut to 0 … 1."""
    difference = paired(values_SB, np.zeros((1, values_SB.shape[1])), resamples=MEAN_RESAMPLES)
    return [max(0.0, difference["low"]), min(1.0, difference["high"])]


def _mean(values: Values) -> float:
    return float(values.mean()) if values.size else float("nan")


def _average(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([values[name] for values in each])) for name in each[0] if all(name in v for v in each)}


def reward_curves(system: System) -> list[dict[str, Any]]:
    """Returns the mean reward by step of every run that logged some, without incomplete lines of the log."""
    curves = []
    for member in system.members:
        records = read_log(member.run.folder / TRAINING_LOG)[0] if member.run is not None else []
        points = [(r["step"], r["avg_reward"]) for r in records if _is_number(r.get("avg_reward")) and "step" in r]
        if points:
            curves.append({"run": member.name, "steps": [p[0] for p in points], "values": [p[1] for p in points]})
    return curves


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
