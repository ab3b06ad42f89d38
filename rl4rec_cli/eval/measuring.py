"""Measures policies and baselines on the same users, ranks and masks.

Decides: which users are measured, their groups, and how a policy's completions become ranks.
Hides: the prompt builder, sampling, and the order of imports.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.data.dataset import Split
from rl4rec_cli.eval.checkpoint import checkpoint_line, describe_checkpoint
from rl4rec_cli.eval.evaluation import Evaluation
from rl4rec_cli.eval.examples import choose_examples
from rl4rec_cli.files.paths import expand
from rl4rec_cli.runs.folder import Run

# torch is imported in the functions that need it, so that errors in the dataset show first.
if TYPE_CHECKING:
    from rl4rec_cli.config.evaluation import EvalSection
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset, Example
    from rl4rec_cli.eval.scoring import Task
    from rl4rec_cli.retrieval.retriever import VectorRetriever


FIT_LINE = "All that is trained here was fitted on the training parts and the validation targets (data.fit)."


def start_evaluation(section: EvalSection, dataset: Dataset, split: Split) -> Evaluation:
    """Starts an evaluation with the users to measure and their slices. Callers add methods as they measure them.

    Raises:
        DataError: the split is empty.
    """
    from rl4rec_cli.eval.baselines import training_counts
    from rl4rec_cli.eval.behaviour import user_slices
    from rl4rec_cli.eval.metrics import target_slices

    examples = choose_examples(dataset, split, section.users)
    slices = {**target_slices(training_counts(dataset), [e.target for e in examples]), **user_slices(examples)}
    about = {"dataset": dataset.name, "dataset_digest": dataset.digest}
    if not dataset.has_validation:
        about |= {"fit": dataset.fit, "fit_line": FIT_LINE}
    return Evaluation(split, examples, section.ks, slices, about=about)


def open_task(section: EvalSection, dataset: Dataset, retriever: VectorRetriever, examples: Sequence[Example]) -> Task:
    """Returns the task of a configuration's baselines."""
    from rl4rec_cli.eval.scoring import Task

    cache = expand(section.cache_dir) if section.cache_dir is not None else None
    return Task(dataset, retriever, examples, cache=cache, fuse_weights=section.fuse_weights)


def finish(evaluation: Evaluation, dataset: Dataset) -> None:
    """Adds the figures of behaviour, once all methods are measured."""
    from rl4rec_cli.eval.baselines import training_counts
    from rl4rec_cli.eval.behaviour import behaviour

    counts = training_counts(dataset)
    for method in evaluation.methods:
        evaluation.behaviour[method.name] = behaviour(method, dataset, evaluation.examples, counts)


def note_checkpoint(evaluation: Evaluation, run: Run, folder: Path) -> None:
    """Adds to a result which of a run's checkpoints it measures."""
    evaluation.about["checkpoint"] = about = describe_checkpoint(run, folder)
    evaluation.about["checkpoint_line"] = checkpoint_line(about, split=evaluation.split)


def audit_line(config: RunConfig, dataset: Dataset, path: str | None) -> str:
    """Returns the leakage audit as one line, and logs it.

    Args:
        path: the dataset's folder, if there is one.
    """
    from rl4rec_cli.data.audit.audit import audit_as_configured

    line = audit_as_configured(dataset, config).one_line(path or "PATH")
    console.log(line)
    return line
