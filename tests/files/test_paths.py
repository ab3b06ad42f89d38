"""Home folders in paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl4rec_cli.files.paths import expand

ROOM = Path(__file__).parents[2] / "rl4rec_cli"


def test_home_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand("~/data") == Path("/home/me/data")
    assert expand(Path("data/~x")) == Path("data/~x")
    assert expand("~nobody-of-this-name/data") == Path("~nobody-of-this-name/data")


def test_every_path_of_a_user_goes_through_it() -> None:
    """`Path.expanduser` raises `RuntimeError` for a name that nobody has; users would read "unexpected error"."""
    modules = [file for file in ROOM.rglob("*.py") if "expanduser(" in file.read_text(encoding="utf-8")]
    assert [str(file.relative_to(ROOM)) for file in modules] == ["files/paths.py"]
