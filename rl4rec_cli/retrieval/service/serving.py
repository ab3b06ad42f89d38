"""`rl4rec serve-retrieval`: start the service's actors, find out how to reach them, and end them.

Decides: that the service lives as long as this command, which owns the actors, and that it answers what it has taken
before it goes.
Hides: Ray's options of actors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.config.dataset_folders import find_folder
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.errors import ConfigError, ServiceError
from rl4rec_cli.files.paths import expand
from rl4rec_cli.retrieval.service import cluster, joining
from rl4rec_cli.shell import rl4rec

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RetrievalSection

_CALLS = 200
"""Calls an actor takes beyond those that may wait: to be refused, and for its health."""
_DRAIN_SECONDS = 60.0


@dataclass(frozen=True)
class Serving:
    """A service that has loaded its datasets."""

    section: RetrievalSection
    datasets: dict[str, dict[str, Any]]
    """By name: `num_items`, `dim`, `embedder` and `emb_type` of each."""
    folders: list[str]
    """Absolute."""
    address: str
    """Of the Ray cluster."""
    num_gpus: float
    """Of each actor."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return cluster.is_loopback(self.address)

    def train_command(self) -> str:
        """Returns the command that trains with it."""
        shared = None if cluster.is_own(self.section.service) else self.address
        words = ("train", "grpo", "--dataset", self.folders[0], *joining.run_settings(self.section, shared))
        return rl4rec(*words)


@dataclass(frozen=True)
class ServiceStatus:
    """How a running service is."""

    section: RetrievalSection
    health: dict[str, Any]
    """Figures by name."""
    variables: dict[str, str]
    """What a process needs in its environment to join."""

    def check_loaded(self) -> None:
        """Refuses a service that serves nothing.

        Raises:
            ServiceError: it could not load what it should serve.
        """
        if self.health["status"] != "ok":
            raise ServiceError(f"{self.section.service.name} could not load: {self.health['problem']}")

    def shell_lines(self) -> str:
        """Returns what joins the service from a shell."""
        return joining.shell_lines(self.variables)

    def python_lines(self) -> str:
        """Returns a Python program that joins the service and asks for ranks and scores."""
        return joining.python_lines(self.section, self.variables, next(iter(self.health["datasets"])))


def serve(
    section: RetrievalSection,
    folders: Sequence[str],
    *,
    num_gpus: float | None = None,
    ready: Callable[[Serving], None] = lambda serving: None,
    quiet: bool = False,
) -> None:
    """Serves dataset folders until Ctrl-C or SIGTERM.

    Args:
        num_gpus: GPUs of each actor; None: one where the cluster has one.
        ready: gets the service when everything is loaded.
        quiet: log nothing about its end.

    Raises:
        ConfigError: no token where one is needed, or no Ray. ServiceError: the service ended by itself.
        Rl4RecError: what is wrong with a dataset or the embedder.
    """
    cluster.require_ray()
    if not folders:
        raise ConfigError("no dataset to serve", hint="rl4rec serve-retrieval --datasets data/beauty")
    folders = [find_folder(folder) for folder in folders]
    for folder in folders:
        load_dataset(folder).texts(section.emb_type)  # told before Ray takes its time to start
    section = _with_whole_paths(section)
    whole = [str(Path(folder).resolve()) for folder in folders]
    service = section.service
    joined = service.address or os.environ.get("RAY_ADDRESS")
    with cluster.claimed(service):
        console.log("Starting Ray" if joined is None else f"Joining Ray at {joined}")
        with cluster.opened(service) as (ray, address):
            if num_gpus is None:
                num_gpus = float(min(1.0, ray.cluster_resources().get("GPU", 0.0)))
            actors = start_service(ray, section.model_dump(mode="json"), whole, num_gpus=num_gpus)
            served = ray.get(actors[0].datasets.remote())
            token = str(cluster.token_file()) if joined is None else os.environ.get("RAY_AUTH_TOKEN_PATH")
            cluster.write_note(service, cluster.Note(address, os.getpid(), token))
            try:
                ready(Serving(section, served, whole, address, num_gpus))
                _wait(ray, actors, tell=not quiet)
            finally:
                cluster.remove_note(service)


