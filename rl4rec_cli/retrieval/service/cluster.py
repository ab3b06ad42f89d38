"""The Ray cluster a retrieval service runs in: started here, or joined.

Decides: that a cluster of our own listens on the loopback interface alone and asks for a token; that one which listens
elsewhere is only served in with a token; where a service on this machine leaves its address for those who look for it.
Hides: Ray's settings, most of which are environment variables that must stand before `import ray`.

What Ray opens (2.60, dashboard off) are the ports of its control store, its scheduler, its object store, its runtime
environment agent, and one for each driver and worker. Given a loopback address it still takes the machine's own one;
only where clusters of several machines are switched off do all of them listen on 127.0.0.1, so here they are.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli.errors import ConfigError, ServiceError, first_line
from rl4rec_cli.files.locks import release_lock, take_lock
from rl4rec_cli.files.writing import write_text

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import ServiceSection

_MODE, _TOKEN, _TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_REACH_SECONDS = 3.0
_joined: str | None = None
"""How the cluster was named that this process was connected to here, and not by a program that uses Ray itself."""


def require_ray() -> None:
    """Raise a ConfigError where Ray is not installed. Imports nothing."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("the retrieval service needs Ray, which is not installed", hint="pip install 'rl4rec[ray]'")


def home() -> Path:
    """Folder of this user's services: their addresses and their token; nobody else may read it."""
    return _private_folder(_cache_folder())


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rl4rec" / "ray"


def _private_folder(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{folder} must be a folder that only its owner can read", hint=f"remove it, or: chmod 700 {folder}"
        )
    return folder


@dataclass(frozen=True)
class Note:
    """What a running service leaves for those who look for it on this machine."""

    address: str
    pid: int
    token_file: str | None


def _note_file(section: ServiceSection) -> Path:
    return home() / f"{section.namespace}.{section.name}.json"


def write_note(section: ServiceSection, note: Note) -> None:
    write_text(_note_file(section), json.dumps(vars(note)))


@contextmanager
def claimed(section: ServiceSection) -> Iterator[None]:
    """This user's only service of this name on this machine, for as long as this lasts: a second would hide the first.

    Raises:
        ServiceError: there is one.
    """
    file = _note_file(section).with_suffix(".lock")
    if (descriptor := take_lock(file, mode=0o600)) is None:
        note = read_note(section)
        where = f" at {note.address} (process {note.pid})" if note is not None else ", and loads"
        raise ServiceError(
            f"a {section.name} in namespace {section.namespace} runs on this machine already{where}",
            hint="end it and serve all datasets by one, or give this one another name: --actor-name NAME, and "
            "--set retrieval.service.name=NAME where it is used",
        )
    try:
        yield
    finally:
        release_lock(file, descriptor)


def remove_note(section: ServiceSection) -> None:
    """Remove the note if it is still this process's."""
    if (note := read_note(section)) is not None and note.pid == os.getpid():
        _note_file(section).unlink(missing_ok=True)


def read_note(section: ServiceSection) -> Note | None:
    """The note of a service whose process is there; opens no socket."""
    try:
        note = Note(**json.loads(_note_file(section).read_text(encoding="utf-8")))
        os.kill(note.pid, 0)
    except (OSError, ValueError, TypeError):
        return None
    return note


def find_address(section: ServiceSection) -> str | None:
    """Where the configuration, RAY_ADDRESS or a service on this machine say the cluster is."""
    if section.address or (given := os.environ.get("RAY_ADDRESS")):
        return section.address or given
    note = read_note(section)
    return note.address if note is not None else None


def is_own(section: ServiceSection) -> bool:
    """Whether `opened` starts a cluster: none is named."""
    return not (section.address or os.environ.get("RAY_ADDRESS"))


def is_offered(section: ServiceSection) -> bool:
    """Whether a service runs on this machine that this process could use. Imports nothing, opens no socket."""
    folder = _cache_folder()
    return folder.is_dir() and read_note(section) is not None and importlib.util.find_spec("ray") is not None


def is_loopback(address: str) -> bool:
    """Whether `host:port` can be reached from this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def can_reach(address: str) -> bool:
    """Whether something listens there: Ray itself takes a minute to find out that nothing does."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS):
            return True
    except OSError:
        return False
    except ValueError:
        raise ConfigError(
            f"{address!r} is no address", hint="host:port of the cluster's head, e.g. 10.0.0.1:6379"
        ) from None


