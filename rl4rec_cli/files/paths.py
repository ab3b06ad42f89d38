"""Paths as users write them.

Decides: that `~` is a home folder where there is one.
Hides: nothing.
"""

from __future__ import annotations

import os
from pathlib import Path


def expand(path: str | Path) -> Path:
    """Returns the path with `~` and `~user` replaced by home folders.

    `~user` of nobody's stays as it is, so that the path is reported as one that does not exist. `Path.expanduser`
    raises `RuntimeError` there.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111
