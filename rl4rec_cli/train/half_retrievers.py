"""Trained retrievers of half the users, which score the other half's training examples (`reward.fuse=history`).

Decides: that they are fitted by the settings of the whole retriever's run, for the share of the schedule after which it
was best; that none is used which was fitted on other data, vectors or settings.
Hides: their files in `eval.cache_dir`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import TrainerCallback, set_seed

from rl4rec_cli import console
from rl4rec_cli.errors import RunError
from rl4rec_cli.eval.history_hybrid import HistoryFusion
from rl4rec_cli.eval.vector_method import history_scores
from rl4rec_cli.files.digests import sha256_of_json
from rl4rec_cli.files.logs import JsonLines
from rl4rec_cli.files.names import file_name
from rl4rec_cli.files.reading import read_object
from rl4rec_cli.retrieval.trained_opening import open_trained
from rl4rec_cli.train.algorithms.opening import open_lesson, open_trainer
from rl4rec_cli.train.arguments import number_of_steps, release
from rl4rec_cli.train.checkpoints import VALIDATION
from rl4rec_cli.train.environments import Histories
from rl4rec_cli.train.examples import number_of_training_examples, training_examples
from rl4rec_cli.train.parts import TrainerParts
from rl4rec_cli.train.snapshot import random_states_kept

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.eval.hybrids import ScoreExamples
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.retrieval.trained import TrainedRetriever

FORMAT = "rl4rec-half-retriever-1"
"""Of the cached files and of the training: raise it when a change would train another model."""


class _StopAfter(TrainerCallback):
    """Ends training before its schedule does."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step >= self._steps


def open_half_retriever(fusion: HistoryFusion, whole: Dataset, half: Dataset, cache: Path | None) -> ScoreExamples:
    """Fits a retriever on half of the users, or reads it from the cache; returns its scores of any examples.

    Args:
        whole: the dataset of all users, which the run's own retriever was trained on.
        half: that of the users to fit on.
        cache: folder; None keeps nothing.

    Raises:
        ConfigError: the half has fewer users than one step takes. RunError: the run's files are damaged.
    """
    config = fusion.run.config
    users = training_examples(config.training_data, half, seed=config.run.seed)
    steps = number_of_steps(config.trainer, len(users))
    last = max(1, round(steps * _best_share(fusion, whole)))
    with random_states_kept():
        set_seed(config.run.seed)
        retriever = open_trained(config, half, fusion.encoder)
        identity = {
            "dataset": half.digest,
            "section": config.trainer.model_dump(mode="json"),
            "seed": config.run.seed,
            "steps": [last, steps],
            "start": retriever.digest,
        }
        name = f"retriever_{file_name(half.name)}_{sha256_of_json([FORMAT, identity])[:16]}"
        folder = None if cache is None else cache / name
        if folder is None or not _is_loaded(retriever, folder):
            console.log(f"Retriever on {half.name}: {len(half.users):,} users, {last:,} of {steps:,} steps")
            _train(config, retriever, Histories(half, fusion.encoder, users), steps, last)
            if folder is not None:
                _keep(retriever, folder)
    return history_scores(retriever)


def _best_share(fusion: HistoryFusion, whole: Dataset) -> float:
    """Returns after which share of its schedule the whole retriever was best."""
    config = fusion.run.config
    count = number_of_training_examples(config.training_data, whole, seed=config.run.seed)
    steps = number_of_steps(config.trainer, count)
    if not fusion.run.best.is_dir():
        return 1.0
    best = int(read_object(fusion.run.best / VALIDATION, {"step": int})["step"])
    return min(1.0, best / steps)


def _train(config: RunConfig, retriever: TrainedRetriever, histories: Histories, steps: int, last: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        rollouts = JsonLines(Path(scratch) / "rollouts.jsonl")
        lesson = open_lesson(config.trainer, config.generation, retriever, [histories], rollouts, shown=0)
        trainer = open_trainer(
            TrainerParts(config.trainer, config, cast("Policy", retriever), steps, Path(scratch), lesson)
        )
        trainer.add_callback(_StopAfter(last))
        trainer.train()
        release(trainer)
        rollouts.close()
    retriever.model.eval()


def _is_loaded(retriever: TrainedRetriever, folder: Path) -> bool:
    """Loads what the cache has, and returns whether it has it; a damaged model is fitted again (logged)."""
    if not folder.is_dir():
        return False
    try:
        retriever.load(folder)
    except RunError as error:
        console.log(f"warning: {error.message}; the retriever is fitted again")
        return False
    return True


def _keep(retriever: TrainedRetriever, folder: Path) -> None:
    try:
        retriever.write(folder)
    except RunError as error:
        # The model in memory is good: raising would lose it, while not keeping it costs one more training.
        console.log(f"warning: {error.message}")
