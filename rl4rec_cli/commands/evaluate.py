"""Measure a run, a checkpoint or a model next to its baselines: `rl4rec eval`.

Decides: the order of the steps, so that errors appear before models are loaded; where a result is kept.
Hides: measuring (`eval/measuring.py`), loading and the cache (`eval/policies.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.config.layering import dump_config
from rl4rec_cli.config.registries import BASELINES
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.data.provenance import CHOOSE, changed_data, check_unseen
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.eval.baseline import Baseline, Subject, measure_baselines, open_baselines
from rl4rec_cli.eval.evaluation import Evaluation, save_evaluation
from rl4rec_cli.eval.history_hybrid import open_history_fusion
from rl4rec_cli.eval.measuring import (
    audit_line,
    finish,
    note_checkpoint,
    open_task,
    start_evaluation,
)
from rl4rec_cli.eval.policies import Models, Retrievers, open_models
from rl4rec_cli.eval.resolve import Overrides, resolve_target, untrained
from rl4rec_cli.files.digests import sha256
from rl4rec_cli.files.writing import kept_after, warn_unwritable, write_text
from rl4rec_cli.retrieval.embedder import find_embedder
from rl4rec_cli.runs.folder import Run

# torch is imported in the functions that need it, so that an error in the dataset is told before.
if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.eval.probes import Probe
    from rl4rec_cli.eval.scoring import Measured, Task


def evaluate(
    target: str | Path | None = None,
    overrides: Overrides | None = None,
    *,
    show: Callable[[Evaluation], None] = lambda evaluation: None,
) -> Evaluation:
    """Measures a run, one of its checkpoints, a model, or (no target) the baselines alone.

    It keeps the result of a run in the run's folder, and records every opening of its test split there.

    Args:
        show: shows the result before it is written, so that a full disk does not lose it.

    Raises:
        Rl4RecError: see the parts.
    """
    run, model, config = resolve_target(None if target is None else str(target), overrides)
    baselines = open_baselines(config.eval.all_baselines)  # what cannot be opened is told before anything is measured
    data = open_dataset(config.data)
    evaluation = start_evaluation(config.eval, data, config.eval.split)
    embedders = (find_embedder(config.retrieval).model, config.eval.second_embedder)
    check_unseen(data, evaluation.split, [model, config.policy.model, *embedders])
    for baseline in baselines:
        baseline.check(data, evaluation.examples, evaluation.split, config.eval.fuse_weights)
    ours = config.trainer.tuned_name if run is not None else model
    if config.eval.fuses_retriever:
        history = open_history_fusion(config.retrieval, data, "eval.fuse")
        history.check(data, evaluation.examples, evaluation.split, config.eval.fuse_weights, method=ours)
        baselines.append(history)
    if data.has_validation and any(baseline.is_chosen for baseline in baselines):
        check_unseen(data, "validation", [model, config.policy.model, embedders[0]], use=CHOOSE)
    evaluation.about["audit"] = audit_line(config, data, next(iter(config.data.paths), None))
    is_own = True
    if run is not None and model is not None:
        note_checkpoint(evaluation, run, Path(model))
        if (data_change := changed_data(run, config.data, data)) is not None:
            evaluation.about["data_line"] = f"WARNING: {data_change}. The result is kept beside those of the run."
            console.log(evaluation.about["data_line"])
    _note_openings(evaluation, run)
    if run is not None and model is not None:
        evaluation.kept_in, is_own = _result_folder(run, model, config, data)
        warn_unwritable(evaluation.kept_in)

    from rl4rec_cli.policy.backend import check_engine, prepare_backend
    from rl4rec_cli.policy.loading import check_tokenizer
    from rl4rec_cli.retrieval.opening import FIRST_WAIT, open_retriever

    if model is not None and config.trainer.trains_policy:
        check_engine(config.generation, config.policy)
        prepare_backend(config.policy)
        # before the minutes of embedding
        check_tokenizer(config.policy.model_copy(update={"model": model}), config.max_length)
    retriever = open_retriever(config.retrieval, data, config.data.paths, first_wait=FIRST_WAIT)
    task = open_task(config.eval, data, retriever, evaluation.examples)
    evaluation.methods.extend(measure_baselines(baselines, task, evaluation.split))
    if model is not None:
        models = open_models(config, task, started=run.day if run is not None else None)
        try:
            _measure_policies(evaluation, run, model, config, task, models, baselines)
        finally:
            models.close()
    if not evaluation.methods:
        raise ConfigError("nothing to measure", hint="name a run or a model, or baselines with --baselines")
    finish(evaluation, data)

    def keep() -> None:
        if evaluation.kept_in is not None:
            save_evaluation(evaluation, evaluation.kept_in)
            if not is_own:
                write_text(evaluation.kept_in / "config.yaml", dump_config(config))

    with kept_after(keep, evaluation.kept_in or Path()):
        show(evaluation)
    return evaluation


def _note_openings(evaluation: Evaluation, run: Run | None) -> None:
    """Logs how often the run's test split was opened.

    An opening is recorded before anything is measured: an evaluation that fails half-way counts, too.
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
    evaluation: Evaluation,
    run: Run | None,
    checkpoint: str,
    config: RunConfig,
    task: Task,
    models: Models | Retrievers,
    opened: Sequence[Baseline],
) -> None:
    ours = config.trainer.tuned_name if run is not None else checkpoint
    start = untrained(run, config.policy)
    subject = Subject(ours, checkpoint, start, config.trainer.start_name, models, config, task, evaluation.split)
    order = {name: place for place, name in enumerate(BASELINES.names())}
    baselines = sorted(opened, key=lambda baseline: order.get(baseline.name, len(order)))
    before = (baseline.measure_before(subject) for baseline in baselines)
    evaluation.methods += [method for method in before if method is not None]
    policy_result = models.measure(ours, checkpoint)
    evaluation.methods.append(policy_result)
    evaluation.subject = ours
    hybrids = (baseline.measure_joined(subject) for baseline in baselines)
    evaluation.methods += [method for method in hybrids if method is not None]
    if config.eval.probes:
        evaluation.probes.extend(_probe(evaluation, policy_result, start, models, checkpoint, config, task))


