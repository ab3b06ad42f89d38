"""Several texts of each user, ranked as one: what every retriever offers beside ranks of single texts.

Decides: that equal texts of a user count once; that an unscorable text is left out, and a user of whom nothing is
left is unscorable and ranks last; that every backend ranks them in the process that asks, by vectors that the backend
embeds. With a service this process fetches the item vectors once, as evaluation does.

Hides: the kernel (`ranking/fused.py`, `ranking/leave_one_out.py`), which says what a fused score is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from rl4rec_cli.errors import DataError
from rl4rec_cli.plan.phases import Phase, during
from rl4rec_cli.ranking.fused import fused_search, fused_target_ranks
from rl4rec_cli.ranking.item_matrix import ItemMatrix
from rl4rec_cli.ranking.leave_one_out import leave_one_out_ranks
from rl4rec_cli.retrieval.answers import Found, Ranking, as_found

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.ranking.fusing import Fusion


class UserTexts(NamedTuple):
    """The different texts of users, user by user."""

    texts: list[str]
    """`[Q]`."""
    counts: NDArray[np.int64]
    """`[B]`, how many of them each user has."""
    log_weights: NDArray[np.float64] | None
    """`[Q]`, the largest one of equal texts."""


class GroupRanks(NamedTuple):
    """Ranks of the G targets of groups that have T texts in all."""

    own: Ranking
    """`[T]`, by each text alone."""
    together: Ranking
    """`[G]`, by all texts of the group."""
    without: Ranking
    """`[T]`, by the texts of the group but this one."""


def different_texts(
    texts_of_users: Sequence[Sequence[str]], weights: Sequence[Sequence[float]] | None = None
) -> UserTexts:
    """Each user's texts in their order, equal ones once.

    Raises:
        DataError: a user has no text, or not one weight for each.
    """
    if weights is not None and [len(texts) for texts in texts_of_users] != [len(some) for some in weights]:
        raise DataError("weights are not one for each text of each user")
    flat: list[str] = []
    counts: list[int] = []
    log_weights: list[float] = []
    for user, texts in enumerate(texts_of_users):
        if not len(texts):
            raise DataError(f"user {user} has no text", hint="give every user at least one; it may be blank")
        if isinstance(texts, str):
            raise DataError(f"user {user} has a string where a list of texts is expected")
        largest: dict[str, float] = {}
        for text, weight in zip(texts, weights[user] if weights is not None else [0.0] * len(texts), strict=True):
            largest[text] = max(weight, largest.get(text, weight))
        flat += largest
        counts.append(len(largest))
        log_weights += largest.values()
    given = np.asarray(log_weights, np.float64) if weights is not None else None
    return UserTexts(flat, np.asarray(counts, np.int64), given)


class _HasVectors(Protocol):
    mask_history: bool
    num_items: int

    @property
    def matrix(self) -> ItemMatrix: ...

    def text_vectors(self, texts: Sequence[str]) -> torch.Tensor: ...

    def vector_ranks(
        self, queries_BD: torch.Tensor, targets: Sequence[int], histories: Sequence[Sequence[int]]
    ) -> Ranking: ...


class SeveralTexts:
    """What a retriever that has vectors adds for users of several texts."""

    def fused_ranks(
        self: _HasVectors,
        texts_of_users: Sequence[Sequence[str]],
        targets: Sequence[int],
        histories: Sequence[Sequence[int]],
        fusion: Fusion = "logsumexp",
        weights: Sequence[Sequence[float]] | None = None,
    ) -> Ranking:
        """Rank of each user's target in the whole catalogue, by the user's texts together.

        Args:
            texts_of_users: `[B]` lists of at least one text.
            targets: `[B]` item ids.
            histories: `[B]` item ids already chosen.
            fusion: the rule, see `ranking/fusing.py`.
            weights: log-probability of each text; only differences within a user matter.

        Raises:
            DataError: lengths differ, a user has no text, or an id is not in the catalogue.
            EmbeddingError: the embedder returned something that is not finite.
        """
        _check_lengths(texts_of_users, targets, histories)
        users = different_texts(texts_of_users, weights)
        vectors_QD = _vectors(self, users)
        return rank_users(vectors_QD, users, self.matrix, targets, histories if self.mask_history else None, fusion)

    def group_ranks(
        self: _HasVectors,
        texts_of_groups: Sequence[Sequence[str]],
        targets: Sequence[int],
        histories: Sequence[Sequence[int]],
        fusion: Fusion = "logsumexp",
    ) -> GroupRanks:
        """Rank of each group's target by every text alone, by all texts together, and by all texts but one.

        Each text is embedded once. `without` is what `fused_ranks` gives for the group less one text: where another
        text is equal to it, or where it is unscorable, the rank of all. Without a group's only scorable text nothing
        is left, which is unscorable and ranks last.

        Args:
            texts_of_groups, targets, histories, fusion: as `fused_ranks` takes them.

        Raises:
            DataError, EmbeddingError: as `fused_ranks`.
        """
        _check_lengths(texts_of_groups, targets, histories)
        groups = different_texts(texts_of_groups)
        if not groups.texts:
            nothing = Ranking(np.zeros(0, np.int64), np.zeros(0, np.bool_))
            return GroupRanks(nothing, nothing, nothing)
        vectors_TD = self.text_vectors([text for texts in texts_of_groups for text in texts])
        group_T = np.repeat(np.arange(len(texts_of_groups)), [len(texts) for texts in texts_of_groups])
        own = self.vector_ranks(vectors_TD, [targets[int(g)] for g in group_T], [histories[int(g)] for g in group_T])
        with during(Phase.RANKING):
            whole_G, without_Q = leave_one_out_ranks(
                vectors_TD[torch.from_numpy(first_rows(texts_of_groups)).to(vectors_TD.device)],
                groups.counts,
                self.matrix,
                torch.tensor(list(targets), dtype=torch.long),
                histories if self.mask_history else None,
                fusion=fusion,
            )
        return of_each_text(texts_of_groups, own, whole_G.numpy(), without_Q.numpy(), self.num_items)

    def fused_search(
        self: _HasVectors,
        texts_of_users: Sequence[Sequence[str]],
        k: int,
        exclude: Sequence[Sequence[int]] | None = None,
        fusion: Fusion = "logsumexp",
        weights: Sequence[Sequence[float]] | None = None,
    ) -> list[Found]:
        """The `k` best items for each user's texts together, best first, without those excluded.

        The scores are the fused ones. For the rest see `fused_ranks`.
        """
        users = different_texts(texts_of_users, weights)
        vectors_QD = _vectors(self, users)
        with during(Phase.RANKING):
            ids_BK, scores_BK = fused_search(
                vectors_QD, users.counts, self.matrix, k, exclude, fusion=fusion, log_weights_Q=_weights(users)
            )
        return as_found(ids_BK.numpy(), scores_BK.numpy())


@during(Phase.RANKING)
def rank_users(
    vectors_QD: torch.Tensor,
    users: UserTexts,
    matrix: ItemMatrix,
    targets: Sequence[int],
    masks: Sequence[Sequence[int]] | None,
    fusion: Fusion,
) -> Ranking:
    """Ranks by the kernel; a user whose vectors are all zero is unscorable and ranks last."""
    targets_B = torch.tensor(list(targets), dtype=torch.long)
    ranks_B = fused_target_ranks(
        vectors_QD, users.counts, matrix, targets_B, masks, fusion=fusion, log_weights_Q=_weights(users)
    )
    scorable_Q = vectors_QD.ne(0).any(dim=1).cpu().numpy()
    scorable_B = np.zeros(len(users.counts), np.bool_)
    np.logical_or.at(scorable_B, np.repeat(np.arange(len(users.counts)), users.counts), scorable_Q)
    return Ranking(np.where(scorable_B, ranks_B.numpy(), matrix.num_items), scorable_B)


def first_rows(texts_of_groups: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Returns where each of the different texts of groups stands first among all texts, `[Q]`."""
    return _places(texts_of_groups)[0]


