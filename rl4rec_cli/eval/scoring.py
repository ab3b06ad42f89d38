"""Measures methods: each scores the catalogue for every example, and the same rules rank them all.

Decides: what a measurement keeps (ranks, the best items, texts), and that baselines without vectors follow the
kernel's rules too: rank = 1 + unmasked others that score at least as much, history masked, the target never.
Hides: how it ranks scores that are no dot product without a row of the whole catalogue.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

# torch is imported where something is ranked, so that errors in baselines' names show first.
if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from rl4rec_cli.data.dataset import Dataset, Example
    from rl4rec_cli.ranking.ranks import ItemMatrix
    from rl4rec_cli.retrieval.retriever import Ranking, VectorRetriever

Kind = Literal["baseline", "ceiling", "policy"]
TOP = 10
"""Best items kept of every example."""
TEXTS, FUSION, WEIGHED = "texts_per_user", "fusion", "text_weights"
"""Notes of a method that ranks several completions of each example as one, and of no other."""
_QUERIES = 1 << 14


@dataclass(frozen=True)
class Task:
    """The task that all baselines share.

    Attributes:
        seed: for baselines that are trained.
        cache: folder of measurements and trained baselines; None keeps nothing.
        fuse_weights: weights of hybrids that are not to be chosen, by the name of what is fused.
    """

    dataset: Dataset
    retriever: VectorRetriever
    examples: Sequence[Example]
    seed: int = 0
    cache: Path | None = None
    fuse_weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One method over a split's examples."""

    name: str
    ranking: Ranking
    texts: list[list[str]] | None
    """`[B]` a policy's completions, `texts_per_user` of each example; None for methods that write none."""
    kind: Kind
    """`ceiling`: knows the target; `policy`: writes texts, or is joined to a method that does."""
    top_BK: NDArray[np.int64]
    """`[B, 10]` best items, best first; -1 where fewer are left."""
    notes: dict[str, object] = field(default_factory=dict)
    """Choices and training on the way, for the result file."""
    log_probs: list[list[float]] | None = None
    """`[B]` the log-probability of each text, where texts weigh as much as they are probable."""
    in_brief: bool = False
    """Brief overviews show it."""
    is_hybrid: bool = False
    """It ranks by the scores of a text, or a history's vector, and of a sequence model together."""
    is_partner: bool = False
    """It ranks by what a policy's hybrid is joined to, alone: the hybrid without the policy."""

    def written(self, row: int) -> str | list[str] | None:
        """Returns an example's completion, or the list of them where each example has several."""
        if self.texts is None:
            return None
        return self.texts[row] if TEXTS in self.notes else self.texts[row][0]


class Scored(Protocol):
    """The catalogue's scores for B examples, which nobody holds as a whole."""

    def ranks(self, targets: Sequence[int], masks: Sequence[Sequence[int]] | None) -> Ranking: ...

    def top(self, k: int, masks: Sequence[Sequence[int]] | None) -> NDArray[np.int64]: ...


