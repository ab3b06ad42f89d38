"""Run on a CUDA GPU whatever the tests, which have none, cannot: kernels, 4-bit bases, Unsloth, vLLM and its sleep.

    python scripts/gpu_check.py                  # everything, into the folder gpu-check
    python scripts/gpu_check.py --only vllm      # checks whose names hold this
    python scripts/gpu_check.py --list

Each check is a command of its own. What it prints is kept in the folder, and `report.md` there has the outcome of all,
what the machine is, and the benchmarks' tables. A check whose packages are not installed is left out, and says so.
Exit status: 0 all passed or were left out, 1 one failed, 2 no GPU, or nothing of this name.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RL4REC = (sys.executable, "-m", "rl4rec_cli.cli.main")
TIMEOUT = 3600


@dataclass(frozen=True)
class Check:
    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """Packages."""
    is_table: bool = False
    """Whether what it prints belongs into the report."""


def _quick(name: str, *sets: str, needs: tuple[str, ...] = ()) -> Check:
    """The quick test on the GPU: it learns there as on the CPU, by another engine, type or backend."""
    there = ("policy.device=cuda", "retrieval.device=cuda")
    options = [part for text in (f"run.name={name}", *there, *sets) for part in ("--set", text)]
    return Check(name, (*RL4REC, "train", "grpo", "--quick-test", *options), needs)


def _script(name: str, *arguments: str, needs: tuple[str, ...] = ()) -> Check:
    script, *rest = arguments
    return Check(name, (sys.executable, str(ROOT / "benchmarks" / script), *rest), needs, is_table=True)


# The backend is always named: with an adapter and a GPU, `auto` is Unsloth, and Unsloth's default 4 bits.
HF, UNSLOTH, VLLM = "policy.backend=hf", "policy.backend=unsloth", "generation.engine=vllm"
SIXTEEN_BIT = ("policy.lora.r=8", "policy.quantization=none")
FOUR_BIT = ("policy.lora.r=8", "policy.quantization=4bit")
CHECKS = (
    Check("doctor", (*RL4REC, "doctor")),
    Check("tests", (sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests")), ("pytest",)),
    _quick("quick", HF),
    _quick("quick-bf16", HF, "policy.dtype=bf16"),
    _quick("quick-4bit", HF, *FOUR_BIT, needs=("bitsandbytes",)),
    _quick("quick-unsloth-4bit", UNSLOTH, *FOUR_BIT, needs=("unsloth", "bitsandbytes")),
    _quick("quick-unsloth", UNSLOTH, *SIXTEEN_BIT, needs=("unsloth",)),
    _quick("quick-unsloth-fast", UNSLOTH, *SIXTEEN_BIT, "policy.fast_inference=true", needs=("unsloth", "vllm")),
    _quick("quick-vllm", HF, VLLM, needs=("vllm",)),
    _quick("quick-vllm-adapter", HF, VLLM, *SIXTEEN_BIT, needs=("vllm",)),
    _quick("quick-vllm-eager", HF, VLLM, *SIXTEEN_BIT, "generation.vllm.enforce_eager=true", needs=("vllm",)),
    _quick("quick-vllm-sleep", HF, VLLM, *SIXTEEN_BIT, "generation.vllm.sleep=true", needs=("vllm",)),
    _quick("quick-vllm-4bit", HF, VLLM, *FOUR_BIT, needs=("vllm", "bitsandbytes", "vllm_bnb_plugin")),
    _quick("quick-vllm-unsloth", UNSLOTH, VLLM, *SIXTEEN_BIT, needs=("vllm", "unsloth")),
    _script("ranking", "ranking.py", "--only", "device"),
    _script("memory", "memory.py"),
    _script("generation", "generation.py", "--device", "cuda", "--hidden", "1024", "--layers", "24", needs=("vllm",)),
)


def run(check: Check, folder: Path) -> tuple[str, float]:
    """`passed`, `FAILED (…)` or `left out (…)`, and the seconds; output goes to `NAME.log` in the folder."""
    missing = [name for name in check.needs if find_spec(name) is None]
    if missing:
        return f"left out ({', '.join(missing)} not installed)", 0.0
    begin = time.perf_counter()
    with (folder / f"{check.name}.log").open("w") as log:
        # In a session of its own: what hangs is ended with all that it started.
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        own = {**os.environ, "PYTHONPATH": paths}
        process = subprocess.Popen(
            check.command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=own
        )
        try:
            code: int | str = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            code = f"more than {TIMEOUT:,} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return ("passed" if code == 0 else f"FAILED ({code})"), time.perf_counter() - begin


def run_all(checks: Sequence[Check], folder: Path) -> bool:
    """Run checks one after another and write the report anew after each; gives whether none failed."""
    rows, tables, passed = [], [], True
    for check in checks:
        print(f"{check.name} … ", end="", flush=True)
        outcome, seconds = run(check, folder)
        print(f"{outcome}, {seconds:.0f} s", flush=True)
        passed &= not outcome.startswith("FAILED")
        rows.append(f"| {check.name} | {outcome} | {seconds:.0f} |")
        log = folder / f"{check.name}.log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        if text and (check.is_table or check.name == "doctor" or outcome.startswith("FAILED")):
            tail = "\n".join(text.splitlines()[-200:])
            tables.append(f"## {check.name}\n\n```\n{tail}\n```\n")
        else:
            tables += [f"{check.name}: {line}\n" for line in text.splitlines() if line.startswith("Verdict: ")]
        head = ["# On a GPU", "", f"{machine()}", "", "| check | outcome | seconds |", "| --- | --- | --- |"]
        (folder / "report.md").write_text("\n".join([*head, *rows, "", *tables]))
    return passed


def machine() -> str:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{name}; torch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="TEXT", default="", help="checks whose names hold this")
    parser.add_argument("--output", metavar="FOLDER", default="gpu-check", help="must not exist")
    parser.add_argument("--list", action="store_true", help="name the checks and their commands")
    given = parser.parse_args(arguments)
    chosen = [check for check in CHECKS if given.only in check.name]
    if not chosen:
        print(f"error: no check's name holds {given.only!r}\nhint: --list names them", file=sys.stderr)
        return 2
    if given.list:
        for check in chosen:
            print(f"{check.name}: {' '.join(check.command)}")
        return 0
    import torch

    if not torch.cuda.is_available():
        print("error: no CUDA GPU is visible to torch\nhint: `rl4rec doctor` says what is missing", file=sys.stderr)
        return 2
    folder = Path(given.output).absolute()
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        print(f"error: {folder}: {error.strerror}\nhint: name another --output", file=sys.stderr)
        return 2
    passed = run_all(chosen, folder)
    print(f"report: {folder / 'report.md'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
