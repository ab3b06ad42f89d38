"""Score fusion: one ranking by a text's and a sequence model's scores together.

Decides: the common scale of the two scores, and the weight of each. The fused score of a user's query and an item is

    w · s_text / sd(s_text) + (1 - w) · s_seq / sd(s_seq),

a weighted sum (Fox & Shaw 1994) of scores with zero mean and unit variance (Montague & Aslam 2001, "Relevance score
normalization for metasearch"). Each sd is that of the user's own scores over the whole catalogue. The means are left
out, since a constant for each user changes no rank. The users who choose w are never those measured with it.
Hides: that scores are dot products, so sd = √(qᵀ C q) with C the covariance of the item vectors, and the fused score is
one dot product of vectors put side by side: ranks come from the same kernel, masks and tie rule as everyone's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.errors import DataError
from rl4rec_cli.ranking.ranks import ItemMatrix, target_ranks
from rl4rec_cli.retrieval.retriever import Ranking
from rl4rec_cli.rewards.functions import ndcg

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS = tuple(step / 20 for step in range(21))
"""Weights of the text to try: 0, .05, … 1."""
FOLD_SEED = 20_040
_ROWS = 1 << 14


class Choice(NamedTuple):
    weight: float
    """The best weight of the text; of equally good ones the lowest."""
    scores: dict[float, float]
    """Mean NDCG@10 by weight."""


class CrossFit(NamedTuple):
    ranking: Ranking
    weights: NDArray[np.float64]
    """`[B]`, each user's weight, which the other half of the users chose."""
    folds: NDArray[np.int64]
    """`[B]`, the half each user is in, 0 or 1."""


@dataclass(frozen=True)
class Fused:
    """Two sets of queries over one catalogue. `fuse` makes it."""

    text_BD: Tensor
    sequence_BE: Tensor
    text_sd_B: Tensor
    """float64 `[B]`, the sd of each user's text scores over the catalogue; 0 if all are equal (a blank text), and then
    the sum leaves the text out."""
    sequence_sd_B: Tensor
    matrix: ItemMatrix
    """`[N, D + E]`."""

    def queries(self, weight: float | NDArray[np.float64]) -> Tensor:
        """Returns float32 queries `[B, D + E]`, whose dot product with `matrix` is the fused score.

        Args:
            weight: of the text, from 0 to 1; one for all users or `[B]`, one for each.

        Raises:
            DataError: a weight is not between 0 and 1.
        """
        weight_B = torch.as_tensor(weight, dtype=torch.float64, device=self.text_sd_B.device)
        if not ((weight_B >= 0) & (weight_B <= 1)).all():
            raise DataError(f"weights of the text must be from 0 to 1, got {weight}")
        parts = []
        for vectors, sd_B, share_B in (
            (self.text_BD, self.text_sd_B, weight_B),
            (self.sequence_BE, self.sequence_sd_B, 1 - weight_B),
        ):
            scale_B = torch.where(sd_B > 0, share_B / sd_B, 0.0)
            # A part alone is not scaled: rounding could break its near-ties.
            scale_B = torch.where(share_B == 1, 1.0, scale_B)
            parts.append((vectors.double() * scale_B[:, None]).float())
        return torch.cat(parts, dim=1)

    def ranks(
        self,
        weight: float | NDArray[np.float64],
        targets: Sequence[int],
        masks: Sequence[Sequence[int]] | None,
    ) -> Ranking:
        """Ranks the targets by the fused score; `weight` as for `queries`, the rest as for `target_ranks`.

        With weight 0 or 1 the ranks are those of one part alone.

        Raises:
            DataError: a weight is not between 0 and 1, or the targets or masks are not one for each user.
        """
        queries_BF = self.queries(weight)
        ranks_B = target_ranks(queries_BF, self.matrix, torch.tensor(list(targets), dtype=torch.long), masks)
        return Ranking(ranks_B.numpy(), queries_BF.ne(0).any(dim=1).cpu().numpy())


