"""Reinforcement learning on retrieval rewards: the one path of all its algorithms.

Decides: that prompts, completions, rewards, log lines and checkpoints are the same for all of them.
Hides: TRL.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.train.algorithms.opening import open_trainer
from rl4rec_cli.train.algorithms.parts import TrainerParts
from rl4rec_cli.train.arguments import number_of_steps, release, steps_per_epoch
from rl4rec_cli.train.callbacks import StepLog
from rl4rec_cli.train.checkpoints import steps_done
from rl4rec_cli.train.environments import count_examples
from rl4rec_cli.train.live import TrainingView, shown
from rl4rec_cli.train.resumable import Keeper
from rl4rec_cli.train.rollouts import RetrievalReward, Rollout, step_record
from rl4rec_cli.train.watch import Watch

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.runs.folder import Run
    from rl4rec_cli.train.environments import Environment
    from rl4rec_cli.train.validation import Validation


def prepare_rollouts(
    config: RunConfig,
    policy: Policy,
    environments: Sequence[Environment],
    rollouts: JsonLines,
) -> tuple[Any, RetrievalReward, Rollout]:
    """Returns a trainer's dataset, reward and rollout function: `rows`, `reward` and `rollout` of `TrainerParts`."""
    from datasets import Dataset as HfDataset

    rows: list[dict[str, Any]] = []
    ids: dict[str, tuple[int, ...]] = {}
    for environment in environments:
        for example in environment.examples:
            prompt = environment.builder.build(example.user, example.history)
            ids[prompt.text] = prompt.ids  # the same for the same text, whatever its dataset
            example_columns = {"user": example.user, "target": example.target, "history": list(example.history)}
            rows.append({"prompt": prompt.text, **example_columns, "dataset": environment.name})
    rollout = Rollout(ids, Sampling.from_section(config.generation), policy)
    scorers = {environment.name: environment.scorer for environment in environments}
    reward = RetrievalReward(scorers, policy.tokenizer, rollouts, shown=config.logging.rollouts)
    return HfDataset.from_list(rows), reward, rollout


def train_rl(
    config: RunConfig,
    run: Run,
    policy: Policy,
    environments: Sequence[Environment],
    log: JsonLines,
    rollouts: JsonLines,
    *,
    resume: Path | None = None,
    validation: Validation | None = None,
) -> int:
    """Trains the policy, in place, to raise its completions' reward by the configured algorithm.

    Args:
        environments: the policy learns from all of them together.
        resume: the checkpoint to go on from.
        validation: measures the policy at regular steps.

    Returns:
        The number of steps in all.

    Raises:
        ConfigError: the settings do not go together.
        RewardError, EmbeddingError: a step fails. The run first saves the policy of the last whole step, as after
            anything else that ends the training early.
    """
    section = config.trainer
    examples = count_examples(environments)
    steps = number_of_steps(section, examples)
    rows, reward, rollout = prepare_rollouts(config, policy, environments, rollouts)

    def describe(logs: dict[str, Any]) -> dict[str, Any] | None:
        return step_record(logs, reward, rollout)

    phase, steps_before = section.algorithm, steps_done(resume)
    course = validation.course if validation is not None else None
    view = TrainingView(phase.upper(), steps, done=steps_before, validation=course, samples=reward.last)
    with tempfile.TemporaryDirectory() as scratch, shown(view) as live_view:
        trainer = open_trainer(TrainerParts(config, policy, steps, Path(scratch), rows, reward, rollout))
        batches = steps_per_epoch(section, examples)
        watch = Watch(config.health, log, phase=phase)
        trainer.add_callback(
            StepLog(
                log,
                describe,
                phase=phase,
                batches_per_epoch=batches,
                watch=watch,
                view=live_view,
                best=validation.best_line if validation is not None else str,
            )
        )
        parts = {"reward": reward}
        keeper = Keeper(run, policy, phase=phase, resume=resume, parts=parts, validation=validation, watch=watch)
        keeper.train(trainer)
        release(trainer)
        if critic := getattr(trainer, "critic", None):
            critic.remove()
    policy.model.eval()
    return steps
