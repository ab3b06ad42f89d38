"""`scripts/gpu_check.py` without a GPU: its commands are ones that exist, and outcomes are told as they are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from commands import ends

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
    checks = [
        script.Check("good", (sys.executable, "-c", "print('a table')"), is_table=True),
        script.Check("training", (sys.executable, "-c", "print('much\\nVerdict: better')")),
        script.Check("bad", (sys.executable, "-c", "print('why'); raise SystemExit(3)")),
        script.Check("absent", ("false",), ("no_such_package",)),
    ]
    assert script.run_all(checks[:1], tmp_path)
    assert not script.run_all(checks, tmp_path)
    report = (tmp_path / "report.md").read_text()
    for line in (
        "| good | passed |",
        "| bad | FAILED (3) |",
        "| absent | left out (no_such_package not installed) |",
        "## good\n\n```\na table\n```",
        "\ntraining: Verdict: better\n",
        "## bad\n\n```\nwhy\n```",
    ):
        assert line in report
    assert "bad … FAILED (3)" in capsys.readouterr().out


def test_output_that_is_no_text_ends_nothing(script: ModuleType, tmp_path: Path) -> None:
    noise = script.Check("noise", ("printf", "a\\377\\376b"), is_table=True)
    assert script.run_all([noise, script.Check("after", ("true",))], tmp_path)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "a\ufffd\ufffdb" in report
    assert "| after | passed |" in report


def test_a_name_that_no_check_holds_is_no_success(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--only", "nosuch"]) == 2
    assert "error: no check's name holds 'nosuch'" in capsys.readouterr().err


def test_what_hangs_is_ended_with_all_that_it_started(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "TIMEOUT", 2)
    # A shell is there at once, however busy the machine is; its child's number is left behind.
    assert not script.run_all([script.Check("slow", ("sh", "-c", "sleep 99 & echo $!; wait"))], tmp_path)
    assert "| slow | FAILED (more than 2 s) |" in (tmp_path / "report.md").read_text()
    # It was killed, but is no child of the check's: nobody waited for its end.
    assert ends(int((tmp_path / "slow.log").read_text()))
