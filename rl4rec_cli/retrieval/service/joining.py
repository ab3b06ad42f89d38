"""What others type to work with a retrieval service: settings of a run, and the lines that join it from any program.

Decides: that settings are derived from the sections of the configuration: whatever a vector depends on is given, also
where it is the default, for the recipe of a run may have another; and that what is printed works where it is pasted.
Hides: what Ray reads from the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rl4rec_cli.retrieval.embedder import find_embedder
from rl4rec_cli.retrieval.service import cluster
from rl4rec_cli.shell import quote, setting

if TYPE_CHECKING:
    from pydantic import BaseModel

    from rl4rec_cli.config.sections import RetrievalSection

_VECTORS = {"embedder", "dtype", "query_prompt", "emb_type"}
"""What every embedder's vectors depend on; the embedder names what else its own do."""
_WHERE = {"backend", "service"}
_HOW = {"device", "storage", "memory_map", "batch_size", "memory_share", "emb_dir", "file"}
"""Where and how the service works; no vector depends on it."""
_DEFAULTS = {("query_prompt", ""), ("dtype", "fp32")}
_CALLERS = {"dataset", "retries", "timeout", "wait"}
_FOUND_BY = {"name", "namespace", "address"}


def vector_settings(section: RetrievalSection) -> dict[str, Any]:
    """Every setting that a vector depends on, by its key below `retrieval`."""
    keys = {*_VECTORS, *find_embedder(section).settings}
    return {key: getattr(section, key) for key in type(section).model_fields if key in keys}


def run_settings(section: RetrievalSection, address: str | None) -> list[str]:
    """`--set …` of a run that uses this service.

    Args:
        address: of the cluster, where it is not found by the note on this machine.
    """
    found_by = _changed(section.service, _FOUND_BY) | ({"address": address} if address is not None else {})
    settings = {"backend": "ray", **vector_settings(section), **{f"service.{k}": v for k, v in found_by.items()}}
    return _as_sets(settings)


def serve_settings(section: RetrievalSection) -> list[str]:
    """`--set …` of the service that a run with this section needs, beside the options the command has for them."""
    service = type(section.service)
    own = {key for key in service.model_fields if key not in {*_CALLERS, *_FOUND_BY}}
    settings = {key: value for key, value in vector_settings(section).items() if key not in ("embedder", "emb_type")}
    # No recipe stands below this command.
    settings = {key: value for key, value in settings.items() if (key, value) not in _DEFAULTS}
    settings |= _changed(section, _HOW) | {f"service.{k}": v for k, v in _changed(section.service, own).items()}
    return _as_sets(settings)


def environment(address: str, token: str | None) -> dict[str, str]:
    """What must stand in a process's environment before `import ray`."""
    variables = {"RAY_ADDRESS": address}
    if cluster.is_loopback(address):
        variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if token is not None:
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}
    return variables


def shell_lines(variables: Mapping[str, str]) -> str:
    """The variables for a shell, after which `ray status` and programs that call `ray.init()` join."""
    return "export " + " ".join(f"{name}={quote(value)}" for name, value in variables.items())


def python_lines(section: RetrievalSection, variables: Mapping[str, str], dataset: str) -> str:
    """A program that joins and asks for ranks and scores."""
    service = section.service
    lines = [
        "import os",
        "",
        f"os.environ.update({dict(variables)!r})  # before ray is imported",
        "import ray",
        "",
        f'ray.init(address=os.environ["RAY_ADDRESS"], namespace={service.namespace!r}, log_to_driver=False)',
        f"service = ray.get_actor({service.name!r}, namespace={service.namespace!r})",
        f'ranks, scorable = ray.get(service.target_ranks.remote(["a text"], [0], [[]], {dataset!r}))',
        f'scores = ray.get(service.calculate_reward.remote(["a text"], {dataset!r}))',
        "print(ranks, scores.shape)",
    ]
    return "\n".join(lines)


def _changed(section: BaseModel, keys: set[str]) -> dict[str, Any]:
    """Those of the keys that are not at their defaults."""
    fields = type(section).model_fields
    return {
        key: getattr(section, key) for key in fields if key in keys and getattr(section, key) != fields[key].default
    }


def _as_sets(settings: Mapping[str, Any]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", setting(f"retrieval.{key}", value))]
