"""`scripts/gpu_check.py` without a GPU: its commands are ones that exist, and outcomes are told as they are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rl4rec_cli.layering import load_config

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)  # where its dataclass looks for itself
    spec.loader.exec_module(module)
    return module


def test_every_training_has_settings_that_exist(script: ModuleType) -> None:
    trainings = [check for check in script.CHECKS if "train" in check.command]
    assert len(trainings) == 12
    for check in trainings:
        assert check.command[3:6] == ("train", "grpo", "--quick-test")
        config = load_config(algorithm="grpo", recipes=["quick-test"], sets=check.command[7::2])
        assert (config.policy.device, config.retrieval.device) == ("cuda", "cuda")
        assert (config.generation.engine == "vllm") == ("vllm" in check.name)
        assert config.policy.quantization == ("4bit" if "4bit" in check.name else "none")
        assert config.policy.backend == ("unsloth" if "unsloth" in check.name else "hf")
    for check in script.CHECKS:
        if check.is_table:
            assert Path(check.command[1]).is_file()


def test_outcomes_are_told_as_they_are(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "TIMEOUT", 2)
    # Hangs, with a child that hangs too; the child's number is left behind.
    hang = "import subprocess, time; p = subprocess.Popen(['sleep', '99']); print(p.pid, flush=True); time.sleep(99)"
    checks = [
        script.Check("good", (sys.executable, "-c", "print('a table')"), is_table=True),
        script.Check("training", (sys.executable, "-c", "print('much\\nVerdict: better')")),
        script.Check("bad", (sys.executable, "-c", "print('why'); raise SystemExit(3)")),
        script.Check("absent", ("false",), ("no_such_package",)),
        script.Check("slow", (sys.executable, "-c", hang)),
    ]
    assert script.run_all(checks[:1], tmp_path)
    assert not script.run_all(checks, tmp_path)
    report = (tmp_path / "report.md").read_text()
    for line in (
        "| good | passed |",
        "| bad | FAILED (3) |",
        "| absent | left out (no_such_package not installed) |",
        "| slow | FAILED (more than 2 s) |",
        "## good\n\n```\na table\n```",
        "\ntraining: Verdict: better\n",
        "## bad\n\n```\nwhy\n```",
    ):
        assert line in report
    child = int((tmp_path / "slow.log").read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
    assert "bad … FAILED (3)" in capsys.readouterr().out
