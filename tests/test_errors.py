"""What is said of an error."""

from __future__ import annotations

import pytest

from rl4rec_cli.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one  \ntwo"), "one"),
        (ValueError(), "ValueError"),
        (KeyError(" "), "' '"),
        (ValueError("\n\n"), "ValueError"),
    ],
)
def test_the_first_line_of_an_error_or_its_class(error: Exception, line: str) -> None:
    assert first_line(error).rstrip() == line
    assert first_line(str(error) if str(error).strip() else "", otherwise=line).rstrip() == line
