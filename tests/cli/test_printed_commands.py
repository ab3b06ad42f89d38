"""What a run prints to be pasted works when it is pasted, in folders that need quoting."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl4rec_cli.cli.main import main
from rl4rec_cli.cli.recipes import copy

SETS = [
    *("data.synthetic.users=40", "data.synthetic.items=25", "policy.tiny.hidden_size=32", "policy.tiny.heads=2"),
    *("policy.tiny.vocab_size=400", "generation.max_completion_length=6", "prompt.max_history=2", "policy.device=cpu"),
    *("trainer.batch_size=4", "trainer.num_generations=4", "trainer.max_steps=2", "trainer.warm_start=null"),
    *("eval.users=6", "eval.baselines=[]", "logging.steps=1", "logging.save_steps=1", "retrieval.embedder=lsa"),
    "run.name=r",
]
REWARD = """
from pathlib import Path
calls = 0

def words(texts, targets, histories, **kwargs):
    global calls
    calls += 1
    if calls == 2 and not Path("mended").exists():
        raise ValueError("no such word")
    return [len(t) / 100 for t in texts]
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    before = Path.cwd()
    folder = tmp_path / "résultats du jour"
    folder.mkdir()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def printed(text: str) -> list[list[str]]:
    """The words that a shell makes of every command that starts with `rl4rec` in a text."""
    lines = [line for raw in text.splitlines() for line in re.findall(r"rl4rec (?:(?!    or: ).)+", raw)]
    found = []
    for line in lines:
        done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line.rstrip('`.')}"], capture_output=True, check=True)
        found.append(done.stdout.decode().split("\0")[1:-1])
    return found


def test_commands_of_a_run_that_stops_and_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my reward.py").write_text(REWARD)
    sets = [word for text in SETS for word in ("--set", text)]
    assert main(["train", "grpo", *sets, "--reward", "./my reward.py:words=1", "--output", "it's (1) #runs"]) == 1
    go_on = printed(capsys.readouterr().err.partition("To go on with it: ")[2].splitlines()[0])[0]
    Path("mended").touch()
    assert main(["report", "it's (1) #runs/r"]) == 0
    page = Path("it's (1) #runs/r/report.html").read_text()
    assert "--resume" in page
    # From another folder, with the run's own path made whole: the reward's file is found.
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    os.chdir(elsewhere)
    Path("mended").touch()
    moved = [str(place / word) if word.startswith("it's (1) #runs") else word for word in go_on]
    capsys.readouterr()
    assert main(moved) == 0
    err = capsys.readouterr().err
    os.chdir(place)
    after = printed(err.partition("Next: ")[2])
    assert [command[0] for command in after] == ["eval", "recommend"]
    for command in after:
        code = main(command)
        said = capsys.readouterr().err
        # What so small a policy writes may be nothing, or nothing that an embedder knows; the words were understood.
        assert code == 0 or "error: the policy wrote" in said, said


def test_commands_about_data_and_recipes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "synth", "des données", "--users", "30", "--items", "20"]) == 0
    copy("beauty-cpu", "ma recette; l'une.yaml", force=False)
    for command in printed(capsys.readouterr().err):
        assert main(command) == 0, command
    Path("mauvais.pt").touch()
    assert main(["eval", "--dataset", "des données", "--set", "retrieval.file=mauvais.pt"]) == 2
    assert main(["eval", "un modèle/à moi"]) == 1
    (hint,) = printed(capsys.readouterr().err)
    assert hint == ["eval", "un modèle/à moi", "--dataset", "PATH"]
