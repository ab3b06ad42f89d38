"""The unit of a score: its standard deviation over the whole catalogue, for every user.

Decides: what two scores are multiplied with before they are added, and when a score tells no items apart.
Hides: that nobody holds a row of the whole catalogue for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.eval.scoring import SparseScores
    from rl4rec_cli.ranking.ranks import ItemMatrix

    Weight = float | NDArray[np.float64]

NOTHING = 1e-13
"""Rounding leaves about this share of a zero variance: items all alike, or alike in the query's direction."""
_ROWS = 1 << 14
"""Vectors that are widened to float64 at a time."""


def scales(
    weight: Weight, first_sd_B: NDArray[np.float64], second_sd_B: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns what each part's scores are multiplied with, float64 `[B]` each.

    1 for a part that remains alone, because the other one has no weight or tells no items apart; 0 for both where
    neither does.

    Raises:
        DataError: a weight is not between 0 and 1.
    """
    weight_B = np.broadcast_to(np.asarray(weight, np.float64), first_sd_B.shape)
    if not ((weight_B >= 0) & (weight_B <= 1)).all():
        raise DataError(f"weights must be from 0 to 1, got {weight}")
    scales = []
    for share_B, own_sd_B, other_sd_B in (
        (weight_B, first_sd_B, second_sd_B),
        (1 - weight_B, second_sd_B, first_sd_B),
    ):
        scale_B = np.divide(share_B, own_sd_B, out=np.zeros_like(own_sd_B), where=own_sd_B > 0)
        is_alone_B = (share_B == 1) | ((scale_B > 0) & (other_sd_B == 0))
        scales.append(np.where(is_alone_B, 1.0, scale_B))
    return scales[0], scales[1]


class Spread:
    """How the items' vectors spread, from which follows how the scores of any query do.

    Attributes:
        nothing: the variance of a unit query's scores that counts as none.
    """

    def __init__(self, items: ItemMatrix) -> None:
        vectors_ND = items.vectors_ND
        count, dim = vectors_ND.shape
        mean_D = torch.zeros(dim, dtype=torch.float64, device=vectors_ND.device)
        covariance_DD = torch.zeros(dim, dim, dtype=torch.float64, device=vectors_ND.device)
        for block_ND in torch.split(vectors_ND, _ROWS):
            mean_D += block_ND.double().sum(0) / count
        for block_ND in torch.split(vectors_ND, _ROWS):
            centred_ND = block_ND.double() - mean_D
            covariance_DD += centred_ND.T @ centred_ND / count
        self._covariance_DD = covariance_DD
        self.nothing = NOTHING * float(covariance_DD.trace() + mean_D.square().sum())

    def deviations(self, queries_BD: Tensor) -> NDArray[np.float64]:
        """Returns the standard deviation of each query's scores over all items, float64 `[B]`: √(qᵀ C q)."""
        variances = [torch.zeros(0, dtype=torch.float64)]
        for some_BD in torch.split(queries_BD.to(self._covariance_DD.device), _ROWS):
            wide_BD = some_BD.double()
            variance_B = ((wide_BD @ self._covariance_DD) * wide_BD).sum(1)
            is_some_B = variance_B > self.nothing * wide_BD.square().sum(1)
            variances.append(torch.where(is_some_B, variance_B, 0.0).cpu())
        deviations_B: NDArray[np.float64] = torch.cat(variances).sqrt().numpy()
        return deviations_B


def sparse_deviations(scores: SparseScores) -> NDArray[np.float64]:
    """Returns the standard deviation of each user's sparse scores over all items, float64 `[B]`."""
    base_N, count = scores.base_N, scores.num_items
    # The rounding of a mean would make a variance of equal numbers.
    centred_N = base_N - base_N.mean() if np.ptp(base_N) > 0 else np.zeros(count)
    base_squares = float((centred_N**2).sum())
    variances_B = np.zeros(len(scores))
    for row in range(len(scores)):
        ids, more = scores.extra(row)
        shift = more.sum() / count
        variance = (base_squares + (more * (2 * centred_N[ids] + more)).sum()) / count - shift**2
        nothing = NOTHING * (base_squares + (more**2).sum()) / count
        variances_B[row] = variance if variance > nothing else 0.0
    deviations_B: NDArray[np.float64] = np.sqrt(variances_B)
    return deviations_B
