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
from rl4rec_cli.train.rollouts import Rollout, step_record

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import GenerationSection
    from rl4rec_cli.config.trainer import RlSection
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.train.environments import PolicyData


def open_lesson(
    section: TrainerSection,
    generation: GenerationSection,
    policy: Policy,
    environments: Sequence[PolicyData],
    rollouts: JsonLines,
    *,
    shown: int,
) -> Lesson:
    """Returns what every algorithm of reinforcement learning learns from: prompts, and rewards of what it writes."""
    from datasets import Dataset as HfDataset

    rows: list[dict[str, Any]] = []
    ids: dict[str, tuple[int, ...]] = {}
    for environment in environments:
        for prompt, columns in environment.prompts():
            ids[prompt.text] = prompt.ids  # the same for the same text, whatever its dataset
            rows.append({"prompt": prompt.text, **columns, "dataset": environment.name})
    if (taught := cast("RlSection", section).taught) is not None:
        most = generation.max_completion_length
        pairs = [
            pair
            for one in environments
            for pair in build_pairs(one.taught(taught), one.builder, max_completion_length=most)
        ]
        for row, pair in zip(rows, pairs, strict=True):
            row.update(taught_ids=pair["input_ids"], taught_labels=pair["labels"])
    rollout = Rollout(ids, Sampling.from_section(generation), policy)
    reward = environments[0].open_reward(environments, policy.tokenizer, rollouts, shown=shown)
    return Lesson(
        HfDataset.from_list(rows),
        generation.max_completion_length,
        lambda logs: step_record(logs, reward, rollout),
        reward,
        rollout,
    )
