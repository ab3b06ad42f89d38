"""Run on a CUDA GPU what the project's tests, which have none, cannot: kernels, 4 bits, Unsloth, vLLM and its sleep.

    python scripts/gpu_check.py --first --budget 600     # the first ten minutes on a GPU
    python scripts/gpu_check.py                          # everything, into the folder gpu-check
    python scripts/gpu_check.py --only setup-hf --only trainers
    python scripts/gpu_check.py --device cpu             # the same without what needs a GPU
    python scripts/gpu_check.py --list

It runs from a source tree, which need not be installed. Each check is a command of its own, in order of worth, and has
what is left of the budget; what comes too late is left out, and so is what lacks a package or the GPU. What a check
prints is kept in the folder as NAME.log; `report.md` there has every outcome, the last lines and what the machine is,
and is whole at every moment. For a machine without network `scripts/gpu_wheels.sh` collects packages.

Exit status: 0 nothing failed, 1 a check failed or none ran, 2 no such GPU, name or folder.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RL4REC = (sys.executable, "-m", "rl4rec_cli")
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs", "-m", "gpu")
LINES = 40
LEAST = 5.0
"""Seconds under which no check is begun."""
CORE = ("pydantic", "yaml", "typer", "transformers", "trl", "datasets", "peft", "bm25s")
# What carries these packages to a machine without network.
WAY_OUT = {
    "vllm": "too large to carry: install it from requirements-gpu.lock, see docs/install.md",
    "vllm_bnb_plugin": "too large to carry: install it from requirements-gpu.lock, see docs/install.md",
    "": "`sh scripts/gpu_wheels.sh FOLDER` where there is an index; here `python -m pip install --no-index --no-deps "
    "--upgrade --target SITE FOLDER/*.whl`, and SITE into PYTHONPATH",
}


@dataclass(frozen=True)
class Check:
    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """Packages beside those of every check."""
    only_gpu: bool = False
    first: bool = False
    """Belongs to the first ten minutes."""
    seconds: float = 600
    """A check that takes longer has failed."""


def all_checks(device: str) -> list[Check]:
    """Every check, the most telling first."""
    on_gpu = device != "cpu"

    def test(name: str, path: str, needs: Sequence[str] = (), *, only_gpu: bool = False, first: bool = True) -> Check:
        return Check(name, (*PYTEST, str(ROOT / "tests" / "gpu" / path)), ("pytest", *needs), only_gpu, first)

    def setup(which: str, *needs: str, only_gpu: bool = False) -> Check:
        return test(f"setup-{which}", f"test_gpu_training.py::test_setup[{which}]", needs, only_gpu=only_gpu)

    def script(name: str, *arguments: str, needs: tuple[str, ...] = (), only_gpu: bool = False) -> Check:
        path = str(ROOT / "benchmarks" / f"{name}.py")
        return Check(f"benchmark-{name}", (sys.executable, path, *arguments, "--device", device), needs, only_gpu)

    quick = (f"policy.device={device}", f"retrieval.device={device}", "policy.backend=hf")
    sets = [part for text in quick for part in ("--set", text)]
    return [
        Check("doctor", (*RL4REC, "doctor"), first=True, seconds=120),
        test("ranking", "test_gpu_ranking.py"),
        test("policy", "test_gpu_policy.py"),
        setup("hf"),
        setup("bitsandbytes", "bitsandbytes"),
        setup("unsloth", "unsloth", "bitsandbytes"),
        setup("vllm", "vllm"),
        setup("vllm-sleep", "vllm", only_gpu=True),
        setup("vllm-unsloth-sleep", "vllm", "unsloth", "bitsandbytes", "vllm_bnb_plugin", only_gpu=True),
        Check("learns", (*RL4REC, "train", "grpo", "--quick-test", *sets), first=True),
        test("retriever", "test_gpu_retriever.py", first=False),
        test("trainers", "test_gpu_training.py::test_trainer", first=False),
        script("memory", *(() if on_gpu else ("--only", "54 M, LoRA, sft"))),
        script("ranking", "--only", "device", *(() if on_gpu else ("--quick", "--rounds", "3"))),
        script("generation", "--dtype", "bf16", "--hidden", "1024", "--layers", "24", needs=("vllm",), only_gpu=True),
    ]


@dataclass(frozen=True)
class Outcome:
    text: str
    """`passed`, `FAILED: why` or `left out: why`."""
    seconds: float = 0.0
    tail: str = ""
    """The last lines of what the check printed."""
    lacks: tuple[str, ...] = ()
    """Packages for lack of which it was left out."""

    @property
    def failed(self) -> bool:
        return self.text.startswith("FAILED")

    @property
    def ran(self) -> bool:
        return not self.text.startswith("left out")


def run(check: Check, folder: Path, device: str, seconds_left: float) -> Outcome:
    """Run a check, or say why not; what it prints goes to `NAME.log` in the folder."""
    if check.only_gpu and device == "cpu":
        return Outcome("left out: needs a GPU")
    if missing := tuple(name for name in (*CORE, *check.needs) if find_spec(name) is None):
        return Outcome(f"left out: no {', '.join(missing)}", lacks=missing)
    if seconds_left < LEAST:
        return Outcome("left out: no time")
    limit = min(check.seconds, seconds_left)
    log = folder / f"{check.name}.log"
    begin = time.perf_counter()
    code = _run_command(check.command, folder, log, device, limit)
    seconds = time.perf_counter() - begin
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES:])
    if code is None and limit < check.seconds:
        return Outcome(f"left out: no time (ended after {limit:,.0f} s)", seconds, tail)
    if code is None:
        return Outcome(f"FAILED: more than {limit:,.0f} s", seconds, tail)
    if code == 0 and (reason := _skipped(tail)):
        return Outcome(f"left out: {reason}", seconds, tail)
    return Outcome("passed" if code == 0 else f"FAILED: exit status {code}", seconds, tail)


def _skipped(tail: str) -> str:
    """Returns why pytest skipped the tests, if it skipped all of them, else an empty string."""
    reasons = re.findall(r"^SKIPPED \[\d+\] \S+ (.*)$", tail, re.MULTILINE)
    return reasons[0] if reasons and re.match(r"[= ]*\d+ skipped in ", tail.splitlines()[-1]) else ""


def _run_command(command: Sequence[str], folder: Path, log: Path, device: str, limit: float) -> int | None:
    """Exit status of a command, None where it took longer than the limit and was ended with all that it started."""
    paths = os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH", "")) if path)
    # Nothing is fetched: all models are made on the spot.
    own = {**os.environ, "PYTHONPATH": paths, "RL4REC_TEST_DEVICE": device, "HF_HUB_OFFLINE": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=own
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run_all(checks: Sequence[Check], folder: Path, device: str, budget: float) -> int:
    """Run checks one after another, with a line and a new report after each; gives the exit status."""
    end = time.perf_counter() + budget
    outcomes: dict[str, Outcome] = {}
    write_report(checks, outcomes, folder, device)
    for check in checks:
        outcome = outcomes[check.name] = run(check, folder, device, end - time.perf_counter())
        print(f"{check.name}: {outcome.text}, {outcome.seconds:.0f} s", flush=True)
        write_report(checks, outcomes, folder, device)
    for line in _ways_out(outcomes):
        print(line)
    if any(outcome.failed for outcome in outcomes.values()):
        return 1
    if not any(outcome.ran for outcome in outcomes.values()):
        print("error: nothing was checked", file=sys.stderr)
        return 1
    return 0


def _ways_out(outcomes: dict[str, Outcome]) -> list[str]:
    """How the packages that checks lack are brought: a line for each way."""
    lacking = sorted({name for outcome in outcomes.values() for name in outcome.lacks})
    ways = {
        WAY_OUT.get(name, WAY_OUT[""]): [n for n in lacking if WAY_OUT.get(n) == WAY_OUT.get(name)] for name in lacking
    }
    return [f"not installed: {', '.join(names)}; {way}" for way, names in ways.items()]


def write_report(checks: Sequence[Check], outcomes: dict[str, Outcome], folder: Path, device: str) -> None:
    """The whole report, written aside and then renamed."""
    lines = ["# GPU check", "", machine(device), "", "| check | outcome | seconds |", "| --- | --- | --- |"]
    for check in checks:
        outcome = outcomes.get(check.name, Outcome("to come"))
        lines.append(f"| {check.name} | {outcome.text} | {outcome.seconds:.0f} |")
    lines += ["", *(f"- {line}" for line in _ways_out(outcomes))]
    for name, outcome in outcomes.items():
        if outcome.tail:
            lines += ["", f"## {name}: {outcome.text}", "", "```", outcome.tail, "```"]
    aside = folder / "report.md.part"
    aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    aside.replace(folder / "report.md")


def machine(device: str) -> str:
    """The device, Python and the versions of what matters, without importing any of it."""
    names = ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "vllm")
    versions = [f"{name} {_version(name)}" for name in names if find_spec(name) is not None]
    return "; ".join([f"device {device}", *_gpus(device), f"Python {platform.python_version()}", *versions])


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _gpus(device: str) -> list[str]:
    if device == "cpu":
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=False, timeout=30).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"nvidia-smi: {error}"]


def choose(checks: Sequence[Check], names: Sequence[str]) -> list[Check]:
    """Checks by their whole name; a text that is no check's name stands for all whose names hold it.

    Raises:
        LookupError: with the text that no name holds.
    """
    chosen: set[str] = set()
    known = [check.name for check in checks]
    for name in names:
        matches = {name} if name in known else {one for one in known if name in one}
        if not matches:
            raise LookupError(name)
        chosen |= matches
    return [check for check in checks if not names or check.name in chosen]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        default=[],
        help="this check, or those whose names hold it; repeatable",
    )
    parser.add_argument("--first", action="store_true", help="the checks of the first ten minutes")
    parser.add_argument("--budget", metavar="SECONDS", type=float, default=6 * 3600.0, help="for all together")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--output", metavar="FOLDER", default="gpu-check", help="must not exist")
    parser.add_argument("--list", action="store_true", help="name the checks and their commands")
    given = parser.parse_args(arguments)
    try:
        chosen = choose([c for c in all_checks(given.device) if c.first or not given.first], given.only)
    except LookupError as error:
        return _refuse(f"no check's name holds {error.args[0]!r}", "--list names them")
    if given.list:
        for check in chosen:
            print(f"{check.name}: {' '.join(check.command)}")
        return 0
    if given.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            way_out = "`python -m rl4rec_cli doctor` says what is missing; --device cpu does without"
            return _refuse("no CUDA GPU is visible to torch", way_out)
    folder = Path(given.output).absolute()
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        return _refuse(f"{folder}: {error.strerror}", "name another --output")
    status = run_all(chosen, folder, given.device, given.budget)
    print(f"report: {folder / 'report.md'}")
    return status


def _refuse(message: str, hint: str) -> int:
    print(f"error: {message}\nhint: {hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
