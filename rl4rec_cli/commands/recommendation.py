"""The answer of `rl4rec recommend` for one history.

Decides: what an answer holds, and its JSON.
Hides: nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rl4rec_cli.eval.scoring import FUSION, TEXTS

if TYPE_CHECKING:
    from rl4rec_cli.data.dataset import Fit


@dataclass(frozen=True)
class Item:
    """An item of the catalogue."""

    item_id: int
    title: str


@dataclass(frozen=True)
class RankedItem:
    """A recommended item."""

    rank: int
    """From 1."""
    score: float
    """Cosine of the item's vector and the query's (a text's, or a retriever's), or the fused score of several texts
    (`ranking/fusing.py`) or of a hybrid (`fused_scores.py`); rounded to six digits."""
    item_id: int
    title: str


@dataclass(frozen=True)
class Fusing:
    """What ranked along with the completion."""

    sequence_model: str
    weight: float
    """Of the completion, from 0 to 1; the rest is the sequence model's. Validation users chose it."""
    fitted_on: Fit
    """What the sequence model was fitted on."""


@dataclass(frozen=True)
class Recommendation:
    """The answer for one history."""

    checkpoint: str
    """Name of the checkpoint that answers."""
    history: tuple[Item, ...]
    """Oldest first."""
    texts: tuple[str, ...]
    """What the policy wrote: one text, or `generation.texts_per_user`; none from a retriever, which writes nothing."""
    items: tuple[RankedItem, ...]
    """The best first, at most `k`, none of the history unless the dataset's users repeat items."""
    user: str | None = None
    """None if the history was given as titles."""
    warning: str | None = None
    """What differs between the data that are there and those the policy was trained on."""
    fitted_on: Fit = "train"
    """What the policy or the retriever was fitted on: its run's `data.fit`."""
    fused: Fusing | None = None
    """The sequence model that ranked along with the completion; None if that ranked alone."""
    log_probs: tuple[float, ...] | None = None
    """The log-probability of each text, where texts weigh as much as they are probable."""
    fusion: str | None = None
    """How several texts are ranked as one; None for one text."""

    @property
    def text(self) -> str | None:
        """The text, several with bars between them; None if there is none."""
        return " | ".join(self.texts) if self.texts else None

    def as_json(self) -> dict[str, Any]:
        """Returns the answer as `rl4rec recommend --json` prints it, without the user."""
        return {
            "checkpoint": self.checkpoint,
            **({"warning": self.warning} if self.warning else {}),
            "history": [asdict(item) for item in self.history],
            **self._texts(),
            "fitted_on": self.fitted_on,
            **({"fused": asdict(self.fused)} if self.fused else {}),
            "items": [asdict(item) for item in self.items],
        }

    def _texts(self) -> dict[str, Any]:
        if len(self.texts) > 1:
            more = {} if self.log_probs is None else {"log_probs": [round(logp, 6) for logp in self.log_probs]}
            return {"texts": list(self.texts), **more, TEXTS: len(self.texts), FUSION: self.fusion}
        return {"text": self.text} if self.texts else {}
