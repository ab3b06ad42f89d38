"""Logs of JSON lines: a damaged line is named, a cut last one left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl4rec_cli.errors import RunError
from rl4rec_cli.files.logs import read_jsonl


def test_a_log_s_line_that_is_no_record_is_named_and_a_cut_last_one_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n\n{"step": 2}\n{"st')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n[2]\n')
    with pytest.raises(RunError, match=r"log\.jsonl:2: is no JSON object"):
        read_jsonl(path)
