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
