"""What a retriever answers: ranks, and items.

Decides: that an unscorable text is marked as such, whatever its rank. Hides: nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Ranking(NamedTuple):
    ranks: NDArray[np.int64]
    """`[B]`, 1-based rank of each target in the whole catalogue."""
    scorable: NDArray[np.bool_]
    """`[B]`, false where the text is unscorable."""


class Found(NamedTuple):
    items: list[int]
    """Item ids, best first."""
    scores: list[float]
    """Their cosine similarities."""


def as_found(ids_BK: NDArray[np.int64], scores_BK: NDArray[np.float32]) -> list[Found]:
    """The items of a search, without the places where none was left."""
    found = []
    for ids, scores in zip(ids_BK.tolist(), scores_BK.tolist(), strict=True):
        kept = [(i, s) for i, s in zip(ids, scores, strict=True) if i >= 0]
        found.append(Found([i for i, _ in kept], [s for _, s in kept]))
    return found
