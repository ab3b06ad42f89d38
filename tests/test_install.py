"""The lock for GPUs says what pyproject.toml asks for, and nothing of where it was made."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements-gpu.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def locked() -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in LOCK.splitlines()]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


@pytest.mark.parametrize("group", ["dependencies", "gpu", "vllm", "ray"])
def test_the_lock_holds_every_requirement_in_a_version_that_is_asked_for(group: str) -> None:
    asked = PROJECT["dependencies"] if group == "dependencies" else PROJECT["optional-dependencies"][group]
    for one in map(Requirement, asked):
        version = locked()[canonicalize_name(one.name)]
        assert one.specifier.contains(version), f"{one}: the lock has {version}; write it anew"


def test_the_lock_names_its_command_and_no_index() -> None:
    command = shlex.split(LOCK.splitlines()[1].lstrip("# "))
    assert command[:3] == ["uv", "pip", "compile"]
    assert "--no-emit-index-url" in command
    assert all((ROOT / name).is_file() for name in command if name.startswith(("pyproject", "requirements")))
    assert not re.search(r"https?:|file:|^--|@ ", LOCK, re.MULTILINE)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+_!-]+", line) for line in LOCK.splitlines()[2:])


def test_extras_for_users_are_there() -> None:
    assert {"gpu", "vllm", "ray"} <= set(PROJECT["optional-dependencies"])
