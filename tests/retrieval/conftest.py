"""A Ray cluster for the tests of a session, and services in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rl4rec_cli.config.sections import RetrievalSection, ServiceSection
from rl4rec_cli.data.dataset import Dataset


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str, Path]]:
    """The module `ray` connected to a cluster of our own, its address, and the cache folder with its token."""
    pytest.importorskip("ray", reason="pip install 'rl4rec[ray]'")
    from rl4rec_cli.retrieval.service import cluster as ray_cluster

    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        # Until the session ends; no note is left by which what other tests start could find this cluster.
        patch.setenv("XDG_CACHE_HOME", str(cache))
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
            patch.setenv(name, "")
            patch.delenv(name)
        with ray_cluster.opened(ServiceSection(store_mb=150)) as (ray, address):
            yield ray, address, cache


@pytest.fixture(scope="session")
def start(cluster: tuple[Any, str, Path]) -> Callable[..., tuple[RetrievalSection, list[Any]]]:
    """Starts a service over dataset folders, once by each name; gives the section that finds it, and its actors.

    All test modules that run in this process share the cluster: a name stands for one service in all of them.
    """
    from rl4rec_cli.retrieval.service.serving import start_service

    kept: dict[str, Any] = {}  # an actor lives as long as a handle of this process
    asked: dict[str, Any] = {}

    def start(name: str, folders: list[Path], *, service: dict[str, Any] | None = None, **settings: Any) -> Any:
        wanted = (folders, service, settings)
        assert asked.setdefault(name, wanted) == wanted, (
            f"another test's service is called {name}: give yours a new name"
        )
        if name in kept:
            return kept[name]
        settings = {"backend": "ray", "embedder": "lsa", "lsa_dim": 24, "device": "cpu", **settings}
        found_by = {"name": name, "wait": 0.0, "timeout": 60.0, **(service or {})}
        section = RetrievalSection.model_validate({**settings, "service": found_by})
        actors = start_service(cluster[0], section.model_dump(mode="json"), list(map(str, folders)), num_gpus=0)
        kept[name] = section, actors
        return kept[name]

    return start


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Dataset]) -> tuple[Path, Dataset]:
    """A dataset folder of 301 items in random words; a third of the items have another one's text and tie with it."""
    import numpy as np

    from rl4rec_cli.data.opening import load_dataset
    from rl4rec_cli.data.saving import save_dataset

    random = np.random.default_rng(5)
    words = [f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)]
    titles = [" ".join(random.choice(words, random.integers(1, 5))) for _ in range(200)]
    titles += [titles[i] for i in random.integers(0, 200, 101)]
    order = random.permutation(len(titles))
    folder = tmp_path_factory.mktemp("data") / "shop"
    save_dataset(make_dataset([titles[i] for i in order], sequences=[[1, 2, 3, 4, 5]]), folder)
    return folder, load_dataset(folder)
