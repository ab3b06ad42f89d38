"""Exact ranks and top-k where several queries of a user are fused into one score, without `[users, items]` in memory.

Decides: how queries become the columns of products, and where two readings of the catalogue are one. Hides: the order
of columns, and that the mean takes one column only. What the fused score is, and why the margin is one, is in `fusing`;
the rules about masks, ties and the target are those of `ranks`.

`logsumexp` and `max` multiply every query with the items, block by block, and fuse each tile. `mean` multiplies the
user's mean vector. Whatever the error bound leaves open is decided by the fused score proper, of single pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.errors import DataError
from rl4rec_cli.ranking import reciprocal
from rl4rec_cli.ranking.blocks import Block, Mask, Scan, Tile, error_bounds, worker_threads
from rl4rec_cli.ranking.counting import count_by_tiles
from rl4rec_cli.ranking.exact_scores import Queries
from rl4rec_cli.ranking.fusing import FLOAT32, FLOAT64, SCALE, Fusion, UserQueries, log_sums, peaks
from rl4rec_cli.ranking.item_matrix import ItemMatrix
from rl4rec_cli.ranking.products import WORD, int8_product, product
from rl4rec_cli.ranking.ranks import Ids, flatten, one_each, search, target_ranks, top_k
from rl4rec_cli.ranking.threads import strict_products

_COLUMNS = 1 << 8
_GPU_COLUMNS = 1 << 12
# |ln| of an exponential that is no sum's only large one.
SMALL_EXPONENT = 40.0


def fused_target_ranks(
    queries_QD: Tensor,
    counts_B: Sequence[int] | np.ndarray,
    items: ItemMatrix,
    targets_B: Tensor,
    masks: Ids | None = None,
    *,
    fusion: Fusion = "logsumexp",
    scale: float = SCALE,
    log_weights_Q: Tensor | Sequence[float] | np.ndarray | None = None,
) -> Tensor:
    """Rank of each user's target in the whole catalogue, by the fused score of the user's queries.

    rank = 1 + number of unmasked items other than the target whose fused score is at least the target's: ties count
    against the target. Zero queries are left out; a user who has no other ranks last, as a zero query does in
    `target_ranks`. With one query each the ranks are those of `target_ranks`. Equal queries count as often as they
    come: it is for the caller, who knows the texts, to give each once.

    Args:
        queries_QD: `[Q, D]`, finite, user by user.
        counts_B: how many of them each of the B users has, at least 1.
        items: the catalogue, N items.
        targets_B: `[B]`, item ids.
        masks: for each user the item ids to leave out, in any order; the target stays in even if it is listed.
        fusion: the rule, see `fusing`.
        scale: what `logsumexp` multiplies scores with; 10 suits cosines.
        log_weights_Q: `[Q]`, log-probability of each query; only differences within a user matter.

    Returns:
        int64 `[B]` on the CPU, from 1 to N.

    Raises:
        EmbeddingError: a query is not finite (named), has not D dimensions, or is of a length that log-sum-exp does
            not take.
        DataError: an id outside the catalogue, not one target and one mask for each user, or counts, weights, rule or
            scale out of place.
    """
    if fusion != "rrf" and _are_single(counts_B, queries_QD, log_weights_Q):
        return target_ranks(queries_QD, items, targets_B, masks)
    with strict_products(), worker_threads(len(queries_QD), items) as cores:
        users = UserQueries(queries_QD, counts_B, items, fusion=fusion, scale=scale, log_weights_Q=log_weights_Q)
        targets = one_each(targets_B, users, items)
        rows, ids = flatten(masks, users, items)
        others = ids != targets[rows]
        mask = Mask(rows[others], ids[others])
        if fusion == "rrf":
            return torch.from_numpy(reciprocal.ranks(users, items, targets, mask, cores))
        target_scores_B = users.fused(np.arange(len(users)), targets, items)
        # The target is counted too, as the 1: its score is the goal itself.
        return torch.from_numpy(count_by_tiles(FusedScan(users, items, mask, cores), target_scores_B))


def fused_search(
    queries_QD: Tensor,
    counts_B: Sequence[int] | np.ndarray,
    items: ItemMatrix,
    k: int,
    exclude: Ids | None = None,
    *,
    fusion: Fusion = "logsumexp",
    scale: float = SCALE,
    log_weights_Q: Tensor | Sequence[float] | np.ndarray | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best items of each user by the fused score of the user's queries.

    Args:
        queries_QD, counts_B, items, fusion, scale, log_weights_Q: as `fused_target_ranks` takes them.
        k: how many, at least 1.
        exclude: for each user the item ids to leave out.

    Returns:
        ids, int64 `[B, min(k, N)]`, best first, equal scores by lower id, -1 where too few items remain; and their
        fused scores, float32, -inf there. Both on the CPU. The order is that of the float64 scores, before rounding.

    Raises:
        EmbeddingError, DataError: as `fused_target_ranks`; k < 1.
    """
    if k < 1:
        raise DataError(f"k must be at least 1, got {k}")
    if fusion != "rrf" and _are_single(counts_B, queries_QD, log_weights_Q):
        return search(queries_QD, items, k, exclude)
    k = min(k, items.num_items)
    with strict_products(), worker_threads(len(queries_QD), items) as cores:
        users = UserQueries(queries_QD, counts_B, items, fusion=fusion, scale=scale, log_weights_Q=log_weights_Q)
        mask = Mask(*flatten(exclude, users, items))
        if fusion == "rrf":
            ids_BK, scores_BK = reciprocal.best(users, items, k, mask, cores)
        else:
            ids_BK, scores_BK = top_k(FusedScan(users, items, mask, cores), k)
    return torch.from_numpy(ids_BK), torch.from_numpy(scores_BK).float()


