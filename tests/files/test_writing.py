"""Files and folders are written whole, with the mode that a new file has, or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rl4rec_cli.errors import ConfigError, RunError
from rl4rec_cli.files.folders import new_folder, problems, write_folder
from rl4rec_cli.files.writing import check_writable, replacing, write_bytes, write_json, write_text


@pytest.fixture(params=[0o022, 0o002, 0o077])
def mode(request: pytest.FixtureRequest) -> Iterator[int]:
    """The mode of new files, by the umask that it sets."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def save_tensors(path: Path) -> None:
    """safetensors writes a temporary file of its own, which only its owner may read, and renames it."""
    save_file({"a": torch.zeros(2)}, path)


def test_a_file_that_a_library_writes_has_the_mode_of_a_new_file(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "new" / "vectors.safetensors"
    with replacing(path) as temporary:
        save_tensors(temporary)
    write_text(tmp_path / "text", "é")
    assert [mode_of(path), mode_of(tmp_path / "text")] == [mode, mode]
    assert (tmp_path / "text").read_bytes() == "é".encode()


def test_the_files_of_a_folder_have_the_mode_of_a_new_file(mode: int, tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "in").mkdir()
        save_tensors(folder / "in" / "model.safetensors")
        (folder / "text").write_text("a")

    write_folder(tmp_path / "f", fill, size=0)
    assert {mode_of(path) for path in (tmp_path / "f").rglob("*") if path.is_file()} == {mode}
    assert problems(tmp_path / "f") == []


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_what_was_there_stays_where_writing_fails(fault: BaseException, tmp_path: Path) -> None:
    path, folder = tmp_path / "file", tmp_path / "folder"
    path.write_text("before")
    folder.mkdir()
    (folder / "in").write_text("before")

    def write_half_a_file() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise fault

    def write_half_a_folder() -> None:
        with new_folder(folder) as beside:
            (beside / "in").write_text("half")
            raise fault

    for write_half in (write_half_a_file, write_half_a_folder):
        with pytest.raises(type(fault)):
            write_half()
    assert (path.read_text(), (folder / "in").read_text()) == ("before", "before")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]


def test_a_new_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (calls.append("replace"), replace(self, target))[1])
    write_bytes(tmp_path / "file", b"all")
    assert calls == ["fsync", "replace"]


def test_what_a_killed_process_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / f".file.{os.getpid()}.tmp").write_text("half")
    write_text(tmp_path / "file", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_cannot_be_written_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match=r"file/in: cannot write it: (Not a directory|File exists)"):
        write_text(tmp_path / "file" / "in", "")


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {1: float("nan"), "b": (torch.tensor(2.0), "é")})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "1": null,\n  "b": [\n    2.0,\n    "é"\n  ]\n}\n'


def test_an_output_never_takes_a_device_s_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "page.html")
    for path in (tmp_path / "page.html", Path("/dev/null")):
        with pytest.raises(ConfigError, match="not a file"):
            check_writable(path)
