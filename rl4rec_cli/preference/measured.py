"""Answers to held-out prompts, scored.

Decides: which figures are reported of them.
Hides: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rl4rec_cli.data.words import split
from rl4rec_cli.rewards.custom import log_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.preference.scoring import PairScores

METRIC = "reward"
LENGTH = "words"


@dataclass(frozen=True)
class PairMeasured:
    """One answer to each held-out prompt, scored."""

    name: str
    texts: list[str]
    scores: PairScores
    kind: str
    """As of `eval.scoring.Measured`."""
    notes: dict[str, object] = field(default_factory=dict)
    log_probs: None = None
    is_hybrid: bool = False
    is_partner: bool = False

    @property
    def in_brief(self) -> bool:
        """Brief overviews show the data's own answers; they name the policies themselves."""
        return self.kind != "policy"

    @property
    def figures(self) -> dict[str, NDArray[np.float64]]:
        """Returns the reward, its parts where there are several, and the length in words, `[B]` each.

        What a reward says it does not apply to counts 0, as in the sum.
        """
        parts, names = self.scores.parts, log_names(self.scores.parts)
        own = {names[name]: np.nan_to_num(values) for name, values in parts.items()} if len(parts) > 1 else {}
        words = np.array([len(split(text)) for text in self.texts], np.float64)
        return {METRIC: self.scores.rewards, **own, LENGTH: words}
