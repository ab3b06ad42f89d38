"""Items as a source describes them, into a catalogue: titles, texts and fields.

Decides: entities are decoded, control characters and page source are out of every text; an item without a title is
named by a field or a template, or is dropped; the text is a template of fields, whose parts in square brackets are left
out if one of their fields is empty; fields that tell what nobody knew at the time are left out.
Hides: HTML.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Container, Iterable, Mapping
from typing import Any

from rl4rec_cli.data.late_fields import why_late
from rl4rec_cli.errors import ConfigError

_TAG = re.compile(
    r"</?(?:b|i|u|em|strong|br|p|ul|ol|li|span|div|font|sup|sub|small|a|h\d|hr|table|tr|td)\b[^<>]*>", re.I
)
_PAGE = re.compile(
    r"<\s*(?:!--|!doctype|html|head|body|script|style|link|meta|img|iframe|span\s+id|div\s+(?:id|class))"
    r"|\bfunction\s*\w*\s*\([^()]*\)\s*\{|\bvar\s+\w+\s*=|getTime\(\)|\.ready\(",
    re.IGNORECASE,
)
_NAME = re.compile(r"\{([^{}]*)\}")
_PART = re.compile(r"\[([^\[\]]*)\]")
_JOINERS = "\u200c\u200d"
RESERVED = ("item_id", "title", "text", "source_id")


def clean(text: str) -> str:
    """Returns a text on one line, without entities, tags, control and invisible signs; empty if it is page source."""
    for _ in range(3):  # some are encoded twice
        decoded = html.unescape(text)
        if decoded == text:
            break
        text = decoded
    if "<" in text or "(" in text or "=" in text:
        if _PAGE.search(text):
            return ""
        text = _TAG.sub(" ", text)
    if not text.isascii() or not text.isprintable():
        text = "".join(
            " " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c
            for c in text
            if c in _JOINERS or unicodedata.category(c) not in ("Cf", "Cs", "Co", "Cn")
        )
    return " ".join(text.split())


def clean_value(value: Any) -> Any:
    """Cleans the texts in a field; what is empty, a number that is not finite and raw bytes become None.

    Dates, and what else JSON does not know, become texts.
    """
    if isinstance(value, str):
        return clean(value) or None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        values = [one for one in map(clean_value, value) if one is not None]
        return values or None
    if isinstance(value, dict):
        values_by_key = {
            str(key): one for key, one in ((k, clean_value(v)) for k, v in value.items()) if one is not None
        }
        return values_by_key or None
    if isinstance(value, bytes):
        return None
    return value if value is None or isinstance(value, int | float) else str(value)


class Template:
    """`{title}.[ Brand: {brand}.]`: fields by name, parts in brackets only if all of their fields are there.

    Args:
        text: the template, or the bare name of a field.
        setting: what it is called in messages.

    Raises:
        ConfigError: it has no field, or an unpaired bracket.
    """

    def __init__(self, text: str, setting: str) -> None:
        self.text = text if "{" in text or "}" in text else f"{{{text}}}"
        self.setting = setting
        self.fields = _NAME.findall(self.text)
        bare = _NAME.sub("", _PART.sub("", self.text.replace("[]", "")))
        inner = "".join(_NAME.sub("", part) for part in _PART.findall(self.text))
        if not self.fields or not all(self.fields) or any(sign in bare + inner for sign in "{}[]"):
            raise ConfigError(
                f"{setting}: {text!r} is no template",
                hint="name fields in braces, and what depends on them in brackets: '{title}.[ Brand: {brand}.]'",
            )

    def check(self, known: Iterable[str], left_out: Container[str]) -> None:
        """Refuses fields that no item has.

        Args:
            left_out: fields that are known too late.

        Raises:
            ConfigError: there is such a field.
        """
        known = set(known)
        unknown = next((name for name in self.fields if name not in known), None)
        if unknown is None:
            return
        if unknown in left_out:
            raise ConfigError(
                f"{self.setting}: field {unknown!r} is left out: {why_late(unknown)}",
                hint="--leaks keeps it, and gives answers away; without it, name another field",
            )
        raise ConfigError(f"{self.setting}: no item has a field {unknown!r}", hint=f"there are {listed(known)}")

    def fill(self, fields: Mapping[str, Any]) -> str:
        """Returns the text of one item; empty where nothing of it is there."""

        def value(match: re.Match[str]) -> str:
            return shown(fields.get(match[1]))

        # In one pass: braces in a value are no field.
        pieces = [
            _NAME.sub(value, piece)
            for number, piece in enumerate(_PART.split(self.text))
            if number % 2 == 0 or all(fields.get(name) not in (None, "") for name in _NAME.findall(piece))
        ]
        return " ".join("".join(pieces).split())


def shown(value: Any) -> str:
    """Returns a field's value as a text shows it: lists joined by commas, nested ones by `>`."""
    if value is None:
        return ""
    if isinstance(value, list):
        is_nested = any(isinstance(one, list) for one in value)
        if is_nested:
            value = list(
                dict.fromkeys(" > ".join(map(str, one)) if isinstance(one, list) else str(one) for one in value)
            )
        return ("; " if is_nested else ", ").join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {shown(one)}" for key, one in value.items())
    return str(value)


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def clean_fields(fields: Mapping[str, Any], *, leaks: bool) -> dict[str, Any]:
    """Returns an item's fields, cleaned, without empty ones and, unless `leaks`, without those known too late."""
    kept = {}
    for name, value in fields.items():
        name = f"source_{name}" if name in ("item_id", "text", "source_id") else name
        if (leaks or why_late(name) is None) and (content := clean_value(value)) is not None:
            kept[name] = content
    title = kept.get("title")
    if title is not None and not isinstance(title, str):
        kept["title"] = shown(title)
    return kept


