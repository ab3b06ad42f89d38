"""Reward functions, and the interface for library users.

Decides: the value of each reward at a rank.
Hides: nothing. `eval/metrics.py` reports the same formulas: training optimises what evaluation measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec_cli.config.registries import REWARDS
from rl4rec_cli.config.sections import RetrievalSection, RewardSection
from rl4rec_cli.errors import ConfigError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from rl4rec_cli.retrieval.retriever import Retriever


def ndcg(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Returns NDCG@k with one relevant item: 1 / log2(1 + rank) if rank ≤ k, else 0 (Järvelin & Kekäläinen 2002)."""
    return np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)


def hit(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Returns Hit@k: 1 if rank ≤ k, else 0. With one relevant item it equals Recall@k."""
    return (ranks <= k).astype(np.float64)


def mrr(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Returns MRR@k: 1 / rank if rank ≤ k, else 0."""
    return np.where(ranks <= k, 1.0 / ranks, 0.0)


@dataclass(frozen=True)
class RankReward:
    """A reward that depends on the target's rank alone. An unscorable text earns 0, whatever `worth` returns."""

    worth: Callable[[NDArray[np.int64], RewardSection], NDArray[np.float64]]
    """Ranks `[B]` and the settings of rewards to values `[B]`."""


NDCG = RankReward(lambda ranks_B, section: ndcg(ranks_B, section.k))
HIT = RankReward(lambda ranks_B, section: hit(ranks_B, section.k))
MRR = RankReward(lambda ranks_B, section: mrr(ranks_B, section.k))
MIXED = RankReward(
    lambda ranks_B, section: section.mixed_ndcg * ndcg(ranks_B, section.k) + section.mixed_hit * hit(ranks_B, section.k)
)


def rank_shaping(ranks: NDArray[np.int64], num_items: int, epsilon: float) -> NDArray[np.float64]:
    """Returns ε·(1 − ln rank / ln N): ε at rank 1, strictly decreasing, 0 at rank N; 0 for a one-item catalogue.

    Added to a metric that never rises with the rank, it keeps the metric's order and breaks its ties by rank.
    """
    if num_items < 2:
        return np.zeros(ranks.shape, np.float64)
    return epsilon * (1.0 - np.log(ranks) / np.log(num_items))


class RLRewardFunction:
    """A reward computed from texts; subclass it for your own.

    A subclass overrides `__call__`; `self.retriever` ranks and searches, `self.k` is the cut-off.

    Args:
        retriever: ranks texts against the catalogue.
        k: cut-off.
        reward_type: a reward of the rank by its name in `REWARDS`, such as `ndcg`.
        mixed: weights of NDCG and Hit in `mixed`.
    """

    def __init__(
        self, retriever: Retriever, *, k: int = 10, reward_type: str = "ndcg", mixed: tuple[float, float] = (0.5, 0.5)
    ) -> None:
        self.retriever = retriever
        self.k = k
        self.reward_type = reward_type
        self.mixed = mixed

    def __call__(
        self,
        generated_texts: Sequence[str],
        target_items: Sequence[int],
        history_items: Sequence[Sequence[int]],
        **kwargs: Any,
    ) -> Sequence[float]:
        """Returns rewards `[len(generated_texts)]`.

        Args:
            generated_texts: the policy's completions.
            target_items: the item that each user really chose next.
            history_items: the items that each user chose before, oldest first.
            kwargs: in training also `ranks` and `scorable` (numpy `[B]`, computed once for all rewards), `k`, and
                `dataset`, the name of the dataset of all these examples.
        """
        ranks, scorable = kwargs.get("ranks"), kwargs.get("scorable")
        if ranks is None or scorable is None:
            ranks, scorable = self.retriever.target_ranks(generated_texts, target_items, history_items)
        section = RewardSection.model_construct(k=self.k, mixed_ndcg=self.mixed[0], mixed_hit=self.mixed[1])
        values = rank_reward(self.reward_type).worth(np.asarray(ranks), section)
        return np.where(scorable, values, 0.0).tolist()

    def get_scores(self, texts: Sequence[str]) -> Tensor:
        """Returns the retriever's score of every item, a float32 tensor `[len(texts), num_items]` on the CPU."""
        import torch

        return torch.from_numpy(self.retriever.calculate_reward(texts))


def calculate_ndcg(
    scores: Tensor | NDArray[Any] | Sequence[Sequence[float]],
    target_items: Sequence[int],
    history_items: Sequence[Sequence[int]] | None = None,
    *,
    k: int = 10,
) -> Tensor:
    """Returns each target's NDCG@k by a whole row of scores, with the rules of the ranking kernel.

    This is for rewards that change `get_scores` before they rank. Without a change `RLRewardFunction.__call__` returns
    the same without a matrix, and decides near-ties that float32 scores cannot tell apart.

    Args:
        scores: `[B, N]` of every item; higher is better. −inf leaves an item out. A row of zeros earns 0.
        target_items: `[B]` item ids.
        history_items: `[B]` lists of item ids to leave out, except the target; None leaves out nothing.
        k: cut-off.

    Returns:
        float64 `[B]`, a tensor on the CPU.

    Raises:
        ConfigError: k below 1. DataError: shapes or ids that do not go together, or a score that is NaN or +inf, or
            −inf for the target.
    """
    import torch

    from rl4rec_cli.ranking.ranks import ItemMatrix, target_ranks

    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    scores_BN = torch.as_tensor(scores).detach().to("cpu", torch.float32)
    targets = [int(target) for target in target_items]
    masks = [[]] * len(targets) if history_items is None else [[int(i) for i in items] for items in history_items]
    if scores_BN.ndim != 2 or not len(scores_BN) == len(targets) == len(masks):
        raise DataError(
            f"scores of shape {list(scores_BN.shape)} for {len(targets)} targets and {len(masks)} histories",
            hint="scores are [texts, items], with a target and a history for each text",
        )
    num_items = scores_BN.shape[1]
    ranks_B = torch.zeros(len(targets), dtype=torch.long)
    for row, (scores_N, target, mask) in enumerate(zip(scores_BN, targets, masks, strict=True)):
        if not 0 <= target < num_items:
            raise DataError(f"target item {target} of text {row} is outside the catalogue of {num_items} items")
        left_out_N = scores_N == -torch.inf
        if left_out_N[target] or not torch.isfinite(scores_N[~left_out_N]).all():
            raise DataError(
                f"the scores of text {row} are not finite", hint="−inf may leave out other items than the target"
            )
        # One query of one dimension: the kernel's products are then the scores themselves.
        items = ItemMatrix(scores_N.masked_fill(left_out_N, 0.0)[:, None])
        left_out = [*mask, *left_out_N.nonzero().flatten().tolist()]
        ranks_B[row] = target_ranks(torch.ones(1, 1), items, torch.tensor([target]), [left_out])[0]
    values = torch.from_numpy(ndcg(ranks_B.numpy(), k))
    return torch.where((scores_BN.ne(0) & scores_BN.isfinite()).any(dim=1), values, 0.0)


def rank_reward(name: str) -> RankReward:
    """Loads a reward that depends on the rank alone.

    Raises:
        ConfigError: there is no such reward, or it reads texts. PluginError: a plug-in's reward cannot be loaded.
    """
    reward = REWARDS.load(name)
    if not isinstance(reward, RankReward):
        raise ConfigError(
            f"reward {name!r} reads texts, and a reward by rank is wanted", hint="call it as its package says"
        )
    return reward


def create_reward_function(
    dataset_name: str,
    *,
    reward_type: str = "ndcg",
    k: int = 10,
    retrieval: RetrievalSection | None = None,
    retriever: Retriever | None = None,
    retrieval_service_name: str | None = None,
    namespace: str | None = None,
) -> RLRewardFunction:
    """Makes a reward function over a dataset, for library users.

    Args:
        dataset_name: dataset folder; with a retrieval service, the dataset's name there.
        reward_type: a reward of the rank by its name in `REWARDS`, such as `ndcg`.
        k: cut-off.
        retrieval: how to embed; the default is sentence-transformers with the default model. With a service: its
            address and timeouts (`service`).
        retriever: ranks instead; the dataset is then not read.
        retrieval_service_name: the retrieval service of this name (`rl4rec serve-retrieval`) ranks instead.
        namespace: Ray namespace of the service, `rl4rec` by default.

    Raises:
        ConfigError: unknown reward. DataError, EmbeddingError: see their loaders. ServiceError: no such service.
    """
    rank_reward(reward_type)
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    if retriever is None:
        from rl4rec_cli.data.opening import load_dataset
        from rl4rec_cli.retrieval.opening import open_retriever, open_served

        section = retrieval or RetrievalSection()
        if retrieval_service_name is not None or namespace is not None:
            overrides = {"name": retrieval_service_name, "namespace": namespace}
            service = {
                **section.service.model_dump(),
                **{key: value for key, value in overrides.items() if value is not None},
            }
            section = RetrievalSection.model_validate({**section.model_dump(), "service": service})
            retriever = open_served(section, dataset_name)
        else:
            retriever = open_retriever(section, load_dataset(dataset_name))
    return RLRewardFunction(retriever, k=k, reward_type=reward_type)
