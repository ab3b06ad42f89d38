"""The result of an evaluation: what is written to files, and what tables show of it.

Decides: which differences are tested (the subject against every other method that knows as little, Holm over all of
them), what is reported beside the means, and how a result reads on a terminal.
Hides: nothing of the ranks: every number here can be made again from the per-user records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec_cli import console
from rl4rec_cli.errors import DataError
from rl4rec_cli.eval.metrics import headline, means, per_user
from rl4rec_cli.eval.statistics import Difference, holm, paired_difference, reads, seeds_difference
from rl4rec_cli.files.locks import exclusive
from rl4rec_cli.files.writing import write_json, write_jsonl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.data.dataset import Example, Split
    from rl4rec_cli.eval.probes import Probe
    from rl4rec_cli.eval.scoring import Measured

CACHED = "cached"
"""The note of a measurement that was read back: nothing of the result itself."""
BEHAVIOUR = "What is recommended and written"
Table = tuple[Sequence[str], list[list[str]]]
"""Columns and rows."""


@dataclass
class Evaluation:
    """All methods over the same examples; filled as they are measured, read when all are."""

    split: Split
    examples: list[Example]
    ks: tuple[int, ...]
    slices: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Parts of the examples by name, `[B]` each, whose means are reported too."""
    methods: list[Measured] = field(default_factory=list)
    subject: str | None = None
    """The method that is compared with all others; None where only baselines were measured."""
    behaviour: dict[str, dict[str, float]] = field(default_factory=dict)
    """What each method recommends and writes, see `behaviour.py`."""
    probes: list[Probe] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    """Dataset digest, audit, openings of the test split: whatever a reader needs to trust the rest."""

    def method(self, name: str) -> Measured | None:
        return next((m for m in self.methods if m.name == name), None)

    def metric(self, name: str) -> NDArray[np.float64]:
        """`[B]` the headline metric of a method.

        Raises:
            DataError: no such method.
        """
        method = self.method(name)
        if method is None:
            raise DataError(f"no {name!r} among {[m.name for m in self.methods]}")
        return per_user(method.ranking, self.ks)[self.headline]

    @property
    def headline(self) -> str:
        """The metric that is compared, see `metrics.headline`."""
        return headline(self.ks)

    def difference(self, ours: str, theirs: str) -> Difference:
        """Paired difference of two methods in the headline metric."""
        return paired_difference(self.metric(ours), self.metric(theirs))

    @property
    def differences(self) -> dict[str, dict[str, Any]]:
        """The subject minus every other method but ceilings, with p values adjusted over all of them (Holm)."""
        others = [m.name for m in self.methods if m.name != self.subject and m.kind != "ceiling"]
        if self.subject is None:
            return {}
        return compare_all({name: self.difference(self.subject, name) for name in others})

    def as_json(self) -> dict[str, Any]:
        """Everything but the per-user records."""
        from rl4rec_cli.eval.verdict import verdict

        return {
            "split": self.split,
            "users": len(self.examples),
            "metric": self.headline,
            "verdict": verdict(self),
            "subject": self.subject,
            "methods": {m.name: means(m.ranking, self.ks) for m in self.methods},
            "kinds": {m.name: m.kind for m in self.methods},
            "notes": {
                m.name: notes for m in self.methods if (notes := {k: v for k, v in m.notes.items() if k != CACHED})
            },
            "slices": {
                name: {"users": int(chosen.sum())}
                | {m.name: means(m.ranking, self.ks, chosen)[self.headline] for m in self.methods}
                for name, chosen in self.slices.items()
            },
            "differences": self.differences,
            "behaviour": self.behaviour,
            "probes": [probe.as_json() for probe in self.probes],
            **self.about,
        }

    def records(self) -> list[dict[str, Any]]:
        """One record per user: target, and every method's rank and text."""
        return [
            {
                "user": example.user,
                "target": example.target,
                "ranks": {m.name: int(m.ranking.ranks[row]) for m in self.methods},
                "texts": {m.name: m.texts[row] for m in self.methods if m.texts is not None},
            }
            for row, example in enumerate(self.examples)
        ]


