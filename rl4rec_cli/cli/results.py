"""Results of evaluations on a terminal.

Decides: which tables of a result are shown, in which order, and what is shown of several datasets and seeds.
Hides: nothing; the tables are made in `eval/tables.py`.

It imports numpy: commands import it when they have a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec_cli import console
from rl4rec_cli.eval.evaluation import Evaluation
from rl4rec_cli.eval.statistics import seeds_difference
from rl4rec_cli.eval.tables import (
    BEHAVIOUR,
    behaviour_table,
    metric_table,
    p_text,
    probe_table,
    shown_names,
    slice_table,
    slices_title,
    tested_tables,
)
from rl4rec_cli.report.compare_page import (
    TITLES,
    clip,
    completion_or_best,
    heading,
    means_table,
    opening_lines,
    pair_table,
    seeds_table,
    tested_line,
)

if TYPE_CHECKING:
    from rl4rec_cli.commands.train import TrainedRun


def print_trained(trained: TrainedRun) -> None:
    """Prints what a finished run reached on the validation users, dataset by dataset."""
    for number, (name, evaluation) in enumerate(trained.evaluations.items()):
        if number:
            console.result("")
        users, seed = f"{len(evaluation.examples):,} {evaluation.unit}", f"seed {trained.run.config.run.seed}"
        title = f"{name}, validation split, {users}, {seed} ({trained.seconds:.0f} s)"
        print_evaluation(evaluation, title=title)
    if len(trained.evaluations) > 1:
        print_datasets(trained.evaluations, start=trained.run.config.trainer.start_name)


def print_all_seeds(trained: Sequence[TrainedRun]) -> None:
    """Prints the summary over several seeds, dataset by dataset. Prints nothing for a single seed."""
    if len(trained) < 2:
        return
    names = list(trained[0].evaluations)
    for name in names:
        by_seed = {one.run.config.run.seed: one.evaluations[name] for one in trained}
        start = trained[0].run.config.trainer.start_name
        print_seeds(by_seed, start=start, dataset=name if len(names) > 1 else None)


def print_evaluation(evaluation: Evaluation, *, title: str, whole: bool = False) -> None:
    """Prints means, differences, probes and the verdict; with `whole`, also the slices and the behaviour."""
    result = evaluation.as_json()
    labels = shown_names(result["kinds"], result["notes"])
    console.table(title, *metric_table(result["methods"], labels))
    tables = tested_tables(result)
    if whole:
        tables.append((slices_title(result), slice_table(result["slices"], labels)))
        tables.append((BEHAVIOUR, behaviour_table(result["behaviour"])))
    tables.append(("Probes", probe_table(result["probes"])))
    for name, table in tables:
        if table[1]:
            console.result("")
            console.table(name, *table)
    for line in (
        result.get("texts_line"),
        result.get("data_line"),
        result.get("fit_line"),
        result.get("checkpoint_line"),
        result.get("test_openings_line"),
        result.get("audit"),
    ):
        if line:
            console.result(f"\n{line}")
    console.result(f"\nVerdict: {result['verdict']}")


def _brief(evaluation: Evaluation) -> list[str]:
    """Returns the methods to show where there is room for few."""
    return [method.name for method in evaluation.methods if method.in_brief]


def print_datasets(evaluations: Mapping[str, Evaluation], *, start: str) -> None:
    """Prints one row per dataset (baselines, before, after), and below them the unweighted mean over datasets.

    Args:
        evaluations: by the datasets' names.
        start: the method that training started from.
    """
    first = next(iter(evaluations.values()))
    candidates = [*_brief(first), start, first.subject or ""]
    methods = [name for name in candidates if all(e.method(name) is not None for e in evaluations.values())]
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
    """Prints one row per seed (before, after, the gain and its interval over users), then the gain over all seeds.

    Args:
        evaluations: by seed, all of the same users.
        start: the method from which the gain is measured.
        dataset: its name, if the run has several.
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
    columns = ["seed", *others, subject, *([f"gain, 95 % interval over {first.unit}"] if start in others else [])]
    console.result("")
    of = "" if dataset is None else f"{dataset}, "
    console.table(f"{of}{first.headline} on the {first.split} split, {len(evaluations)} seeds", columns, rows)
    if start in others:
        ours_SB, theirs_SB = (np.stack([e.metric(name) for e in evaluations.values()]) for name in (subject, start))
        gain = seeds_difference(ours_SB, theirs_SB)
        console.result(
            f"Gain over {len(evaluations)} seeds: {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] over seeds and "
            f"{first.unit}, p {p_text(gain.p_value)}; [{gain.users_low:+.4f}, {gain.users_high:+.4f}] over "
            f"{first.unit} alone; deviation between seeds {gain.seed_std:.4f}"
        )


def print_comparison(report: Mapping[str, Any]) -> None:
    """Prints the tables, the users who differ most, the openings of the test split and the verdicts."""
    console.table(heading(report), *means_table(report))
    console.result("")
    console.table(f"Paired differences in {tested_line(report)}", *pair_table(report))
    columns, rows = seeds_table(report)
    if rows:
        console.result("")
        console.table("Over seeds", columns, rows)
    extremes = report["most_different"]
    for key, label in (("ours_better", extremes["ours"]), ("theirs_better", extremes["theirs"])):
        other = extremes["theirs"] if key == "ours_better" else extremes["ours"]
        if extremes[key]:
            console.result(f"\nUsers whom {console.clean(label)} serves better than {console.clean(other)} does:")
        for user in extremes[key]:
            _print_user(user)
    console.result("")
    for line in [*report["remarks"], *opening_lines(report), *dict.fromkeys(report["audit"].values())]:
        console.result(console.clean(line))
    console.result("")
    for verdict in report["verdicts"]:
        console.result(f"Verdict: {console.clean(verdict)}")


def _print_user(user: Mapping[str, Any]) -> None:
    history = " · ".join(clip(title) for title in user["history"][-TITLES:])
    console.result(f"{console.clean(user['user'])}: {history} → {clip(user['target'])}")
    width = max(map(len, user["sides"]))
    for label, side in user["sides"].items():
        ranks = ", ".join(f"{one['rank']:,}" for one in side)
        console.result(f"    {console.clean(label):<{width}}  rank {ranks:>5}  {clip(completion_or_best(side[0]))}")
