"""Compare runs, models and baselines on the same users: `rl4rec compare`.

Decides: the order of the steps (checks of the arguments, openings of the test split, policies, baselines); that a
result is shown before it is written.
Hides: measuring (`eval/measuring.py`), the result (`eval/comparison.py`), how it reads (`report/compare_page.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import __version__, console
from rl4rec_cli.data.provenance import CHOOSE, changed_data, check_unseen
from rl4rec_cli.eval.baseline import Baseline, measure_baselines, open_baseline
from rl4rec_cli.eval.history_hybrid import named_fusion
from rl4rec_cli.eval.measuring import audit_line, open_task, start_evaluation
from rl4rec_cli.eval.policies import Models, Retrievers, open_models
from rl4rec_cli.eval.resolve import Overrides
from rl4rec_cli.eval.systems import (
    System,
    check_retrieval,
    mixed_groups,
    open_systems,
    shared_dataset,
    with_hybrids,
)
from rl4rec_cli.files.paths import expand
from rl4rec_cli.files.writing import check_writable, kept_after, write_text
from rl4rec_cli.retrieval.embedder import find_embedder

# torch is imported in the functions that need it, so that an error in the arguments is told before.
if TYPE_CHECKING:
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.eval.comparison import Comparison
    from rl4rec_cli.eval.evaluation import Evaluation
    from rl4rec_cli.eval.hybrids import Fusion
    from rl4rec_cli.eval.scoring import Measured, Task


def compare(
    words: Sequence[str | Path],
    overrides: Overrides | None = None,
    *,
    markdown: str | Path | None = None,
    html: str | Path | None = None,
    command: Sequence[str] = (),
    show: Callable[[Comparison], None] = lambda comparison: None,
) -> Comparison:
    """Measures runs, models and baselines on the same users, and tests the first against the others.

    Args:
        words: runs, checkpoints, models or baselines; `A1,A2` are seeds of one system.
        markdown, html: files that get the result, too.
        command: the user's command line, which the pages quote.
        show: shows the result before the files are written, so that a full disk does not lose it.

    Raises:
        Rl4RecError: see the parts.
    """
    for name in (markdown, html):
        if name is not None:
            check_writable(expand(name))
    systems, base = open_systems([str(word) for word in words], overrides)
    check_retrieval(systems, base.retrieval)
    data, remarks = shared_dataset(systems, base)
    remarks += mixed_groups(systems)
    runs = [(e.run, e.config) for c in systems for e in c.members if e.run is not None]
    data_warnings = [changed_data(run, config.data, data) for run, config in runs]
    remarks += dict.fromkeys(f"WARNING: {sentence}" for sentence in data_warnings if sentence is not None)
    for remark in remarks:
        console.log(f"Note: {remark}")
    evaluation = start_evaluation(base.eval, data, base.eval.split)
    models = [*(e.model for c in systems for e in c.members), find_embedder(base.retrieval).model]
    check_unseen(data, evaluation.split, models)
    fusion = named_fusion(base.eval.fuse, base.retrieval, data, "eval.fuse")
    compared = with_hybrids(systems, base, fusion)
    _check_methods(compared, fusion, data, evaluation, base.eval.fuse_weights)
    if fusion is not None and data.has_validation:
        check_unseen(data, "validation", models, use=CHOOSE)
    audit = _audit(systems, data)
    openings = _openings(systems, opens=evaluation.split == "test")

    from rl4rec_cli.policy.backend import prepare_backend

    prepare_backend(*(e.config.policy for c in systems for e in c.members if e.writes))
    from rl4rec_cli.eval.comparison import Comparison
    from rl4rec_cli.policy.loading import check_tokenizer
    from rl4rec_cli.report import compare_page
    from rl4rec_cli.retrieval.opening import FIRST_WAIT, open_retriever

    for member in (e for c in systems for e in c.members):
        if member.writes:  # before the minutes of embedding
            section = member.config.policy.model_copy(update={"model": member.model})
            check_tokenizer(section, member.config.max_length)
    task = open_task(
        base.eval,
        data,
        open_retriever(base.retrieval, data, base.data.paths, first_wait=FIRST_WAIT),
        evaluation.examples,
    )
    measurements = _measure(compared, fusion, task, evaluation)
    comparison = Comparison(evaluation, data, compared, measurements)
    comparison.about = {
        "remarks": remarks,
        "audit": audit,
        "test_openings": openings,
        "version": __version__,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
    }
    files = [
        (expand(f), text)
        for f, text in ((markdown, compare_page.as_markdown), (html, compare_page.as_html))
        if f is not None
    ]
    with ExitStack() as stack:
        for file, text in files:
            stack.enter_context(kept_after(partial(_write, file, text, comparison), file))
        show(comparison)
    for file, _ in files:
        console.log(f"wrote {file}")
    return comparison


def _write(file: Path, text: Callable[[Any], str], comparison: Comparison) -> None:
    write_text(file, text(comparison.report))


def _check_methods(
    systems: Sequence[System],
    fusion: Fusion | None,
    data: Dataset,
    evaluation: Evaluation,
    weights: Mapping[str, float],
) -> None:
    """Checks that baselines and hybrids can be measured on these users.

    Raises:
        DataError: one cannot.
    """
    for system in systems:
        for member in system.members:
            if member.model is None:
                _baseline(member.word, fusion).check(data, evaluation.examples, evaluation.split, weights)
            elif system.without is not None and fusion is not None:
                fusion.check(data, evaluation.examples, evaluation.split, weights, method=member.shown_name)


def _baseline(word: str, fusion: Fusion | None) -> Baseline:
    return fusion if fusion is not None and word == fusion.name else open_baseline(word)


def _audit(systems: Sequence[System], data: Dataset) -> dict[str, str]:
    """Returns the leakage audit's line for each system that reads prompts. Equal settings are audited once."""
    lines: dict[str, str] = {}
    line_by_settings: dict[str, str] = {}
    for system in systems:
        for config in [e.config for e in system.members if e.writes][:1]:
            key = repr((config.prompt, config.data.train_targets))
            if key not in line_by_settings:
                line_by_settings[key] = audit_line(config, data, next(iter(config.data.paths), None))
            lines[system.label] = line_by_settings[key]
    return lines


