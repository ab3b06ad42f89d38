"""A catalogue in parts: exact ranks, search and scores from several `Shard`s, wherever they live.

Decides: how parts are cut and how what they find is joined. A rank is 1 + the parts' counts of items that reach the
target's score, which the part that holds the target gives; finds are put in order by the float64 scores, then by id.
Both are what one part would say, to the last bit (`ranking/ranks.py`); the float32 score matrix is so up to
its rounding.
Hides: ids within a part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch

from rl4rec_cli.errors import DataError, Rl4RecError
from rl4rec_cli.ranking import ranks
from rl4rec_cli.retrieval.embedding_files import ItemVectors, file_checksum, map_named
from rl4rec_cli.retrieval.retriever import Ranking

if TYPE_CHECKING:
    from numpy.typing import NDArray

Ids = Sequence[Sequence[int]]
Call = tuple[int, str, tuple[Any, ...]]
"""Part, method of `Shard`, arguments."""


class FileRows(NamedTuple):
    """Consecutive rows of a memory-mapped file: what a shard gets instead of the rows themselves."""

    path: str
    """As every machine of the cluster sees it."""
    start: int
    stop: int
    sha256: str
    """Of the whole file's values."""

    def mapped(self) -> torch.Tensor:
        """The rows, which can only be read.

        Raises:
            EmbeddingError: the file is not there, not whole, or another one.
        """
        vectors_ND = map_named(Path(self.path), self.sha256)
        return vectors_ND[self.start : self.stop]


Rows: TypeAlias = "NDArray[np.float32] | FileRows"


