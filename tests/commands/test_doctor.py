"""`rl4rec doctor`: exit codes, what is named, and that a silent network does not hold it up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from rl4rec_cli.commands import doctor
from rl4rec_cli.errors import Rl4RecError

PROBE = """
import json, sys
from rl4rec_cli.cli.main import main
code = main(["doctor", "--json"])
sys.stdout.flush()
print(json.dumps(sorted(m for m in sys.modules if "." not in m)), file=sys.stderr)
sys.exit(code)
"""


def run(*, program: str = PROBE, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


def test_all_is_well_offline_and_nothing_is_imported_in_vain() -> None:
    done = run(HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] is True
    states = {check["name"]: check["state"] for check in told["checks"]}
    assert states["python"] == states["required packages"] == states["torch"] == states["CPU"] == states["Hub"] == "ok"
    assert {f"extra {name}" for name in ("gpu", "vllm", "ray")} <= set(states)
    assert "extra dev" not in states
    assert {"transformers", "trl", "peft", "datasets", "sklearn"}.isdisjoint(json.loads(done.stderr.splitlines()[-1]))


def test_what_is_named_is_looked_at(tmp_path: Path) -> None:
    assert (doctor.look_at(tmp_path / "none").state, doctor.look_at(tmp_path).state) == ("broken", "broken")
    (tmp_path / "vectors.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "items.jsonl").write_text('{"item_id": 0, "title": "t", "text": "t"}\n')
    pointer, text, data = (doctor.look_at(tmp_path / name) for name in ("vectors.pt", "notes.txt", "data"))
    assert (pointer.state, pointer.found) == ("broken", "is a Git LFS pointer, not the file itself")
    assert "git lfs pull" in pointer.hint
    assert (text.state, text.found) == ("ok", "a file that is no pointer and not compressed")
    assert data.state == "broken"
    assert "sequential_data.txt: the file is missing" in data.found


def test_a_wrong_version_is_broken_and_the_way_out_is_told(tmp_path: Path) -> None:
    for name, version in (("trl", "9.9"), ("typer", "0.1")):  # what stands first on the path is what is found
        (tmp_path / f"{name}-{version}.dist-info").mkdir()
        said = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (tmp_path / f"{name}-{version}.dist-info" / "METADATA").write_text(said)
    # A closed port: what does not answer is worth a note only.
    done = run(
        program="import sys; from rl4rec_cli.cli.main import main; sys.exit(main(['doctor']))",
        PYTHONPATH=str(tmp_path),
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert done.returncode == 1
    wanted = {r.partition("=")[0]: r for r in metadata.requires("rl4rec") or [] if r.startswith(("trl==", "typer=="))}
    error, hint = done.stderr.splitlines()[-2:]
    assert error == (
        f"error: not usable: trl: 9.9, wanted {wanted['trl'][3:]}; typer: 0.1, wanted {wanted['typer'][5:]}"
    )
    assert hint == f"hint: pip install '{wanted['trl']}'; pip install '{wanted['typer']}'"
    assert "http://127.0.0.1:9 does not answer" in done.stdout


def test_another_torch_of_the_same_major_version_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch==2.13.0", "trl==1.14.2"])
    for version, state in (("2.11.0", "note"), ("1.13.1", "broken"), ("3.0.0", "broken")):
        monkeypatch.setattr(metadata, "version", {"torch": version, "trl": "1.14.1"}.__getitem__)
        checks = {check.name: check for check in doctor._pins() if not check.name.startswith("extra")}
        assert checks["torch"].state == state
        assert checks["torch"].found.startswith(f"{version}, wanted ==2.13.0")
        assert checks["trl"].state == "broken"


def test_a_missing_package_is_broken_and_a_missing_extra_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    required = ["pytest>=1", "no-such-package==2", "neither>=1; extra == 'ray'", "pytest>=1; extra == 'vllm'"]
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    found = {check.name: check for check in doctor._pins()}
    assert found["no-such-package"] == doctor.Check(
        "no-such-package", "broken", "not installed", "pip install 'no-such-package==2'"
    )
    assert found["required packages"].found.startswith("1 installed")
    assert (found["extra ray"].state, found["extra ray"].found) == ("note", "neither not installed")
    assert found["extra ray"].hint == "pip install 'rl4rec[ray]'"
    assert found["extra vllm"].state == "ok"


def test_a_python_outside_the_range_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._python().state == "ok"
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.1")
    assert doctor._python().state == "broken"


def test_a_torch_that_cannot_be_imported_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (check,) = doctor._torch()
    assert check.state == "broken"
    assert "cannot be imported" in check.found


def test_cuda_companions_of_a_torch_without_cuda_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torchvision": "0.28.0", "torchaudio": "2.13.0+cpu"}
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or real(name))
    assert doctor._cuda_only_companions() == ["torchvision"]


def test_a_silent_network_is_given_up_on() -> None:
    never = threading.Event()

    def silent() -> str:
        never.wait()
        return ""

    assert doctor.within(silent, 0.05) is None
    never.set()
    assert doctor.within(lambda: "said", 5.0) == "said"


def test_the_hub_answers_or_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked: list[str] = []

    def reach(answer: str) -> Any:
        return lambda address: asked.append(address) or answer

    monkeypatch.setattr(doctor, "_reach", reach(""))
    assert doctor._hub().state == "ok"
    monkeypatch.setattr(doctor, "_reach", reach("no route"))
    assert (doctor._hub().state, "no route" in doctor._hub().found) == ("note", True)
    assert set(asked) == {constants.ENDPOINT}


def test_what_is_there_is_returned_and_what_is_broken_is_raised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "_checks", lambda: iter([doctor.Check("python", "ok", "3.12")]))
    checks = doctor.doctor([str(tmp_path / "none")])
    assert [(check.name, check.state) for check in checks] == [("python", "ok"), (str(tmp_path / "none"), "broken")]
    doctor.complain(checks[:1])
    with pytest.raises(Rl4RecError, match=r"not usable: .*none: no such file or folder"):
        doctor.complain(checks)