def of_each_text(
    texts_of_groups: Sequence[Sequence[str]],
    own: Ranking,
    whole_G: NDArray[np.int64],
    without_Q: NDArray[np.int64],
    num_items: int,
) -> GroupRanks:
    """Gives every text the ranks that were made of the different texts of its group.

    Args:
        own: of each of the T texts alone.
        whole_G: ranks by all texts of a group.
        without_Q: ranks without each of the different texts. Without a group's only scorable text, any.
    """
    sizes_G = np.asarray([len(texts) for texts in texts_of_groups], np.int64)
    rows_Q, places_T, is_single_T = _places(texts_of_groups)
    group_T = np.repeat(np.arange(len(sizes_G)), sizes_G)
    group_Q, scorable_Q = group_T[rows_Q], own.scorable[rows_Q]
    left_G = np.bincount(group_Q, weights=scorable_Q, minlength=len(sizes_G))
    whole = np.where(left_G > 0, whole_G, num_items)
    left_Q = left_G[group_Q] - scorable_Q
    rest_Q = np.where(left_Q > 0, without_Q, num_items)
    without_T = np.where(is_single_T, rest_Q[places_T], whole[group_T])
    left_T = np.where(is_single_T, left_Q[places_T], left_G[group_T])
    return GroupRanks(own, Ranking(whole, left_G > 0), Ranking(without_T, left_T > 0))


def _places(texts_of_groups: Sequence[Sequence[str]]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Of Q different texts the first place among all T, and of T texts the place among the different ones.

    The third is whether a text comes once in its group.
    """
    rows: list[int] = []
    places: list[int] = []
    for texts in texts_of_groups:
        own: dict[str, int] = {}
        for text in texts:
            if text not in own:
                own[text] = len(rows)
                rows.append(len(places))
            places.append(own[text])
    places_T = np.asarray(places, np.int64)
    counts_Q = np.bincount(places_T, minlength=len(rows))
    return np.asarray(rows, np.int64), places_T, counts_Q[places_T] == 1


def _check_lengths(
    texts_of_users: Sequence[Sequence[str]], targets: Sequence[int], histories: Sequence[Sequence[int]]
) -> None:
    if not len(texts_of_users) == len(targets) == len(histories):
        raise DataError(
            f"texts of {len(texts_of_users)} users, {len(targets)} targets and {len(histories)} histories: not one each"
        )


def _weights(users: UserTexts) -> torch.Tensor | None:
    return None if users.log_weights is None else torch.from_numpy(users.log_weights)


def _vectors(retriever: _HasVectors, users: UserTexts) -> torch.Tensor:
    return retriever.text_vectors(users.texts) if users.texts else torch.zeros(0, retriever.matrix.dim)
