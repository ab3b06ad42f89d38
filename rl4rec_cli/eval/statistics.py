"""Is a difference real? Paired statistics over users.

Decides: how an interval is made.
Hides: resampling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 10_000
_BLOCK = 2_000_000


class Difference(NamedTuple):
    mean: float
    low: float
    high: float
    """Ends of the 95 % interval."""


def paired_difference(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Mean of `ours - theirs` over the same users, with a 95 % percentile bootstrap interval.

    Efron & Tibshirani 1993, ch. 13. Users are resampled as pairs, which is what makes the interval narrow enough to
    be of use: most of the variance lies between users, not between methods.

    Args:
        ours, theirs: `[B]`, one value per user, same order.
    """
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    if differences.size == 0 or not differences.any():
        return Difference(0.0, 0.0, 0.0)
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // differences.size)
    resampled = np.concatenate(
        [
            differences[generator.integers(0, differences.size, (min(rows, resamples - start), differences.size))].mean(
                axis=1
            )
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Difference(float(differences.mean()), float(low), float(high))
