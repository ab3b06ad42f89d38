"""`rl4rec report`: everything in a run's folder, as one page.

Decides: what the page shows of a run, in which order and words; that an unfinished, killed or resumed run, or one
copied without its data, has a page, too, which says what is missing.
Hides: the page's template (`run_page.html.j2`), what is drawn (`panels.py`), and how tables of results read
(`eval/tables.py`). Nothing in the run is changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import __version__, console
from rl4rec_cli.errors import Rl4RecError, RunError
from rl4rec_cli.eval.checkpoint import is_of
from rl4rec_cli.eval.result_files import read_result, result_tables
from rl4rec_cli.files.logs import read_log
from rl4rec_cli.files.paths import expand
from rl4rec_cli.files.reading import read_object
from rl4rec_cli.files.writing import check_writable, write_text
from rl4rec_cli.report.run_tables import checkpoint_table, environment_table, settings_table
from rl4rec_cli.runs.folder import TRAINING_LOG, WARM_START_LOG
from rl4rec_cli.runs.making import open_run, resume_command
from rl4rec_cli.train.checkpoints import CheckpointState, checkpoint_states, final_steps

if TYPE_CHECKING:
    from rl4rec_cli.report.html import Figure
    from rl4rec_cli.runs.folder import Run

FILE = "report.html"
SAMPLED_STEPS = 6
"""Steps whose completions are shown."""
SAMPLED_TEXTS = 6
"""Texts of each."""
TEXT = 600
"""Characters of a completion."""
WARNINGS = 50
"""Warnings that are shown."""


def write_report(run: str, out: str | None = None) -> Path:
    """Writes the page of a run and returns its path.

    Raises:
        RunError: the folder is not a run or holds no log, or the page cannot be written.
        ConfigError: the path cannot be a file, or the run's configuration is damaged.
    """
    source_run = open_run(run)
    file = expand(out) if out is not None else source_run.folder / FILE
    check_writable(file)
    run_log = read_logged(source_run)
    write_text(file, as_html(run_log))
    for remark in run_log.remarks:
        console.log(f"Note: {remark}")
    return file


@dataclass
class Logged:
    """The logs of a run.

    Attributes:
        phases: records of each phase, in order. The last phase is the run's own algorithm.
        validation: records of the measurements in between.
        rollouts: some completions of the steps.
        warnings: records of health rules.
        remarks: what is missing, and why.
    """

    run: Run
    phases: dict[str, list[dict[str, Any]]]
    validation: list[dict[str, Any]]
    rollouts: list[dict[str, Any]]
    warnings: list[dict[str, Any]]
    remarks: list[str] = field(default_factory=list)

    @property
    def algorithm(self) -> str:
        return self.run.config.trainer.algorithm

    @cached_property
    def datasets(self) -> list[str]:
        """The names of the datasets. A single dataset needs no name."""
        from rl4rec_cli.data.opening import dataset_name

        paths = self.run.config.data.paths
        return [dataset_name(path) for path in paths] if len(paths) > 1 else [""]

    @cached_property
    def results(self) -> dict[str, dict[str, Any]]:
        """Evaluations by split (`validation`), or for several datasets by dataset and split (`toys, validation`)."""
        results = {}
        for name, split in itertools.product(self.datasets, ("validation", "test")):
            path = self.run.results(name) / f"{split}.json"
            if not path.exists():
                continue
            try:
                value = results[_of(name, split)] = read_result(path)
            except RunError as error:
                self.remarks.append(f"Left out: {_line(error.message)}.")
                continue
            if not is_of(value, self.run.final):
                self.remarks.append(
                    f"{path.relative_to(self.run.folder)} was measured with other weights than checkpoint_final "
                    "has now: measure it again."
                )
        return results

    @property
    def is_measured(self) -> bool:
        """Whether every dataset's validation split has a result."""
        return all(_of(name, "validation") in self.results for name in self.datasets)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The content of `env.json`. An unreadable file gives nothing and adds a remark."""
        try:
            return read_object(self.run.folder / "env.json")
        except RunError as error:
            self.remarks.append(f"Left out: {_line(error.message)}.")
            return {}

    @cached_property
    def checkpoints(self) -> list[CheckpointState]:
        return checkpoint_states(self.run)


def _of(dataset: str, split: str) -> str:
    return f"{dataset}, {split}" if dataset else split


def read_logged(run: Run) -> Logged:
    """Reads the logs of a run.

    Raises:
        RunError: the run has logged nothing.
    """
    remarks = []

    def read(name: str, *numbers: str) -> list[dict[str, Any]]:
        records, damaged_count = read_log(run.folder / name)
        good = [r for r in records if all(isinstance(r.get(key), int) for key in numbers)]
        if lost_count := damaged_count + len(records) - len(good):
            lines = "1 line is no record and is" if lost_count == 1 else f"{lost_count:,} lines are no records and are"
            remarks.append(f"{name}: {lines} left out (a run that is killed, or a full disk, leaves half a line).")
        return good

    # A run of an earlier version has both phases in one log.
    steps = read(WARM_START_LOG, "step") + read(TRAINING_LOG, "step")
    warnings = [r for r in steps if "health" in r]
    phases: dict[str, list[dict[str, Any]]] = {}
    for record in steps:
        if "health" not in record:
            phases.setdefault(str(record.get("phase", run.config.trainer.algorithm)), []).append(record)
    if not phases:
        raise RunError(
            f"{run.folder}: nothing is logged in it yet",
            hint="a step is logged every logging.steps steps; report it then",
        )
    asked = ("target",) if run.config.task.has_catalogue else ()
    return Logged(
        run, phases, read("validation_log.jsonl", "step"), read("rollouts.jsonl", "step", *asked), warnings, remarks
    )


def as_html(logged: Logged) -> str:
    """Returns the page."""
    from rl4rec_cli.eval.openings import read_openings
    from rl4rec_cli.report.html import figures, render

    run = logged.run
    openings = read_openings(run)
    values = {
        "title": run.folder.resolve().name,
        "heading": heading(logged),
        "status": status(logged),
        "verdicts": verdicts(logged),
        "openings": openings.line() if openings.count or openings.problem else "",
        "warnings": warning_lines(logged),
        "plots": [(name, words, figures(drawings)) for name, words, drawings in plots_of(logged)],
        "results": [(split, result_tables(result)) for split, result in logged.results.items()],
        "samples": samples(logged),
        "writes": run.config.trainer.trains_policy,
        "ranks": run.config.task.has_catalogue,
        "checkpoints": checkpoint_table(logged.checkpoints),
        "settings": settings_table(run.config),
        "environment": environment_table(logged.environment),
        "recipe": (run.folder / "config.yaml").read_text(encoding="utf-8"),
        "made": f"rl4rec {__version__}, {datetime.now(UTC).isoformat(timespec='seconds')}",
    }
    return render(Path(__file__).with_name("run_page.html.j2"), remarks=logged.remarks, **values)


def verdicts(logged: Logged) -> list[str]:
    """Returns the verdict of every evaluation. With several datasets the name stands before it."""
    several = len(logged.datasets) > 1
    return [
        f"{name}: {one['verdict']}{_measured_with(one)}" if several else f"{one['verdict']}{_measured_with(one)}"
        for name, one in logged.results.items()
    ]


def _measured_with(result: Mapping[str, Any]) -> str:
    checkpoint = result.get("checkpoint")  # results of older versions do not say
    return f" Measured: {checkpoint['name']}." if isinstance(checkpoint, dict) and "name" in checkpoint else ""


def heading(logged: Logged) -> str:
    """Returns `grpo on beauty, model tiny, reward ndcg@10, seed 0`."""
    config = logged.run.config
    data = config.data
    has_catalogue = config.task.has_catalogue
    unit = "users" if has_catalogue else "pairs"
    fallback = f"synthetic data of {data.synthetic.users:,} {unit}" if data.synthetic is not None else "no dataset"
    result_datasets = dict.fromkeys(r["dataset"] for r in logged.results.values() if "dataset" in r)
    names = list(result_datasets) if len(data.paths) < 2 else logged.datasets
    dataset = " and ".join(names or [Path(path).name for path in data.paths] or [fallback])
    at = f"@{config.reward.k}" if has_catalogue else ""
    weights = ", ".join(f"{name}{at} × {weight:g}" for name, weight in config.reward.functions.items())
    shaping = f" + rank shaping {config.reward.rank_shaping:g}" if config.reward.rank_shaping else ""
    reward = f", reward {weights}{shaping}" if config.trainer.learns_from_rewards else ""
    model = f"model {config.policy.model}" if config.trainer.trains_policy else f"encoder {config.retrieval.label}"
    return f"{logged.algorithm} on {dataset}, {model}{reward}, seed {config.run.seed}"


def status(logged: Logged) -> str:
    """Returns in words whether the run is finished, and how far it came."""
    from rl4rec_cli.report.panels import seconds_of

    run = logged.run
    made = {phase: int(records[-1]["step"]) for phase, records in logged.phases.items()}
    last = run.config.trainer.algorithm
    if last in made and run.final.is_dir():  # not every step is logged
        made[last] = max(made[last], final_steps(run) or 0)
    counts = [
        f"{_steps(made[phase])} of {phase} in {_time(seconds_of(records))}" for phase, records in logged.phases.items()
    ]
    so_far = f"{', '.join(counts)}."
    if run.in_use():
        return f"A process is at work on this run. Logged so far: {so_far}"
    if run.final.is_dir() and logged.is_measured:
        return f"Finished: {so_far}"
    if run.final.is_dir():
        return f"Trained, but not measured: {so_far}"
    most = f"{run.config.trainer.max_steps:,} at most"
    where = most if logged.algorithm in logged.phases else "the warm start alone was begun"
    return f"Not finished ({where}): {so_far} Go on with it: {resume_command(run)}"


def warning_lines(logged: Logged) -> list[str]:
    """Returns the warnings of health rules, at most `WARNINGS` of them."""
    lines = [f"Step {r['step']:,} of {r.get('phase', logged.algorithm)}: {_said(r)}" for r in logged.warnings]
    more = len(lines) - WARNINGS
    return lines if more <= 0 else [*lines[:WARNINGS], f"… and {more:,} more"]


def _said(record: Mapping[str, Any]) -> str:
    evidence = f": {record['seen']}" if "seen" in record else ""
    stop_note = " (the run was stopped)" if record.get("action") == "stop" else ""
    advice = f". To mend it: {record['advice']}" if "advice" in record else ""
    return f"health.{record['health']}{stop_note}{evidence}{advice}"


def plots_of(logged: Logged) -> list[tuple[str, str, list[Figure]]]:
    """Returns name, words and figures of each phase, the last phase first."""
    from rl4rec_cli.eval.metrics import headline
    from rl4rec_cli.report import panels, plots

    config = logged.run.config
    phase_plots = []
    for phase, records in reversed(logged.phases.items()):
        warning_steps = [r["step"] for r in logged.warnings if r.get("phase", phase) == phase]
        marks = panels.step_marks(records, warning_steps)
        phase_figures = panels.figures_of(
            records, phase, k=config.reward.k, limit=config.generation.max_completion_length, marks=marks
        )
        if phase == logged.algorithm:
            metric = config.task.metric or headline(config.eval.ks)
            phase_figures[1:1] = panels.validation_figure(
                logged.validation, metric, writes=logged.run.config.trainer.trains_policy
            )
        signs = {sign for _, sign in marks}
        words = [
            plots.AVERAGED if len(records) > plots.SMOOTHED else "",
            "Dashed lines: a new epoch begins." if "" in signs else "",
            "r: the run was gone on with here." if "r" in signs else "",
            "!: a health rule warned." if "!" in signs else "",
        ]
        name = "Training" if phase == logged.algorithm else "Warm start"
        phase_plots.append((f"{name}: {phase}", " ".join(filter(None, words)), phase_figures))
    return phase_plots


def samples(logged: Logged) -> list[dict[str, Any]]:
    """Returns completions of some steps, evenly over the run. Those for the same user and target stand together."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for record in logged.rollouts:
        by_step.setdefault(record["step"], []).append(record)
    if not by_step:
        return []
    titles = _titles(logged) if logged.run.config.task.has_catalogue else {}
    steps = list(by_step)
    last = len(steps) - 1
    places = dict.fromkeys(round(last * i / max(1, SAMPLED_STEPS - 1)) for i in range(SAMPLED_STEPS))
    return [{"step": steps[place], "asked": _asked(by_step[steps[place]], titles)} for place in places]


