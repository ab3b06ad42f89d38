"""What is measured: a method scores the catalogue for every example, and is ranked by the rules that all share.

Decides: what a measurement keeps (ranks, the best items, texts), and that baselines without vectors follow the
kernel's rules too: rank = 1 + unmasked others that score at least as much, history masked, the target never.
Hides: tiles of users for scores that are no dot product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch

from rl4rec_cli.retrieval import ranking
from rl4rec_cli.retrieval.retriever import Ranking

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from rl4rec_cli.data.dataset import Dataset, Example
    from rl4rec_cli.retrieval.retriever import InProcessRetriever

Kind = Literal["baseline", "ceiling", "policy"]
TOP = 10
"""Best items kept of every example."""
_TILE_SCORES = 1 << 21


@dataclass(frozen=True)
class Task:
    """What all baselines are measured on.

    Attributes:
        seed: of what is trained.
        cache: folder of measurements and trained baselines; None keeps nothing.
    """

    dataset: Dataset
    retriever: InProcessRetriever
    examples: Sequence[Example]
    seed: int = 0
    cache: Path | None = None


@dataclass(frozen=True)
class Measured:
    """One method over a split's examples."""

    name: str
    ranking: Ranking
    texts: list[str] | None
    """`[B]` what a policy wrote; None for what writes no text."""
    kind: Kind
    """`ceiling`: knows the target; `policy`: writes texts, or is joined to what does."""
    top_BK: NDArray[np.int64]
    """`[B, 10]` best items, best first; -1 where fewer are left."""
    notes: dict[str, object] = field(default_factory=dict)
    """What was chosen or trained on the way, for the result file."""


class Scored(Protocol):
    """The catalogue's scores for B examples, which nobody holds as a whole."""

    def ranks(self, targets: Sequence[int], masks: Sequence[Sequence[int]] | None) -> Ranking: ...

    def top(self, k: int, masks: Sequence[Sequence[int]] | None) -> NDArray[np.int64]: ...


class VectorScores:
    """Scores that are dot products: ranked by the kernel, exactly.

    Args:
        queries_BD: one vector for each example; a zero one says nothing and ranks last.
        items: the vectors of the catalogue.
    """

    def __init__(self, queries_BD: torch.Tensor, items: ranking.ItemMatrix) -> None:
        self.queries_BD = queries_BD
        self.items = items

    def ranks(self, targets: Sequence[int], masks: Sequence[Sequence[int]] | None) -> Ranking:
        scorable_B = self.queries_BD.ne(0).any(dim=1).cpu()
        wanted_B = torch.tensor(list(targets), dtype=torch.long)
        ranks_B = ranking.target_ranks(self.queries_BD, self.items, wanted_B, masks)
        return Ranking(torch.where(scorable_B, ranks_B, self.items.num_items).numpy(), scorable_B.numpy())

    def top(self, k: int, masks: Sequence[Sequence[int]] | None) -> NDArray[np.int64]:
        best_BK: NDArray[np.int64] = ranking.search(self.queries_BD, self.items, k, masks)[0].numpy()
        return best_BK


class TileScores:
    """Scores that are no dot product, made for a few examples at a time.

    Args:
        count: examples, B.
        num_items: catalogue, N.
        scores: `scores(start, stop)` gives `[stop - start, N]`; a row without a score other than 0 says nothing.
    """

    def __init__(self, count: int, num_items: int, scores: Callable[[int, int], NDArray[np.float64]]) -> None:
        self._count, self._num_items, self._scores = count, num_items, scores

    def _tiles(self) -> list[tuple[int, int]]:
        rows = max(1, _TILE_SCORES // self._num_items)
        return [(start, min(start + rows, self._count)) for start in range(0, self._count, rows)]

    def ranks(self, targets: Sequence[int], masks: Sequence[Sequence[int]] | None) -> Ranking:
        ranks_B, scorable_B = np.full(self._count, self._num_items), np.zeros(self._count, np.bool_)
        for start, stop in self._tiles():
            tile_BN = np.array(self._scores(start, stop), np.float64)
            rows, wanted = np.arange(stop - start), np.asarray(targets[start:stop])
            scorable_B[start:stop] = tile_BN.any(axis=1)
            goals = tile_BN[rows, wanted]
            _mask(tile_BN, start, masks)
            tile_BN[rows, wanted] = goals  # the target counts as the 1, also where the history names it
            ranks_B[start:stop] = (tile_BN >= goals[:, None]).sum(axis=1)
        return Ranking(np.where(scorable_B, ranks_B, self._num_items), scorable_B)

    def top(self, k: int, masks: Sequence[Sequence[int]] | None) -> NDArray[np.int64]:
        k = min(k, self._num_items)
        best_BK = np.full((self._count, k), -1, np.int64)
        for start, stop in self._tiles():
            tile_BN = np.array(self._scores(start, stop), np.float64)
            _mask(tile_BN, start, masks)
            kth = np.partition(tile_BN, self._num_items - k, axis=1)[:, self._num_items - k]
            for row, scores_N in enumerate(tile_BN):
                # All that tie with the k-th, so that the lower ids win as they do in the kernel.
                found = np.flatnonzero((scores_N >= kth[row]) & np.isfinite(scores_N))
                found = found[np.argsort(-scores_N[found], kind="stable")][:k]
                best_BK[start + row, : len(found)] = found
        return best_BK


def _mask(tile_BN: NDArray[np.float64], start: int, masks: Sequence[Sequence[int]] | None) -> None:
    if masks is not None:
        for row in range(len(tile_BN)):
            tile_BN[row, list(masks[start + row])] = -np.inf


def measure(
    name: str,
    scored: Scored,
    dataset: Dataset,
    examples: Sequence[Example],
    *,
    kind: Kind = "baseline",
    texts: list[str] | None = None,
    notes: dict[str, object] | None = None,
) -> Measured:
    """Rank the examples' targets and keep the best items, with the dataset's rule for histories."""
    histories = [e.history for e in examples]
    masks = histories if dataset.mask_history else None
    ranked = scored.ranks([e.target for e in examples], masks)
    top_BK = scored.top(TOP, masks)
    # A text that says nothing ties with everything: what would be listed for it is no recommendation.
    top_BK = np.where(ranked.scorable[:, None], top_BK, -1)
    return Measured(name, ranked, texts, kind, top_BK, notes or {})
