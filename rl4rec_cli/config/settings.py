"""Every setting in words: its type, default, range and meaning.

Decides: how types and ranges are worded, and what a search for a word finds.
Hides: walking the configuration's sections; what a setting means is the docstring of its attribute.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rl4rec_cli.config import schema
from rl4rec_cli.config.aliases import GUIDES, LIBRARIES, find_alias, flag_of, names_of
from rl4rec_cli.config.base import Section
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.config.trainer import trainer_sections
from rl4rec_cli.errors import ConfigError

_WORDS: dict[Any, str] = {str: "text", bool: "true or false", int: "whole number", float: "number"}
_BOUNDS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))


@dataclass(frozen=True)
class Setting:
    key: str
    type: str
    """In plain words."""
    default: str
    """As YAML flow text; where an algorithm's differs, with its name."""
    range: str
    """Empty where every value of the type is allowed."""
    meaning: str
    algorithms: tuple[str, ...] = ()
    """Those that have it; empty outside `trainer`."""

    @property
    def flag(self) -> str:
        return flag_of(self.key)

    @property
    def names(self) -> tuple[str, ...]:
        """The setting's names in other projects."""
        return names_of(self.key)

    @property
    def facts(self) -> str:
        """Type, default and range on one line."""
        default = "default " + (self.default if ":" in self.default else f"`{self.default}`")
        parts = [self.type, self.range, default, f"of {', '.join(self.algorithms)}" if self.algorithms else ""]
        return "; ".join(part for part in parts if part)


def all_settings() -> list[Setting]:
    """Returns every key of the tree in its order. A trainer's key occurs once, with the algorithms that have it."""
    by_key: dict[str, dict[str, Setting]] = {}
    for algorithm, trainer in trainer_sections().items():
        for setting in _below(RunConfig, (), algorithm, trainer):
            by_key.setdefault(setting.key, {})[algorithm] = setting
    everywhere, order = set(trainer_sections()), list(RunConfig.model_fields)
    settings = [_joined(by_algorithm, everywhere) for by_algorithm in by_key.values()]
    return sorted(settings, key=lambda setting: order.index(setting.key.partition(".")[0]))


def find_settings(word: str) -> list[Setting]:
    """Returns the settings with the word in their key, other names or meaning. Exact names come first.

    Raises:
        ConfigError: no setting has the word.
    """
    settings, query = all_settings(), word.strip().lstrip("-").lower()
    plain = query.replace("-", "_")
    alias = find_alias(plain)
    alias_keys = alias.key.split(",") if alias is not None else []
    exact = [s for s in settings if s.key in alias_keys or s.key == plain or s.key.rpartition(".")[2] == plain]
    by_name = [s for s in settings if plain in s.key or any(plain in name for name in s.names)]
    by_meaning = [s for s in settings if query in s.meaning.lower()]
    matches = list({s.key: s for s in (*exact, *by_name, *by_meaning)}.values())
    if not matches:
        if alias is not None:
            raise ConfigError(f"`{word}` is no setting", hint=f"it is {alias.flag}: {alias.note}")
        words = [n for s in settings for n in (s.key, s.key.rpartition(".")[2])]
        words += [a.name for a in (*GUIDES, *LIBRARIES)]
        match = schema.closest(plain, words)
        meaning = f"did you mean {match}? " if match else ""
        raise ConfigError(f"no setting has `{word}`", hint=f"{meaning}`rl4rec settings` shows all of them")
    return matches


def _below(model: type[Section], path: schema.Path, algorithm: str, trainer: type[Section]) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        here = (*path, name)
        if name == "algorithm":
            continue  # the command's own name
        sections = [trainer] if here == ("trainer",) else schema.models_of(field.annotation)
        meaning = " ".join((field.description or "").split())
        if not sections:
            kind, limits = _describe(field.annotation, field.metadata)
            yield Setting(".".join(here), kind, shown(_default(field)), limits, meaning, (algorithm,))
        else:
            if path or types.NoneType in get_args(field.annotation):
                default = "null" if _default(field) is None else "the values below"
                yield Setting(".".join(here), "section", default, "", meaning, (algorithm,))
            yield from _below(sections[0], here, algorithm, trainer)


def _joined(by_algorithm: dict[str, Setting], everywhere: set[str]) -> Setting:
    first = next(iter(by_algorithm.values()))
    if not first.key.startswith("trainer."):
        return Setting(first.key, first.type, first.default, first.range, first.meaning)

    def of(values: dict[str, str]) -> str:
        groups: dict[str, list[str]] = {}
        for algorithm, value in values.items():
            groups.setdefault(value, []).append(algorithm)
        if len(groups) == 1:
            return next(iter(groups))
        return "; ".join(f"{', '.join(names)}: {value.rstrip('.') or 'any'}" for value, names in groups.items())

    return Setting(
        first.key,
        of({a: s.type for a, s in by_algorithm.items()}),
        of({a: s.default for a, s in by_algorithm.items()}),
        of({a: s.range for a, s in by_algorithm.items()}),
        of({a: s.meaning for a, s in by_algorithm.items()}),
        () if set(by_algorithm) == everywhere else tuple(by_algorithm),
    )


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def shown(value: Any) -> str:
    """Returns a default as a recipe has it, on one line."""
    if isinstance(value, tuple):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) and value.isprintable() and value.strip() else json.dumps(value)


def _describe(annotation: Any, metadata: Sequence[Any] = ()) -> tuple[str, str]:
    """Returns type and range in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [part for extra in args[1:] for part in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        return _describe(args[0], [*inner, *metadata])
    if origin in (Union, types.UnionType):
        parts = [_describe(arg) for arg in args if arg is not types.NoneType]
        kinds = [kind for kind, _ in parts] + (["null"] if types.NoneType in args else [])
        limits = [limit for _, limit in parts if limit] + _limits(metadata)
        return " or ".join(kinds), ", ".join(limits)
    if origin is Literal:
        return " or ".join(f"`{shown(arg)}`" for arg in args), ""
    if origin is tuple:
        kind, limit = _describe(args[0])
        return f"list of ({kind})", ", ".join([*_limits(metadata), *([f"each {limit}"] if limit else [])])
    if origin is dict:
        return f"mapping of names to {_describe(args[1])[0]}s", ", ".join(_limits(metadata))
    return _WORDS[annotation], ", ".join(_limits(metadata))


def _limits(metadata: Sequence[Any]) -> list[str]:
    words = []
    for part in metadata:
        words += [
            f"{word} {shown(bound)}" for name, word in _BOUNDS if (bound := getattr(part, name, None)) is not None
        ]
        if (least := getattr(part, "min_length", None)) is not None:
            words.append(f"at least {least} entr{'y' if least == 1 else 'ies'}")
        if (most := getattr(part, "max_length", None)) is not None:
            words.append(f"at most {most} characters")
        if (pattern := getattr(part, "pattern", None)) is not None:
            words.append(f"matches {pattern}")
    return words