def compare_all(differences: Mapping[str, Difference]) -> dict[str, dict[str, Any]]:
    """Differences as JSON, each with its p value adjusted over all of them and what it reads as."""
    adjusted = holm([d.p_value for d in differences.values()])
    return {
        name: {**d._asdict(), "p_holm": float(p), "reads": reads(d, float(p))}
        for (name, d), p in zip(differences.items(), adjusted, strict=True)
    }


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """`SPLIT.json` and `SPLIT_users.jsonl`, both of this evaluation, whoever else saves one there."""
    result, records = evaluation.as_json(), evaluation.records()
    with exclusive(folder / evaluation.split):
        write_json(folder / f"{evaluation.split}.json", result)
        write_jsonl(folder / f"{evaluation.split}_users.jsonl", records)


def print_evaluation(evaluation: Evaluation, *, title: str, whole: bool = False) -> None:
    """The table of means, the differences, with `whole` slices and behaviour too, the probes, and the verdict."""
    found = evaluation.as_json()
    shown = shown_names(found["kinds"])
    console.table(title, *metric_table(found["methods"], shown))
    tables = [(tested_title(found), difference_table(found["differences"]))]
    if whole:
        tables.append((slices_title(found), slice_table(found["slices"], shown)))
        tables.append((BEHAVIOUR, behaviour_table(found["behaviour"])))
    tables.append(("Probes", probe_table(found["probes"])))
    for name, table in tables:
        if table[1]:
            console.result("")
            console.table(name, *table)
    for line in (
        found.get("data_line"),
        found.get("checkpoint_line"),
        found.get("test_openings_line"),
        found.get("audit"),
    ):
        if line:
            console.result(f"\n{line}")
    console.result(f"\nVerdict: {found['verdict']}")


def shown_names(kinds: Mapping[str, str]) -> dict[str, str]:
    """How each method is called in a table."""
    return {name: f"{name} (ceiling)" if kind == "ceiling" else name for name, kind in kinds.items()}


def tested_title(found: Mapping[str, Any]) -> str:
    """`tuned policy minus …, ndcg@10, 1,000 users`"""
    return f"{found['subject']} minus …, {found['metric']}, {found['users']:,} users"


def slices_title(found: Mapping[str, Any]) -> str:
    return f"{found['metric']} by slice (users in it)"


def metric_table(methods: Mapping[str, Mapping[str, float]], shown: Mapping[str, str], first: str = "method") -> Table:
    """Columns and rows of the means."""
    names = list(next(iter(methods.values()), {}))
    return (first, *names), [
        [shown.get(label, label), *(f"{values[name]:.4f}" for name in names)] for label, values in methods.items()
    ]


def difference_table(differences: Mapping[str, Mapping[str, Any]]) -> Table:
    """Columns and rows of the subject minus every other method."""
    columns = ("method", "difference", "95 % interval", "p (Holm)", "d", "won / lost", "users needed", "verdict")
    rows = [
        [
            name,
            f"{d['mean']:+.4f}",
            f"[{d['low']:+.4f}, {d['high']:+.4f}]",
            p_text(d["p_holm"]),
            "-" if d["effect_size"] is None else f"{d['effect_size']:+.3f}",
            f"{d['wins']:,} / {d['losses']:,}",
            "-" if d["users_needed"] is None else f"{d['users_needed']:,}",
            d["reads"],
        ]
        for name, d in differences.items()
    ]
    return columns, rows


def slice_table(slices: Mapping[str, Mapping[str, Any]], shown: Mapping[str, str], first: str = "method") -> Table:
    """Columns and rows of the headline metric by part of the users."""
    columns = (first, *(f"{name} ({part['users']:,})" for name, part in slices.items()))
    rows = [[shown[label], *(_decimals(part[label], 4) for part in slices.values())] for label in shown]
    return columns, rows if slices else []


