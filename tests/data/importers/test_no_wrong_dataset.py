"""Files that would be read without an error, but wrongly: each is refused, or what it loses is counted and placed."""

from __future__ import annotations

import datetime
import json
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from raw_files import bring_in, by_source, dropped, items_of, write

from rl4rec_cli.commands.import_data import import_dataset
from rl4rec_cli.data.importers.options import ImportOptions
from rl4rec_cli.errors import ConfigError, DataError

ROWS = [("ann", "a", 1), ("ann", "b", 2), ("ann", "c", 3), ("bob", "c", 1), ("bob", "a", 2), ("bob", "b", 3)]
WANTED = {"ann": ["a", "b", "c"], "bob": ["c", "a", "b"]}
LINES = [f"{user},{item},{time}" for user, item, time in ROWS]


def csv_of(path: Path, *more: str, head: str = "user,item,time") -> Path:
    return write(path, head, *LINES, *more)


def first_drops(result: Any) -> dict[str, str]:
    return {drop.reason: drop.first for drop in result.table.drops.values()}


def test_a_title_with_a_year_is_no_page_source(tmp_path: Path) -> None:
    pages = "function(){ var x; }", "<script>function go(a, b) {</script>"
    titles = write(
        tmp_path / "items.csv", "item\ttitle\tpage", "a\tMalfunction (2016)\t", f"b\tFunction (2)\t{pages[0]}"
    )
    with titles.open("a") as file:
        file.write(f"c\tC\t{pages[1]}\n")
    result = bring_in("csv", csv_of(tmp_path / "rows.csv"), titles=str(titles))
    assert {row["title"] for row in items_of(result.dataset).values()} == {"Malfunction (2016)", "Function (2)", "C"}
    assert not any("page" in row for row in items_of(result.dataset).values())


def test_dates_and_bytes_of_a_parquet_table_of_items(tmp_path: Path) -> None:
    day = datetime.date(2020, 1, 2)
    items = {"item": list("abc"), "title": list("ABC"), "day": [day] * 3, "picture": [b"\xff"] * 3, "x": [1.5, None, 2]}
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    out = tmp_path / "out"
    options = ImportOptions(k_core=0, titles=str(tmp_path / "items.parquet"))
    import_dataset("csv", [csv_of(tmp_path / "rows.csv")], out, options)
    rows = {row["source_id"]: row for row in map(json.loads, (out / "items.jsonl").read_text().splitlines())}
    assert (rows["a"]["day"], rows["a"]["x"]) == ("2020-01-02", 1.5)
    assert "picture" not in rows["a"]


def test_a_file_named_twice_would_count_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = csv_of(tmp_path / "raw" / "rows.csv")
    (tmp_path / "link.csv").symlink_to(path)
    for again in (path, tmp_path / "raw", tmp_path / "link.csv"):
        with pytest.raises(DataError, match="named twice"):
            bring_in("csv", [path, again], title_from="item", duplicates="none")


def test_archives_with_hidden_files_or_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("in/.DS_Store", b"\0\1")
        archive.writestr("__MACOSX/in/._rows.csv", b"\0\1")
    with pytest.raises(DataError, match="the archive is empty"):
        bring_in("csv", path, title_from="item")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("in/rows.csv", "\n".join(["user,item,time", *LINES]))
    assert by_source(bring_in("csv", path, title_from="item").dataset) == WANTED
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("in/rows.csv", "\n".join(["user,item,time", *LINES]))
    with pytest.raises(DataError, match=r"holds two files named in/rows\.csv"):
        bring_in("csv", path, title_from="item")


def test_out_is_checked_before_a_file_is_read(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "rows.csv")
    nowhere = tmp_path / "nowhere.csv"
    for out, message in (
        (path, "is a file: OUT, which comes last"),
        (path / "x", "cannot be written: Not a directory"),
    ):
        with pytest.raises(ConfigError, match=message):
            import_dataset("csv", [nowhere], out, ImportOptions())
    assert path.read_text().startswith("user,item,time\n")
