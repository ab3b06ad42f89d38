"""The retrieval service: an actor that embeds and ranks for several trainers, and the actors that help it.

Decides: what a request may be, and what is done together. The texts of each request are embedded by themselves, for a
text's vector depends in its last bits on what else stands in its batch: what one caller gets must not depend on who
else calls. Ranking has no such dependence, so requests that wait are ranked in one pass over the catalogue.
Hides: loading, shards, and Ray's own scheduling, restarts and retries, which are all there is of them.

No object of the user's crosses the border, only texts and numbers: actors get the configuration and dataset folders.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rl4rec_cli.errors import ConfigError, DataError, EmbeddingError, Rl4RecError, ServiceError
from rl4rec_cli.models.devices import resolve_device
from rl4rec_cli.retrieval.catalogue import load_catalogues
from rl4rec_cli.retrieval.embedder import Embedder
from rl4rec_cli.retrieval.retriever import InProcessRetriever, Ranking, as_found, catalogue_digest, query_vectors
from rl4rec_cli.retrieval.service.batching import Batcher, Job
from rl4rec_cli.retrieval.service.shards import Call, Rows, ShardActor, ShardedCatalogue, cut, cut_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.ranking.ranks import Storage
    from rl4rec_cli.retrieval.retriever import Found

RESTARTS = 100
"""Times Ray starts an actor again; one that goes on dying is not worth more."""
_LONGEST_HISTORY = 100_000


@dataclass
class Served:
    """A catalogue of the service."""

    embedder: Embedder
    ranker: InProcessRetriever | ShardedCatalogue
    device: str
    about: dict[str, Any]

    def text_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        return query_vectors(self.embedder, texts).to(self.device)


class RetrievalService:
    """Several catalogues behind one queue. Made into an actor by `serving.start_service`.

    Args:
        section: a retrieval section, as JSON.
        folders: dataset folders.
        options: `num_gpus` (of each shard), `threads`, and `replicas`, the names of all copies of this service.
    """

    def __init__(self, section: dict[str, Any], folders: Sequence[str], options: dict[str, Any]) -> None:
        from rl4rec_cli.config.sections import RetrievalSection

        torch.set_num_threads(options["threads"])
        self._section = RetrievalSection.model_validate(section)
        self._limits = self._section.service
        self._options = options
        self._started = time.time()
        self._failed: Rl4RecError | None = None
        self._served: dict[str, Served] = {}
        self._parts: list[Any] = []
        self._kept: list[Any] = []
        try:
            self._load(folders)
        except Rl4RecError as error:
            # Ray would tell of it as text, and start the actor again and again.
            self._failed = error
        self._batcher = Batcher(
            self._work,
            limit=self._limits.queue,
            together=self._limits.max_texts,
            pause=self._limits.merge_ms / 1000,
        )

    # Requests

    async def target_ranks(
        self, texts: Sequence[str], targets: Sequence[int], histories: Sequence[Sequence[int]], dataset_name: str
    ) -> Ranking:
        """As `InProcessRetriever.target_ranks`."""
        served = self._checked(dataset_name, texts)
        with _understood():
            counts = len(texts), len(targets), len(histories)
            if len(set(counts)) > 1:
                raise DataError("{} texts, {} targets and {} histories: not one each".format(*counts))
            _check_ids([targets, *histories], served.about["num_items"])
        return await self._do("ranks", dataset_name, texts, targets, histories)

    async def search(
        self, texts: Sequence[str], k: int, exclude: Sequence[Sequence[int]] | None, dataset_name: str
    ) -> list[Found]:
        """As `InProcessRetriever.search`."""
        served = self._checked(dataset_name, texts)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise DataError(f"k must be at least 1, got {k!r:.40}")
        self._check_size(len(texts) * min(k, served.about["num_items"]), "lower k, or fewer texts at once")
        if exclude is not None:
            with _understood():
                if len(exclude) != len(texts):
                    raise DataError(f"{len(exclude)} lists of excluded items for {len(texts)} texts")
                _check_ids(exclude, served.about["num_items"])
        return await self._do("search", dataset_name, texts, k, exclude)

    async def calculate_reward(self, texts: Sequence[str], dataset_name: str) -> NDArray[np.float32]:
        """Scores of every item, float32 `[len(texts), num_items]`."""
        served = self._checked(dataset_name, texts)
        self._check_size(len(texts) * served.about["num_items"], "send fewer texts at once, or ask for ranks")
        return await self._do("scores", dataset_name, texts)

    async def text_vectors(self, texts: Sequence[str], dataset_name: str) -> NDArray[np.float32]:
        """`[len(texts), dim]`."""
        served = self._checked(dataset_name, texts)
        self._check_size(len(texts) * served.about["dim"], "send fewer texts at once")
        return await self._do("embed", dataset_name, texts)

    async def item_vectors(self, items: Sequence[int], dataset_name: str) -> NDArray[np.float32]:
        """`[len(items), dim]`."""
        served = self._checked(dataset_name, ())
        with _understood():
            self._check_size(len(items) * served.about["dim"], "ask for fewer items at once")
            _check_ids([items], served.about["num_items"], longest=len(items))
        return await self._do("items", dataset_name, (), np.asarray(items, np.int64))

    async def datasets(self) -> dict[str, dict[str, Any]]:
        """What is served, by name: items, dimensions, digests, and what embeds."""
        self._check_loaded()
        return {name: dict(served.about) for name, served in self._served.items()}

    async def health(self) -> dict[str, Any]:
        """How the service is."""
        return {
            "status": "failed" if self._failed is not None else "ok",
            "problem": self._failed.message if self._failed is not None else None,
            "datasets": {name: served.about["shape"] for name, served in self._served.items()},
            "item_vectors": {name: served.about["holding"] for name, served in self._served.items()},
            "pid": os.getpid(),
            "seconds": round(time.time() - self._started, 1),
            "shards": max(1, len(self._parts)),
            "replicas": self._options["replicas"],
            "waiting": self._batcher.waiting,
            "busy": self._batcher.is_busy,
            "answered": self._batcher.done,
            "batches": self._batcher.batches,
            "refused": self._batcher.refused,
            "memory_mb": _memory() >> 20,
        }

    async def shards(self) -> list[dict[str, Any]]:
        """Process and items of each shard; empty where this actor holds them all."""
        return list(await asyncio.gather(*(part.about.remote() for part in self._parts)))

    async def load_error(self) -> Rl4RecError | None:
        """What was wrong with the datasets or the embedder."""
        return self._failed

    async def until_stopped(self) -> None:
        """Returns when the service has answered what it had taken after `stop`."""
        await self._batcher.closed.wait()

    async def stop(self) -> None:
        """Take no more requests, and wait for those that were taken."""
        await self._batcher.close()

    # Checks

    def _check_loaded(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _checked(self, dataset: str, texts: Sequence[str]) -> Served:
        self._check_loaded()
        limits = self._limits
        if not isinstance(dataset, str) or dataset not in self._served:
            raise DataError(
                f"the retrieval service has no dataset {dataset!r:.80}; it serves {', '.join(self._served)}",
                hint="name one of these (retrieval.service.dataset), or serve it: rl4rec serve-retrieval --datasets …",
            )
        if not isinstance(texts, (list, tuple)):
            raise DataError(f"texts must be a list, not {type(texts).__name__}")
        if len(texts) > limits.max_texts:
            raise DataError(
                f"{len(texts):,} texts in one request, at most {limits.max_texts:,}",
                hint="send fewer, or start the service with a larger retrieval.service.max_texts",
            )
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"text {row} is a {type(text).__name__}, not a text")
            if len(text) > limits.max_text_length:
                raise DataError(
                    f"text {row} has {len(text):,} characters, at most {limits.max_text_length:,}",
                    hint="start the service with a larger retrieval.service.max_text_length",
                )
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                raise DataError(f"text {row} has half a character (a lone surrogate), which no tokenizer reads")
        return self._served[dataset]

    def _check_size(self, values: int, hint: str) -> None:
        if values > self._limits.max_values:
            raise DataError(f"the answer would have {values:,} numbers, at most {self._limits.max_values:,}", hint=hint)

    # Work, in the batcher's thread

    async def _do(self, what: str, dataset: str, texts: Sequence[str], *arguments: Any) -> Any:
        kind = (what, dataset) if what == "ranks" else None
        return await self._batcher.do(Job(kind, len(texts), (what, dataset, texts, *arguments)))

    def _work(self, jobs: Sequence[Job]) -> list[Any]:
        what, dataset = jobs[0].arguments[:2]
        served = self._served[dataset]
        if what == "ranks":
            return _rank_together(served, jobs)
        try:
            (job,) = jobs
            texts, arguments = job.arguments[2], job.arguments[3:]
            if what == "items":
                return [served.ranker.item_vectors(arguments[0].tolist()).cpu().numpy()]
            if what == "embed":
                return [query_vectors(served.embedder, texts).numpy()]
            if not texts:
                return [[] if what == "search" else np.zeros((0, served.about["num_items"]), np.float32)]
            queries_BD = served.text_vectors(texts)
            if what == "search":
                return [as_found(*served.ranker.vector_search(queries_BD, *arguments))]
            return [served.ranker.vector_scores(queries_BD)]
        except Rl4RecError as error:
            return [error]

    # Loading

    def _load(self, folders: Sequence[str]) -> None:
        from rl4rec_cli.data.opening import load_dataset

        section, shards = self._section, self._limits.shards
        is_ours = section.device != "auto" or self._options["num_gpus"]
        device = resolve_device(section.device, "retrieval.device") if is_ours else "cpu"
        section = section.model_copy(update={"device": device})
        pieces: list[dict[str, Rows]] = [{} for _ in range(shards)]
        storages: dict[str, Storage] = {}
        datasets = [load_dataset(folder) for folder in folders]
        names = [dataset.name for dataset in datasets]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"two datasets are named {twice[0]}", hint="their folders need different names")
        # Every replica holds a copy, on a GPU of its own where it has one.
        copies = self._limits.replicas if device == "cpu" else 1
        catalogues = load_catalogues(section, datasets, copies=copies, parts=shards if device != "cpu" else 1)
        for dataset, (embedder, stored) in zip(datasets, catalogues, strict=True):
            vectors_ND, storage = stored.vectors_ND, stored.holding.storage
            storages[dataset.name] = storage
            ranker: InProcessRetriever | ShardedCatalogue
            if shards == 1:
                ranker = InProcessRetriever(
                    embedder, vectors_ND, mask_history=dataset.mask_history, device=device, storage=storage
                )
            else:
                borders = cut(len(vectors_ND), shards)
                for piece, rows in zip(pieces, cut_rows(stored, borders), strict=True):
                    piece[dataset.name] = rows
                ranker = ShardedCatalogue(
                    dataset.name, borders, vectors_ND.shape[1], mask_history=dataset.mask_history, ask=self._ask
                )
            about = {
                "num_items": len(vectors_ND),
                "dim": vectors_ND.shape[1],
                "shape": list(vectors_ND.shape),
                "digest": catalogue_digest(vectors_ND, mask_history=dataset.mask_history),
                "holding": stored.holding.words,
                "items_digest": dataset.items_digest(section.emb_type),
                "mask_history": dataset.mask_history,
                "emb_type": section.emb_type,
                "embedder": embedder.name,
                "query_prompt": section.query_prompt,
                "max_texts": self._limits.max_texts,
                "max_values": self._limits.max_values,
            }
            self._served[dataset.name] = Served(embedder, ranker, device, about)
        if shards > 1:
            self._start_shards(pieces, device, storages)

    def _start_shards(self, pieces: Sequence[dict[str, Rows]], device: str, storages: dict[str, Storage]) -> None:
        import ray

        actor = ray.remote(ShardActor).options(
            num_cpus=0,
            num_gpus=self._options["num_gpus"],
            max_restarts=RESTARTS,
            max_task_retries=self._limits.retries,
            scheduling_strategy="SPREAD",
        )
        for piece in pieces:
            names = list(piece)
            # Kept as long as this actor lives: a shard that Ray starts again reads them once more.
            references = [ray.put(piece[name]) for name in names]
            self._kept.append(references)
            self._parts.append(actor.remote(names, device, storages, self._options["threads"], *references))
        try:
            ray.get([part.about.remote() for part in self._parts])
        except ray.exceptions.RayTaskError as error:
            raise own_error(error) from None

    def _ask(self, calls: Sequence[Call]) -> list[Any]:
        import ray

        try:
            return ray.get([getattr(self._parts[part], name).remote(*arguments) for part, name, arguments in calls])
        except ray.exceptions.RayTaskError as error:
            raise own_error(error) from None
        except ray.exceptions.RayActorError as error:
            raise ServiceError(f"a shard of the retrieval service is gone: {error}") from error


def own_error(error: Any) -> Exception:
    """The error of ours that a Ray task ended with, else the task's own."""
    cause = error.cause
    if isinstance(cause, Rl4RecError):
        return cause
    return ServiceError(f"the retrieval service failed: {type(cause).__name__}: {cause}")


