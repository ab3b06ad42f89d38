"""What can be fused with a sequence model: a method that ranks by vectors.

Decides: that it scores any examples, not only those that are measured: others choose the weight.
Hides: whether it has one vector of each example or several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl4rec_cli.data.dataset import Example
    from rl4rec_cli.eval.fused_texts import FusedTexts
    from rl4rec_cli.eval.scoring import Kind, VectorScores
    from rl4rec_cli.retrieval.trained import TrainedRetriever


@dataclass(frozen=True)
class VectorMethod:
    """A method that ranks by vectors, any examples: what can be fused with a sequence model.

    Attributes:
        name: its name in tables.
        scores: scores the catalogue for some examples.
        key: returns what these scores depend on besides the dataset and the examples, for the cache.
    """

    name: str
    kind: Kind
    scores: Callable[[Sequence[Example]], VectorScores | FusedTexts]
    key: Callable[[Sequence[Example]], dict[str, object]]


def history_scores(trained: TrainedRetriever) -> Callable[[Sequence[Example]], VectorScores]:
    """Returns a function from any examples to their scores by a retriever's queries of the histories."""
    from rl4rec_cli.eval.scoring import VectorScores

    def scores(examples: Sequence[Example]) -> VectorScores:
        # The queries come first: they end a network's training mode, in which no matrix of the items is kept.
        queries_BD = trained.queries([example.history for example in examples])
        return VectorScores(queries_BD, trained.matrix)

    return scores
