"""What can be wrong with raw files: each its own error, or a drop that is counted, with file and line."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from raw_files import bring_in, by_source, dropped, write

from rl4rec_cli.data.importers import files
from rl4rec_cli.errors import ConfigError, DataError

ROWS = [f"u{u},i{i},{i}" for u in range(40) for i in range(10)]
CSV = ["user,item,time", *ROWS]


def packed(path: Path, data: bytes, form: str) -> Path:
    path.write_bytes(gzip.compress(data) if form == "gz" else pa.compress(data, "zstd", asbytes=True))
    return path


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK", 100)


@pytest.mark.usefixtures("small_blocks")
def test_blocks_keep_lines_and_their_numbers(tmp_path: Path) -> None:
    lines = [*CSV[:150], "u1,i1,1,more", *CSV[150:], "u2,,3"]
    path = packed(tmp_path / "rows.gz", "".join(f"{line}\n" for line in lines).encode(), "gz")
    result = bring_in("csv", path, title_from="item")
    assert result.table.read == 402
    assert len(result.dataset.users) == 40
    assert all(items == [f"i{i}" for i in range(10)] for items in by_source(result.dataset).values())
    assert {drop.reason: drop.first for drop in result.table.drops.values()} == {
        "cannot be read": f"{path}:151: 4 fields for 3 columns",
        "without item": f"{path}:403",
    }


@pytest.mark.parametrize("form", ["gz", "zst"])
def test_a_truncated_file(tmp_path: Path, form: str) -> None:
    data = "".join(f"{line}\n" for line in CSV).encode()
    path = packed(tmp_path / "rows", data, form)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"rows:[\d,]+: the compressed file is cut short"):
        bring_in("csv", path, title_from="item")


def test_a_damaged_file(tmp_path: Path) -> None:
    path = packed(tmp_path / "rows", "".join(f"{line}\n" for line in CSV).encode(), "gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"rows:[\d,]+: the compressed file is damaged"):
        bring_in("csv", path, title_from="item")


def test_a_damaged_archive(tmp_path: Path) -> None:
    path = tmp_path / "rows.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.csv", "".join(f"{line}\n" for line in CSV))
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"rows\.zip:rows\.csv.*(damaged|unpacked)"):
        bring_in("csv", path, title_from="item")


def test_the_wrong_separator(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", *CSV)
    with pytest.raises(DataError, match="no column looks like the user"):
        bring_in("csv", path, title_from="item", separator=";")
    tabs = write(tmp_path / "u.data", *(row.replace(",", ";") for row in ["1,2,3,4"]))
    write(tmp_path / "u.item", "1|x")
    with pytest.raises(DataError, match="its lines have one field, not 4"):
        bring_in("movielens", tabs.parent / "u.data")


def test_the_wrong_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", *CSV[:5], "müller,i1,1", encoding="latin-1")
    with pytest.raises(DataError, match=r"rows\.csv:6: not valid utf-8: byte 0xfc") as caught:
        bring_in("csv", path, title_from="item")
    assert "--encoding latin-1" in str(caught.value.hint)
    lines = [*CSV[:5], "müller,i1,1", "müller,i2,2", "müller,i3,2"]
    write(path, *lines, encoding="latin-1")
    assert "müller" in bring_in("csv", path, title_from="item", encoding="latin-1").dataset.users
    with pytest.raises(ConfigError, match="--encoding"):
        bring_in("csv", path, title_from="item", encoding="klingon")
    path.write_bytes("\n".join(CSV).encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        bring_in("csv", path, title_from="item", separator=",", user="user", item="item", time="time")


def test_a_missing_column_names_those_that_are_there(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", *CSV)
    with pytest.raises(DataError, match="no column 'listener'") as caught:
        bring_in("csv", path, title_from="item", user="listener")
    assert caught.value.hint == "columns that are there: user, item, time"


def test_broken_lines_of_json(tmp_path: Path) -> None:
    lines = [json.dumps(dict(zip(("user", "item", "time"), row.split(","), strict=True))) for row in ROWS]
    lines[200:200] = ['{"user": "u1", "item":', '{"user": ["u1"], "item": "i1", "time": 1}', "[1]"]
    path = packed(tmp_path / "rows.gz", "".join(f"{line}\n" for line in lines).encode(), "gz")
    result = bring_in("csv", path, title_from="item")
    assert (result.table.read, result.table.left) == (403, 400)
    assert result.table.drops["cannot be read"].first.startswith(f"{path}:201: not JSON")
    assert dropped(result) == {"cannot be read": 3}


def test_too_many_broken_lines_are_another_file(tmp_path: Path) -> None:
    lines = ['{"user": "u", "item": "i", "time": 1}', *["no json"] * 20]
    with pytest.raises(DataError, match=r"rows cannot be read, the first at .*rows\.jsonl:2"):
        bring_in("csv", write(tmp_path / "rows.jsonl", *lines), title_from="item")


def test_the_line_of_a_broken_row_after_line_ends_in_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", CSV[0], 'u0,"i\n\n99",3', *CSV[1:100], "u1,i1,1,more", *CSV[100:])
    result = bring_in("csv", path, title_from="item")
    assert result.table.drops["cannot be read"].first == f"{path}:104: 4 fields for 3 columns"


def test_times_that_are_mostly_unreadable(tmp_path: Path) -> None:
    rows = ["user,item,time", "u,i0,2020-01-01", *(f"u,i{n},{n}/5/2020" for n in range(1, 6))]
    with pytest.raises(DataError, match=r"only 1 of 6 rows can be used \(without a readable time: 5, first .*:3\)"):
        bring_in("csv", write(tmp_path / "rows.csv", *rows), title_from="item")


def test_negative_times_and_times_that_are_none(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", *CSV, "u1,i1,-5", "u1,i2,soon", "u1,i3,nan")
    result = bring_in("csv", path, title_from="item")
    assert {drop.reason: (drop.rows, drop.first) for drop in result.table.drops.values()} == {
        "without a readable time": (2, f"{path}:403"),
        "negative time": (1, f"{path}:402"),
    }


def test_nothing_left_says_which_core_leaves_something(tmp_path: Path) -> None:
    rows = [f"u{u},i{(u + i) % 5},{i}" for u in range(5) for i in range(4)]
    path = write(tmp_path / "rows.csv", "user,item,time", *rows)
    with pytest.raises(DataError, match="--k-core 9") as caught:
        bring_in("csv", path, title_from="item", k_core=9)
    assert "--k-core 4" in str(caught.value.hint)
    assert bring_in("csv", path, title_from="item", k_core=4).table.left == 20
    short = write(tmp_path / "short.csv", "user,item,time", "u,a,1", "u,b,2", "v,a,1")
    with pytest.raises(DataError, match="no row is left") as caught:
        bring_in("csv", short, title_from="item")
    assert "no user has 3 rows" in str(caught.value.hint)


def test_reviews_and_metadata_exchanged(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.csv", *CSV)
    titles = write(tmp_path / "items.csv", "item,title", *(f"i{i},Item {i}" for i in range(10)))
    with pytest.raises(DataError, match=r"items\.csv: no column looks like the user"):
        bring_in("csv", titles, titles=str(rows))


def test_options_of_another_source_and_bad_values(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", *CSV)
    with pytest.raises(ConfigError, match="--user is not an option of movielens"):
        bring_in("movielens", path, user="x")
    for options, message in (
        ({"ties": "random"}, "--ties"),
        ({"duplicates": "all"}, "--duplicates"),
        ({"min_length": 2}, "--min-length"),
        ({"k_core": -1}, "--k-core"),
        ({"split_time": "soon"}, "--split-time"),
        ({"min_rating": 3}, "--min-rating"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            bring_in("csv", path, title_from="item", **options)
    with pytest.raises(ConfigError, match="unknown source 'nowhere'"):
        bring_in("nowhere", path)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        bring_in("csv", tmp_path / "nowhere.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="the folder is empty"):
        bring_in("csv", tmp_path / "folder")
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        bring_in("csv", tmp_path / "empty.csv", separator=",", user="a", item="b", time="c")
    with pytest.raises(DataError, match="there are no rows"):
        bring_in("csv", write(tmp_path / "head.csv", CSV[0]), title_from="item")
