"""Exact ranks by a user's queries together, and without each of them in turn: what every query adds to the fused rank.

Decides: that one reading of the catalogue and one product for each query serve all these ranks. Hides: how the fused
scores of n sets of n-1 queries are made from n products.

Sums and maxima of all queries but one are put together from those of the queries before it and those behind it, 3 n
steps in all. Nothing is subtracted: a large term would leave its rounding behind. So the margin of `fusing` holds for
every set, which has no more queries than the user.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.ranking import reciprocal
from rl4rec_cli.ranking.blocks import Mask, Tile, worker_threads
from rl4rec_cli.ranking.counting import count_by_tiles
from rl4rec_cli.ranking.fused import SMALL_EXPONENT, Chunk, Columns, FusedScan
from rl4rec_cli.ranking.fusing import SCALE, Fusion, UserQueries, exponentials, log_sums, logarithms
from rl4rec_cli.ranking.item_matrix import ItemMatrix
from rl4rec_cli.ranking.products import WORD, product
from rl4rec_cli.ranking.ranks import Ids, flatten, one_each
from rl4rec_cli.ranking.threads import strict_products


def leave_one_out_ranks(
    queries_QD: Tensor,
    counts_B: Sequence[int] | np.ndarray,
    items: ItemMatrix,
    targets_B: Tensor,
    masks: Ids | None = None,
    *,
    fusion: Fusion = "logsumexp",
    scale: float = SCALE,
) -> tuple[Tensor, Tensor]:
    """Rank of each user's target by all of the user's queries, and by all but each one.

    Both are what `fused_target_ranks` gives for those queries, to the last rank. Without a zero query, which is left
    out anyway, the rank is that of all. Without a user's only query that is not zero every item ties, and the target
    ranks last, as by a zero query.

    Args:
        queries_QD, counts_B, items, targets_B, masks, fusion, scale: as `fused_target_ranks` takes them.

    Returns:
        int64 `[B]`, by all queries, and int64 `[Q]`, without each query. Both on the CPU, from 1 to N.

    Raises:
        EmbeddingError, DataError: as `fused_target_ranks`.
    """
    with strict_products(), worker_threads(len(queries_QD), items) as cores:
        users = UserQueries(queries_QD, counts_B, items, fusion=fusion, scale=scale, log_weights_Q=None)
        targets = one_each(targets_B, users, items)
        rows, ids = flatten(masks, users, items)
        others = ids != targets[rows]
        rows, ids = np.unique(np.stack([rows[others], ids[others]]), axis=1)
        if fusion == "rrf":
            whole_B, without_K = reciprocal.leave_one_out_ranks(users, items, targets, Mask(rows, ids), cores)
        else:
            scan = _LeaveOneOutScan(users, items, rows, ids, cores)
            whole_B, without_K = scan.ranks(targets)
            last_B = items.num_items - np.bincount(rows, minlength=len(users))
            without_K = np.where(
                np.repeat(users.counts_B == 1, users.counts_B), np.repeat(last_B, users.counts_B), without_K
            )
        without_Q = np.repeat(whole_B, np.asarray(counts_B, dtype=np.int64))
        without_Q[users.rows_Q] = without_K
        return torch.from_numpy(whole_B), torch.from_numpy(without_Q)


class _LeaveOneOutScan(FusedScan):
    """A reading of the catalogue whose tiles have a column for each set of queries.

    A set is all queries of a user, or all but one. Sets are numbered chunk by chunk: first all users' whole sets, then
    those without the first query, and so on. Where a user has no such query, or only one, the set is whole.
    """

    def __init__(self, users: UserQueries, items: ItemMatrix, rows: np.ndarray, ids: np.ndarray, cores: int) -> None:
        super().__init__(users, items, Mask.nothing(), cores)
        set_users, turns, self._first_sets, first = [], [], {}, 0
        for chunk in self._chunks:
            self._first_sets[int(chunk.users[0])] = first
            for turn in range(-1, _sets(chunk) - 1):
                set_users.append(chunk.users)
                turns.append(np.where(turn < users.counts_B[chunk.users], turn, -1))
            first += _sets(chunk) * len(chunk.users)
        nothing = [np.zeros(0, dtype=np.int64)]
        self._users_S, self._turns_S = np.concatenate(set_users or nothing), np.concatenate(turns or nothing)
        self.mask = Mask(*self._for_sets(rows, ids))

    def __len__(self) -> int:
        return len(self._users_S)

    def _make_columns(self, users: UserQueries, items: ItemMatrix) -> Columns:
        return Columns.each_query(users)

    def _for_sets(self, rows: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of users and items as pairs of the users' sets and items."""
        order = np.argsort(self._users_S, kind="stable")
        counts_B = np.bincount(self._users_S, minlength=len(self._users))
        ends_P = np.cumsum(counts_B[rows])
        within = np.arange(ends_P[-1] if len(rows) else 0) - np.repeat(ends_P - counts_B[rows], counts_B[rows])
        starts_B = np.cumsum(counts_B) - counts_B
        return order[np.repeat(starts_B[rows], counts_B[rows]) + within], np.repeat(ids, counts_B[rows])

    def ranks(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ranks by all queries, `[B]`, and without each of those that the users are left with, `[K]`."""
        sets = np.arange(len(self))
        # The target is counted too, as the 1: its score is the goal itself.
        ranks_S = count_by_tiles(self, self.exact(sets, targets[self._users_S]))
        whole_B, is_whole_S = np.zeros(len(self._users), dtype=np.int64), self._turns_S < 0
        whole_B[self._users_S[is_whole_S]] = ranks_S[is_whole_S]
        without_K = np.zeros(len(self._users.queries), dtype=np.int64)
        places_S = self._users.starts_B[self._users_S] + self._turns_S
        without_K[places_S[~is_whole_S]] = ranks_S[~is_whole_S]
        return whole_B, without_K

    def exact(self, columns: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return self._users.fused(self._users_S[columns], ids, self.items, self._turns_S[columns])

    def near(self, columns: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._users.near_fused(self._users_S[columns], ids, self.items, self._turns_S[columns])

    def sharper(self, start: int, stop: int, chosen: np.ndarray) -> Tile:
        users = np.unique(self._users_S[chosen])
        chunk, (norm, _) = self._chunk(users), self.items.bounds(start, stop)
        columns = (self._turns_S[chosen] + 1) * len(users) + np.searchsorted(users, self._users_S[chosen])
        products_NC = product(self.items.given(start, stop), chunk.vectors_CD)
        scores_NC = self._scores(products_NC, chunk, norm)[:, torch.from_numpy(columns).to(products_NC.device)]
        scores_NW = torch.nn.functional.pad(scores_NC, (0, -len(chosen) % WORD))
        margins_B = self._margins(norm, 0.0, np.zeros_like(self._gaps_B))
        tile = Tile(start, stop, scores_NW, chosen, margins_B[self._users_S[chosen]], self._units(chosen))
        self.mask.apply(tile)
        return tile

    def _of_chunk(self, margins_B: np.ndarray, chunk: Chunk) -> np.ndarray:
        return np.tile(margins_B[chunk.users], _sets(chunk))

    def _tile(
        self, start: int, stop: int, products_NC: Tensor, chunk: Chunk, margins_S: np.ndarray, norm: float
    ) -> Tile:
        first = self._first_sets[int(chunk.users[0])]
        sets = np.arange(first, first + _sets(chunk) * len(chunk.users))
        tile = Tile(start, stop, self._scores(products_NC, chunk, norm), sets, margins_S, self._units(sets))
        self.mask.apply(tile)
        return tile

    def _units(self, sets: np.ndarray) -> np.ndarray:
        units_S = self._columns.units_B[self._users_S[sets]]
        if self._users.fusion != "mean":
            return units_S
        return units_S / (self._users.counts_B[self._users_S[sets]] - (self._turns_S[sets] >= 0))

    def _scores(self, products_NC: Tensor, chunk: Chunk, norm: float) -> Tensor:
        """The tile of all sets, with its padding; of `mean` the sums. The products are overwritten."""
        width, sets = len(chunk.users), _sets(chunk)
        scores_NW = products_NC.new_zeros(len(products_NC), sets * width + -(sets * width) % WORD)
        if chunk.bias_C is not None:
            if self._users.fusion == "mean":
                products_NC.masked_fill_(chunk.bias_C.isinf(), 0.0)
            else:
                products_NC += chunk.bias_C
        products_NSU = products_NC.view(len(products_NC), -1, width)
        filled_NC = scores_NW[:, : sets * width]
        scores_NTU = filled_NC.unflatten(1, (sets, width))
        if self._users.fusion == "max":
            _all_but_each(products_NSU, scores_NTU, torch.maximum)
        elif self._users.fusion == "mean":
            _all_but_each(products_NSU, scores_NTU, torch.add)
        elif self._columns.factors_Q[chunk.rows_C].max() * norm <= SMALL_EXPONENT:
            exponentials(products_NC)
            _all_but_each(products_NSU, scores_NTU, torch.add)
            logarithms(filled_NC)
        else:
            # What is left without the largest term may be too small beside it: each set has a shift of its own.
            for left_out in range(-1, sets - 1):
                others = [s for s in range(products_NSU.shape[1]) if s != left_out]
                terms_NC = products_NSU[:, others].flatten(1)
                scores_NTU[:, left_out + 1] = log_sums(terms_NC, width, is_small=False)
        return scores_NW


def _sets(chunk: Chunk) -> int:
    """How many sets each user of a chunk has. Users with one query are in chunks of their own."""
    most = len(chunk.rows_C) // len(chunk.users)
    return most + 1 if most > 1 else 1


def _all_but_each(terms_NSU: Tensor, out_NTU: Tensor, join: Callable[..., Tensor]) -> None:
    """Joins all of the S terms, into the first place of T = S + 1, and all but the s-th one, into place s + 1."""
    last = terms_NSU.shape[1] - 1
    if out_NTU.shape[1] == 1:
        out_NTU[:, 0] = terms_NSU[:, 0]
        return
    out_NTU[:, last] = terms_NSU[:, last]
    for s in range(last - 2, -1, -1):
        join(terms_NSU[:, s + 1], out_NTU[:, s + 2], out=out_NTU[:, s + 1])
    before_NU = terms_NSU[:, 0].clone()
    for s in range(1, last):
        join(out_NTU[:, s + 1], before_NU, out=out_NTU[:, s + 1])
        join(before_NU, terms_NSU[:, s], out=before_NU)
    out_NTU[:, last + 1] = before_NU
    join(before_NU, terms_NSU[:, last], out=out_NTU[:, 0])
