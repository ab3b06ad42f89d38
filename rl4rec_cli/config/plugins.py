"""Registries of everything that is chosen by name: rl4rec's own, and plug-ins of installed packages.

A package offers a plug-in by an entry point, here a reward `diverse`:

    [project.entry-points."rl4rec.rewards"]
    diverse = "my_package.rewards:diverse"

Decides: that a name of rl4rec's own always means rl4rec's; that a name which two packages offer means neither of them;
that a plug-in is imported when its name is used, never to list it. Users who install a package trust its code. So any
recipe may name its plug-ins: a recipe cannot bring code along. (`module:attr` rewards can name any file: see
`agreement.py`.)
Hides: the metadata of installed packages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rl4rec_cli.errors import ConfigError, PluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Names that `--reward NAME=W` and `--baselines A,B` can carry."""


@dataclass(frozen=True)
class Plugin:
    """One entry point of an installed package. Nothing of it is imported before `load`."""

    group: str
    name: str
    target: str
    """`module:attr`"""
    package: str
    """Name and version: `my-package 1.2`."""

    def __str__(self) -> str:
        return f"{self.name} of {self.package}"

    def load(self) -> Any:
        """Imports and returns the object that the entry point names.

        Raises:
            PluginError: it cannot be imported.
        """
        module, _, attribute = self.target.partition(":")
        try:
            value: Any = import_module(module)
            for part in filter(None, attribute.split(".")):
                value = getattr(value, part)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"plug-in {self}: {self.group} entry point `{self.name} = {self.target}` cannot be loaded: "
                f"{type(error).__name__}: {error}",
                hint=f"mend or uninstall {self.package}, or leave {self.name} out; --debug shows the whole traceback",
            ) from error
        return value


def plugins(group: str) -> list[Plugin]:
    """Returns the plug-ins that installed packages offer to a group, sorted by name. It imports none of them."""
    from importlib import metadata  # not for `rl4rec --help`

    all_plugins = [
        Plugin(group, entry.name, entry.value.partition("[")[0].replace(" ", ""), _package(entry))
        for entry in metadata.entry_points(group=group)
    ]
    return sorted(all_plugins, key=lambda plugin: (plugin.name, plugin.package))


def _package(entry: EntryPoint) -> str:
    if entry.dist is None:
        return "an unknown package"
    about = entry.dist.metadata
    parts = [about[key] for key in ("Name", "Version") if key in about]  # damaged metadata may lack either
    return " ".join(parts) or "an unnamed package"


@dataclass(frozen=True)
class Registry:
    """All objects of one kind that a configuration can name."""

    kind: str
    """In messages: `reward`."""
    group: str
    """Of entry points."""
    built_in: Mapping[str, str] = field(hash=False)
    """rl4rec's own: name to `module:attr`, imported when it is used."""
    also: str = ""
    """What else can be named, in messages."""

    def names(self) -> list[str]:
        """Returns every usable name, rl4rec's own first."""
        return [*self.built_in, *(plugin.name for plugin, problem in self.offers() if not problem)]

    def offers(self) -> list[tuple[Plugin, str]]:
        """Returns every plug-in, with the reason why its name does not mean it. It is empty if the name does."""
        all_plugins = plugins(self.group)
        names = [plugin.name for plugin in all_plugins]
        return [(plugin, self._problem(plugin, names.count(plugin.name))) for plugin in all_plugins]

    def _problem(self, plugin: Plugin, count: int) -> str:
        if plugin.name in self.built_in:
            return f"never used: {self.kind} {plugin.name} is rl4rec's own"
        if not _NAME.fullmatch(plugin.name):
            return "never used: names are letters, digits and `-_.`"
        return f"{count} packages offer a {self.kind} of this name: it cannot be used" if count > 1 else ""

    def plugin(self, name: str) -> Plugin | None:
        """Returns the plug-in of a name, or None if the name is rl4rec's own or unknown.

        Raises:
            ConfigError: several packages offer a plug-in of this name.
        """
        matches = [] if name in self.built_in else [plugin for plugin in plugins(self.group) if plugin.name == name]
        if len(matches) > 1:
            packages = ", ".join(plugin.package for plugin in matches)
            raise ConfigError(f"{self.kind} {name} is offered by {packages}", hint="uninstall all but one of them")
        return matches[0] if matches else None

    def target(self, name: str) -> str:
        """Returns where the code of a name is: `module:attr`.

        Raises:
            ConfigError: the name is unknown, or several packages offer it.
        """
        plugin = self.plugin(name)
        if name not in self.built_in and plugin is None:
            raise ConfigError(f"unknown {self.kind} {name!r}", hint=f"it can be {self.listed(self.names())}")
        return plugin.target if plugin is not None else self.built_in[name]

    def load(self, name: str) -> Any:
        """Imports and returns the object of a name.

        Raises:
            ConfigError: see `target`.
            PluginError: the plug-in cannot be imported.
        """
        plugin = self.plugin(name)
        if plugin is not None:
            return plugin.load()
        module, _, attribute = self.target(name).partition(":")
        return getattr(import_module(module), attribute)

    def listed(self, names: Iterable[str] | None = None) -> str:
        """Returns `ndcg, hit, mrr, mixed or module:attr`: rl4rec's own names, or the given ones."""
        text = ", ".join(self.built_in if names is None else names)
        return f"{text} or {self.also}" if self.also else text

    def quoted(self) -> str:
        """Returns rl4rec's own names for a setting's description: `` `ndcg`, `hit` ``."""
        return ", ".join(f"`{name}`" for name in self.built_in)