def _rank_together(served: Served, jobs: Sequence[Job]) -> list[Any]:
    """Each job's ranking: embedded one by one, ranked in one pass."""
    results: list[Any] = [None] * len(jobs)
    queries, targets, histories, members = [], list[int](), list[Sequence[int]](), []
    for place, job in enumerate(jobs):
        _, _, texts, own_targets, own_histories = job.arguments
        if not texts:
            results[place] = Ranking(np.zeros(0, np.int64), np.zeros(0, np.bool_))
            continue
        try:
            vectors_BD = served.text_vectors(texts)
            finite_B = torch.isfinite(vectors_BD).all(dim=1)
            if not finite_B.all():  # would fail the others' ranking too
                row = int((~finite_B).nonzero()[0])
                raise EmbeddingError(f"embedding of text {row} is not finite", hint="check the embedder's output")
        except Rl4RecError as error:
            results[place] = error
            continue
        queries.append(vectors_BD)
        targets.extend(own_targets)
        histories.extend(own_histories)
        members.append(place)
    if not members:
        return results
    ranks, scorable = served.ranker.vector_ranks(torch.cat(queries), targets, histories)
    start = 0
    for place, vectors_BD in zip(members, queries, strict=True):
        stop = start + len(vectors_BD)
        results[place] = Ranking(ranks[start:stop].copy(), scorable[start:stop].copy())
        start = stop
    return results


@contextmanager
def _understood() -> Iterator[None]:
    """What cannot even be looked at (`None` for a list, lists of unequal depth) is the caller's error, not ours."""
    try:
        yield
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(f"the request cannot be understood: {' '.join(str(error).split())[:200]}") from None


def _check_ids(lists: Sequence[Sequence[int]], num_items: int, *, longest: int | None = None) -> None:
    for ids in lists:
        if len(ids) > (longest if longest is not None else max(_LONGEST_HISTORY, num_items)):
            raise DataError(f"a list of {len(ids):,} items for one text is too long")
        array = np.asarray(ids)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise DataError(f"item ids must be whole numbers, got {array.dtype} of shape {list(array.shape)}")
        outside = (array < 0) | (array >= num_items)
        if outside.any():
            raise DataError(f"item id {array[outside][0]} is outside the catalogue of {num_items} items")


def _memory() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
