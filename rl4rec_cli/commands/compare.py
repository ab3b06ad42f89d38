"""Compare runs, models and baselines on the same users.

Decides: the order of things: everything that can be wrong with the arguments, the test lock, policies, baselines; and
what of the result goes to the terminal, to JSON and to files.
Hides: measuring (`evaluate.py`'s doors), the result (`comparison.py`), how it reads (`report/compare_page.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import __version__, console
from rl4rec_cli.data.provenance import changed_data
from rl4rec_cli.eval.baseline import measure_baselines
from rl4rec_cli.eval.evaluate import TUNED, audit_line, open_task, start_evaluation
from rl4rec_cli.eval.policies import Models
from rl4rec_cli.eval.systems import (
    Contestant,
    check_retrieval,
    mixed_groups,
    open_contestants,
    shared_dataset,
)
from rl4rec_cli.files.writing import check_writable, kept_after, strict, write_text

# torch is imported in the functions that need it, so that an error in the arguments is told before.
if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.eval.evaluation import Evaluation
    from rl4rec_cli.eval.scoring import Measured, Task


def compare(
    words: Sequence[str],
    *,
    split: str | None,
    users: int | None,
    checkpoint: str | None = None,
    sets: Sequence[str],
    recipes: Sequence[str],
    dataset: str | None,
    as_json: bool,
    markdown: str | None,
    html: str | None,
) -> None:
    """`rl4rec compare`: measure all, and print or write what came of it."""
    for name in (markdown, html):
        if name is not None:
            check_writable(Path(name).expanduser())
    contestants, base = open_contestants(
        words, split=split, users=users, sets=sets, recipes=recipes, dataset=dataset, checkpoint=checkpoint
    )
    check_retrieval(contestants, base)
    data, remarks = shared_dataset(contestants, base)
    remarks += mixed_groups(contestants)
    runs = [(e.run, e.config) for c in contestants for e in c.entrants if e.run is not None]
    changed = [changed_data(run, config.data, data) for run, config in runs]
    remarks += dict.fromkeys(f"WARNING: {sentence}" for sentence in changed if sentence is not None)
    for remark in remarks:
        console.log(f"Note: {remark}")
    evaluation = start_evaluation(base, data, base.eval.split)
    audit = _audit(contestants, data)
    openings = _openings(contestants, opens=evaluation.split == "test")

    from rl4rec_cli.policy.backend import prepare_backend

    prepare_backend(*(e.config.policy for c in contestants for e in c.entrants if e.model is not None))
    from rl4rec_cli.eval.comparison import Comparison
    from rl4rec_cli.policy.loading import check_tokenizer
    from rl4rec_cli.report import compare_page
    from rl4rec_cli.retrieval.retriever import FIRST_WAIT, open_retriever

    for entrant in (e for c in contestants for e in c.entrants):
        if entrant.model is not None:  # before the minutes of embedding
            check_tokenizer(entrant.config.policy.model_copy(update={"model": entrant.model}))
    task = open_task(
        base, data, open_retriever(base.retrieval, data, base.data.paths, first_wait=FIRST_WAIT), evaluation.examples
    )
    measured = _measure(contestants, base, task, evaluation)
    comparison = Comparison(evaluation, data, contestants, measured)
    comparison.about = {
        "remarks": remarks,
        "audit": audit,
        "test_openings": openings,
        "version": __version__,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["rl4rec", *sys.argv[1:]],
    }
    report = strict(comparison.as_json())

    files = [
        (Path(f).expanduser(), t)
        for f, t in ((markdown, compare_page.as_markdown), (html, compare_page.as_html))
        if f is not None
    ]
    with ExitStack() as stack:
        for file, text in files:
            stack.enter_context(kept_after(partial(_write, file, text, report), file))
        if as_json:
            console.print_json(report)
        else:
            compare_page.print_report(report)
    for file, _ in files:
        console.log(f"wrote {file}")


def _write(file: Path, text: Callable[[Any], str], report: Any) -> None:
    write_text(file, text(report))


def _audit(contestants: Sequence[Contestant], data: Dataset) -> dict[str, str]:
    """The leakage audit's line for each contestant that reads prompts; made once for settings that are the same."""
    lines: dict[str, str] = {}
    made: dict[str, str] = {}
    for contestant in contestants:
        for config in [e.config for e in contestant.entrants if e.model is not None][:1]:
            key = repr((config.prompt, config.data.train_targets))
            if key not in made:
                made[key] = audit_line(config, data, next(iter(config.data.paths), None))
            lines[contestant.label] = made[key]
    return lines


def _openings(contestants: Sequence[Contestant], *, opens: bool) -> dict[str, list[dict[str, Any]]]:
    """How often the test split was opened in each run; with `opens`, this time is recorded before it counts."""
    from rl4rec_cli.eval.openings import read_openings, record_opening

    found: dict[str, list[dict[str, Any]]] = {}
    done: dict[Path, dict[str, Any]] = {}  # two checkpoints of one run open it once
    for contestant in contestants:
        for run in contestant.runs:
            folder = run.folder.resolve()
            if folder not in done:
                seen = record_opening(run) if opens else read_openings(run)
                done[folder] = {"run": str(run.folder), **seen.as_json(), "line": seen.line()}
            found.setdefault(contestant.label, []).append(done[folder])
    return found


def _measure(
    contestants: Sequence[Contestant], base: RunConfig, task: Task, evaluation: Evaluation
) -> dict[str, list[Measured]]:
    """Every contestant, policies first: one that cannot be loaded is told before a baseline is trained."""
    measured: dict[str, list[Measured]] = {}
    models: Models | None = None
    for contestant in sorted(contestants, key=lambda c: c.kind == "baseline"):
        each = []
        for entrant in contestant.entrants:
            if entrant.model is None:
                each += measure_baselines((entrant.word,), task, evaluation.split)
                continue
            started = entrant.run.day if entrant.run is not None else None
            models = Models(entrant.config, task, share=models, started=started)
            # By the name `rl4rec eval` gives it, so that one reads what the other measured.
            name = TUNED if entrant.run is not None else entrant.model
            each.append(replace(models.measure(name, entrant.model), name=entrant.name))
        measured[contestant.label] = each
    return {c.label: measured[c.label] for c in contestants}
