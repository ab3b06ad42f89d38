"""Measure policies and baselines on the same users, ranks and masks.

Decides: which users are measured and by what they are grouped, and how a policy's texts become ranks.
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
from rl4rec_cli.runs.folder import Run

# torch is imported in the functions that need it, so that an error in the dataset is told before.
if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset, Example
    from rl4rec_cli.eval.scoring import Task
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


def audit_line(config: RunConfig, dataset: Dataset, path: str | None) -> str:
    """The leakage audit's one line; also logged, for whoever only sees the log.

    Args:
        path: the dataset's folder, where there is one.
    """
    from rl4rec_cli.data.audit.audit import audit_as_configured

    line = audit_as_configured(dataset, config).one_line(path or "PATH")
    console.log(line)
    return line
