"""How long `rl4rec --help` takes beside a bare Typer program with one command (PROMISES P4: at most 1.5 times).

Both are started in turn, so that other load on the machine falls on both alike. The peer is the cheaper kind of bare
program, without rich markup; Typer's default, which draws its help with rich, is shown for comparison.

    python benchmarks/startup.py [--runs 15]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 1.5
BARE = """
import typer
app = typer.Typer({options})

@app.command()
def hello(name: str, count: int = 1) -> None:
    "Say hello."

app()
"""
COMMANDS = [[], ["train"], ["train", "grpo"], ["eval"], ["recommend"]]


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""})
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    script = Path(sys.executable).with_name("rl4rec")
    rl4rec = [str(script)] if script.exists() else [sys.executable, "-m", "rl4rec_cli.cli.main"]
    with tempfile.TemporaryDirectory() as folder:
        bare, bare_rich = Path(folder, "bare.py"), Path(folder, "bare_rich.py")
        bare.write_text(BARE.format(options="rich_markup_mode=None, add_completion=False"))
        bare_rich.write_text(BARE.format(options=""))
        programs = {
            "bare Typer": [sys.executable, str(bare), "--help"],
            "bare Typer, rich help": [sys.executable, str(bare_rich), "--help"],
        }
        for args in COMMANDS:
            name = " ".join(["rl4rec", *args, "--help"])
            programs[name] = [*rl4rec, *args, "--help"]
        times: dict[str, list[float]] = {name: [] for name in programs}
        for turn in range(runs + 1):
            for name, command in programs.items():
                taken = seconds(command)
                if turn:  # the first turn writes bytecode
                    times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    peer = medians["bare Typer"]
    print(f"{'program':<26}  {'median ms':>9}  {'ratio':>5}   ({runs} runs, in turn)")
    for name, median in medians.items():
        print(f"{name:<26}  {median * 1000:9.1f}  {median / peer:5.2f}")
    worst = max(median / peer for name, median in medians.items() if name.startswith("rl4rec"))
    print(f"\nworst ratio {worst:.2f}, promised at most {LIMIT}")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
