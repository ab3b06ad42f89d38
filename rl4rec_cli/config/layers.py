"""The layers of a configuration, and the tree of values that they merge into.

Decides: how a layer's values replace those of the layers below, and which values exclude each other.
Hides: which layer a value came from. Only messages about problems show it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rl4rec_cli.config import schema
from rl4rec_cli.config.algorithms import DEFAULT_ALGORITHM
from rl4rec_cli.config.dataset_folders import is_same_folder

COMMAND = "the command"
ALTERNATIVES = (("data", "path"), ("data", "synthetic"))
FILES_OF_ONE = (("data", "sequential_file"), ("data", "prompt_file"))
"""What goes with the one folder that `data.path` names."""


@dataclass
class Layer:
    source: str
    values: dict[str, Any]
    adds_to: schema.Path | None = None
    """A mapping of the user's own keys that this layer adds one entry to, instead of replacing it."""


@dataclass
class Tree:
    """The merged values, the source of each, and all problems so far."""

    algorithm: str = DEFAULT_ALGORITHM
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[schema.Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def merge(self, layer: Layer) -> None:
        """Merges a layer over the tree."""
        if layer.adds_to:
            lower = value_at(self.values, layer.adds_to)
            if lower is None:
                lower = schema.default_at(layer.adds_to, self.algorithm)
            entries = {**(lower if isinstance(lower, dict) else {}), **value_at(layer.values, layer.adds_to)}
            entries = {key: value for key, value in entries.items() if value is not None}
            layer = Layer(layer.source, nested(layer.adds_to, entries))
        self._merge(self.values, layer.values, layer.source, ())

    def _merge(self, target: dict[str, Any], overlay: Mapping[str, Any], source: str, path: schema.Path) -> None:
        for key, value in overlay.items():
            here = (*path, key)
            is_section = schema.section_at(here, self.algorithm) is not None
            if value is None and is_section and not schema.takes_null(here, self.algorithm):
                continue  # `trainer:` with every line below it commented out
            if isinstance(value, dict) and is_section:
                if not isinstance(target.get(key), dict):
                    self._put(target, here, {}, source)
                self._merge(target[key], value, source, here)
            else:
                self._put(target, here, value, source)

    def _put(self, target: dict[str, Any], path: schema.Path, value: Any, source: str) -> None:
        self._forget(path)
        target[path[-1]] = value
        self.origins[path] = source

    def _forget(self, path: schema.Path) -> None:
        for place in [p for p in self.origins if p[: len(path)] == path]:
            del self.origins[place]

    def drop_alternatives(self, layers: Sequence[Layer]) -> None:
        """Drops the alternatives of lower layers if these layers set exactly one of them."""
        alternatives = {
            path: value
            for layer in layers
            for path in ALTERNATIVES
            if (value := value_at(layer.values, path)) is not None
        }
        if len(alternatives) == 1:
            below, (path, value) = value_at(self.values, ALTERNATIVES[0]), next(iter(alternatives.items()))
            if path != ALTERNATIVES[0] or (below is not None and not is_same_folder(below, value)):
                self._drop(FILES_OF_ONE)
            self._drop(set(ALTERNATIVES) - set(alternatives))

    def _drop(self, paths: Iterable[schema.Path]) -> None:
        for section, key in paths:
            if isinstance(self.values.get(section), dict):
                self.values[section].pop(key, None)
                self._forget((section, key))

    def source(self, path: schema.Path) -> str:
        """Returns the layers that set values below `path`, or the layer that set the value at or above it."""
        below = dict.fromkeys(s for p, s in self.origins.items() if len(p) > len(path) and p[: len(path)] == path)
        below.pop(COMMAND, None)  # it gives trainer.algorithm only, which is never what is wrong
        if below:
            return ", ".join(below)
        return next((self.origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.origins), "default")


def nested(path: schema.Path, value: Any) -> dict[str, Any]:
    """Returns a tree with this value alone."""
    for key in reversed(path):
        value = {key: value}
    return value


def value_at(values: Any, path: schema.Path) -> Any:
    """Returns the value at `path`, or None if there is none."""
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values
