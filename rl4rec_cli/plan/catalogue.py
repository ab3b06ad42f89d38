"""How to hold item vectors: which copy of them ranking reads first, and whether the fp32 vectors stay in a file.

Decides: `retrieval.storage` and `retrieval.memory_map` where they are `auto`, for `rl4rec plan` and for the process
that opens the catalogue alike. This is arithmetic on sizes; no rank depends on it (`ranking/item_matrix.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rl4rec_cli.errors import ConfigError
from rl4rec_cli.plan.memory import human

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RetrievalSection
    from rl4rec_cli.models.shape import RetrievalFacts

Storage = Literal["fp32", "fp16", "int8"]

SHARE = 0.5
"""Share of the free memory that the catalogue may take. The policy, the embedder and the trainer need the rest."""


@dataclass(frozen=True)
class Holding:
    """How item vectors are held."""

    storage: Storage
    """What ranking reads first."""
    is_mapped: bool
    """The fp32 vectors stay in their file."""
    bytes: int
    """Memory that they take on the device that ranks. It does not count pages of a mapped file: the kernel takes them
    back when it needs them."""
    reason: str

    @property
    def words(self) -> str:
        """`fp32 in memory`, `int8 beside the mapped file`."""
        if self.storage == "fp32":
            return "fp32 in the mapped file" if self.is_mapped and not self.bytes else "fp32 in memory"
        return f"{self.storage} beside {'the mapped file' if self.is_mapped else 'fp32 in memory'}"


def vector_bytes(items: int, dim: int, storage: Storage) -> int:
    """Returns the bytes of item vectors; int8 has a scale for each item."""
    return items * (dim + 4) if storage == "int8" else items * dim * (4 if storage == "fp32" else 2)


def why_not_mapped(section: RetrievalSection) -> str | None:
    """Says why there is no file to memory-map, by the settings alone; None where there is one.

    Raises:
        ConfigError: `retrieval.memory_map` is `on`, and there is none.
    """
    why = None
    if section.has_fitted_embedder:
        why = f"{section.embedder} is fitted anew in each process and keeps no file"
    elif section.file is not None and not section.file.endswith(".safetensors"):
        why = f"{section.file} is no .safetensors file"
    if why is not None and section.memory_map == "on":
        raise ConfigError(
            f"retrieval.memory_map=on: {why}",
            hint="leave it at auto, or use item vectors that `rl4rec embed DATASET` wrote as .safetensors",
        )
    return why


def plan_catalogue(
    section: RetrievalSection, facts: RetrievalFacts, where: str, rooms: Mapping[str, int]
) -> Holding | None:
    """Plans how a run, or the service that it starts, holds its item vectors; None if somebody else's service does.

    Args:
        where: the device that ranks.
        rooms: free bytes by device.

    Raises:
        ConfigError: `retrieval.memory_map` is `on`, and there is no file to map.
    """
    if where not in rooms:
        return None
    why, free = why_not_mapped(section), rooms[where]
    return hold_catalogue(section, facts.items, facts.dim, free, on_gpu=where != "cpu", not_mapped=why)


def hold_catalogue(
    section: RetrievalSection, items: int, dim: int, free: int, *, on_gpu: bool, not_mapped: str | None, copies: int = 1
) -> Holding:
    """Decides how to hold item vectors.

    Args:
        free: bytes of the device that ranks.
        not_mapped: why the fp32 vectors cannot stay in a file; None: they can.
        copies: of the catalogue in that memory (replicas of a service).
    """
    sizes: dict[Storage, int] = {name: vector_bytes(items, dim, name) for name in ("fp32", "fp16", "int8")}
    candidates: list[Storage] = [name for name in sizes if copies * sizes[name] <= SHARE * free]
    is_small = "fp32" in candidates
    storage_setting, wish = section.storage, section.memory_map
    can_map = not_mapped is None and wish != "off"
    many = f"{copies} × " if copies > 1 else ""
    size = f"as fp32 they take {many}{human(sizes['fp32'])} of {human(free)} free"
    storage: Storage
    if storage_setting != "auto":
        storage, reason = storage_setting, f"retrieval.storage says so; {size}"
    elif is_small or (not on_gpu and not can_map):
        # On a CPU a copy saves nothing where the fp32 vectors must be in memory too.
        storage, reason = "fp32", size if is_small else f"{size}, and {_obstacle(not_mapped)}"
    else:
        # Nothing fits: a CPU reads the file itself in every pass, a GPU gets the smallest copy.
        storage = next(iter(candidates), "int8" if on_gpu else "fp32")
        reason = f"{size}; more than half" if candidates else f"{size}, and no copy fits into half"
    is_mapped = can_map and (wish == "on" or storage != "fp32" or (not is_small and not on_gpu))
    size_in_memory = sizes[storage]
    if not on_gpu and storage == "fp32" and is_mapped:
        size_in_memory = 0
    elif not on_gpu and storage != "fp32" and not is_mapped:
        size_in_memory += sizes["fp32"]
        reason += f"; beside the fp32 vectors, for {_obstacle(not_mapped)}"
    if is_mapped and wish == "on":
        reason += "; retrieval.memory_map says so"
    return Holding(storage, is_mapped, size_in_memory, reason)


def _obstacle(not_mapped: str | None) -> str:
    return not_mapped or "retrieval.memory_map is off"