def _are_single(
    counts_B: Sequence[int] | np.ndarray,
    queries_QD: Tensor,
    log_weights_Q: Tensor | Sequence[float] | np.ndarray | None,
) -> bool:
    """Whether every user has one query, and nothing is to be checked beyond what `target_ranks` checks."""
    return log_weights_Q is None and len(counts_B) == len(queries_QD) and bool((np.asarray(counts_B) == 1).all())


@dataclass
class Columns:
    """Vectors to multiply, user by user, and the units of what comes of them.

    Attributes:
        factors_Q: what brings a product to the unit of its user's tile.
        units_B: that unit.
        bias_Q: what is added to a product in that unit, or None.
        gaps_B: what a score may be wrong by besides, for each unit of an item's norm.
    """

    queries: Queries
    starts_B: np.ndarray
    counts_B: np.ndarray
    factors_Q: np.ndarray
    units_B: np.ndarray
    bias_Q: np.ndarray | None
    gaps_B: np.ndarray

    @classmethod
    def each_query(cls, users: UserQueries) -> Columns:
        exponents_Q, nothing_B = users.queries.exponents_B, np.zeros(len(users))
        if users.fusion == "logsumexp":
            units_B = np.full(len(users), 1 / users.scale)
            factors_Q = users.scale * np.ldexp(1.0, exponents_Q)
        else:
            largest_B = np.maximum.reduceat(exponents_Q, users.starts_B) if len(users) else exponents_Q
            units_B = np.ldexp(1.0, largest_B)
            factors_Q = np.ldexp(1.0, exponents_Q - np.repeat(largest_B, users.counts_B))
        bias_Q = None
        if users.log_weights_Q is not None:
            bias_Q = users.log_weights_Q / users.scale / np.repeat(units_B, users.counts_B)
        return cls(users.queries, users.starts_B, users.counts_B, factors_Q, units_B, bias_Q, nothing_B)

    @classmethod
    def means(cls, users: UserQueries, items: ItemMatrix) -> Columns:
        count = len(users)
        exponents_Q = users.queries.exponents_B
        largest_B = np.maximum.reduceat(exponents_Q, users.starts_B) if count else exponents_Q
        weights_Q = np.ldexp(users.shares_Q, exponents_Q - np.repeat(largest_B, users.counts_B))
        rows_Q = torch.from_numpy(np.repeat(np.arange(count), users.counts_B)).to(items.device)
        means_BD = torch.zeros(count, items.dim, dtype=torch.float64, device=items.device)
        step = max(1, (1 << 22) // items.dim)
        for first in range(0, len(weights_Q), step):
            some = slice(first, min(first + step, len(weights_Q)))
            weights_Q1 = torch.from_numpy(weights_Q[some]).to(items.device)[:, None]
            means_BD.index_add_(0, rows_Q[some], users.queries.vectors_BD[some].double() * weights_Q1)
        vectors_BD = means_BD.float()
        gaps_B = torch.linalg.vector_norm(vectors_BD.double() - means_BD, dim=1).cpu().numpy()
        queries = Queries(vectors_BD, items)
        units_B = np.ldexp(1.0, largest_B + queries.exponents_B)
        # Sums of the vectors in float64, in any order.
        rounding_B = (users.counts_B + 4) * 2 * FLOAT64
        gaps_B = np.ldexp(gaps_B * (1 + 1e-6) + rounding_B, largest_B)
        ones_B = np.ones(count, dtype=np.int64)
        return cls(queries, np.arange(count), ones_B, np.ones(count), units_B, None, gaps_B)


@dataclass
class Chunk:
    """Columns of some users for one product.

    Attributes:
        users: ascending.
        rows_C: the query of each column, the first ones of all users, then the second ones, and so on.
        vectors_CD: in the units of the tile.
        bias_C: what is added to the products, -inf where a user has no more queries; None: nothing.
    """

    users: np.ndarray
    rows_C: np.ndarray
    vectors_CD: Tensor
    bias_C: Tensor | None


class FusedScan(Scan):
    """A reading of the catalogue whose tiles have a column of fused scores for each user."""

    def __init__(self, users: UserQueries, items: ItemMatrix, mask: Mask, cores: int) -> None:
        self._users = users
        self._columns = self._make_columns(users, items)
        super().__init__(self._columns.queries, items, mask, cores)
        self._chunks = [self._chunk(some) for some in self._parts()]

    def __len__(self) -> int:
        return len(self._users)

    def _make_columns(self, users: UserQueries, items: ItemMatrix) -> Columns:
        return Columns.means(users, items) if users.fusion == "mean" else Columns.each_query(users)

    def exact(self, columns: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return self._users.fused(columns, ids, self.items)

    def near(self, columns: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `exact` but for rounding of single products, and what it may be off by, float64 `[M]` each."""
        return self._users.near_fused(columns, ids, self.items)

    def reaches(self, columns: np.ndarray, ids: np.ndarray, target_scores: np.ndarray) -> np.ndarray:
        scores, margins = self.near(columns, ids)
        reached: np.ndarray = scores >= target_scores
        unsure = np.flatnonzero(np.abs(scores - target_scores) <= margins)
        if len(unsure):
            reached[unsure] = self.exact(columns[unsure], ids[unsure]) >= target_scores[unsure]
        return reached

    def tiles(self, blocks: Iterator[Block]) -> Iterator[Tile]:
        known: tuple[float, float] | None = None
        for start, stop in blocks:
            bounds = self.items.bounds(start, stop)
            if bounds != known:
                known, margins_B = bounds, self._margins(*bounds, self._gaps_B)
                margins = [self._of_chunk(margins_B, chunk) for chunk in self._chunks]
            coded = self.items.codes(start, stop) if self._codes_DB is not None else None
            block_ND = self.items.block(start, stop) if coded is None else None
            for chunk, margins_U in zip(self._chunks, margins, strict=True):
                if block_ND is not None:
                    products_NC = product(block_ND, chunk.vectors_CD)
                elif coded is not None:
                    products_NC = self._coded(*coded, chunk)
                yield self._tile(start, stop, products_NC, chunk, margins_U, bounds[0])
            block_ND = None

    def sharper(self, start: int, stop: int, chosen: np.ndarray) -> Tile:
        chunk, (norm, _) = self._chunk(chosen), self.items.bounds(start, stop)
        margins_B = self._margins(norm, 0.0, np.zeros_like(self._gaps_B))
        products_NC = product(self.items.given(start, stop), chunk.vectors_CD)
        return self._tile(start, stop, products_NC, chunk, margins_B[chosen], norm)

    def _tile(
        self, start: int, stop: int, products_NC: Tensor, chunk: Chunk, margins_U: np.ndarray, norm: float
    ) -> Tile:
        width = len(chunk.users)
        if chunk.bias_C is not None:
            products_NC += chunk.bias_C
        if self._users.fusion == "logsumexp":
            largest = self._columns.factors_Q[chunk.rows_C].max() * norm
            fused_NU = log_sums(products_NC, width, is_small=largest <= SMALL_EXPONENT)
        else:
            fused_NU = peaks(products_NC, width)
        scores_NW = fused_NU.new_zeros(len(fused_NU), width + -width % WORD)
        scores_NW[:, :width] = fused_NU
        tile = Tile(start, stop, scores_NW, chunk.users, margins_U, self._columns.units_B[chunk.users])
        self.mask.apply(tile)
        return tile

    def _of_chunk(self, margins_B: np.ndarray, chunk: Chunk) -> np.ndarray:
        """The margins of a tile's columns."""
        return margins_B[chunk.users]

    def _coded(self, codes_ND: Tensor, scale_N: Tensor, chunk: Chunk) -> Tensor:
        """Products of codes in the units of the tile."""
        assert self._codes_DB is not None
        rows_C = np.pad(chunk.rows_C, (0, -len(chunk.rows_C) % WORD))
        products_NC = int8_product(codes_ND, scale_N, self._codes_DB[:, torch.from_numpy(rows_C)].contiguous())
        units_C = (self._scales_B * self._columns.factors_Q)[chunk.rows_C]
        return products_NC[:, : len(chunk.rows_C)] * torch.from_numpy(units_C.astype(np.float32))

    def _margins(self, norm: float, gap: float, query_gaps_Q: np.ndarray) -> np.ndarray:
        """What a fused score may be wrong by, `[B]`."""
        if not len(self):
            return np.zeros(0)
        columns, dim = self._columns, self.items.dim
        errors_Q = error_bounds(columns.queries, self.items, norm, gap, query_gaps_Q)
        # Factors that are no power of two round the vectors, and small numbers of them may be flushed to zero.
        errors_Q = (errors_Q + 2 * FLOAT32 * columns.queries.norms_B * norm) * columns.factors_Q * (1 + 1e-6)
        errors_Q += dim * 2.0**-124 + dim * 2.0**-126 * norm
        margins_B = np.maximum.reduceat(errors_Q, columns.starts_B) * columns.units_B
        return margins_B + columns.gaps_B * norm + (1 + 1e-6) * self._users.slack(FLOAT32, norm)

    def _parts(self) -> list[np.ndarray]:
        """Users, those with about as many queries together: columns of a product that has as many for each."""
        counts_B, most = self._columns.counts_B, _COLUMNS if self.items.device.type == "cpu" else _GPU_COLUMNS
        parts: list[np.ndarray] = []
        order = np.argsort(-counts_B, kind="stable")
        first = 0
        while first < len(order):
            longest = counts_B[order[first]]
            some = order[first : first + max(1, most // longest)]
            some = some[counts_B[some] * 2 > longest]
            parts.append(np.sort(some))
            first += len(some)
        return parts

    def _chunk(self, users: np.ndarray) -> Chunk:
        columns = self._columns
        counts_U = columns.counts_B[users]
        turns_S1 = np.arange(counts_U.max())[:, None]
        has_SU = turns_S1 < counts_U
        rows_SU = columns.starts_B[users] + np.where(has_SU, turns_S1, 0)
        rows_C, device = rows_SU.reshape(-1), self.items.device
        factors_C1 = torch.from_numpy(columns.factors_Q[rows_C]).to(device)[:, None]
        vectors_CD = columns.queries.vectors_BD.index_select(0, torch.from_numpy(rows_C).to(device))
        bias_C = None
        if columns.bias_Q is not None or not has_SU.all():
            bias_Q = columns.bias_Q if columns.bias_Q is not None else np.zeros(len(columns.factors_Q))
            with np.errstate(over="ignore"):  # of so small a weight nothing is left
                floats_C = np.where(has_SU.reshape(-1), bias_Q[rows_C], -np.inf).astype(np.float32)
            bias_C = torch.from_numpy(floats_C).to(device)
        return Chunk(users, rows_C, (vectors_CD.double() * factors_C1).float(), bias_C)
