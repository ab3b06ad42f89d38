"""Opens retrievers: the module above all the kinds that there are.

Decides: which of them `retrieval.backend` means; `auto` is decided here.
Hides: that they are several. Nothing else in `retrieval` imports `retrieval.service`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.errors import Rl4RecError
from rl4rec_cli.models.devices import resolve_device
from rl4rec_cli.plan import machine, placement
from rl4rec_cli.retrieval.catalogue import load_catalogues
from rl4rec_cli.retrieval.retriever import InProcessRetriever
from rl4rec_cli.retrieval.service import cluster
from rl4rec_cli.retrieval.service.client import RayRetriever
from rl4rec_cli.retrieval.service.own_service import own_service

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RetrievalSection, RunConfig
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.retrieval.retriever import VectorRetriever

FIRST_WAIT = 2.0
"""Seconds that a command which somebody sits before waits for a service: a run may have been trained by one that ended
long ago."""


def open_retriever(
    section: RetrievalSection, dataset: Dataset, folders: Sequence[str] = (), *, first_wait: float | None = None
) -> InProcessRetriever | RayRetriever:
    """The retriever a configuration names, with the dataset's item vectors loaded or made.

    Args:
        folders: the dataset's, for the command that starts a service where there is none.
        first_wait: seconds to wait for a service; None: as configured.

    Raises:
        EmbeddingError: the embedder or the embedding file is not usable.
        ServiceError: backend `ray`, and the service is not there or serves something else.
    """
    return open_retrievers(section, [dataset], folders, first_wait=first_wait)[0]


def open_retrievers(
    section: RetrievalSection,
    datasets: Sequence[Dataset],
    folders: Sequence[str] = (),
    *,
    first_wait: float | None = None,
) -> list[InProcessRetriever] | list[RayRetriever]:
    """A retriever for each dataset, all of one backend; in this process they share one embedder, unless it is fitted.

    Args:
        folders: the datasets', as `open_retriever`.
        first_wait: likewise.

    Raises:
        EmbeddingError: the embedder or an embedding file is not usable.
        ServiceError: backend `ray`, and the service is not there or serves something else.
    """
    if section.needs_service:
        remote = [RayRetriever.open(section, dataset, folders=folders, first_wait=first_wait) for dataset in datasets]
        console.log(f"Retrieval by {_by(section)}")
        return remote
    if section.is_auto and (offered := offered_retrievers(section, datasets, folders)) is not None:
        return offered
    device = resolve_device(section.device, "retrieval.device")
    return [
        InProcessRetriever(
            embedder,
            stored.vectors_ND,
            mask_history=dataset.mask_history,
            device=device,
            storage=stored.holding.storage,
        )
        for dataset, (embedder, stored) in zip(datasets, load_catalogues(section, datasets), strict=True)
    ]


def open_served(section: RetrievalSection, name: str) -> RayRetriever:
    """The service's retriever of the dataset that it serves by this name, whatever embeds there.

    Raises:
        ServiceError: the service is not found. DataError: it serves no such dataset.
    """
    return RayRetriever.open(section, name=name)


def offered_retrievers(
    section: RetrievalSection, datasets: Sequence[Dataset], folders: Sequence[str] = ()
) -> list[RayRetriever] | None:
    """The retrievers of a service that runs on this machine; None where there is none, or not one of these datasets.

    Which of them, and why not, is logged.
    """
    if not cluster.is_offered(section.service):
        return None
    try:
        offered = [RayRetriever.open(section, dataset, folders=folders) for dataset in datasets]
    except Rl4RecError as error:
        console.log(f"Retrieval in this process, not by {_by(section)}, which runs here: {error.message}")
        return None
    console.log(f"Retrieval by {_by(section)}, which runs here")
    return offered


def _by(section: RetrievalSection) -> str:
    return f"{section.service.name} in Ray's namespace {section.service.namespace}"


@contextmanager
def open_run_retrievers(config: RunConfig, datasets: Sequence[Dataset]) -> Iterator[list[VectorRetriever]]:
    """A retriever for each dataset, as `retrieval.backend` says; `auto` is decided here, and the reason logged.

    Raises:
        EmbeddingError, ServiceError: as `open_retrievers`.
    """
    section, folders = config.retrieval, config.data.paths
    with ExitStack() as stack:
        offered: Sequence[VectorRetriever] | None = None
        if section.is_auto and (offered := offered_retrievers(section, datasets, folders)) is None:
            own_gpu = _choose_gpu(config)
            if own_gpu is not None:
                section = stack.enter_context(own_service(section, folders, own_gpu))
            else:
                section = section.model_copy(update={"backend": "in-process"})
        yield list(offered if offered is not None else open_retrievers(section, datasets, folders))


def _choose_gpu(config: RunConfig) -> int | None:
    """The GPU for a service of the run's own; None: it has none. Says why."""
    try:
        place = placement.place_retrieval(machine.find_machine(), config)
    except Rl4RecError as error:  # GPUs that cannot be counted are none to start a service on
        console.log(f"Retrieval in this process: {error.message}")
        return None
    if place.own_gpu is not None and cluster.foreign_address() is not None:
        console.log("Retrieval in this process: the program works with a Ray cluster of its own already")
        return None
    console.log(f"Retrieval on {place.where}: {place.reason}")
    return place.own_gpu
