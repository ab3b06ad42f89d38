"""Requests to the retrieval service: where it is found, and what is done while it does not answer.

Decides: how the service is found, when a request is sent again and when it is given up.
Hides: Ray's handles, references and errors. It imports no torch, so that `--status` says at once that no service runs.

While the actor is started again Ray holds the requests sent to it and sends those it had taken once more. What is left
to do here: look for a service that was started anew under the same name, a bounded number of times.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rl4rec_cli import console
from rl4rec_cli.errors import ServiceBusy, ServiceError, first_line
from rl4rec_cli.retrieval.service import cluster
from rl4rec_cli.retrieval.service.joining import serve_settings
from rl4rec_cli.shell import command_line

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RetrievalSection

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
                from rl4rec_cli.retrieval.service.actors import own_error

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