def _asked(records: Sequence[Mapping[str, Any]], titles: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    by_prompt: dict[tuple[str, str, int | None], list[dict[str, Any]]] = {}
    for record in records[:SAMPLED_TEXTS]:
        words = _clipped(str(record.get("text", "")))
        entry = {"text": words, "rank": _shown(record.get("rank"), ","), "reward": _shown(record.get("reward"), ".4f")}
        of = str(record.get("dataset", ""))
        target = record.get("target")
        who = str(record.get("user", "")) if target is not None else _clipped(str(record.get("prompt", "")))
        by_prompt.setdefault((of, who, target), []).append(entry)
    groups: list[dict[str, Any]] = []
    for (of, user, target), texts in by_prompt.items():
        if target is None:
            groups.append({"prompt": user, "texts": texts})
            continue
        own = titles.get(of, ())
        title = own[target] if 0 <= target < len(own) else f"item {target}"
        groups.append({"user": f"{user} of {of}" if of else user, "target": title, "texts": texts})
    return groups


def _clipped(text: str) -> str:
    return f"{text[:TEXT]}… ({len(text) - TEXT:,} characters more)" if len(text) > TEXT else text


def _titles(logged: Logged) -> dict[str, list[str]]:
    """Returns the titles of each dataset of the run, by the name that `rollouts.jsonl` uses.

    Returns nothing if a dataset no longer exists or has changed (a remark says so).
    """
    from rl4rec_cli.data.dataset import joint_digest
    from rl4rec_cli.data.opening import open_datasets

    several = len(logged.datasets) > 1
    digests = [] if several else [result.get("dataset_digest") for result in logged.results.values()]
    run_digest = next(filter(None, [*digests, *(checkpoint.dataset for checkpoint in logged.checkpoints)]), None)
    try:
        datasets = open_datasets(logged.run.config.data)
    except Rl4RecError as error:
        logged.remarks.append(f"Targets are shown by their id, as the dataset cannot be read: {_line(error.message)}")
        return {}
    if run_digest is not None and joint_digest(datasets) != run_digest:
        what = "datasets are not those" if several else "dataset is not the one"
        logged.remarks.append(f"Targets are shown by their id: the {what} that the run was trained on.")
        return {}
    return {d.name if several else "": [str(item["title"]) for item in d.items] for d in datasets}


def _shown(value: Any, form: str) -> str:
    return "-" if value is None or isinstance(value, str) else format(value, form)


def _steps(count: int) -> str:
    return f"{count:,} step{'s' if count != 1 else ''}"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _line(text: str) -> str:
    return " ".join(text.split())
