"""What a completion of a group is paid where it is paid what its group loses without it (`reward.credit: marginal`).

Decides: which groups there are, and what of them is reported. Hides: nothing; `Scorer` does the sums.

Let V be the weighted rewards of a rank, with shaping, and 0 where nothing is scorable. Completion i of group g is paid
V(fused rank of g) − V(fused rank of g without i), and beside it, as ever, the weighted rewards that read texts. This is
the difference reward of Wolpert & Tumer 2001, "Optimal payoff functions for members of collectives". What is taken off
does not depend on completion i. So before a baseline is taken off, the policy gradient with these rewards is that of
the mean of V, the reward of groups that are ranked as one.

Equal completions count once in fusion. So each of several equal ones is paid 0, as the group loses nothing without it:
to say a thing again adds nothing. (To share its credit among them would pay for being copied, and the gradient would
be another one.) An unscorable completion is paid 0, too, and one that draws the target down less than 0.

With `reward.fuse` the ranks are those of the group and the sequence model together. A group of which nothing is
scorable is worth 0 there, too, as a single unscorable completion is, and not what the sequence model reaches alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from rl4rec_cli.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.ranking.fusing import Fusion

Value = TypeVar("Value")


@dataclass(frozen=True)
class Groups:
    """Says that completions stand in groups, and that each is paid what its group loses without it."""

    size: int
    """Completions of each group, which stand together."""
    fusion: Fusion

    @classmethod
    def of(cls, config: RunConfig) -> Groups | None:
        """Returns the groups that a run is paid by; None where each completion is paid for its own rank."""
        if not (config.reward.pays_marginal and config.trainer.has_groups):
            return None
        return cls(config.trainer.texts_per_prompt, config.generation.fusion)

    def split(self, texts: Sequence[str]) -> list[Sequence[str]]:
        """Returns the texts group by group.

        Raises:
            DataError: the last group is not whole.
        """
        if len(texts) % self.size:
            raise DataError(
                f"{len(texts)} completions are no whole groups of {self.size}",
                hint="with reward.credit=marginal, give all completions of an example together, "
                "trainer.num_generations of them",
            )
        return [texts[row : row + self.size] for row in range(0, len(texts), self.size)]

    def of_each(self, values: Sequence[Value], what: str) -> list[Value]:
        """Returns the value that all completions of a group have, for each group.

        Raises:
            DataError: they differ within a group.
        """
        for row, value in enumerate(values):
            first = row - row % self.size
            if value is not values[first] and value != values[first]:
                raise DataError(
                    f"completion {row} has another {what} than completion {first}, and both are of one group",
                    hint="with reward.credit=marginal, the completions of an example stand together",
                )
        return list(values[:: self.size])


class GroupScores(NamedTuple):
    """What the rewards of B completions are made of where groups pay. A group's values come for each completion."""

    own_rewards: NDArray[np.float64]
    """`[B]` what the completion would earn for its own rank."""
    ranks: NDArray[np.int64]
    """`[B]` rank of the target by the whole group."""
    ranks_without: NDArray[np.int64]
    """`[B]` rank of the target by the group without this completion."""
    rewards: NDArray[np.float64]
    """`[B]` V of the whole group."""
    parts: dict[str, NDArray[np.float64]]
    """`[B]` values of every reward by rank for the whole group, without shaping."""
