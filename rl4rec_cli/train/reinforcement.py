"""What every algorithm of reinforcement learning learns from.

Decides: that prompts, completions, rewards and log lines are the same for all of them.
Hides: TRL's dataset of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.train.pairs import build_pairs
from rl4rec_cli.train.parts import Lesson
from rl4rec_cli.train.rollouts import RetrievalReward, Rollout, step_record

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import GenerationSection
    from rl4rec_cli.config.trainer import RlSection
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.train.environments import Environment


def open_lesson(
    section: TrainerSection,
    generation: GenerationSection,
    policy: Policy,
    environments: Sequence[Environment],
    rollouts: JsonLines,
    *,
    shown: int,
) -> Lesson:
    """Returns what every algorithm of reinforcement learning learns from: prompts, and rewards of what it writes."""
    from datasets import Dataset as HfDataset

    rows: list[dict[str, Any]] = []
    ids: dict[str, tuple[int, ...]] = {}
    for environment in environments:
        for example in environment.examples:
            prompt = environment.builder.build(example.user, example.history)
            ids[prompt.text] = prompt.ids  # the same for the same text, whatever its dataset
            example_columns = {"user": example.user, "target": example.target, "history": list(example.history)}
            rows.append({"prompt": prompt.text, **example_columns, "dataset": environment.name})
    if (taught := cast("RlSection", section).taught) is not None:
        pairs = [
            pair
            for one in environments
            for pair in build_pairs(
                taught, one.dataset, one.examples, one.builder, max_completion_length=generation.max_completion_length
            )
        ]
        for row, pair in zip(rows, pairs, strict=True):
            row.update(taught_ids=pair["input_ids"], taught_labels=pair["labels"])
    rollout = Rollout(ids, Sampling.from_section(generation), policy)
    scorers = {environment.name: environment.scorer for environment in environments}
    reward = RetrievalReward(scorers, policy.tokenizer, rollouts, shown=shown)
    return Lesson(
        HfDataset.from_list(rows),
        generation.max_completion_length,
        lambda logs: step_record(logs, reward, rollout),
        reward,
        rollout,
    )
