"""The lock for GPUs says what pyproject.toml asks for, and nothing of where it was made; a source tree works, too."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
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


def test_the_guide_counts_the_packages_of_the_lock() -> None:
    guide = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert re.findall(r"\((\d+) packages", guide) == [str(len(locked()))]


def test_the_lock_leaves_out_what_cannot_load_beside_its_cuda() -> None:
    """The overrides say so, for the next one who writes the lock; nothing is overridden that the lock does not need."""
    lines = (ROOT / "requirements-gpu.overrides").read_text(encoding="utf-8").splitlines()
    overrides = {one.name: one for one in map(Requirement, (line for line in lines if not line.startswith("#")))}
    assert any(name.endswith("-cu13") for name in locked())
    assert "xformers" not in locked()
    assert not overrides.pop("xformers").marker.evaluate()  # type: ignore[union-attr]
    assert {name: one.specifier.contains(locked()[name]) for name, one in overrides.items()} == {"setuptools": True}


def test_extras_for_users_are_there() -> None:
    assert {"gpu", "vllm", "ray"} <= set(PROJECT["optional-dependencies"])


def test_a_source_tree_works_without_installation(tmp_path: Path) -> None:
    """Python sees every package but this one, which it takes from the folder it is started in."""
    (tmp_path / "packages").mkdir()
    for folder in (Path(path) for path in sys.path if path.endswith("-packages")):
        for entry in folder.iterdir():
            beside = tmp_path / "packages" / entry.name
            if not entry.name.startswith(("rl4rec", "__editable__")) and entry.suffix != ".pth" and not beside.exists():
                beside.symlink_to(entry)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        own = {**os.environ, "PYTHONPATH": str(tmp_path / "packages"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-S", "-m", "rl4rec_cli", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=own)

    listed = run("recipes", "list")
    assert "quick-test" in listed.stdout, listed.stderr
    healthy = run("doctor", "--json")
    assert healthy.returncode == 0, healthy.stderr
    checks = {check["name"]: check for check in json.loads(healthy.stdout)["checks"]}
    assert checks["required packages"]["state"] == "ok"
    assert f"{len(PROJECT['dependencies'])} installed" in checks["required packages"]["found"]
    assert {f"extra {name}" for name in ("gpu", "vllm", "ray")} <= set(checks)


def make_wheel(folder: Path, requirement: str) -> None:
    """A wheel of one module, with what the script leaves out of those of two packages."""
    name, _, version = requirement.partition("==")
    name = name.replace("-", "_")
    libraries = ("cpu", "cuda121", "cuda130", "rocm70", "xpu2025")
    more = {"bitsandbytes": [f"bitsandbytes/libbitsandbytes_{kind}.so" for kind in libraries]}
    more["unsloth"] = ["studio/app.js", "unsloth/studio.py"]
    info = f"{name}-{version}.dist-info"
    files = dict.fromkeys([f"{name}/__init__.py", *more.get(name, [])], "x")
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


def test_wheels_for_a_gpu_without_network_are_collected_without_what_it_cannot_load(tmp_path: Path) -> None:
    index = tmp_path / "index"
    index.mkdir()
    lines = [*(ROOT / "constraints.txt").read_text().splitlines()]
    lines += (ROOT / "requirements-unsloth-cpu.txt").read_text().splitlines()
    for requirement in dict.fromkeys(line for line in lines if "==" in line):
        make_wheel(index, requirement)
    own = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull, "PYTHON": sys.executable}
    command = ["sh", str(ROOT / "scripts" / "gpu_wheels.sh"), str(tmp_path / "wheels")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **own})
    assert done.returncode == 0, done.stderr
    wheels = {path.name.partition("-")[0]: path for path in (tmp_path / "wheels").iterdir()}
    assert {"trl", "datasets", "dill", "multiprocess", "pydantic", "pydantic_core", "bm25s", "unsloth_zoo"} <= set(
        wheels
    )
    assert {"torch", "transformers", "pyarrow"}.isdisjoint(wheels)
    kept = {}
    for name in ("bitsandbytes", "unsloth"):
        with zipfile.ZipFile(wheels[name]) as wheel:
            kept[name] = [path for path in wheel.namelist() if ".dist-info" not in path]
            (record,) = (path for path in wheel.namelist() if path.endswith("RECORD"))
            recorded = [line.partition(",")[0] for line in wheel.read(record).decode().splitlines()]
            assert sorted(recorded) == sorted(wheel.namelist())
    assert kept["bitsandbytes"][1:] == [f"bitsandbytes/libbitsandbytes_{kind}.so" for kind in ("cpu", "cuda130")]
    assert kept["unsloth"] == ["unsloth/__init__.py", "unsloth/studio.py"]
