"""Measure a policy next to its baselines, on the same users, ranks and masks.

Decides: which users and texts are measured, in which order, and what may be read from the cache.
Hides: loading of runs and models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.config.layering import dump_config
from rl4rec_cli.config.registries import BASELINES
from rl4rec_cli.data.dataset import Split
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.data.provenance import changed_data
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.eval.baseline import Subject, measure_baselines, open_baselines
from rl4rec_cli.eval.checkpoint import checkpoint_line, describe_checkpoint
from rl4rec_cli.eval.evaluation import Evaluation, print_evaluation, save_evaluation
from rl4rec_cli.eval.examples import choose_examples
from rl4rec_cli.eval.policies import Models
from rl4rec_cli.eval.resolve import resolve_target, untrained
from rl4rec_cli.files.digests import sha256
from rl4rec_cli.files.writing import kept_after, strict, warn_unwritable, write_text
from rl4rec_cli.runs.folder import Run

# torch is imported in the functions that need it, so that an error in the dataset is told before.
if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset, Example
    from rl4rec_cli.eval.probes import Probe
    from rl4rec_cli.eval.scoring import Measured, Task
    from rl4rec_cli.retrieval.retriever import VectorRetriever

TUNED = "tuned policy"


def start_name(config: RunConfig) -> str:
    """What the policy is called that training started from (after the warm start, where there was one)."""
    return config.trainer.start_name


def start_evaluation(config: RunConfig, dataset: Dataset, split: Split) -> Evaluation:
    """The users to measure and their slices; methods are added as they are measured.

    Raises:
        DataError: the split is empty.
    """
    from rl4rec_cli.eval.baselines import training_counts
    from rl4rec_cli.eval.behaviour import user_slices
    from rl4rec_cli.eval.metrics import target_slices

    examples = choose_examples(dataset, split, config.eval.users)
    slices = {**target_slices(training_counts(dataset), [e.target for e in examples]), **user_slices(examples)}
    about = {"dataset": dataset.name, "dataset_digest": dataset.digest}
    return Evaluation(split, examples, config.eval.ks, slices, about=about)


def open_task(config: RunConfig, dataset: Dataset, retriever: VectorRetriever, examples: Sequence[Example]) -> Task:
    """What the baselines of a configuration are measured on."""
    from rl4rec_cli.eval.scoring import Task

    cache = Path(config.eval.cache_dir).expanduser() if config.eval.cache_dir is not None else None
    return Task(dataset, retriever, examples, cache=cache)


def finish(evaluation: Evaluation, dataset: Dataset) -> None:
    """Add what is reported beside the ranks once all methods are measured."""
    from rl4rec_cli.eval.baselines import training_counts
    from rl4rec_cli.eval.behaviour import behaviour

    counts = training_counts(dataset)
    for method in evaluation.methods:
        evaluation.behaviour[method.name] = behaviour(method, dataset, evaluation.examples, counts)


def note_checkpoint(evaluation: Evaluation, run: Run, folder: Path) -> None:
    """Say in a result which of a run's checkpoints it is of."""
    evaluation.about["checkpoint"] = about = describe_checkpoint(run, folder)
    evaluation.about["checkpoint_line"] = checkpoint_line(about, split=evaluation.split)


def evaluate_run(
    target: str | None,
    *,
    split: str | None,
    users: int | None,
    baselines: str | None,
    sets: Sequence[str],
    recipes: Sequence[str],
    dataset: str | None,
    as_json: bool,
    checkpoint: str | None = None,
    files: Mapping[str, str | None] | None = None,
) -> None:
    """`rl4rec eval`: measure a run, one of its checkpoints, a model, or (no target) the baselines alone."""
    run, model, config = resolve_target(target, split, users, baselines, sets, recipes, dataset, checkpoint, files)
    open_baselines(config.eval.baselines)  # what cannot be opened is told before anything is measured
    data = open_dataset(config.data)
    evaluation = start_evaluation(config, data, config.eval.split)
    evaluation.about["audit"] = audit_line(config, data, next(iter(config.data.paths), None))
    if run is not None and model is not None:
        note_checkpoint(evaluation, run, Path(model))
        if as_json:  # else it stands in the table
            console.log(evaluation.about["checkpoint_line"])
        if (changed := changed_data(run, config.data, data)) is not None:
            evaluation.about["data_line"] = f"WARNING: {changed}. The result is kept beside those of the run."
            console.log(evaluation.about["data_line"])
    _note_openings(evaluation, run)
    if run is not None and model is not None:
        warn_unwritable(_result_folder(run, model, config, data)[0])

    from rl4rec_cli.policy.backend import check_engine, prepare_backend
    from rl4rec_cli.policy.loading import check_tokenizer
    from rl4rec_cli.retrieval.retriever import FIRST_WAIT, open_retriever

    if model is not None:
        check_engine(config)
        prepare_backend(config.policy)
        check_tokenizer(config.policy.model_copy(update={"model": model}))  # before the minutes of embedding
    retriever = open_retriever(config.retrieval, data, config.data.paths, first_wait=FIRST_WAIT)
    task = open_task(config, data, retriever, evaluation.examples)
    evaluation.methods.extend(measure_baselines(config.eval.baselines, task, evaluation.split))
    if model is not None:
        models = Models(config, task, started=run.day if run is not None else None)
        try:
            _measure_policies(evaluation, run, model, config, task, models)
        finally:
            models.close()
    if not evaluation.methods:
        raise ConfigError("nothing to measure", hint="name a run or a model, or baselines with --baselines")
    finish(evaluation, data)
    folder, is_own = None, True
    if run is not None and model is not None:
        folder, is_own = _result_folder(run, model, config, data)

    def keep() -> None:
        if folder is not None:
            save_evaluation(evaluation, folder)
            if not is_own:
                write_text(folder / "config.yaml", dump_config(config))

    with kept_after(keep, folder or Path()):
        if as_json:
            console.print_json(strict(evaluation.as_json()))
        else:
            title = f"{data.name}, {evaluation.split} split, {len(evaluation.examples):,} users"
            print_evaluation(evaluation, title=title, whole=True)
    if folder is not None and not as_json:
        console.log(f"per-user records: {folder / f'{evaluation.split}_users.jsonl'}")


