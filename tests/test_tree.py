"""The README's tree is the tree: every room, and every module in its room."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rl4rec_cli"


def named() -> dict[str, set[str]]:
    """The words of each room's lines in the README, the hall's under `""`."""
    block = (ROOT / "README.md").read_text().split("## The house", 1)[1].split("```")[1]
    lines = block.split("rl4rec_cli/\n", 1)[1].splitlines()
    rooms: dict[str, set[str]] = {}
    room = ""
    for line in lines:
        if match := re.match(r"    ([a-z_/]+)/ ", line):
            room = match[1]
        elif re.match(r"    \S", line):
            room = ""
        rooms.setdefault(room, set()).update(re.findall(r"[a-z0-9_]+", line))
    return rooms


def modules(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")}


def test_every_room_and_module_is_in_the_readme() -> None:
    rooms = {"": PACKAGE} | {
        str(path.parent.relative_to(PACKAGE)): path.parent for path in sorted(PACKAGE.glob("*/**/__init__.py"))
    }
    in_readme = named()
    assert set(in_readme) == set(rooms)
    missing = {name: modules(folder) - in_readme[name] for name, folder in rooms.items()}
    assert {name: words for name, words in missing.items() if words} == {}


def test_the_hall_is_small_and_no_module_is_long() -> None:
    assert len(modules(PACKAGE)) <= 8
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_only_the_command_line_prints_results() -> None:
    printing = re.compile(
        r"console\.(result|print_json|table|figures)\(|^\s*print\((?!.*file=sys\.stderr)", re.MULTILINE
    )
    above = {PACKAGE / "console.py", *PACKAGE.glob("cli/*.py")}
    others = [path for path in sorted(PACKAGE.rglob("*.py")) if path not in above]
    assert [str(path.relative_to(ROOT)) for path in others if printing.search(path.read_text())] == []
