"""A retriever that asks the retrieval service.

Decides: how the service is found, when a request is sent again and when it is given up, and that the service must
serve this very catalogue with this very embedder, for else the rewards would be others than in this process.
Hides: Ray's handles, references and errors.

While the actor is started again Ray holds the requests sent to it and sends those it had taken once more. What is left
to do here: look for a service that was started anew under the same name, a bounded number of times.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch

from rl4rec_cli import console
from rl4rec_cli.errors import ConfigError, DataError, ServiceBusy, ServiceError, first_line
from rl4rec_cli.ranking.ranks import ItemMatrix
from rl4rec_cli.retrieval.embedder import find_embedder
from rl4rec_cli.retrieval.retriever import Ranking, rank_vectors
from rl4rec_cli.retrieval.service import cluster
from rl4rec_cli.retrieval.service.joining import serve_settings
from rl4rec_cli.shell import command_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.config.sections import RetrievalSection
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.retrieval.retriever import Found

T = TypeVar("T")
_LOOK_SECONDS = 0.5
_PAUSE_SECONDS = 0.2


class Pending(Generic[T]):
    """An answer under way: `result()` or `await` it. It is sent already."""

    def __init__(
        self, client: ServiceClient, method: str, arguments: tuple[Any, ...], check: Callable[[Any], T]
    ) -> None:
        self._client, self._method, self._arguments, self._check = client, method, arguments, check
        self._reference: Any = None
        self._failure: Exception | None = None
        self._send()

    def _send(self) -> None:
        try:
            self._reference = self._client.submit(self._method, self._arguments)
        except self._client.ray.exceptions.RayError as error:
            self._reference, self._failure = None, error

    def result(self) -> T:
        """The answer.

        Raises:
            ServiceError: the service is gone for good, too slow or overloaded. Rl4RecError: what the service raised.
        """
        from rl4rec_cli.retrieval.service.actors import own_error

        service, exceptions = self._client.service, self._client.ray.exceptions
        for attempt in range(service.retries + 1):
            if attempt:
                reason = first_line(self._failure)
                console.log(f"{service.name}: {reason}; sending the request again ({attempt} of {service.retries})")
                time.sleep(_PAUSE_SECONDS * 2**attempt)
                self._client.look_again()
                self._send()
            if self._reference is None:
                continue
            try:
                return self._check(self._client.ray.get(self._reference, timeout=service.timeout))
            except exceptions.RayTaskError as error:
                self._failure = own_error(error)
                if not isinstance(self._failure, ServiceError):
                    raise self._failure from None
            except exceptions.GetTimeoutError:
                raise ServiceError(
                    f"{service.name} gave no answer within {service.timeout:g} s",
                    hint="allow more time (retrieval.service.timeout), or start the service with more replicas",
                ) from None
            except exceptions.RayError as error:
                self._failure = error
        if isinstance(self._failure, ServiceBusy):
            raise self._failure
        raise ServiceError(
            f"{service.name} failed {service.retries + 1} times to answer, the last time: {first_line(self._failure)}",
            hint=f"look how it is: {self._client.command} --status",
        )

    def __await__(self) -> Any:
        return asyncio.to_thread(self.result).__await__()


class ServiceClient:
    """Finds the service and sends it requests; several replicas take turns.

    Args:
        section: where the service is found, and what it should be started with where it is not.
        datasets: folders, for the command that starts it.
        first_wait: seconds to wait for it now, as nobody has seen it yet; None: as long as later.

    Raises:
        ServiceError: the service is not found. ConfigError: Ray is not installed.
    """

    def __init__(
        self, section: RetrievalSection, datasets: Sequence[str] = (), *, first_wait: float | None = None
    ) -> None:
        cluster.require_ray()
        self.section, self.service, self._datasets = section, section.service, datasets
        self.ray: Any = None
        self._handles: list[Any] = []
        self._turn = os.getpid()  # several trainers do not begin with the same replica
        self.look_again(first_wait)

    @property
    def command(self) -> str:
        """What starts this service."""
        section, service = self.section, self.service
        words = ["rl4rec", "serve-retrieval", "--datasets", *(self._datasets or ["PATH"])]
        words += ["--embedder", section.embedder, "--emb-type", section.emb_type]
        words += ["--actor-name", service.name, "--namespace", service.namespace]
        if service.address is not None:
            words += ["--address", service.address]
        return command_line(*words, *serve_settings(section))

    def look_again(self, wait: float | None = None) -> None:
        """Find the service anew.

        Raises:
            ServiceError: it is not there and does not come within `wait` seconds.
        """
        wait = self.service.wait if wait is None else min(wait, self.service.wait)
        service, end, is_told = self.service, time.monotonic() + wait, False
        while (problem := self._look()) is not None:
            if time.monotonic() >= end:
                raise ServiceError(
                    f"{service.name} not found in namespace {service.namespace}: {problem}",
                    hint=f"start it: {self.command}; or do without: --set retrieval.backend=in-process",
                )
            if not is_told:
                console.log(f"{service.name}: {problem}; waiting {wait:g} s for it")
                is_told = True
            time.sleep(min(_LOOK_SECONDS, max(0.0, end - time.monotonic())))

    def _look(self) -> str | None:
        """Take the service's handles, or say why there are none."""
        service = self.service
        address = service.address or cluster.foreign_address() or cluster.find_address(service)
        if address is None:
            return "no service runs on this machine"
        try:
            self.ray = cluster.join(service, address)
            first = self.ray.get_actor(service.name, namespace=service.namespace)
            health = self.ray.get(first.health.remote(), timeout=service.timeout)
            self._handles = [self.ray.get_actor(name, namespace=service.namespace) for name in health["replicas"]]
        except ServiceError as error:
            return error.message if error.hint is None else f"{error.message}; {error.hint}"
        except ValueError:
            return f"there is no such actor in the Ray cluster at {address}"
        except self.ray.exceptions.RayError as error:
            return first_line(error)
        return None

    def submit(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Send a request to the next replica; returns Ray's reference."""
        self._turn += 1
        return getattr(self._handles[self._turn % len(self._handles)], method).remote(*arguments)

    def ask(self, method: str, *arguments: Any) -> Any:
        """A request and its answer."""
        return Pending(self, method, arguments, lambda answer: answer).result()


class RayRetriever:
    """One catalogue of the service, with what `InProcessRetriever` offers. Open with `open`.

    Baselines and evaluation look at item vectors themselves: `vectors_ND` and `matrix` fetch them once, when they are
    first asked for.
    """

    device = "cpu"

    def __init__(self, client: ServiceClient, name: str, about: dict[str, Any]) -> None:
        self._client, self._name = client, name
        self.num_items: int = about["num_items"]
        self.dim: int = about["dim"]
        self.mask_history: bool = about["mask_history"]
        self.digest: str = about["digest"]
        self._max_texts: int = about["max_texts"]
        self._max_values: int = about["max_values"]

    @classmethod
    def open(
        cls,
        section: RetrievalSection,
        dataset: Dataset | None = None,
        *,
        name: str | None = None,
        folders: Sequence[str] = (),
        first_wait: float | None = None,
    ) -> RayRetriever:
        """The service's retriever of a dataset.

        Args:
            section: where the service is, and what should embed.
            dataset: must be what the service serves; None: whatever it serves as `name`, with whatever embeds there.
            folders: of the datasets, for the command that starts the service.
            first_wait: as `ServiceClient`.

        Raises:
            ServiceError: the service is not found. DataError: it has no such dataset, or another one of that name.
            ConfigError: it embeds otherwise than configured.
        """
        name = name or section.service.dataset or (dataset.name if dataset is not None else "")
        client = ServiceClient(section, folders, first_wait=first_wait)
        served = client.ask("datasets")
        if name not in served:
            raise DataError(
                f"{section.service.name} has no dataset {name!r}; it serves {', '.join(served)}",
                hint="name one of these with retrieval.service.dataset, or serve it too: "
                "rl4rec serve-retrieval --datasets …",
            )
        about = served[name]
        if dataset is not None:
            _check_same(section, dataset, name, about)
        return cls(client, name, about)

    def submit_ranks(
        self, texts: Sequence[str], targets: Sequence[int], histories: Sequence[Sequence[int]]
    ) -> Pending[Ranking]:
        """`target_ranks`, sent and not waited for."""
        if not len(texts) == len(targets) == len(histories):
            raise DataError(f"{len(texts)} texts, {len(targets)} targets and {len(histories)} histories: not one each")

        def check(answer: Any) -> Ranking:
            ranks, scorable = answer
            if ranks.shape != (len(texts),) or scorable.shape != (len(texts),):
                raise ServiceError(f"the service ranked {ranks.shape} for {len(texts)} texts")
            if len(ranks) and not 1 <= ranks.min() <= ranks.max() <= self.num_items:
                raise ServiceError(f"the service gave ranks outside 1 to {self.num_items}")
            return Ranking(ranks.copy(), scorable.copy())

        plain = [[int(item) for item in history] for history in histories]
        arguments = (list(texts), [int(target) for target in targets], plain, self._name)
        return Pending(self._client, "target_ranks", arguments, check)

    def target_ranks(self, texts: Sequence[str], targets: Sequence[int], histories: Sequence[Sequence[int]]) -> Ranking:
        """As `InProcessRetriever.target_ranks`."""
        return self.submit_ranks(texts, targets, histories).result()

    def search(self, texts: Sequence[str], k: int, exclude: Sequence[Sequence[int]] | None = None) -> list[Found]:
        """As `InProcessRetriever.search`."""
        out = None if exclude is None else [[int(item) for item in ids] for ids in exclude]
        return self._client.ask("search", list(texts), k, out, self._name)

    def calculate_reward(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As `InProcessRetriever.calculate_reward`."""
        answer = self._client.ask("calculate_reward", list(texts), self._name)
        return self._shaped(answer, len(texts), self.num_items)

    def text_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """`[len(texts), dim]`, embedded by the service."""
        size = max(1, min(self._max_texts, self._max_values // self.dim))
        parts = [texts[i : i + size] for i in range(0, len(texts), size)] or [texts]
        asked = [self._vectors("text_vectors", list(part), len(part)) for part in parts]
        return torch.cat([pending.result() for pending in asked])

    def item_vectors(self, items: Sequence[int]) -> torch.Tensor:
        """`[len(items), dim]` float32."""
        return self.vectors_ND[list(items)]

    @cached_property
    def vectors_ND(self) -> torch.Tensor:
        """All item vectors `[num_items, dim]`, in this process's memory from here on."""
        size = max(1, self._max_values // self.dim)
        parts = [range(i, min(i + size, self.num_items)) for i in range(0, self.num_items, size)]
        return torch.cat([self._vectors("item_vectors", list(part), len(part)).result() for part in parts])

    @cached_property
    def matrix(self) -> ItemMatrix:
        """The catalogue for the ranking kernel."""
        return ItemMatrix(self.vectors_ND)

    def vector_ranks(
        self, queries_BD: torch.Tensor, targets: Sequence[int], histories: Sequence[Sequence[int]]
    ) -> Ranking:
        """As `InProcessRetriever.vector_ranks`."""
        return rank_vectors(queries_BD, self.matrix, targets, histories if self.mask_history else None)

    def _vectors(self, method: str, values: list[Any], rows: int) -> Pending[torch.Tensor]:
        def check(answer: Any) -> torch.Tensor:
            return torch.from_numpy(self._shaped(answer, rows, self.dim))

        return Pending(self._client, method, (values, self._name), check)

    @staticmethod
    def _shaped(answer: Any, rows: int, columns: int) -> NDArray[np.float32]:
        if not isinstance(answer, np.ndarray) or answer.dtype != np.float32 or answer.shape != (rows, columns):
            raise ServiceError(f"the service answered {getattr(answer, 'shape', type(answer))}, not {rows} × {columns}")
        if not np.isfinite(answer).all():
            raise ServiceError("the service answered numbers that are not finite")
        return np.array(answer)  # what Ray hands over can only be read


def _check_same(section: RetrievalSection, dataset: Dataset, name: str, about: dict[str, Any]) -> None:
    """That the service's catalogue is this one, embedded as configured.

    Raises:
        DataError, ConfigError: what differs.
    """
    service = section.service.name
    wanted = {
        "embedder": find_embedder(section).identity,
        "emb_type": section.emb_type,
        "query_prompt": section.query_prompt,
    }
    for key, value in wanted.items():
        if about[key] != value:
            raise ConfigError(
                f"{service} serves {name} with {key.replace('_', ' ')} {about[key]!r}, this run asks for {value!r}",
                hint="give both the same retrieval settings",
            )
    items_digest = dataset.items_digest(section.emb_type)
    if (about["num_items"], about["items_digest"]) != (dataset.num_items, items_digest):
        raise DataError(
            f"{service} serves another {name}: {about['num_items']:,} items, digest {about['items_digest'][:12]}…; "
            f"this one has {dataset.num_items:,} items, digest {items_digest[:12]}…",
            hint="serve the same dataset folder that is trained on",
        )
    if about["mask_history"] != dataset.mask_history:
        raise DataError(f"{service} serves {name} with mask_history {about['mask_history']}, unlike this dataset")