def _probe(
    evaluation: Evaluation,
    measured: Measured,
    start: str | None,
    models: Models | Retrievers,
    checkpoint: str,
    config: RunConfig,
    task: Task,
) -> list[Probe]:
    from rl4rec_cli.eval import probes

    metric, examples = evaluation.headline, evaluation.examples
    answers = []
    start_result = evaluation.method(config.trainer.start_name) if start is not None else None
    if start_result is not None and measured.texts is not None:
        answers.append(probes.second_embedder(config, task.dataset, examples, measured, start_result, metric))
    for name, change in ((probes.SHUFFLED, probes.shuffled), (probes.OTHER, probes.exchanged)):
        again = models.measure(f"{measured.name}, {name}", checkpoint, reads=change(examples), what=name)
        answers.append(probes.history_probe(name, measured, again, metric, examples, is_order=name == probes.SHUFFLED))
    return answers


def _result_folder(run: Run, checkpoint: str, config: RunConfig, dataset: Dataset) -> tuple[Path, bool]:
    """Returns the folder of a result, and whether it is the run's own result.

    A result of another checkpoint, other users, settings or data never replaces the run's own. A run's own result is
    that of its last step, once training has ended.
    """
    name = Path(checkpoint).resolve().name
    name = "" if name == run.final.name else name
    if changed_data(run, config.data, dataset) is not None:
        name = "-".join(filter(None, (name, "data", dataset.digest[:8])))
    comparable = config.model_copy(update={"eval": config.eval.model_copy(update={"split": run.config.eval.split})})
    folder = run.folder / "eval"
    if len(run.config.data.paths) > 1 and set(config.data.paths) <= set(run.config.data.paths):
        comparable, folder = comparable.model_copy(update={"data": run.config.data}), run.results(dataset.name)
    if comparable != run.config:
        name = f"{name or 'variant'}-{sha256(dump_config(config).encode())[:8]}"
    return folder / name, not name