def audit_line(config: RunConfig, dataset: Dataset, path: str | None) -> str:
    """The leakage audit's one line; also logged, for whoever only sees the log.

    Args:
        path: the dataset's folder, where there is one.
    """
    from rl4rec_cli.data.audit.audit import audit_as_configured

    line = audit_as_configured(dataset, config).one_line(path or "PATH")
    console.log(line)
    return line


def _note_openings(evaluation: Evaluation, run: Run | None) -> None:
    """Say how often the run's test split was opened.

    Where it is opened now, that is recorded before anything is measured: an evaluation that fails half-way counts too.
    """
    from rl4rec_cli.eval.openings import read_openings, record_opening

    if run is None:
        if evaluation.split == "test":
            evaluation.about["test_openings_line"] = "Test split opened; not recorded, as no run was named."
        return
    openings = record_opening(run) if evaluation.split == "test" else read_openings(run)
    if openings.count or openings.problem:
        evaluation.about["test_openings"] = openings.as_json()
        evaluation.about["test_openings_line"] = openings.line()


def _measure_policies(
    evaluation: Evaluation, run: Run | None, checkpoint: str, config: RunConfig, task: Task, models: Models
) -> None:
    ours = TUNED if run is not None else checkpoint
    start = untrained(run, config)
    subject = Subject(ours, checkpoint, start, start_name(config), models, config, task, evaluation.split)
    order = BASELINES.names()
    baselines = sorted(open_baselines(config.eval.baselines), key=lambda baseline: order.index(baseline.name))
    before = (baseline.measure_before(subject) for baseline in baselines)
    evaluation.methods += [measured for measured in before if measured is not None]
    tuned = models.measure(ours, checkpoint)
    evaluation.methods.append(tuned)
    evaluation.subject = ours
    joined = (baseline.measure_joined(subject) for baseline in baselines)
    evaluation.methods += [measured for measured in joined if measured is not None]
    if config.eval.probes:
        evaluation.probes.extend(_probe(evaluation, tuned, start, models, checkpoint, config, task))


def _probe(
    evaluation: Evaluation,
    measured: Measured,
    start: str | None,
    models: Models,
    checkpoint: str,
    config: RunConfig,
    task: Task,
) -> list[Probe]:
    from rl4rec_cli.eval import probes

    metric, examples = evaluation.headline, evaluation.examples
    found = []
    begun = evaluation.method(start_name(config)) if start is not None else None
    if begun is not None:
        found.append(probes.second_embedder(config, task.dataset, examples, measured, begun, metric))
    for name, change in ((probes.SHUFFLED, probes.shuffled), (probes.OTHER, probes.exchanged)):
        again = models.measure(f"{measured.name}, {name}", checkpoint, reads=change(examples), what=name)
        found.append(probes.history_probe(name, measured, again, metric, examples, is_order=name == probes.SHUFFLED))
    return found


def _result_folder(run: Run, checkpoint: str, config: RunConfig, dataset: Dataset) -> tuple[Path, bool]:
    """Where a result is kept, and whether it is the run's own result.

    Another checkpoint, users, settings or data than the run's own never replace the run's. The result of a run is that
    of its last step, once it is trained to its end.
    """
    name = Path(checkpoint).resolve().name
    name = "" if name == run.final.name else name
    if changed_data(run, config.data, dataset) is not None:
        name = "-".join(filter(None, (name, "data", dataset.digest[:8])))
    as_run = config.model_copy(update={"eval": config.eval.model_copy(update={"split": run.config.eval.split})})
    folder = run.folder / "eval"
    if len(run.config.data.paths) > 1 and set(config.data.paths) <= set(run.config.data.paths):
        as_run, folder = as_run.model_copy(update={"data": run.config.data}), run.results(dataset.name)
    if as_run != run.config:
        name = f"{name or 'variant'}-{sha256(dump_config(config).encode())[:8]}"
    return folder / name, not name
