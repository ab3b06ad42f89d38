"""Digests: whether content is the same as before.

Decides: SHA-256 in hex, and how what has parts goes into it. Files keep what comes out: never change a byte here.
Hides: hashlib.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def sha256(*pieces: bytes | memoryview) -> str:
    """Of all pieces, one after the other."""
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def sha256_of_file(path: Path) -> str:
    """Of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Of a value that JSON knows; the order of keys does not count."""
    return sha256(json.dumps(value, sort_keys=True).encode())


def sha256_of_parts(parts: Iterable[str]) -> str:
    """Of texts, each with its length before it, so that moving a border changes the digest."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        hasher.update(b"%d:" % len(data))
        hasher.update(data)
    return hasher.hexdigest()


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of names, shapes, types and bytes of tensors on the CPU; their order does not count."""
    import torch

    hasher = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hasher.update(f"{name} {list(tensor.shape)} {tensor.dtype};".encode())
        if tensor.numel():
            hasher.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()