def fuse(text_BD: Tensor, text_items_ND: Tensor, sequence_BE: Tensor, sequence_items_NE: Tensor) -> Fused:
    """Joins a text's and a sequence model's vectors for the same users and items.

    Args:
        text_BD, text_items_ND: vectors whose dot product is the text's score (a cosine, where they have unit length).
        sequence_BE, sequence_items_NE: vectors whose dot product is the sequence model's logit (`SasRec`).

    Raises:
        DataError: the two have different users or items.
        EmbeddingError: a vector is not finite.
    """
    if len(text_BD) != len(sequence_BE) or len(text_items_ND) != len(sequence_items_NE):
        raise DataError(
            f"cannot fuse scores of {len(text_BD):,} users and {len(text_items_ND):,} items with those of "
            f"{len(sequence_BE):,} users and {len(sequence_items_NE):,} items"
        )
    device = text_items_ND.device
    text_BD, sequence_BE, sequence_items_NE = (t.to(device) for t in (text_BD, sequence_BE, sequence_items_NE))
    return Fused(
        text_BD,
        sequence_BE,
        _deviations(text_BD, text_items_ND),
        _deviations(sequence_BE, sequence_items_NE),
        ItemMatrix(torch.cat([text_items_ND.float(), sequence_items_NE.float()], dim=1)),
    )


def _deviations(queries_BD: Tensor, items_ND: Tensor) -> Tensor:
    """Returns the standard deviation of each query's scores over all items, float64 `[B]`: √(qᵀ C q)."""
    dim, device = items_ND.shape[1], items_ND.device
    mean_D = torch.zeros(dim, dtype=torch.float64, device=device)
    covariance_DD = torch.zeros(dim, dim, dtype=torch.float64, device=device)
    for block_ND in torch.split(items_ND, _ROWS):
        mean_D += block_ND.double().sum(0) / len(items_ND)
    for block_ND in torch.split(items_ND, _ROWS):
        centred_ND = block_ND.double() - mean_D
        covariance_DD += centred_ND.T @ centred_ND / len(items_ND)
    # Rounding leaves about this much of a zero variance: items all alike, or alike in the query's direction.
    nothing = 1e-13 * (covariance_DD.trace() + mean_D.square().sum())
    variances = []
    for some_BD in torch.split(queries_BD, _ROWS):
        wide_BD = some_BD.double()
        variance_B = ((wide_BD @ covariance_DD) * wide_BD).sum(1)
        variances.append(torch.where(variance_B > nothing * wide_BD.square().sum(1), variance_B, 0.0))
    return torch.cat(variances).sqrt()


def choose_weight(
    fused: Fused,
    targets: Sequence[int],
    masks: Sequence[Sequence[int]] | None,
    *,
    weights: Sequence[float] = WEIGHTS,
) -> Choice:
    """Returns the weight of the text with the highest mean NDCG@10.

    Call it with other users or another split than those measured with the weight.

    Raises:
        DataError: as `Fused.ranks`.
    """
    scores_W = _gains(fused, targets, masks, weights)[1].mean(axis=1)
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
        DataError: fewer than two users, or as `Fused.ranks`.
    """
    if len(targets) < 2:
        raise DataError("a weight cannot be chosen on other users: there are fewer than two")
    ranks_WB, gains_WB = _gains(fused, targets, masks, weights)
    folds_B = np.zeros(len(targets), np.int64)
    folds_B[np.random.default_rng(seed).permutation(len(targets))[::2]] = 1
    best_2 = np.array([gains_WB[:, folds_B != fold].mean(axis=1).argmax() for fold in (0, 1)])
    best_B = best_2[folds_B]
    weights_B = np.asarray(weights, np.float64)[best_B]
    scorable_B = fused.queries(weights_B).ne(0).any(dim=1).cpu().numpy()
    return CrossFit(Ranking(ranks_WB[best_B, np.arange(len(targets))], scorable_B), weights_B, folds_B)


def _gains(
    fused: Fused, targets: Sequence[int], masks: Sequence[Sequence[int]] | None, weights: Sequence[float]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns ranks and NDCG@10 for every weight and user, `[W, B]` each."""
    rankings = [fused.ranks(weight, targets, masks) for weight in weights]
    gains = [np.where(scorable, ndcg(ranks, 10), 0.0) for ranks, scorable in rankings]
    return np.stack([ranks for ranks, _ in rankings]), np.stack(gains)