def behaviour_table(
    behaviour: Mapping[str, Mapping[str, float]], shown: Mapping[str, str] | None = None, first: str = "method"
) -> Table:
    """Columns and rows of what is recommended and written."""
    names = list(dict.fromkeys(name for values in behaviour.values() for name in values))
    rows = [
        [(shown or {}).get(label, label), *(_decimals(values.get(name), 3) for name in names)]
        for label, values in behaviour.items()
    ]
    return (first, *(name.replace("_", " ") for name in names)), rows if names else []


def probe_table(probes: Sequence[Mapping[str, Any]]) -> Table:
    """Columns and rows of the probes."""
    rows = []
    for probe in probes:
        d, passed = probe["difference"], probe["passed"]
        result = "passed" if passed else "FAILED" if passed is False else "-"
        interval = f"[{d['low']:+.4f}, {d['high']:+.4f}]"
        rows.append([probe["name"], probe["measures"], f"{d['mean']:+.4f}", interval, p_text(d["p_value"]), result])
    return ("probe", "measures", "difference", "95 % interval", "p", "result"), rows


def _decimals(value: float | None, places: int) -> str:
    """No user of a slice has no mean: NaN, and null where it was written down."""
    return "-" if value is None or value != value else f"{value:.{places}f}"


def p_text(p: float) -> str:
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0") if p < 1 else "1"


def _brief(evaluation: Evaluation) -> list[str]:
    """The methods that are shown where there is room for few."""
    return [m.name for m in evaluation.methods if m.in_brief]


def print_datasets(evaluations: Mapping[str, Evaluation], *, start: str) -> None:
    """One row per dataset: baselines, before, after; below, the mean over datasets, which counts each alike.

    Args:
        evaluations: by the datasets' names.
        start: the method that the subject came from.
    """
    first = next(iter(evaluations.values()))
    wanted = [*_brief(first), start, first.subject or ""]
    methods = [name for name in wanted if all(e.method(name) is not None for e in evaluations.values())]
    means_DM = [[float(e.metric(name).mean()) for name in methods] for e in evaluations.values()]
    rows = [
        [name, f"{len(evaluation.examples):,}", *(f"{value:.4f}" for value in values)]
        for (name, evaluation), values in zip(evaluations.items(), means_DM, strict=True)
    ]
    rows.append(["mean over datasets", "", *(f"{value:.4f}" for value in np.mean(means_DM, axis=0))])
    console.result("")
    title = f"{first.headline} on the {first.split} split, {len(evaluations)} datasets"
    console.table(title, ["dataset", "users", *methods], rows)


def print_seeds(evaluations: Mapping[int, Evaluation], *, start: str, dataset: str | None = None) -> None:
    """One row per seed: before, after, and the gain with its interval over users; below, the gain over all seeds.

    Args:
        evaluations: by seed, of the same users.
        start: the method the gain is measured from.
        dataset: its name, where there are several.
    """
    first = next(iter(evaluations.values()))
    subject = first.subject or ""
    others = [name for name in (*_brief(first), start) if first.method(name) is not None]
    rows = []
    for seed, evaluation in evaluations.items():
        row = [str(seed), *(f"{evaluation.metric(name).mean():.4f}" for name in [*others, subject])]
        if start in others:
            d = evaluation.difference(subject, start)
            row.append(f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]")
        rows.append(row)
    columns = ["seed", *others, subject, *(["gain, 95 % interval over users"] if start in others else [])]
    console.result("")
    of = "" if dataset is None else f"{dataset}, "
    console.table(f"{of}{first.headline} on the {first.split} split, {len(evaluations)} seeds", columns, rows)
    if start in others:
        ours_SB, theirs_SB = (np.stack([e.metric(name) for e in evaluations.values()]) for name in (subject, start))
        gain = seeds_difference(ours_SB, theirs_SB)
        console.result(
            f"Gain over {len(evaluations)} seeds: {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] over seeds and "
            f"users, p {p_text(gain.p_value)}; [{gain.users_low:+.4f}, {gain.users_high:+.4f}] over users alone; "
            f"deviation between seeds {gain.seed_std:.4f}"
        )
