"""A phase of training: the one path of all algorithms.

Decides: that log lines, checkpoints, validation and the live view are the same for all of them.
Hides: TRL.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rl4rec_cli.train.algorithms.opening import open_lesson, open_trainer
from rl4rec_cli.train.arguments import number_of_steps, release, steps_per_epoch
from rl4rec_cli.train.callbacks import StepLog
from rl4rec_cli.train.checkpoints import steps_done
from rl4rec_cli.train.environments import count_examples
from rl4rec_cli.train.live import TrainingView, shown
from rl4rec_cli.train.parts import TrainerParts
from rl4rec_cli.train.resumable import Keeper
from rl4rec_cli.train.watch import Watch

if TYPE_CHECKING:
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.runs.folder import Run
    from rl4rec_cli.train.environments import Examples
    from rl4rec_cli.train.learner import Learner
    from rl4rec_cli.train.validation import Measurements


def train_phase(
    section: TrainerSection,
    run: Run,
    learner: Learner,
    environments: Sequence[Examples],
    log: JsonLines,
    rollouts: JsonLines,
    *,
    is_warm_start: bool = False,
    resume: Path | None = None,
    validation: Measurements | None = None,
) -> tuple[int, int]:
    """Trains a policy or a retriever in place by the section's algorithm.

    Args:
        section: the run's own, or its warm start's.
        environments: it learns from all of them together.
        is_warm_start: checkpoints are `checkpoint_warm_N`.
        resume: the checkpoint to go on from.
        validation: measures it at regular steps.

    Returns:
        The number of steps that were made, and the tokens of the longest text that a policy was taught or might write.

    Raises:
        ConfigError: the settings do not go together, or there are too few examples.
        RewardError, EmbeddingError: a step fails. The run first saves the policy of the last whole step, as after
            anything else that ends the training early.
    """
    config, phase, examples = run.config, section.algorithm, count_examples(environments)
    steps = number_of_steps(section, examples)
    lesson = open_lesson(section, config.generation, learner, environments, rollouts, shown=config.logging.rollouts)
    reward = lesson.reward
    view = TrainingView(
        "Warm start" if is_warm_start else phase.upper(),
        steps,
        done=steps_done(resume),
        validation=validation.course if validation is not None else None,
        samples=reward.last if reward is not None else None,
    )
    with tempfile.TemporaryDirectory() as scratch, shown(view) as live_view:
        trainer = open_trainer(TrainerParts(section, config, cast("Policy", learner), steps, Path(scratch), lesson))
        watch = Watch(config.health, log, phase=phase) if reward is not None else None
        trainer.add_callback(
            StepLog(
                log,
                lesson.describe,
                phase=phase,
                batches_per_epoch=steps_per_epoch(section, examples),
                watch=watch,
                view=live_view,
                best=validation.best_line if validation is not None else str,
            )
        )
        keeper = Keeper(
            run,
            learner,
            phase=phase,
            is_warm_start=is_warm_start,
            resume=resume,
            parts={"reward": reward} if reward is not None else {},
            validation=validation,
            watch=watch,
        )
        keeper.train(trainer)
        release(trainer)
        if critic := getattr(trainer, "critic", None):
            critic.remove()
        if section.may_end_early:
            steps = trainer.state.global_step
    learner.model.eval()
    return steps, lesson.longest_text
