"""Command lines that are printed for somebody to paste.

Decides: how words and values of settings are quoted, so that what is pasted means what was meant, whatever characters
a path or a name holds. Every command that is printed and holds a value comes from here.
Hides: the shell's rules, and those of the YAML that `--set` reads.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from typing import Any


def quote(word: object) -> str:
    """Quotes a word for a shell. Characters that a terminal does not show become bytes (`$'…'` of bash and zsh)."""
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    literal = "".join(
        f"\\{c}" if c in "\\'" else c if c.isprintable() else "".join(f"\\x{b:02x}" for b in os.fsencode(c))
        for c in text
    )
    return f"$'{literal}'"


def command_line(*words: object) -> str:
    """Joins words to a command of any program."""
    return " ".join(map(quote, words))


def rl4rec(*words: object) -> str:
    """Joins words to an `rl4rec` command."""
    return command_line("rl4rec", *words)


def setting(key: str, value: Any) -> str:
    """Returns `key=value` as `--set` reads it, not yet quoted for a shell."""
    from rl4rec_cli.strict_yaml import YamlError, load_yaml

    if not isinstance(value, str):
        return f"{key}={json.dumps(value, ensure_ascii=False)}"
    try:
        is_plain = bool(value) and load_yaml(value) == value
    except YamlError:
        is_plain = False
    if is_plain and value.isprintable():
        return f"{key}={value}"
    # YAML takes some characters that a terminal does not show for the end of a line.
    literal = "".join(
        c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"
        for c in json.dumps(value, ensure_ascii=False)
    )
    return f"{key}={literal}"


def set_flags(settings: Iterable[str]) -> str:
    """Returns `--set …` for each `key=value`."""
    return " ".join(command_line("--set", text) for text in settings)
