"""Turns the ranks of whole splits into metrics.

Decides: the reported metrics and their names (`ndcg@10`).
Hides: nothing; the formulas are those of the rewards (`rewards/functions.py`). A reward need not be a metric, nor a
metric a reward.
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
"""The reported metrics, in the order of reports."""
COMPARED = "ndcg"
"""The metric that comparisons use."""


def metric_names(ks: Sequence[int]) -> list[str]:
    """Returns `ndcg@5`, …, `hit@5`, …, `mrr@5`, …"""
    return [f"{name}@{k}" for name in METRICS for k in ks]


def headline(ks: Sequence[int]) -> str:
    """Returns the metric that comparisons use: `ndcg@10`, or NDCG at the cut-off nearest to 10."""
    return f"{COMPARED}@{min(ks, key=lambda k: abs(k - 10))}"


def per_user(ranking: Ranking, ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Returns every metric of every user, `[B]` each; 0 for unscorable texts."""
    return {
        f"{name}@{k}": np.where(ranking.scorable, metric.at(ranking.ranks, k), 0.0)
        for name, metric in METRICS.items()
        for k in ks
    }


def means(ranking: Ranking, ks: Sequence[int], chosen: NDArray[np.bool_] | None = None) -> dict[str, float]:
    """Returns every metric averaged over all users, or over those of the mask `chosen` (`[B]`); NaN over no user."""
    if chosen is not None:
        ranking = ranking._replace(ranks=ranking.ranks[chosen], scorable=ranking.scorable[chosen])
    if not len(ranking.ranks):
        return dict.fromkeys(metric_names(ks), float("nan"))
    return {name: float(values.mean()) for name, values in per_user(ranking, ks).items()}


def target_slices(counts: NDArray[np.int64], targets: Sequence[int]) -> dict[str, NDArray[np.bool_]]:
    """Divides users by how often their target is in the training part, `[B]` each.

    `hot`: the target is in the most frequent fifth of the catalogue; `cold`: the rest. An item that ties with the last
    hot one is hot too.

    Args:
        counts: `[num_items]` occurrences in the training part.
        targets: `[B]` item ids.
    """
    hot_items = counts >= np.sort(counts)[::-1][max(0, len(counts) // 5 - 1)]
    hot = hot_items[np.asarray(targets, np.int64)]
    return {"hot": hot, "cold": ~hot}
