"""The rewards of preference tuning that need no model of their own.

Decides: what each is worth. A keyword, a length or nearness to an answer is a heuristic: each can be gained without a
better answer.
Hides: that the vectors of a batch are computed once for all rewards that read them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rl4rec_cli.data.words import folded, split
from rl4rec_cli.errors import RewardError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.config.sections import RewardSection
    from rl4rec_cli.preference.records import Pair
    from rl4rec_cli.retrieval.embedder import Embedder

    Values = NDArray[np.float64]


class Nearness:
    """How much nearer texts are to `chosen` than to `rejected`: the difference of two cosines, from -2 to 2."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._of: tuple[tuple[str, ...], tuple[Pair, ...]] = ((), ())
        self._margins: Values = np.zeros(0)

    def margins(self, texts: Sequence[str], pairs: Sequence[Pair]) -> Values:
        """Returns the difference `[B]`; 0 for a blank text, or one without a word that the embedder knows."""
        of = (tuple(texts), tuple(pairs))
        if of != self._of:
            rows = [*texts, *(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
            vectors_3BD = self._embedder.embed(rows).double().numpy().reshape(3, len(texts), -1)
            ours, chosen, rejected = vectors_3BD
            self._margins = (ours * chosen).sum(1) - (ours * rejected).sum(1)
            self._of = of
        return self._margins


class PairReward(ABC):
    """A reward of a completion and the pair of its prompt.

    Args:
        section: the settings of rewards.
        nearness: there where `reads_vectors` is true.
    """

    reads_vectors: ClassVar[bool] = False
    """Whether it needs the run's embedder."""

    def __init__(self, section: RewardSection, nearness: Nearness | None = None) -> None:
        self.section = section
        self._nearness = nearness

    @abstractmethod
    def __call__(self, texts: Sequence[str], pairs: Sequence[Pair]) -> Values:
        """Returns the rewards `[B]`."""

    def margins(self, texts: Sequence[str], pairs: Sequence[Pair]) -> Values:
        """Returns how much nearer each text is to `chosen` than to `rejected`."""
        if self._nearness is None:
            raise RewardError(f"{type(self).__name__} reads vectors, and there is no embedder")
        return self._nearness.margins(texts, pairs)


class Accuracy(PairReward):
    """The share of the keywords that a text has, whole words in any case; 0 where there are none."""

    def __init__(self, section: RewardSection, nearness: Nearness | None = None) -> None:
        super().__init__(section, nearness)
        keywords = section.accuracy.correct_keywords
        self._keywords = None if keywords is None else [_spaced(keyword) for keyword in keywords]

    def __call__(self, texts: Sequence[str], pairs: Sequence[Pair]) -> Values:
        return np.array([self._share(_spaced(text), pair) for text, pair in zip(texts, pairs, strict=True)], np.float64)

    def _share(self, text: str, pair: Pair) -> float:
        keywords = self._own(pair) if self._keywords is None else self._keywords
        return sum(keyword in text for keyword in keywords) / max(1, len(keywords))

    def _own(self, pair: Pair) -> list[str]:
        chosen, rejected = (dict.fromkeys(split(folded(text))) for text in (pair.chosen, pair.rejected))
        return [f" {word} " for word in chosen if word not in rejected]


def _spaced(text: str) -> str:
    """Returns a text's words with a blank around each, so that a phrase in it is one of whole words."""
    return f" {' '.join(split(folded(text)))} "


class Length(PairReward):
    """`length_weight` at `optimal_length` words, falling evenly to 0 at none and at twice as many."""

    def __call__(self, texts: Sequence[str], pairs: Sequence[Pair]) -> Values:
        best, weight = self.section.length.optimal_length, self.section.length.length_weight
        counts = np.array([len(split(text)) for text in texts], np.float64)
        return weight * np.maximum(0.0, 1.0 - np.abs(counts - best) / best)


class Similarity(PairReward):
    """How much nearer a text is to `chosen` than to `rejected`, by the run's embedder."""

    reads_vectors: ClassVar[bool] = True

    def __call__(self, texts: Sequence[str], pairs: Sequence[Pair]) -> Values:
        return self.margins(texts, pairs)


class Custom(PairReward):
    """`reward_scale` for a text nearer to `chosen`, `penalty_scale` for one nearer to `rejected` or blank, else 0."""

    reads_vectors: ClassVar[bool] = True

    def __call__(self, texts: Sequence[str], pairs: Sequence[Pair]) -> Values:
        margins, custom = self.margins(texts, pairs), self.section.custom
        is_bad = (margins < 0) | np.array([not text.strip() for text in texts], bool)
        return np.where(is_bad, custom.penalty_scale, np.where(margins > 0, custom.reward_scale, 0.0))