class Shard:
    """Consecutive items of several catalogues.

    Args:
        vectors: rows `[n, dim]` of each catalogue, by its name, or where they lie in a file.
        device: where products run.
        storages: what ranking reads first, by catalogue; `fp32` where it is not named. No rank depends on it.
    """

    def __init__(
        self,
        vectors: Mapping[str, Rows],
        *,
        device: str = "cpu",
        storages: Mapping[str, ranks.Storage] | None = None,
    ) -> None:
        self._matrices = {}
        for name, rows in vectors.items():
            # Copied: what comes out of Ray's object store can be read only and is freed with its reference.
            rows_ND = rows.mapped() if isinstance(rows, FileRows) else torch.from_numpy(np.array(rows))
            storage = (storages or {}).get(name, "fp32")
            self._matrices[name] = ranks.ItemMatrix(rows_ND, storage=storage, device=device)

    def pair_scores(self, name: str, queries_BD: NDArray[Any], ids_B: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores of each query and one item of its own, `[B]`."""
        return ranks.pair_scores(_tensor(queries_BD), self._matrices[name], _tensor(ids_B)).numpy()

    def count_at_least(
        self, name: str, queries_BD: NDArray[Any], target_scores_B: NDArray[np.float64], masks: Ids
    ) -> NDArray[np.int64]:
        """Items that score at least the goal, `[B]`."""
        return ranks.count_at_least(_tensor(queries_BD), self._matrices[name], _tensor(target_scores_B), masks).numpy()

    def best(
        self, name: str, queries_BD: NDArray[Any], k: int, exclude: Ids | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids within the part and float64 scores of the best items, `[B, min(k, n)]`."""
        ids_BK, scores_BK = ranks.best(_tensor(queries_BD), self._matrices[name], k, exclude)
        return ids_BK.numpy(), scores_BK.numpy()

    def score_matrix(self, name: str, queries_BD: NDArray[Any]) -> NDArray[np.float32]:
        """Every score, `[B, n]`."""
        return ranks.score_matrix(_tensor(queries_BD), self._matrices[name]).numpy()

    def rows(self, name: str, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors given, `[len(ids), dim]`."""
        return self._matrices[name].rows(_tensor(ids)).cpu().numpy()

    def about(self) -> dict[str, Any]:
        """Items held, by catalogue, and the process that holds them."""
        return {"pid": os.getpid(), "items": {name: matrix.num_items for name, matrix in self._matrices.items()}}


class ShardActor(Shard):
    """A shard as an actor: its arrays come one by one, as Ray hands over references only so.

    What is wrong with them is told by `about`: an actor that does not start Ray starts again and again.
    """

    def __init__(
        self, names: Sequence[str], device: str, storages: Mapping[str, ranks.Storage], threads: int, *vectors: Rows
    ) -> None:
        torch.set_num_threads(threads)
        self._failed: Rl4RecError | None = None
        try:
            super().__init__(dict(zip(names, vectors, strict=True)), device=device, storages=storages)
        except Rl4RecError as error:
            self._failed = error

    def about(self) -> dict[str, Any]:
        """As `Shard.about`.

        Raises:
            Rl4RecError: the items could not be loaded.
        """
        if self._failed is not None:
            raise self._failed
        return super().about()


def cut(num_items: int, parts: int) -> list[int]:
    """Where parts begin and end, `parts + 1` numbers; as even as can be.

    Raises:
        DataError: there are fewer items than parts.
    """
    if num_items < parts:
        raise DataError(f"{num_items} items cannot be cut into {parts} shards", hint="use fewer shards")
    return [num_items * part // parts for part in range(parts + 1)]


def cut_rows(stored: ItemVectors, borders: Sequence[int]) -> list[Rows]:
    """What each part gets: its rows, or where they lie in the file that is memory-mapped."""
    if stored.file is None:
        return [stored.vectors_ND[start:stop].numpy() for start, stop in pairwise(borders)]
    path, checksum = str(stored.file.resolve()), file_checksum(stored.file)
    return [FileRows(path, start, stop, checksum) for start, stop in pairwise(borders)]


class ShardedCatalogue:
    """One catalogue over several shards.

    Args:
        name: its name in the shards.
        borders: from `cut`.
        dim: dimensions of a vector.
        mask_history: leave history items out of the ranking.
        ask: carries out calls, at once where it can, and returns their results in order.
    """

    def __init__(
        self,
        name: str,
        borders: Sequence[int],
        dim: int,
        *,
        mask_history: bool,
        ask: Callable[[Sequence[Call]], Sequence[Any]],
    ) -> None:
        self._name, self._ask = name, ask
        self._starts, self.num_items, self.dim = np.asarray(borders[:-1]), borders[-1], dim
        self.mask_history = mask_history

    def vector_ranks(self, queries_BD: torch.Tensor, targets: Sequence[int], histories: Ids) -> Ranking:
        """As `InProcessRetriever.vector_ranks`."""
        queries = queries_BD.cpu().numpy()
        targets_B = self._checked([targets])[0]
        scorable_B: NDArray[np.bool_] = np.asarray(queries.any(axis=1))
        masks = [(*history, target) for history, target in zip(histories, targets_B.tolist(), strict=True)]
        split = self._split(masks if self.mask_history else [(target,) for target in targets_B.tolist()])
        holder_B = self._holders(targets_B)
        holders = np.unique(holder_B).tolist()
        target_scores_B = np.empty(len(queries))
        found = self._ask(
            [
                (s, "pair_scores", (self._name, queries[holder_B == s], targets_B[holder_B == s] - self._starts[s]))
                for s in holders
            ]
        )
        for s, scores in zip(holders, found, strict=True):
            target_scores_B[holder_B == s] = scores
        counts = self._ask(
            [(s, "count_at_least", (self._name, queries, target_scores_B, ids)) for s, ids in enumerate(split)]
        )
        ranks_B = 1 + np.sum(counts, axis=0, dtype=np.int64)
        return Ranking(np.where(scorable_B, ranks_B, self.num_items), scorable_B)

    def vector_search(
        self, queries_BD: torch.Tensor, k: int, exclude: Ids | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As `InProcessRetriever.vector_search`."""
        if k < 1:
            raise DataError(f"k must be at least 1, got {k}")
        queries = queries_BD.cpu().numpy()
        split = [None] * len(self._starts) if exclude is None else self._split(exclude)
        found = self._ask([(s, "best", (self._name, queries, k, ids)) for s, ids in enumerate(split)])
        ids_BC = np.concatenate(
            [np.where(ids < 0, -1, ids + start) for (ids, _), start in zip(found, self._starts, strict=True)], axis=1
        )
        scores_BC = np.concatenate([scores for _, scores in found], axis=1)
        order = np.lexsort((ids_BC, -scores_BC), axis=1)[:, : min(k, self.num_items)]
        ids_BK, scores_BK = (np.take_along_axis(values, order, axis=1) for values in (ids_BC, scores_BC))
        with np.errstate(over="ignore"):
            return ids_BK, scores_BK.astype(np.float32)

    def vector_scores(self, queries_BD: torch.Tensor) -> NDArray[np.float32]:
        """Every score, `[B, num_items]`."""
        queries = queries_BD.cpu().numpy()
        calls: list[Call] = [(s, "score_matrix", (self._name, queries)) for s in range(len(self._starts))]
        return np.concatenate(list(self._ask(calls)), axis=1)

    def item_vectors(self, items: Sequence[int]) -> torch.Tensor:
        """`[len(items), dim]` float32."""
        ids = self._checked([items])[0]
        holders = self._holders(ids)
        rows = np.empty((len(ids), self.dim), np.float32)
        asked = np.unique(holders).tolist()
        calls: list[Call] = [(s, "rows", (self._name, ids[holders == s] - self._starts[s])) for s in asked]
        for s, part in zip(asked, self._ask(calls), strict=True):
            rows[holders == s] = part
        return torch.from_numpy(rows)

    def _holders(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._starts, ids, side="right") - 1

    def _split(self, lists: Ids) -> list[list[list[int]]]:
        """For each part the ids of each list that it holds, as it numbers them."""
        checked = self._checked(lists)
        split: list[list[list[int]]] = [[] for _ in self._starts]
        for ids in checked:
            holders = self._holders(ids)
            for s, start in enumerate(self._starts):
                split[s].append((ids[holders == s] - start).tolist())
        return split

    def _checked(self, lists: Ids) -> list[NDArray[np.int64]]:
        """The lists as arrays.

        Raises:
            DataError: an id is outside the catalogue.
        """
        arrays = [np.asarray(ids, np.int64) for ids in lists]
        for ids in arrays:
            outside = (ids < 0) | (ids >= self.num_items)
            if outside.any():
                raise DataError(f"item id {ids[outside][0]} is outside the catalogue of {self.num_items} items")
        return arrays


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(array))
