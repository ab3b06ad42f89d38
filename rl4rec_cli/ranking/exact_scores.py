"""Queries ready for ranking, and the score proper of single pairs of a query and an item.

Decides: what the score of a pair is (`exact_scores`), to the last bit. Hides: scaling, padding, and how pairs are
scored many at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.errors import EmbeddingError
from rl4rec_cli.ranking.item_matrix import ItemMatrix
from rl4rec_cli.ranking.products import WORD

QUERIES = 1 << 10
"""So many queries are multiplied at a time."""
_PAIR_ELEMENTS = 1 << 17
_GPU_PAIR_ELEMENTS = 1 << 21


class Queries:
    """Queries brought to norm [1/2, 1) by a power of two, which changes no comparison and keeps products in range.

    `vectors_BD` ends in rows of zeros that make its length a multiple of `WORD`.
    """

    def __init__(self, queries_BD: Tensor, items: ItemMatrix) -> None:
        if queries_BD.ndim != 2 or queries_BD.shape[1] != items.dim:
            raise EmbeddingError(f"queries must be [texts, {items.dim}] like the items, got {list(queries_BD.shape)}")
        if not queries_BD.is_floating_point():
            raise EmbeddingError(f"queries must be floating point, got {queries_BD.dtype}")
        count = len(queries_BD)
        self.vectors_BD = torch.empty(count + -count % WORD, items.dim, device=items.device)
        self.vectors_BD[count:] = 0
        self.exponents_B = np.zeros(count, dtype=np.int32)
        self.norms_B = np.zeros(count)
        for first in range(0, count, QUERIES):
            self._take(queries_BD[first : first + QUERIES].detach().to(items.device), first)

    def _take(self, given_BD: Tensor, first: int) -> None:
        some_BD = given_BD.float()
        # float64 holds every norm of float32 values: one that is not finite has a value that is not.
        norms_B = torch.linalg.vector_norm(some_BD, dim=1, dtype=torch.float64).cpu().numpy()
        if not np.isfinite(norms_B).all():
            row = int(np.flatnonzero(~np.isfinite(norms_B))[0])
            problem = "does not fit float32" if torch.isfinite(given_BD[row]).all() else "is not finite"
            raise EmbeddingError(f"embedding of text {first + row} {problem}", hint="check the embedder's output")
        exponents_B = np.frexp(norms_B)[1]
        last = first + len(some_BD)
        # In two steps: 2 to the power of 149 is no float32.
        half_B = exponents_B // 2
        powers_2B = np.ldexp(np.float32(1), np.stack([-half_B, half_B - exponents_B]))
        once_B1, again_B1 = torch.from_numpy(powers_2B).to(some_BD.device)[:, :, None]
        torch.mul(some_BD, once_B1, out=self.vectors_BD[first:last]).mul_(again_B1)
        self.exponents_B[first:last] = exponents_B
        # A little more than the norm, for the rounding of the norm itself.
        self.norms_B[first:last] = np.ldexp(norms_B, -exponents_B) * (1 + 1e-6)

    def __len__(self) -> int:
        return len(self.norms_B)

    def chunks(self) -> Iterator[tuple[int, int]]:
        for first in range(0, len(self), QUERIES):
            yield first, min(first + QUERIES, len(self))

    def int8(self) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Codes int8 `[D, B]`, the scale of each query, and its distance from what the codes stand for."""
        scale_B = self.vectors_BD.abs().amax(1).clamp(min=2.0**-60) / 127
        codes_BD = (self.vectors_BD / scale_B[:, None]).round_().clamp_(-127, 127)
        copies_BD = codes_BD.double() * scale_B.double()[:, None]
        gaps_B = torch.linalg.vector_norm(self.vectors_BD.double() - copies_BD, dim=1)
        count = len(self)
        codes_DB = codes_BD.to(torch.int8).T.contiguous()
        return codes_DB, scale_B[:count].double().numpy(), gaps_B[:count].numpy() * (1 + 1e-6)


def _pairs_at_once(items: ItemMatrix) -> int:
    """What fits a core's cache; a GPU is asked less often."""
    return max(1, (_PAIR_ELEMENTS if items.device.type == "cpu" else _GPU_PAIR_ELEMENTS) // items.dim)


def reaches(
    queries: Queries, items: ItemMatrix, rows: np.ndarray, ids: np.ndarray, target_scores: np.ndarray
) -> np.ndarray:
    """Whether the score proper of query `rows[i]` and item `ids[i]` is at least `target_scores[i]`, bool `[M]`.

    float32 products added in float64 settle nearly all; their margin is D times narrower than the tile's.
    """
    sums, margins = near_scores(queries, items, rows, ids)
    reached = sums >= target_scores
    unsure = np.flatnonzero(np.abs(sums - target_scores) <= margins)
    if len(unsure):
        reached[unsure] = exact_scores(queries, items, rows[unsure], ids[unsure]) >= target_scores[unsure]
    return reached


def near_scores(
    queries: Queries, items: ItemMatrix, rows: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """float32 products added in float64, and what each sum may be off the score proper, `[M]` each."""
    sums = np.empty(len(rows))
    step = _pairs_at_once(items)
    for i in range(0, len(rows), step):
        products_MD = items.rows(torch.from_numpy(ids[i : i + step]))
        products_MD *= queries.vectors_BD.index_select(0, torch.from_numpy(rows[i : i + step]).to(items.device))
        sums[i : i + step] = products_MD.sum(1, dtype=torch.float64).cpu().numpy()
    return sums, queries.norms_B[rows] * items.norms(ids) * (2.0**-24 + items.dim * 2.0**-50) + items.dim * 2.0**-124


def exact_scores(queries: Queries, items: ItemMatrix, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The score proper of query `rows[i]` and item `ids[i]`, float64 `[M]`.

    Products are added by halves: x[:h] + x[h:], again and again. Separate element-wise operations in IEEE float64
    give the same bits on every device and for every M; a library's sum or product does not.
    """
    scores = np.empty(len(rows))
    step = _pairs_at_once(items)
    for i in range(0, len(rows), step):
        products_MD = items.rows(torch.from_numpy(ids[i : i + step])).double()
        products_MD *= queries.vectors_BD.index_select(0, torch.from_numpy(rows[i : i + step]).to(items.device))
        width = items.dim
        while width > 1:
            half = width // 2
            # Not `+=` on a slice, which also writes the slice over itself.
            products_MD[:, :half].add_(products_MD[:, width - half : width])
            width -= half
        scores[i : i + step] = products_MD[:, 0].cpu().numpy()
    return scores
