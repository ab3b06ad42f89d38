"""Digests stand in files of older runs: the same content gives the same digits for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rl4rec_cli.files.digests import sha256, sha256_of_file, sha256_of_json, sha256_of_parts, sha256_of_tensors

TENSORS = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor(3, dtype=torch.bfloat16), "none": torch.empty(0, 4)}


@pytest.mark.parametrize(
    ("digest", "begins"),
    [
        (sha256(b"ab", b"c"), "ba7816bf8f01cfea"),
        (sha256(memoryview(b"abc")), "ba7816bf8f01cfea"),
        (sha256(), "e3b0c44298fc1c14"),
        (sha256_of_json({"b": [1, "é"], "a": None}), "1c3d52eb78675f43"),
        (sha256_of_parts(["ab", "é\ud800"]), "aa896d1f97c9f869"),
        (sha256_of_tensors(TENSORS), "a1884fd9db605685"),
    ],
)
def test_the_digits_are_those_of_older_files(digest: str, begins: str) -> None:
    assert digest[:16] == begins
    assert len(digest) == 64


def test_what_counts_and_what_does_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "file") == sha256(b"abc")
    assert sha256_of_json({"a": 1, "b": 2}) == sha256_of_json({"b": 2, "a": 1}) != sha256_of_json([1, 2])
    assert sha256_of_parts(["ab", "c"]) != sha256_of_parts(["a", "bc"])
    assert sha256_of_tensors(dict(reversed(TENSORS.items()))) == sha256_of_tensors(TENSORS)
    for other in (TENSORS["b"].T, TENSORS["b"].double(), -TENSORS["b"]):
        assert sha256_of_tensors(TENSORS | {"b": other}) != sha256_of_tensors(TENSORS)
