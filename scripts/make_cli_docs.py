"""Write docs/cli.md from the help of every command.

python scripts/make_cli_docs.py            # write
python scripts/make_cli_docs.py --check    # exit 1 if the file is not current
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from rl4rec_cli.cli.main import app

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"
HEAD = """# Command line

Written by `python scripts/make_cli_docs.py` from the commands' own help; do not edit.

Results go to standard output, progress and logs to standard error. Exit codes: 0 done, 1 failed, 2 usage or
configuration or data, 130 interrupted, 143 terminated.
"""


def helps(command: Any, name: str, parent: Any = None) -> Iterator[tuple[str, str]]:
    """The path and the help of a command and of all commands below it."""
    # The width is fixed: the text must not depend on the terminal it is made in.
    context = command.make_context(
        name, [], parent=parent, resilient_parsing=True, terminal_width=100, max_content_width=100
    )
    yield context.command_path, command.get_help(context)
    for below, child in getattr(command, "commands", {}).items():
        yield from helps(child, below, context)


def render() -> str:
    parts = [HEAD]
    for path, text in helps(typer.main.get_command(app), "rl4rec"):
        parts.append(f"## `{path}`\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def main() -> int:
    text = render()
    if "--check" in sys.argv[1:]:
        current = TARGET.exists() and TARGET.read_text(encoding="utf-8") == text
        print("docs/cli.md is current" if current else "docs/cli.md is not current: run scripts/make_cli_docs.py")
        return 0 if current else 1
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
