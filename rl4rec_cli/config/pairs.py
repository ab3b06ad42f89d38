"""Settings of the task `preference`: how pairs are read (`data.pairs`), and of rewards (`reward.accuracy` and so on).

Decides: their names, which are those of the reward files that other projects write (`--reward-config`).
Hides: nothing.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rl4rec_cli.config.base import PositiveInt, RewardSize, RewardWeight, Section


class PairsSection(Section):
    """How the records that `data.path` names are read. Of the task `preference` only."""

    split: str | None = None
    """Split of a data set of the Hub or of a saved folder; when absent the one that is for training."""
    subset: str | None = None
    """Subset (configuration) of a data set of the Hub."""
    max_samples: PositiveInt | None = None
    """Use only the first so many pairs; all when absent."""
    streaming: bool = False
    """Read a data set of the Hub record by record, without downloading all of it; needs max_samples."""
    held_out: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the prompts that are not trained on, and measured instead. Pairs of one prompt stay together."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed that draws them. It is not the run's, so that runs with several seeds are compared on the same prompts."""
    bad_records: Literal["auto", "refuse", "leave_out"] = "auto"
    """What happens to records that are no pair: all are named, and nothing is trained (`refuse`), or they are left out
    and counted. `auto`: `refuse` in files and folders, `leave_out` in data sets of the Hub."""

    @model_validator(mode="after")
    def _stream_ends(self) -> PairsSection:
        if self.streaming and self.max_samples is None:
            raise ValueError("streaming needs data.pairs.max_samples: training holds all pairs in memory")
        return self


Keyword = Annotated[str, Field(pattern=r"\S")]


class AccuracySection(Section):
    """Of the reward `accuracy`: the share of the keywords that a completion has."""

    correct_keywords: Annotated[tuple[Keyword, ...], Field(min_length=1)] | None = None
    """Words or phrases that a good completion has, in any case. When absent each pair's own: the words that its
    `chosen` has and its `rejected` has not."""


class LengthSection(Section):
    """Of the reward `length`: length_weight at the best length, falling evenly to 0 at none and at twice the words."""

    optimal_length: PositiveInt = 150
    """Words of the best completion."""
    length_weight: RewardSize = 1.0
    """What a completion of this length earns, before the weight in `reward.functions`."""


class CustomSection(Section):
    """Of the reward `custom`: by the embedder, a completion is nearer to `chosen`, or nearer to `rejected`."""

    reward_scale: RewardWeight = 1.0
    """What a completion earns that is nearer to `chosen`."""
    penalty_scale: RewardWeight = -0.5
    """What one earns that is nearer to `rejected`, or blank."""
