"""Locks: one at a time, ended with their process, named when refused, and gone when released."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rl4rec_cli.errors import RunError
from rl4rec_cli.files import locks
from rl4rec_cli.files.locks import exclusive, is_locked, read_owner, release_lock, take_lock, write_owner
from rl4rec_cli.files.parts import held

HOLDER = """
import sys, time
from pathlib import Path
from rl4rec_cli.files.locks import take_lock, write_owner
write_owner(take_lock(Path(sys.argv[1])))
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_lock_is_refused_while_its_process_lives_and_free_when_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        assert take_lock(path) is None
        assert is_locked(path)
        assert read_owner(path).startswith(f"process {holder.pid} on ")
        holder.kill()
    assert not is_locked(path)
    descriptor = take_lock(path)
    assert descriptor is not None
    write_owner(descriptor)
    assert read_owner(path).startswith(f"process {os.getpid()} on ")
    release_lock(path, descriptor)
    assert not path.exists()


def test_many_are_let_in_one_at_a_time_although_each_removes_the_lock_s_file(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    inside: list[int] = []

    def add() -> None:
        for _ in range(20):
            with exclusive(path):
                inside.append(1)
                assert len(inside) == 1
                path.write_text(str(int(path.read_text()) + 1))
                inside.pop()

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() == "80"
    assert [each.name for each in tmp_path.iterdir()] == ["count"]


def test_a_lock_on_a_file_that_was_replaced_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder renamed the part file to what it was made for: the next one must not write into that."""
    path, whole = tmp_path / "file.part", tmp_path / "file"
    path.write_text("done")
    lock = locks.lock_descriptor

    def renamed_first(descriptor: int, *, blocking: bool) -> bool:
        if not whole.exists():
            path.rename(whole)
        return lock(descriptor, blocking=blocking)

    monkeypatch.setattr(locks, "lock_descriptor", renamed_first)
    descriptor = take_lock(path)
    assert descriptor is not None
    assert os.path.samestat(os.fstat(descriptor), path.stat())
    assert not os.path.samestat(os.fstat(descriptor), whole.stat())
    os.close(descriptor)


def test_what_cannot_be_locked_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    for context in (exclusive(tmp_path / "file" / "in"), held(tmp_path / "file" / "in")):
        with pytest.raises(RunError, match=r"file/in: cannot write it: (Not a directory|File exists)"), context:
            pass

    def unsupported(descriptor: int, *, blocking: bool) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "lock_descriptor", unsupported)
    for context in (exclusive(tmp_path / "new"), held(tmp_path / "new")):
        with pytest.raises(RunError, match=r"new(\.lock)?: cannot lock it: No locks available"), context:
            pass
    assert not is_locked(tmp_path / "file")
