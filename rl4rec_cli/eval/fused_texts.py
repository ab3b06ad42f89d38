"""Scores of several texts of each user as one.

Decides: that a result says how many texts of each user it ranks, and by which rule.
Hides: the kernel, and that users are ranked some at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rl4rec_cli.eval.scoring import FUSION, TEXTS, WEIGHED
from rl4rec_cli.ranking.fused import fused_search
from rl4rec_cli.retrieval.answers import Ranking
from rl4rec_cli.retrieval.several_texts import UserTexts, different_texts, rank_users

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from rl4rec_cli.ranking.fusing import Fusion
    from rl4rec_cli.ranking.ranks import ItemMatrix

_QUERIES = 1 << 14


class FusedTexts:
    """Scores of several texts of each example as one, ranked by the kernel, exactly.

    Args:
        texts_of_users: `[B]` lists of texts; equal ones count once.
        embed: texts to vectors `[Q, D]`; a zero one is unscorable and left out.
        items: the vectors of the catalogue.
        fusion: the rule, see `ranking/fusing.py`.
        log_weights: the log-probability of each text, the same for equal ones; None: all weigh alike.

    Attributes:
        users: the different texts.
        queries_QD: their vectors.
        notes: how many texts each example has, and the rule.
    """

    def __init__(
        self,
        texts_of_users: Sequence[Sequence[str]],
        embed: Callable[[Sequence[str]], torch.Tensor],
        items: ItemMatrix,
        fusion: Fusion,
        log_weights: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.users, self.items, self.fusion = different_texts(texts_of_users, log_weights), items, fusion
        self.queries_QD = embed(self.users.texts)
        self._ends = np.cumsum(self.users.counts)
        self.notes: dict[str, object] = {TEXTS: max(map(len, texts_of_users), default=1), FUSION: fusion}
        if log_weights is not None:
            self.notes[WEIGHED] = "probability"

    def __len__(self) -> int:
        return len(self.users.counts)

    @property
    def num_items(self) -> int:
        return self.items.num_items

    def ranks(self, targets: Sequence[int], masks: Sequence[Sequence[int]] | None) -> Ranking:
        rankings = [
            rank_users(queries_QD, some, self.items, targets[part], masks and masks[part], self.fusion)
            for part, some, queries_QD in self.parts()
        ]
        if not rankings:
            return Ranking(np.zeros(0, np.int64), np.zeros(0, np.bool_))
        return Ranking(*(np.concatenate(arrays) for arrays in zip(*rankings, strict=True)))

    def top(self, k: int, masks: Sequence[Sequence[int]] | None) -> NDArray[np.int64]:
        best = [np.zeros((0, min(k, self.items.num_items)), np.int64)]
        for part, some, queries_QD in self.parts():
            own_masks = masks and masks[part]
            ids_BK, _ = fused_search(
                queries_QD, some.counts, self.items, k, own_masks, fusion=self.fusion, log_weights_Q=some.log_weights
            )
            best.append(ids_BK.numpy())
        return np.concatenate(best)

    def parts(self) -> Iterator[tuple[slice, UserTexts, torch.Tensor]]:
        """Divides the users: large parts read the catalogue seldom, small ones hold little memory.

        Yields:
            which users, their texts, and the texts' vectors.
        """
        counts, first = self.users.counts, 0
        while first < len(counts):
            start = int(self._ends[first] - counts[first])
            last = max(first + 1, int(np.searchsorted(self._ends, start + _QUERIES, side="right")))
            stop = int(self._ends[last - 1])
            weights = self.users.log_weights
            own_weights = None if weights is None else weights[start:stop]
            some = UserTexts(self.users.texts[start:stop], counts[first:last], own_weights)
            yield slice(first, last), some, self.queries_QD[start:stop]
            first = last
