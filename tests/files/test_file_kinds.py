"""What files are by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path

import pytest

from rl4rec_cli.config.recipes import read_recipe
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.files.kinds import LFS, ZIP, odd_file, recognise, recognise_file

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9085657\n"
TEXT = b'{"item_id": 0, "title": "rose hand cream"}\n'


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("items.jsonl", TEXT)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "what", "way_out"),
    [
        (POINTER, "a Git LFS pointer, not the file itself", "git lfs pull"),
        (gzip.compress(TEXT), "compressed by gzip", "gzip -dc items.jsonl > NEW"),
        (b"\x28\xb5\x2f\xfd\x04\x58", "compressed by zstd", "zstd -dc items.jsonl > NEW"),
        (lzma.compress(TEXT), "compressed by xz", "xz -dc items.jsonl > NEW"),
        (bz2.compress(TEXT), "compressed by bzip2", "bzip2 -dc items.jsonl > NEW"),
        (zipped(), "a zip archive", "unzip items.jsonl"),
        (b"PAR1\x15\x04", "an Apache Parquet table", "as text"),
        (TEXT.decode().encode("utf-16"), "UTF-16, not UTF-8", "iconv -f UTF-16 -t UTF-8 items.jsonl"),
        (b"\n<!DOCTYPE html><html>", "a web page (HTML), not the file itself", "`resolve`"),
    ],
    ids=["lfs", "gzip", "zstd", "xz", "bzip2", "zip", "parquet", "utf-16", "html"],  # gzip's bytes hold the time
)
def test_kinds_and_their_ways_out(content: bytes, what: str, way_out: str, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    kind = recognise_file(path)
    assert kind is not None
    assert kind == recognise(content)
    assert kind.what == what
    assert way_out in kind.way_out(path)
    assert recognise_file(path, expected=(kind,)) is None


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            TEXT,
            b"\xef\xbb\xbf" + TEXT,
            b"BZhang 0 1 2\n",
            b"PAR1 0 1 2\n",
            b"PK 0 1 2\n",
            b"<html-lover> 0 1 2\n",
        ),
        *(length.to_bytes(8, "little") + b'{"__met' for length in (0xFEFF, 0xFFFE, 0x8B1F)),  # a header of safetensors
    ],
)
def test_what_is_none_of_them(content: bytes) -> None:
    assert recognise(content) is None


def test_a_models_folder_with_a_file_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(zipped())  # as torch.save writes
    (tmp_path / "README.md").write_bytes(POINTER)
    (tmp_path / "config.json").write_text("{}")
    assert odd_file(tmp_path) is None
    (tmp_path / "tokenizer.model").write_bytes(POINTER)
    assert odd_file(tmp_path) == (tmp_path / "tokenizer.model", LFS.what, LFS.hint)
    (tmp_path / "config.json").write_bytes(b"")
    assert odd_file(tmp_path) == (tmp_path / "config.json", "empty", "get the file again")
    (tmp_path / "config.json").write_bytes(zipped())
    assert odd_file(tmp_path) == (tmp_path / "config.json", ZIP.what, "unpack it: unzip config.json")


def test_a_recipe_that_is_compressed(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes(gzip.compress(b"run: {seed: 3}"))
    with pytest.raises(ConfigError, match=r"my.yaml is compressed by gzip") as caught:
        read_recipe(str(tmp_path / "my.yaml"))
    assert "gzip -dc my.yaml" in str(caught.value.hint)