class VectorScores:
    """Scores that are dot products: ranked by the kernel, exactly.

    Args:
        queries_BD: one vector for each example; a zero one is unscorable and ranks last.
        items: the vectors of the catalogue.
        notes: what is known of their making, for the result file.
    """

    def __init__(
        self, queries_BD: torch.Tensor, items: ItemMatrix, *, notes: Mapping[str, object] | None = None
    ) -> None:
        self.queries_BD = queries_BD
        self.items = items
        self.notes = dict(notes or {})

    def __len__(self) -> int:
        return len(self.queries_BD)

    @property
    def num_items(self) -> int:
        return self.items.num_items

    def of(self, rows: NDArray[np.int64]) -> VectorScores:
        """Returns the scores of some of the examples."""
        import torch

        return VectorScores(self.queries_BD[torch.from_numpy(rows).to(self.queries_BD.device)], self.items)

    def ranks(self, targets: Sequence[int], masks: Sequence[Sequence[int]] | None) -> Ranking:
        import torch

        from rl4rec_cli.ranking import ranks
        from rl4rec_cli.retrieval.retriever import Ranking

        scorable_B = self.queries_BD.ne(0).any(dim=1).cpu()
        targets_B = torch.tensor(list(targets), dtype=torch.long)
        parts = [
            ranks.target_ranks(self.queries_BD[part], self.items, targets_B[part], masks and masks[part])
            for part in self._parts()
        ]
        ranks_B = torch.cat(parts) if parts else targets_B
        return Ranking(torch.where(scorable_B, ranks_B, self.items.num_items).numpy(), scorable_B.numpy())

    def top(self, k: int, masks: Sequence[Sequence[int]] | None) -> NDArray[np.int64]:
        return self.best(k, masks)[0]

    def best(self, k: int, masks: Sequence[Sequence[int]] | None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns the ids of the best items as `top` does, and their scores, -inf where no item is left."""
        from rl4rec_cli.ranking import ranks

        nothing = np.zeros((0, min(k, self.num_items)))
        ids, scores = [nothing.astype(np.int64)], [nothing]
        for part in self._parts():
            ids_BK, scores_BK = ranks.best(self.queries_BD[part], self.items, k, masks and masks[part])
            ids.append(ids_BK.numpy())
            scores.append(scores_BK.numpy())
        return np.concatenate(ids), np.concatenate(scores)

    def _parts(self) -> list[slice]:
        """Divides the queries: large parts read the catalogue seldom, small ones hold little memory."""
        return [slice(i, i + _QUERIES) for i in range(0, len(self.queries_BD), _QUERIES)]


class SparseScores:
    """Scores that are no dot product: one score for every item, and for each example a few items that score more.

    Costs what the few items cost; no row of the whole catalogue is touched.

    Args:
        count: examples, B.
        base_N: `[N]`, the scores without any extra.
        extra: `extra(row)` returns distinct item ids and what each scores above its base.
    """

    def __init__(
        self,
        count: int,
        base_N: NDArray[np.float64],
        extra: Callable[[int], tuple[NDArray[np.int64], NDArray[np.float64]]],
    ) -> None:
        self._count, self.base_N, self.extra = count, base_N, extra
        self._ascending_N = np.sort(base_N)
        self._order_N = np.argsort(-base_N, kind="stable")
        self._is_zero = not base_N.any()
        self.notes: dict[str, object] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def num_items(self) -> int:
        return len(self.base_N)

    def of(self, rows: NDArray[np.int64]) -> SparseScores:
        """Returns the scores of some of the examples."""
        some, extra = copy.copy(self), self.extra
        some._count, some.extra = len(rows), lambda row: extra(int(rows[row]))
        return some

    def row(self, row: int) -> NDArray[np.float64]:
        """Returns an example's scores of all items, `[N]`."""
        scores_N: NDArray[np.float64] = self.base_N.astype(np.float64)
        ids, more = self.extra(row)
        scores_N[ids] += more
        return scores_N

    def ranks(self, targets: Sequence[int], masks: Sequence[Sequence[int]] | None) -> Ranking:
        from rl4rec_cli.retrieval.retriever import Ranking

        base_N, num_items = self.base_N, len(self.base_N)
        ranks_B, scorable_B = np.full(self._count, num_items), np.ones(self._count, np.bool_)
        for row in range(self._count):
            ids, more = self.extra(row)
            if self._is_zero and not more.any():
                scorable_B[row] = False
                continue
            scores, target = base_N[ids] + more, targets[row]
            place = np.flatnonzero(ids == target)
            target_score = scores[place[0]] if len(place) else base_N[target]
            out = {target, *(masks[row] if masks is not None else ())}
            # Counted by the base alone, then corrected for items with an extra and for masked ones.
            ahead = num_items - np.searchsorted(self._ascending_N, target_score, side="left")
            ahead -= np.count_nonzero(base_N[ids] >= target_score)
            extra_ids = set(ids.tolist())
            ahead -= sum(base_N[i] >= target_score for i in out if i not in extra_ids)
            ahead += np.count_nonzero((scores >= target_score) & ~np.isin(ids, list(out)))
            ranks_B[row] = 1 + ahead
        return Ranking(ranks_B, scorable_B)

    def top(self, k: int, masks: Sequence[Sequence[int]] | None) -> NDArray[np.int64]:
        return self.best(k, masks)[0]

    def best(self, k: int, masks: Sequence[Sequence[int]] | None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns the ids of the best items as `top` does, and their scores, -inf where no item is left."""
        k = min(k, len(self.base_N))
        best_BK, scores_BK = np.full((self._count, k), -1, np.int64), np.full((self._count, k), -np.inf)
        for row in range(self._count):
            ids, more = self.extra(row)
            out = np.asarray(list(set(masks[row])) if masks is not None else [], np.int64)
            # Enough of the others, best first, that k are left whichever are taken away.
            others = self._order_N[: k + len(ids) + len(out)]
            others = others[~np.isin(others, ids)]
            candidates = np.concatenate([ids, others])
            scores = np.concatenate([self.base_N[ids] + more, self.base_N[others]])
            is_ranked = ~np.isin(candidates, out)
            candidates, scores = candidates[is_ranked], scores[is_ranked]
            order = np.lexsort((candidates, -scores))[:k]  # equal scores by lower id, as in the kernel
            best_BK[row, : len(order)], scores_BK[row, : len(order)] = candidates[order], scores[order]
        return best_BK, scores_BK


def measure(
    name: str,
    scored: Scored,
    dataset: Dataset,
    examples: Sequence[Example],
    *,
    kind: Kind = "baseline",
    texts: list[list[str]] | None = None,
    log_probs: list[list[float]] | None = None,
    notes: dict[str, object] | None = None,
) -> Measured:
    """Ranks the examples' targets and keeps the best items, with the dataset's rule for histories."""
    histories = [e.history for e in examples]
    masks = histories if dataset.mask_history else None
    ranking = scored.ranks([e.target for e in examples], masks)
    notes = {**getattr(scored, "notes", {}), **(notes or {})}
    top_BK = scored.top(TOP, masks)
    # An unscorable text ties with everything: its best items would be no recommendation.
    top_BK = np.where(ranking.scorable[:, None], top_BK, -1)
    return Measured(name, ranking, texts, kind, top_BK, notes, log_probs)
