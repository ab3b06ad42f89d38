"""`rl4rec data audit` as a user runs it: what it prints, and its exit codes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.synthetic import synthesize


def audit(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rl4rec_cli.cli.main", "data", "audit", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A clean dataset, one with a warning (copied users) and one with a leak too (targets in the history)."""
    clean = synthesize(200, 100, 0)
    items = tuple({**item, "also_bought": "soap \x1b[31mred"} for item in clean.items)
    users = (*clean.users, *(f"copy{i}" for i in range(10)))
    copied = dataclasses.replace(clean, name="copied", users=users, sequences=clean.sequences + clean.sequences[:10])
    again = tuple((*s[:-1], s[0]) if u < 20 else s for u, s in enumerate(clean.sequences))
    leaky = dataclasses.replace(copied, name="leaky", items=items, sequences=again + again[:10])
    made: dict[str, Dataset] = {"clean": clean, "copied": copied, "leaky": leaky}
    where = tmp_path_factory.mktemp("data")
    for name, dataset in made.items():
        save_dataset(dataset, where / name)
    return {name: where / name for name in made}


@pytest.mark.parametrize(
    ("name", "flags", "code"),
    [
        *(("clean", [], 0), ("clean", ["--strict"], 0)),
        *(("copied", [], 0), ("copied", ["--strict"], 0)),
        *(("leaky", [], 0), ("leaky", ["--strict"], 1)),
        *(("leaky", ["--json"], 0), ("leaky", ["--strict", "--json"], 1)),
    ],
)
def test_only_strict_fails_and_only_on_leaks(name: str, flags: list[str], code: int, folders: dict[str, Path]) -> None:
    done = audit(folders[name], *flags)
    assert done.returncode == code
    assert done.stdout  # the result is printed in any case
    assert done.stderr == (f"error: {folders[name]}: 1 leak found (--strict)\n" if code else "")


def test_a_clean_dataset_shows_what_was_looked_at(folders: dict[str, Path]) -> None:
    head, *checks, blank, last = audit(folders["clean"]).stdout.splitlines()
    assert head.split() == ["check", "result", "seen"]
    assert len(checks) == 18
    assert "target in history           ok           0 % (0 of 400 targets)" in checks
    assert blank == ""
    assert last == "Audit: nothing found (17 checks; not checked: same-time ties)"


def test_findings_are_explained_leaks_first(folders: dict[str, Path]) -> None:
    out = audit(folders["leaky"]).stdout
    assert "\x1b" not in out
    table, leak, fields, copied, last = out.split("\n\n")
    assert "target in history           leak         7.1 % (30 of 420 targets)" in table
    assert leak.startswith("leak: target in the history for 7.1 % of targets\n  The other history items are not ranked")
    assert "  To mend it: keep each user's first choice" in leak
    assert leak.count("\n  e.g. user u") == 3
    assert fields.startswith("warning: field also_bought is there, though not shown\n")
    assert copied.startswith("warning: 4.8 % of users have the very sequence of another\n")
    assert last == "Audit: 1 leak, 2 warnings (17 checks; not checked: same-time ties)\n"


def test_json_is_the_whole_audit(folders: dict[str, Path]) -> None:
    done = audit(folders["leaky"], "--json")
    said = json.loads(done.stdout)
    assert (said["dataset"], said["clean"], said["leaks"], said["warnings"]) == ("leaky", False, 1, 2)
    assert len(said["checks"]) == 18
    assert said["findings"][0]["check"] == "target in history"
    assert said["findings"][0]["examples"][0]["user"] == "u1"


def test_recipes_and_settings_say_what_is_shown(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text('prompt: {item_template: "{title} {also_bought}"}\n')
    for args in (["-r", recipe], ["--set", "prompt.item_template={title} {also_bought}"]):
        out = audit(folders["leaky"], *args).stdout
        assert "leak: field also_bought is shown or embedded" in out
        assert "Audit: 2 leaks, 1 warning" in out
    assert (
        "also_bought is shown or embedded" in audit(folders["leaky"], "--set", "retrieval.emb_type=also_bought").stdout
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere"], "no such dataset folder"),
        (["{clean}", "--set", "prompt.item_template={{colours}}"], "has a field 'colours'"),
        (["{clean}", "--set", "prompt.shown=1"], "prompt.shown: unknown key"),
        (["{clean}", "-r", "nosuch"], "nosuch"),
        ([], "missing argument"),
    ],
)
def test_what_cannot_be_audited(args: list[str], said: str, folders: dict[str, Path]) -> None:
    done = audit(*(arg.format(**folders) for arg in args))
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
