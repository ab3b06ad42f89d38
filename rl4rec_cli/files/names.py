"""Names of datasets, models and runs as parts of file names.

Decides: which characters stay, and that two names never share a file.
"""

from __future__ import annotations

import re

from rl4rec_cli.files.digests import sha256

_LOST = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST = 80


def file_name(name: str) -> str:
    """Returns a part of a file name for any text.

    Names of ASCII letters, digits and `. _ -` stay as they are. Where other characters are lost, or it is too long,
    eight digits of the whole name's SHA-256 follow, so that 世界 and 数据, or "a b" and "a-b", are different files.
    """
    slug = _LOST.sub("-", name)
    if slug == name and slug.strip(".-") and len(slug) <= _LONGEST:
        return name
    digits = sha256(name.encode("utf-8", "surrogatepass"))[:8]
    return "-".join(filter(None, (slug[:_LONGEST].strip(".-"), digits)))
