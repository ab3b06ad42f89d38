"""The shape of the configuration tree: which keys exist, and which one the user probably meant.

Decides: the wording of problems with a key or a value.
Hides: walking pydantic models and their unions, and pydantic's error format.

A path is a tuple of keys, `("trainer", "beta")`. The keys under `trainer` depend on the algorithm.
"""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rl4rec_cli.config.aliases import find_alias
from rl4rec_cli.config.base import Section
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.config.trainer import trainer_sections

Path = tuple[str, ...]
PLAIN = {
    "a valid string": "text",
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "an object": "a mapping of keys to values",
    "a valid ": "a ",
}


def _options(annotation: Any) -> Iterator[Any]:
    """Returns the alternatives of a union, or the type itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        for option in get_args(annotation):
            yield from _options(option)
    elif get_origin(annotation) is Annotated:
        yield from _options(get_args(annotation)[0])
    else:
        yield annotation


def models_of(annotation: Any) -> list[type[Section]]:
    """Returns the sections among the types that a key takes."""
    return [option for option in _options(annotation) if isinstance(option, type) and issubclass(option, Section)]


def section_at(path: Path, algorithm: str) -> type[Section] | None:
    """Returns the model at `path`, or None if `path` takes a plain value or does not exist."""
    model: type[Section] | None = RunConfig
    for depth, key in enumerate(path):
        if model is None or key not in model.model_fields:
            return None
        models = models_of(model.model_fields[key].annotation)
        if depth == 0 and key == "trainer":
            model = trainer_sections()[algorithm]
        else:
            model = models[0] if models else None
    return model


def _field_at(path: Path, algorithm: str) -> FieldInfo | None:
    parent = section_at(path[:-1], algorithm) if path else None
    return parent.model_fields.get(path[-1]) if parent else None


def default_at(path: Path, algorithm: str) -> Any:
    """Returns the default of the key at `path`."""
    field = _field_at(path, algorithm)
    return field.get_default(call_default_factory=True) if field else None


def takes_text(path: Path, algorithm: str) -> bool:
    """Returns whether `path` takes any text. `path` may end with the user's own key in a mapping to texts."""
    field, above = _field_at(path, algorithm), _field_at(path[:-1], algorithm) if path else None
    if field is None and above is not None:
        return any(get_origin(one) is dict and get_args(one)[1] is str for one in _options(above.annotation))
    return field is not None and str in _options(field.annotation)


def takes_null(path: Path, algorithm: str) -> bool:
    """Returns whether the value at `path` may be absent."""
    field = _field_at(path, algorithm)
    return field is not None and types.NoneType in _options(field.annotation)


def takes_mapping(path: Path, algorithm: str) -> bool:
    """Returns whether the value at `path` is a mapping of the user's own keys, such as `reward.functions`."""
    field = _field_at(path, algorithm)
    return field is not None and any(get_origin(option) is dict for option in _options(field.annotation))


def _keys_below(model: type[Section], prefix: Path = ()) -> Iterator[Path]:
    """Returns every key of a section and of the sections in it."""
    for name, field in model.model_fields.items():
        yield (*prefix, name)
        models = models_of(field.annotation)
        if len(models) == 1:
            yield from _keys_below(models[0], (*prefix, name))


def keys_named(name: str) -> list[str]:
    """Returns the dotted keys of the tree whose last part is `name`."""
    trainers = [path for section in trainer_sections().values() for path in _keys_below(section, ("trainer",))]
    return list(dict.fromkeys(".".join(path) for path in (*_keys_below(RunConfig), *trainers) if path[-1] == name))


def closest(word: str, known: Iterable[str]) -> str | None:
    """Returns the known word that the user most likely meant, or None."""
    known = list(known)
    by_lower = {k.lower(): k for k in known}
    match = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[match[0]] if match else None


def _explain_unknown(path: Path, algorithm: str) -> str:
    """Explains a key that the tree does not have, and what the user may have meant."""
    name = path[-1]
    if path[0] == "trainer" and len(path) == 2:  # deeper keys belong to a section that several have
        owners = [a for a, s in trainer_sections().items() if a != algorithm and path[1] in s.model_fields]
        if owners:
            owner = " and ".join([", ".join(owners[:-1]), owners[-1]] if len(owners) > 1 else owners)
            return f"belongs to {owner}, not to {algorithm}; under `trainer.{owners[0]}` only {owners[0]} reads it"
    siblings = section_at(path[:-1], algorithm)
    tree = [*_keys_below(RunConfig), *_keys_below(trainer_sections()[algorithm], ("trainer",))]
    is_own = any(p[-1] == name for p in tree)
    if not is_own and (alias := find_alias(name)) and (alias.key or alias.flag):
        keys = [f"`{key}`" for key in alias.key.split(",") if key] or [f"`{alias.flag}`"]
        return f"unknown key; did you mean {' and '.join(keys)}?" + (f" ({alias.note})" if alias.note else "")
    match = closest(name, siblings.model_fields) if siblings else None
    if match and not is_own:
        return f"unknown key; did you mean `{'.'.join((*path[:-1], match))}`?"
    elsewhere = [".".join(p) for p in tree if p[-1] == name] or [".".join(p) for p in tree if closest(name, p[-1:])]
    if elsewhere:
        return "unknown key; did you mean " + " or ".join(f"`{key}`" for key in elsewhere[:3]) + "?"
    if siblings:
        return "unknown key; there are " + ", ".join(siblings.model_fields)
    return "unknown key"


def explain(errors: Iterable[Any], algorithm: str) -> Iterator[tuple[Path, str]]:
    """Turns pydantic's errors into pairs of a key and its problem, one for each key."""
    by_path: dict[Path, dict[str, str]] = {}
    for error in errors:
        path = _real_path(error["loc"], algorithm)
        message, value_note = _wording(error, path, algorithm)
        by_path.setdefault(path, {})[message] = value_note
    for path, wordings in by_path.items():
        first, *rest = wordings
        message = " or ".join([first, *(wording.removeprefix("must be ") for wording in rest)])
        yield path, message + next(iter(wordings.values()))


def _real_path(loc: Sequence[str | int], algorithm: str) -> Path:
    """Returns pydantic's location without the tags of its unions and the indices of its lists."""
    path: Path = ()
    for part in loc:
        if section_at(path, algorithm) is None and not takes_mapping(path, algorithm):
            break
        if path != ("trainer",) or part not in trainer_sections():
            path = (*path, str(part))
    return path


def _wording(error: Any, path: Path, algorithm: str) -> tuple[str, str]:
    """Returns the problem, and a note on the rejected value."""
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return _explain_unknown(path, algorithm), ""
    if kind == "value_error":
        return error["msg"].removeprefix("Value error, "), ""
    value_note = f", not {short(value)}"
    if kind in ("model_type", "model_attributes_type"):
        return "must be a section with keys of its own", value_note
    message = re.sub(r"^\w+ should ", "must ", error["msg"])
    message = re.sub(r"( after validation)?,? not \d+$", "", message)  # what was given follows anyway
    for word, plain in PLAIN.items():
        message = message.replace(word, plain)
    if kind == "literal_error" and isinstance(value, str):
        match = closest(value, re.findall(r"'([^']*)'", error["ctx"]["expected"]))
        value_note += f"; did you mean {match}?" if match else ""
    return message, value_note


def short(value: Any) -> str:
    """Returns a value as a message shows it."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
