"""YAML as recipes use it, read and written with one set of rules.

Decides: which plain words are numbers and booleans (YAML 1.2's: `5e-6` is a number, only `true` and `false` are
booleans, dates stay text) and what is refused: duplicate keys, keys that are no text, anchors with aliases, tags,
deep nesting, large texts.
Hides: PyYAML, whose own rules read `5e-6` as text and `no` as false.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

MAX_BYTES = 100_000  # half a second of PyYAML; a whole configuration takes about 4,000
MAX_DEPTH = 20

_RULES = [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]{0,40})", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]{0,40}\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]{1,40}[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
]


class YamlError(ValueError):
    """The text is not YAML, or is YAML that is refused; the message says where."""


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise _refuse("aliases are not read: write the value out", event.start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refuse(f"nested more than {MAX_DEPTH} levels deep", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _refuse(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if not isinstance(node, yaml.MappingNode):
        raise _refuse("not a mapping", node.start_mark)
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise _refuse(f"the key {key!r} is not text: quote it", key_node.start_mark)
        if key in values:
            raise _refuse(f"the key `{key}` is given twice", key_node.start_mark)
        values[key] = loader.construct_object(value_node, deep=True)
    return values


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


def _unknown_tag(loader: _Loader, node: yaml.Node) -> Any:
    raise _refuse(f"the tag {node.tag} is not read", node.start_mark)


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


def _null(loader: _Loader, node: yaml.ScalarNode) -> None:
    loader.construct_scalar(node)


def _bool(loader: _Loader, node: yaml.ScalarNode) -> bool:
    word = _text(loader, node).lower()
    if word not in ("true", "false"):
        raise _refuse(f"{word!r} is not true or false", node.start_mark)
    return word == "true"


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    try:
        return int(_text(loader, node))
    except ValueError:
        raise _refuse("not a whole number", node.start_mark) from None


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    word = _text(loader, node).lower()
    for name in ("inf", "nan"):
        word = word.replace(f".{name}", name)
    try:
        return float(word)
    except ValueError:
        raise _refuse("not a number", node.start_mark) from None


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # The emitter falls back to quotes by itself where a block cannot hold the text. Only double quotes escape the
    # other line breaks, which its plain and single-quoted forms read back as "\n".
    style: str | None = '"'
    if not any(c in text for c in "\x85\u2028\u2029"):
        style = "|" if "\n" in text.strip("\n") else '"' if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


# Emptied first, or PyYAML's own rules stay. The writer has the same rules: they decide which texts need quotes.
_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {}
_Dumper.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _RULES:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)
_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "null": _null,
    "bool": _bool,
    "int": _int,
    "float": _float,
    "str": _text,
    "seq": _sequence,
    "map": _mapping,
}
for _name, _construct in _CONSTRUCTORS.items():
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", _construct)
_Loader.add_constructor(None, _unknown_tag)
_Dumper.add_representer(str, _represent_text)


def load_yaml(text: str) -> Any:
    """Read one YAML document.

    Raises:
        YamlError: with ``line:column: reason``.
    """
    if len(text) > MAX_BYTES:
        raise YamlError(f"larger than {MAX_BYTES:,} bytes")
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{mark.line + 1}:{mark.column + 1}: " if mark else ""
        reason = error.problem if error.problem != "but found another document" else "more than one document"
        raise YamlError(f"{where}{reason or error.context}") from None
    except yaml.YAMLError as error:  # control characters: no mark, and a message of several lines
        raise YamlError(" ".join(str(error).split())) from None


def dump_yaml(data: Any) -> str:
    """Write plain data so that `load_yaml` reads back an equal value."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
