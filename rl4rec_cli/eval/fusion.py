"""Fusion: one ranking by two scores together, and who chooses how much each weighs.

Decides: that the users who choose a weight are never those measured with it.
Hides: the weights that are tried. `fused_scores.py` says what a fused score is, and ranks by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rl4rec_cli.errors import DataError
from rl4rec_cli.eval.fused_scores import Fused, fuse
from rl4rec_cli.retrieval.retriever import Ranking
from rl4rec_cli.rewards.functions import ndcg

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WEIGHTS", "Choice", "CrossFit", "Fused", "choose_weight", "cross_fitted", "fuse"]

WEIGHTS = tuple(step / 20 for step in range(21))
"""Weights of the first part to try: 0, .05, … 1."""
FOLD_SEED = 20_040


class Choice(NamedTuple):
    weight: float
    """The best weight of the first part; of equally good ones the lowest."""
    scores: dict[float, float]
    """Mean NDCG@10 by weight."""


class CrossFit(NamedTuple):
    ranking: Ranking
    weights: NDArray[np.float64]
    """`[B]`, each user's weight, which the other half of the users chose."""
    folds: NDArray[np.int64]
    """`[B]`, the half each user is in, 0 or 1."""


def choose_weight(
    fused: Fused,
    targets: Sequence[int],
    masks: Sequence[Sequence[int]] | None,
    *,
    weights: Sequence[float] = WEIGHTS,
) -> Choice:
    """Returns the weight of the first part with the highest mean NDCG@10.

    Call it with other users or another split than those measured with the weight.

    Raises:
        DataError: a weight is not between 0 and 1, or the targets or masks are not one for each user.
    """
    rankings = fused.rankings(weights, targets, masks)
    scores_W = _gains(rankings).mean(axis=1)
    return Choice(weights[int(scores_W.argmax())], dict(zip(weights, scores_W.tolist(), strict=True)))


def cross_fitted(
    fused: Fused,
    targets: Sequence[int],
    masks: Sequence[Sequence[int]] | None,
    *,
    weights: Sequence[float] = WEIGHTS,
    seed: int = FOLD_SEED,
) -> CrossFit:
    """Ranks users of the split that also chooses the weights: each half of the users gets the other half's weight.

    Args:
        seed: draws the halves.

    Raises:
        DataError: fewer than two users, or as `choose_weight`.
    """
    if len(targets) < 2:
        raise DataError("a weight cannot be chosen on other users: there are fewer than two")
    rankings = fused.rankings(weights, targets, masks)
    gains_WB = _gains(rankings)
    folds_B = np.zeros(len(targets), np.int64)
    folds_B[np.random.default_rng(seed).permutation(len(targets))[::2]] = 1
    best_2 = np.array([gains_WB[:, folds_B != fold].mean(axis=1).argmax() for fold in (0, 1)])
    best_B, users_B = best_2[folds_B], np.arange(len(targets))
    ranks_WB, scorable_WB = (np.stack(parts) for parts in zip(*rankings, strict=True))
    ranking = Ranking(ranks_WB[best_B, users_B], scorable_WB[best_B, users_B])
    return CrossFit(ranking, np.asarray(weights, np.float64)[best_B], folds_B)


def _gains(rankings: Sequence[Ranking]) -> NDArray[np.float64]:
    """Returns NDCG@10 for every weight and user, `[W, B]`."""
    return np.stack([np.where(scorable, ndcg(ranks, 10), 0.0) for ranks, scorable in rankings])
