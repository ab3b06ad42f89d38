"""`scripts/gpu_check.py` without a GPU: its commands are ones that exist, and outcomes are told as they are."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from command_lines import ends

from rl4rec_cli.config.layering import load_config

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


@pytest.fixture
def setups(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the trainings that the script starts."""
    path = Path(__file__).parent / "gpu" / "test_gpu_training.py"
    spec = importlib.util.spec_from_file_location("gpu_setups", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_setups", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_check_names_files_and_settings_that_exist(script: ModuleType, setups: ModuleType, device: str) -> None:
    checks = script.all_checks(device)
    assert len({check.name for check in checks}) == len(checks)
    names = {check.name.removeprefix("setup-"): check for check in checks if check.name.startswith("setup-")}
    assert list(names) == list(setups.SETUPS)
    for name, setup in setups.SETUPS.items():
        assert names[name].needs == ("pytest", *setup.needs)
        assert names[name].only_gpu == setup.only_gpu
        assert names[name].command[-1].endswith(f"[{name}]")
    for check in checks:
        for part in check.command[1:]:
            assert ".py" not in part or Path(part.partition("::")[0]).is_file()
        if "train" in check.command:
            config = load_config(algorithm="grpo", recipes=["quick-test"], sets=check.command[7::2])
            assert (config.policy.device, config.retrieval.device) == (device, device)


def test_every_setup_has_settings_that_exist_and_a_type_that_vllm_takes(setups: ModuleType) -> None:
    for name, setup in setups.SETUPS.items():
        command = setups.train_command("grpo", name, "cuda", *setup.sets, *setups.GROUPS)
        config = load_config(algorithm="grpo", recipes=["quick-test"], sets=command[4::2])
        assert config.policy.device == "cuda"
        assert (config.generation.engine == "vllm") == ("vllm" in name)
        assert config.generation.engine != "vllm" or config.policy.dtype == "bf16"
        assert config.policy.backend == ("unsloth" if "unsloth" in name else "hf")
        assert config.generation.vllm.sleep == ("sleep" in name)
    for algorithm, sets in setups.TRAINERS.values():
        command = setups.train_command(algorithm, "name", "cuda", *sets)
        assert load_config(algorithm=algorithm, recipes=["quick-test"], sets=command[4::2]).policy.lora is not None


def test_outcomes_are_told_as_they_are(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checks = [
        script.Check("good", (sys.executable, "-c", "print('a table')")),
        script.Check("bad", (sys.executable, "-c", "print('why'); raise SystemExit(3)")),
        script.Check("absent", ("false",), ("no_such_package",)),
        script.Check("kernel", ("false",), only_gpu=True),
    ]
    assert script.run_all(checks[:1], tmp_path, "cpu", 60) == 0
    assert script.run_all([checks[0], *checks[2:]], tmp_path, "cpu", 60) == 0
    assert script.run_all(checks, tmp_path, "cpu", 60) == 1
    report = (tmp_path / "report.md").read_text()
    for line in (
        "| good | passed |",
        "| bad | FAILED: exit status 3 |",
        "| absent | left out: no no_such_package | 0 |",
        "| kernel | left out: needs a GPU | 0 |",
        "- not installed: no_such_package; `sh scripts/gpu_wheels.sh FOLDER`",
        "## good: passed\n\n```\na table\n```",
        "## bad: FAILED: exit status 3\n\n```\nwhy\n```",
    ):
        assert line in report
    told = capsys.readouterr()
    assert "bad: FAILED: exit status 3, " in told.out
    assert "not installed: no_such_package; " in told.out
    assert script.run_all(checks[2:], tmp_path, "cpu", 60) == 1
    assert "error: nothing was checked" in capsys.readouterr().err


def test_tests_that_were_all_skipped_are_left_out(script: ModuleType, tmp_path: Path) -> None:
    skips = "import pytest\n\ndef test_skips():\n    pytest.skip('no such kernel')\n"
    (tmp_path / "test_all.py").write_text(skips)
    (tmp_path / "test_some.py").write_text(skips + "\ndef test_runs():\n    pass\n")
    pytest_command = (*script.PYTEST[:-2], "-c", "/dev/null")
    checks = [script.Check(name, (*pytest_command, str(tmp_path / f"test_{name}.py"))) for name in ("all", "some")]
    assert script.run_all(checks, tmp_path, "cpu", 60) == 0
    report = (tmp_path / "report.md").read_text()
    assert "| all | left out: no such kernel |" in report
    assert "| some | passed |" in report


def test_the_report_is_whole_while_checks_run(script: ModuleType, tmp_path: Path) -> None:
    copy = script.Check("second", ("cp", "report.md", "meanwhile.md"))
    assert script.run_all([script.Check("first", ("true",)), copy], tmp_path, "cpu", 60) == 0
    meanwhile = (tmp_path / "meanwhile.md").read_text()
    assert "| first | passed |" in meanwhile
    assert "| second | to come |" in meanwhile
    assert not (tmp_path / "report.md.part").exists()


def test_the_budget_is_that_of_all_checks_together(script: ModuleType, tmp_path: Path) -> None:
    hangs, after = script.Check("hangs", ("sleep", "99")), script.Check("after", ("true",))
    script.LEAST = 0.5
    assert script.run_all([script.Check("good", ("true",)), hangs, after], tmp_path, "cpu", 1) == 0
    report = (tmp_path / "report.md").read_text()
    assert "| hangs | left out: no time (ended after 1 s) |" in report
    assert "| after | left out: no time | 0 |" in report


def test_output_that_is_no_text_ends_nothing(script: ModuleType, tmp_path: Path) -> None:
    noise = script.Check("noise", ("printf", "a\\377\\376b"))
    assert script.run_all([noise, script.Check("after", ("true",))], tmp_path, "cpu", 60) == 0
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "a\ufffd\ufffdb" in report
    assert "| after | passed |" in report


def test_names_are_whole_or_parts_of_some(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    checks = script.all_checks("cpu")
    assert [c.name for c in script.choose(checks, ["setup-vllm", "doctor"])] == ["doctor", "setup-vllm"]
    assert [c.name for c in script.choose(checks, ["sleep"])] == ["setup-vllm-sleep", "setup-vllm-unsloth-sleep"]
    assert script.main(["--only", "nosuch"]) == 2
    assert "error: no check's name holds 'nosuch'" in capsys.readouterr().err
    assert script.main(["--first", "--list"]) == 0
    first = capsys.readouterr().out
    assert "setup-unsloth: " in first
    assert "benchmark-" not in first


def test_what_hangs_is_ended_with_all_that_it_started(script: ModuleType, tmp_path: Path) -> None:
    # A shell is there at once, however busy the machine is; its child's number is left behind.
    slow = script.Check("slow", ("sh", "-c", "sleep 99 & echo $!; wait"), seconds=2)
    assert script.run_all([slow], tmp_path, "cpu", 60) == 1
    assert "| slow | FAILED: more than 2 s |" in (tmp_path / "report.md").read_text()
    # It was killed, but is no child of the check's: nobody waited for its end.
    assert ends(int((tmp_path / "slow.log").read_text()))


def test_real_checks_pass_on_the_cpu(tmp_path: Path) -> None:
    names = [part for name in ("doctor", "ranking") for part in ("--only", name)]
    command = [sys.executable, str(SCRIPT), "--device", "cpu", *names, "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "doctor: passed, " in done.stdout
    assert "ranking: passed, " in done.stdout
