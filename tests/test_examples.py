"""The examples run, learn, and use public names only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

LOOP = Path(__file__).parents[1] / "examples" / "loop.py"


def test_the_loop_is_a_page_of_public_names() -> None:
    source = LOOP.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 150
    tree = ast.parse(source)
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names += [name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names]
    assert [name for name in names if name.startswith("_")] == []


@pytest.mark.slow
def test_the_loop_learns(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(LOOP)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scores = {name: float(score) for name, score in re.findall(r"^(.+?) +ndcg@10 (\S+)$", done.stdout, re.MULTILINE)}
    assert scores["before GRPO"] == pytest.approx(scores["last item"], abs=0.01)
    assert scores["after GRPO"] > scores["before GRPO"] + 0.01  # .04 with this seed; half the interval is .02
    gain = re.search(r"^gain (\S+), ", done.stdout, re.MULTILINE)
    assert gain is not None
    assert float(gain[1]) == pytest.approx(scores["after GRPO"] - scores["before GRPO"], abs=1.1e-4)
