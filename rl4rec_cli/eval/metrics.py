"""Ranks to metrics, whole splits at once.

Decides: which metrics are reported and how they are named (`ndcg@10`).
Hides: nothing; the formulas are those of the rewards (`rewards/functions.py`). A reward is not reported for being one,
nor need a metric be a reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rl4rec_cli.rewards.functions import hit, mrr, ndcg

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.retrieval.retriever import Ranking


class Metric(NamedTuple):
    label: str
    """In titles."""
    at: Callable[[NDArray[np.int64], int], NDArray[np.float64]]
    """Ranks `[B]` and a cut-off to values `[B]`."""


METRICS = {"ndcg": Metric("NDCG", ndcg), "hit": Metric("Hit", hit), "mrr": Metric("MRR", mrr)}
"""What is reported, in its order."""
COMPARED = "ndcg"
"""The one that systems are compared by."""


def metric_names(ks: Sequence[int]) -> list[str]:
    """`ndcg@5`, …, `hit@5`, …, `mrr@5`, …"""
    return [f"{name}@{k}" for name in METRICS for k in ks]


def headline(ks: Sequence[int]) -> str:
    """The metric that is compared: `ndcg@10`, or the cut-off nearest to 10."""
    return f"{COMPARED}@{min(ks, key=lambda k: abs(k - 10))}"


def per_user(ranking: Ranking, ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Every metric of every user, `[B]` each; 0 where the text is unscorable."""
    return {
        f"{name}@{k}": np.where(ranking.scorable, metric.at(ranking.ranks, k), 0.0)
        for name, metric in METRICS.items()
        for k in ks
    }


def means(ranking: Ranking, ks: Sequence[int], chosen: NDArray[np.bool_] | None = None) -> dict[str, float]:
    """Every metric averaged over users, or over those chosen (`[B]`); NaN where none is."""
    if chosen is not None:
        ranking = ranking._replace(ranks=ranking.ranks[chosen], scorable=ranking.scorable[chosen])
    if not len(ranking.ranks):
        return dict.fromkeys(metric_names(ks), float("nan"))
    return {name: float(values.mean()) for name, values in per_user(ranking, ks).items()}


def target_slices(counts: NDArray[np.int64], targets: Sequence[int]) -> dict[str, NDArray[np.bool_]]:
    """Users by how often their target stands in the training part, `[B]` each.

    `hot`: among the fifth of the catalogue chosen most; `cold`: the rest. An item that ties with the last hot one is
    hot too.

    Args:
        counts: `[num_items]` occurrences in the training part.
        targets: `[B]` item ids.
    """
    hot_items = counts >= np.sort(counts)[::-1][max(0, len(counts) // 5 - 1)]
    hot = hot_items[np.asarray(targets, np.int64)]
    return {"hot": hot, "cold": ~hot}
