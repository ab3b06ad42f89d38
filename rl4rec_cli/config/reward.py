"""The `reward` section: what completions are worth."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rl4rec_cli.config.base import PositiveInt, RewardSize, RewardWeight, Section
from rl4rec_cli.config.pairs import AccuracySection, CustomSection, LengthSection
from rl4rec_cli.config.registries import PAIR_REWARDS, REWARDS


class RewardSection(Section):
    functions: dict[str, RewardWeight] = Field(
        default={"ndcg": 1.0},
        min_length=1,
        description=f"Reward functions and weights: {REWARDS.quoted()}, a plug-in's name or `module:attr`; of the task "
        f"preference {PAIR_REWARDS.quoted()}, a reward model's name, a plug-in's or `module:attr`, and `accuracy` when "
        "absent. Weight 0 = logged only.",
    )
    k: PositiveInt = 10
    """Cut-off of the rewards."""
    mixed_ndcg: RewardSize = 0.5
    """Weight of NDCG in `mixed`."""
    mixed_hit: RewardSize = 0.5
    """Weight of Hit in `mixed`."""
    rank_shaping: RewardSize = 0.0
    """ε of ε·(1 − ln rank / ln N), added to the weighted sum."""
    fuse: Literal["none", "sasrec", "transitions", "history"] = "none"
    """Reward the rank that the completion's scores and this sequence model's give together, as `eval --fuse` ranks.
    `history`: the trained retriever that `retrieval.model` names, by its own query of the history. Each half of the
    users is scored by a model fitted on the other half. Screening and the measurements of training rank alike."""
    fuse_weight: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Weight of the completion's own scores in `fuse`, throughout training. (Evaluation has validation users choose the
    weight for the trained policy.)"""
    credit: Literal["own", "marginal"] = "own"
    """What a completion of a group is paid for: the rank of its `own` text, or what the rank of the whole group, fused
    as `generation.fusion` says, loses without it (`marginal`), so that a group learns to ask for different things.
    `marginal` is for grpo and rloo, and weighs completions alike, whatever `generation.text_weights`; rewards that read
    completions are paid as with `own`."""
    normalize_rewards: Literal["auto", "group", "batch", "none"] = "auto"
    """Divide advantages by the standard deviation of the group or the batch. `auto`: for grpo `group`, but `none` with
    rank shaping or `credit: marginal`, whose small differences a group's deviation would blow up to ±1; for ppo and
    reinforce `batch`; for rloo `none`."""
    accuracy: AccuracySection = AccuracySection()
    """Of the reward `accuracy` (task `preference`)."""
    length: LengthSection = LengthSection()
    """Of the reward `length` (task `preference`)."""
    custom: CustomSection = CustomSection()
    """Of the reward `custom` (task `preference`)."""

    @property
    def is_fused(self) -> bool:
        """Whether rewards are of a rank by the completion and a sequence model together."""
        return self.fuse != "none"

    @property
    def fuses_retriever(self) -> bool:
        """Whether the run's own trained retriever ranks along, in a sequence model's place."""
        return self.fuse == "history"

    @property
    def scale_rewards(self) -> str:
        """The value the `scale_rewards` of TRL's GRPO gets."""
        if self.normalize_rewards == "auto":
            return "none" if self.rank_shaping > 0 or self.pays_marginal else "group"
        return self.normalize_rewards

    @property
    def pays_marginal(self) -> bool:
        """Whether a completion is paid what its group's fused rank loses without it."""
        return self.credit == "marginal"
