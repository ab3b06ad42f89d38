"""Find the folder of a dataset by a path or a name.

Decides: that a plain name which is no folder here means the folder of that name in `data/`.
Hides: nothing. This module reads no file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl4rec_cli.files.paths import expand

HOME = Path("data")
"""Where datasets are put, by the documents; git ignores what is in it."""


def find_folder(named: str) -> str:
    """Returns the folder of a path or plain name: itself if it exists, else the folder in `data/` if that exists."""
    is_plain = bool(named.strip()) and "/" not in named and not named.startswith((".", "~"))
    if is_plain and not Path(named).exists() and (HOME / named).is_dir():
        return str(HOME / named)
    return named


def is_same_folder(one: Any, other: Any) -> bool:
    """Returns whether two values of `data.path`, which may be lists, name the same folder."""
    plain = [value[0] if isinstance(value, list | tuple) and len(value) == 1 else value for value in (one, other)]
    if not all(isinstance(value, str) and "\0" not in value for value in plain):  # no path has a NUL
        return False
    return len({expand(find_folder(value)).resolve() for value in plain}) == 1


def known_names() -> list[str]:
    """Returns the names of the folders in `data/` that hold items."""
    return sorted(folder.parent.name for folder in HOME.glob("*/items.jsonl")) if HOME.is_dir() else []