def join(section: ServiceSection, address: str) -> Any:
    """Connect this process to the cluster at an address, unless it is so already; returns the module `ray`.

    Raises:
        ServiceError: there is none, or it refuses.
    """
    if address.startswith("ray://"):
        raise ConfigError(
            f"{address}: Ray's client protocol is not supported",
            hint="make this machine a node of the cluster: ray start --address HOST:PORT, and give HOST:PORT",
        )
    global _joined
    if (ray := connected()) is not None:
        gcs_address = ray.get_runtime_context().gcs_address
        if address in (gcs_address, _joined) and can_reach(gcs_address):
            return ray
        if _joined is None:
            raise ServiceError(f"this process is connected to the Ray cluster at {gcs_address}, not at {address}")
        with _signals_kept():
            ray.shutdown()
    if not can_reach(address):
        raise ServiceError(f"no Ray cluster answers at {address}")
    note = read_note(section)
    _set_environment(address, note.token_file if note is not None and note.address == address else None)
    # Without it a driver whose cluster is gone ends itself after a minute, before the run could be saved.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "1000000")
    import ray

    try:
        with _signals_kept():
            ray.init(address=address, namespace=section.namespace, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ServiceError(
            f"the Ray cluster at {address} cannot be joined: {first_line(error)}",
            hint=f"has it a token? Set {_MODE}=token and {_TOKEN_FILE} to the file that holds it",
        ) from error
    _joined = address
    return ray


def leave() -> None:
    """Disconnect this process from a cluster that `join` connected it to."""
    global _joined
    if _joined is not None and (ray := connected()) is not None:
        with _signals_kept():
            ray.shutdown()
    _joined = None


def connected() -> Any:
    """The module `ray` where this process is connected to a cluster, else None. Does not import it."""
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None


def foreign_address() -> str | None:
    """The cluster that a program of the user's, or `opened`, has connected this process to."""
    ray = connected()
    return ray.get_runtime_context().gcs_address if ray is not None and _joined is None else None


@contextmanager
def opened(section: ServiceSection) -> Iterator[tuple[Any, str]]:
    """A cluster to serve in: the one the configuration or RAY_ADDRESS names, else one of our own that ends with this.

    Yields the module `ray` and the address.

    Raises:
        ConfigError: the cluster listens on other interfaces than loopback, and no token is set.
    """
    require_ray()
    address = section.address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        check_token(address)
        ray = join(section, address)
        try:
            yield ray, address
        finally:
            with _signals_kept():
                ray.shutdown()
        return
    folder = _private_folder(Path(tempfile.gettempdir()) / f"rl4rec-ray-{os.getuid()}")
    _set_environment("127.0.0.1:0", str(token_file()))
    import ray

    try:
        with _signals_kept():
            context = ray.init(
                address="local",
                namespace=section.namespace,
                include_dashboard=False,
                object_store_memory=section.store_mb and section.store_mb << 20,
                logging_level="error",
                _temp_dir=str(folder / "ray"),  # Ray opens its folders to everybody: this stands where nobody enters
            )
    except Exception as error:  # Ray has no class of its own for it
        raise ServiceError(
            f"Ray cannot be started: {first_line(error)}",
            hint=f"is the machine overloaded, its memory or disk full? Ray's own logs are in {folder / 'ray'}",
        ) from error
    session = Path(context.address_info["session_dir"])
    try:
        yield ray, context.address_info["gcs_address"]
    finally:
        with _signals_kept():
            ray.shutdown()
        shutil.rmtree(session, ignore_errors=True)


def token_file() -> Path:
    """The token of this user's own clusters, made where there is none."""
    if given := os.environ.get(_TOKEN_FILE):
        return _checked_token(Path(given))
    file = home() / "token"
    with suppress(FileExistsError):
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as opened:
            opened.write(secrets.token_hex(32))
    return _checked_token(file)


def check_token(address: str) -> None:
    """That a cluster which others can reach is protected.

    Raises:
        ConfigError: no token is set, or others can read its file.
    """
    if is_loopback(address):
        return
    if os.environ.get(_MODE, "").lower() != "token":
        raise ConfigError(
            f"the Ray cluster at {address} can be reached by other machines, so it must ask for a token",
            hint=f"on every node, before `ray start`: export {_MODE}=token {_TOKEN_FILE}=FILE; the same here",
        )
    if not os.environ.get(_TOKEN):
        _checked_token(Path(os.environ.get(_TOKEN_FILE) or Path.home() / ".ray" / "auth_token"))


def _checked_token(file: Path) -> Path:
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"token file {file}: {error.strerror}", hint="make one: see docs/retrieval-service.md"
        ) from error
    if mode & 0o077:
        raise ConfigError(f"token file {file} can be read by others", hint=f"chmod 600 {file}")
    return file


def _set_environment(address: str, token: str | None) -> None:
    """What Ray reads when it is imported; what the user has set stays."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if is_loopback(address):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if token is not None and not {_MODE, _TOKEN, _TOKEN_FILE} & os.environ.keys():
        os.environ.update({_MODE: "token", _TOKEN_FILE: token})
    if "ray" in sys.modules:  # imported before, by a program of the user's: it has read the environment as it was
        import ray._private.ray_constants
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") != "0"


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; it is given back to who had it."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            with suppress(ValueError, TypeError):  # not the main thread, or a handler that is not Python's
                signal.signal(number, handler)