def read_status(section: RetrievalSection) -> ServiceStatus:
    """Asks a running service how it is.

    Raises:
        ServiceError: it is not there.
    """
    from rl4rec_cli.retrieval.service.requests import ServiceClient

    service = section.service.model_copy(update={"wait": 0.0, "retries": 0})
    client = ServiceClient(section.model_copy(update={"service": service}))
    health = client.ask("health")
    address, note = client.ray.get_runtime_context().gcs_address, cluster.read_note(section.service)
    token = note.token_file if note is not None and note.address == address else None
    variables = joining.environment(address, token or os.environ.get("RAY_AUTH_TOKEN_PATH"))
    return ServiceStatus(section, health, variables)


def _with_whole_paths(section: RetrievalSection) -> RetrievalSection:
    """Actors run in other working directories."""

    def whole(path: str | None) -> str | None:
        return str(expand(path).resolve()) if path and expand(path).exists() else path

    return section.model_copy(
        update={
            "model": whole(section.model),
            "file": whole(section.file),
            "emb_dir": str(expand(section.emb_dir).resolve()),
        }
    )


def _wait(ray: Any, actors: Sequence[Any], *, tell: bool) -> None:
    """Until a signal comes, or the service ends by itself."""
    stopped = [actor.until_stopped.remote() for actor in actors]
    try:
        ray.get(ray.wait(stopped, num_returns=1)[0])
    except KeyboardInterrupt:
        if tell:
            console.log("Stopping: answering what was asked")
        try:
            ray.get([actor.stop.remote() for actor in actors], timeout=_DRAIN_SECONDS)
        except ray.exceptions.RayError as error:
            console.log(f"Some requests stay without an answer: {type(error).__name__}")
        if tell:
            console.log("Stopped")
        return
    except ray.exceptions.RayError as error:
        raise ServiceError(f"the retrieval service ended: {error}") from error
    raise ServiceError("the retrieval service was stopped by another process")


def start_service(
    ray: Any, section: dict[str, Any], folders: Sequence[str], *, num_gpus: float, threads: int | None = None
) -> list[Any]:
    """Start the actors and wait until they have loaded; they live as long as this process.

    Args:
        section: a retrieval section, as JSON.
        folders: dataset folders, as every node of the cluster sees them.
        num_gpus: GPUs of each actor that holds items.
        threads: cores each actor computes with; all by default.

    Raises:
        ServiceError: there is one of that name. Rl4RecError: what loading says.
    """
    from rl4rec_cli.retrieval.service.actors import RESTARTS, RetrievalService  # imports torch

    service = section["service"]
    names = [service["name"], *(f"{service['name']}-{i}" for i in range(2, service["replicas"] + 1))]
    need, there = num_gpus * service["replicas"], ray.cluster_resources().get("GPU", 0.0)
    need *= service["shards"] + (service["shards"] > 1)
    if need > there:
        raise ConfigError(
            f"the service needs {need:g} GPUs, the Ray cluster has {there:g}", hint="--num-gpus 0 for none"
        )
    options = {
        "num_gpus": num_gpus,
        "threads": threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0)),
        "replicas": names,
    }
    actors = []
    for name in names:
        try:
            actor = (
                ray.remote(RetrievalService)
                .options(
                    name=name,
                    namespace=service["namespace"],
                    num_cpus=0,
                    num_gpus=num_gpus,
                    max_restarts=RESTARTS,
                    max_task_retries=service["retries"],
                    max_concurrency=service["queue"] + _CALLS,
                    scheduling_strategy="SPREAD",
                )
                .remote(section, list(folders), options)
            )
        except ValueError as error:
            raise ServiceError(
                f"there is a {name} in namespace {service['namespace']} already",
                hint="stop that one, or give this one another --actor-name",
            ) from error
        actors.append(actor)
    for actor in actors:
        failed = ray.get(actor.load_error.remote())
        if failed is not None:
            raise failed
    return actors