class Catalogue:
    """Collects the items of a source.

    Args:
        text: template of the items' text that the user gave, or None.
        usual: the source's template; None: title and every field that is text, by its name.
        title_from: template that names items without a title.
        leaks: whether fields that are known too late stay.
    """

    def __init__(self, *, text: str | None, usual: str | None = None, title_from: str | None, leaks: bool) -> None:
        self._text = Template(text, "--text") if text is not None else None
        self._usual = Template(usual, "--text") if usual is not None else None
        self._title_from = Template(title_from, "--title-from") if title_from is not None else None
        self._leaks = leaks
        self._items: dict[str, dict[str, Any]] = {}
        self.left_out: dict[str, None] = {}
        self.repeats = 0

    def add(self, source_id: str, fields: Mapping[str, Any]) -> None:
        """Takes one description of an item. Of several the first with a title counts."""
        self.left_out.update(dict.fromkeys(name for name in fields if not self._leaks and why_late(name) is not None))
        before = self._items.get(source_id)
        if before is not None:
            self.repeats += 1
            if "title" in before:
                return
        self._items[source_id] = clean_fields(fields, leaks=self._leaks)

    def __contains__(self, source_id: str) -> bool:
        return source_id in self._items

    def name_items(self, wanted: Iterable[str]) -> set[str]:
        """Names items without a title, and returns those of the wanted ones that have one now.

        Raises:
            ConfigError: a template names a field that no item has.
        """
        if self._title_from is not None:
            self._title_from.check({*self.fields(), "item"}, self.left_out)
            for source_id in wanted:
                fields = self._items.setdefault(source_id, {})
                if "title" not in fields and (title := self._title_from.fill({**fields, "item": source_id})):
                    fields["title"] = title
        return {one for one in wanted if "title" in self._items.get(one, ())}

    def fields(self) -> list[str]:
        """Returns the names of all fields, in the order in which they first occurred."""
        return list(dict.fromkeys(name for fields in self._items.values() for name in fields))

    def template(self) -> Template:
        """Returns the template of the items' text."""
        if self._text is not None:
            return self._text
        if self._usual is not None:
            return self._usual
        texts = dict.fromkeys(
            name
            for fields in self._items.values()
            for name, value in fields.items()
            if isinstance(value, str | list) and name != "title"
        )
        parts = "".join(f"[ {name.replace('_', ' ').capitalize()}: {{{name}}}.]" for name in texts)
        return Template("{title}." + parts, "--text")

    def rows(self, source_ids: Iterable[str]) -> tuple[dict[str, Any], ...]:
        """Returns the rows of `items.jsonl`, numbered in the order of these ids.

        Raises:
            ConfigError: the template names a field that no item has.
        """
        template = self.template()
        if self._text is not None:
            self._text.check({*self.fields(), "item"}, self.left_out)
        rows = []
        for number, source_id in enumerate(source_ids):
            fields = self._items[source_id]
            text = template.fill({**fields, "item": source_id}) or fields["title"]
            rest = {name: value for name, value in fields.items() if name != "title"}
            rows.append({"item_id": number, "title": fields["title"], "text": text, "source_id": source_id, **rest})
        return tuple(rows)