def _openings(systems: Sequence[System], *, opens: bool) -> dict[str, list[dict[str, Any]]]:
    """Returns how often each run opened the test split. With `opens`, it first records this opening."""
    from rl4rec_cli.eval.openings import read_openings, record_opening

    openings: dict[str, list[dict[str, Any]]] = {}
    by_folder: dict[Path, dict[str, Any]] = {}  # two checkpoints of one run open it once
    for system in systems:
        for run in system.runs:
            folder = run.folder.resolve()
            if folder not in by_folder:
                record = record_opening(run) if opens else read_openings(run)
                by_folder[folder] = {"run": str(run.folder), **record.as_json(), "line": record.line()}
            openings.setdefault(system.label, []).append(by_folder[folder])
    return openings


def _measure(
    systems: Sequence[System], fusion: Fusion | None, task: Task, evaluation: Evaluation
) -> dict[str, list[Measured]]:
    """Measures every system. Policies come first: one that cannot be loaded fails before a baseline is trained."""
    measurements: dict[str, list[Measured]] = {}
    models: Models | Retrievers | None = None
    for system in sorted(systems, key=lambda c: (c.kind == "baseline", c.kind == "hybrid")):
        each = []
        for member in system.members:
            if member.model is None:
                each += measure_baselines([_baseline(member.word, fusion)], task, evaluation.split)
                continue
            run_day = member.run.day if member.run is not None else None
            models = open_models(member.config, task, share=models, started=run_day)
            name = member.shown_name
            if system.without is None or fusion is None:
                each.append(replace(models.measure(name, member.model), name=member.name))
                continue
            method = models.vector_method(name, member.model)
            each.append(replace(fusion.measure_with(method, task, evaluation.split), name=system.label))
        measurements[system.label] = each
    return {c.label: measurements[c.label] for c in systems}
