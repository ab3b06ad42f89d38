"""Commands that are printed can be pasted, whatever the words in them."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rl4rec_cli
from rl4rec_cli.config.base import Section
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.shell import command_line, setting

ODD = [
    "résultats du jour",
    "it's",
    'say "so"',
    "$HOME",
    "a;b",
    "* ?",
    "tab\there",
    "a\nb",
    "নমস্কার\u200c",
    "\\",
    "",
    "~",
    "#1",
]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)


def pasted(line: str) -> list[str]:
    """The words that a shell makes of a line."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


def test_a_shell_reads_back_every_word() -> None:
    line = command_line(*ODD)
    assert pasted(line) == ODD
    assert line.isprintable()


@settings(max_examples=25)
@given(st.lists(TEXT, min_size=1, max_size=8))
def test_a_shell_reads_back_any_words(words: list[str]) -> None:
    assert pasted(command_line(*words)) == words


@given(TEXT)
def test_set_reads_back_any_text(text: str) -> None:
    config = load_config(
        algorithm="grpo", sets=[setting("prompt.separator", text), setting("policy.model", f"m{text}")]
    )
    assert config.prompt.separator == text
    assert config.policy.model == f"m{text}"


@pytest.mark.parametrize(
    ("key", "value"),
    [("eval.cache_dir", None), ("policy.trust_remote_code", True), ("eval.ks", [5, 10]), ("data.path", "a #1")],
)
def test_set_reads_back_other_values(key: str, value: object) -> None:
    section, name = key.split(".")
    own: Section = getattr(load_config(algorithm="grpo", sets=[setting(key, value)]), section)
    found = getattr(own, name)
    assert (list(found) if isinstance(found, tuple) else found) == value


def test_no_command_with_a_value_in_it_is_written_by_hand() -> None:
    """A value that follows `rl4rec COMMAND …` or an option in an f-string goes through the function that quotes."""
    # An error that begins with an option, `--seeds 0,x: must be …`, is no command.
    by_hand = re.compile(r"rl4rec [a-z][a-z -]*[= ]$|.--(resume|dataset|set|reward|out|model|logdir|emb-type)[ =]$")
    found = []
    for path in sorted(Path(rl4rec_cli.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                for before, after in itertools.pairwise(node.values):
                    is_text = isinstance(before, ast.Constant) and isinstance(after, ast.FormattedValue)
                    if is_text and by_hand.search(str(before.value)):
                        found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_one_module_knows_how_a_shell_quotes() -> None:
    package = Path(rl4rec_cli.__file__).parent
    assert [p.name for p in package.rglob("*.py") if "shlex" in p.read_text()] == ["shell.py"]
