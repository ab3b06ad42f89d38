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


@pytest.mark.parametrize("ending", ['"d",4', "d,4"])
def test_an_open_quote_swallows_no_row(tmp_path: Path, ending: str) -> None:
    after = ["dan,a,1", "dan,b,2", "dan,c,3"]
    path = csv_of(tmp_path / "rows.csv", 'cat,"a,1', *after, f"dan,{ending}")
    result = bring_in("csv", path, title_from="item")
    assert by_source(result.dataset) == {**WANTED, "dan": ["a", "b", "c", "d"]}
    assert result.table.read == 11
    assert dropped(result) == {"cannot be read": 1}
    assert first_drops(result)["cannot be read"].startswith(f"{path}:8: ")


def test_a_quote_that_ends_within_a_field_breaks_its_row_alone(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "rows.csv", 'cat,"a"b,1', 'dan,"x', 'y",1', 'dan,12" record,2', "dan,c,3")
    result = bring_in("csv", path, title_from="item")
    assert by_source(result.dataset) == {**WANTED, "dan": ["x\ny", '12" record', "c"]}
    assert dropped(result) == {"cannot be read": 1}
    assert first_drops(result)["cannot be read"].startswith(f"{path}:8: ")


def test_a_long_description_beside_a_line_end_in_quotes(tmp_path: Path) -> None:
    titles = write(tmp_path / "items.csv", "item,title,more", 'a,A,"x', 'y"', f"b,B,{'z' * 140_000}", "c,C,")
    result = bring_in("csv", csv_of(tmp_path / "rows.csv"), titles=str(titles))
    assert len(items_of(result.dataset)["b"]["more"]) == 140_000


def test_lines_of_items_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    titles = write(tmp_path / "items.csv", "item,title", "a,A", "b,B", "c,C", 'd,"D"D')
    result = bring_in("csv", csv_of(tmp_path / "rows.csv"), titles=str(titles))
    told = dict(result.choices)["other lines that cannot be read"]
    assert told.startswith("1, the first items.csv:5: ")  # without the folder: the same files elsewhere, the same bytes
    assert result.dataset.meta["import"]["choices"]["other lines that cannot be read"] == told


def test_places_in_meta_have_the_whole_name_of_a_file_named_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv_of(tmp_path / "rows.csv", "ann,d,soon")
    monkeypatch.chdir(tmp_path)
    rows = bring_in("csv", Path("rows.csv"), title_from="item").dataset.meta["import"]["rows"]
    assert [drop["first"] for drop in rows["dropped"]] == ["rows.csv:8"]


def test_line_ends_of_old_computers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("\r".join(["user,item,time", *LINES]).encode())
    with pytest.raises(DataError, match=r"rows\.csv:1: its lines end in CR alone"):
        bring_in("csv", path, title_from="item")
    path.write_bytes("\r\n".join(["time,user,item", *(f"{t},{u},{i}" for u, i, t in ROWS)]).encode())
    assert by_source(bring_in("csv", path, title_from="item").dataset) == WANTED


@pytest.mark.parametrize("form", ["csv", "parquet", "json"])
@pytest.mark.parametrize("column", ["line", "file"])
def test_a_column_may_be_called_line(tmp_path: Path, form: str, column: str) -> None:
    path = tmp_path / "rows"
    records = [dict(zip(("user", column, "time"), row, strict=True)) for row in ROWS]
    if form == "csv":
        csv_of(path, head=f"user,{column},time")
    elif form == "json":
        write(path, *map(json.dumps, records))
    else:
        pl.DataFrame(records).write_parquet(path)
    titles = write(tmp_path / "items.csv", f"{column},title,line number", "a,A,1", "b,B,2", "c,C,3")
    result = bring_in("csv", path, item=column, titles=str(titles))
    assert by_source(result.dataset) == WANTED


def test_an_empty_second_column_is_no_wrong_separator(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "user,place,item,time", *(f"{u},,{i},{t}" for u, i, t in ROWS))
    assert by_source(bring_in("csv", path, title_from="item").dataset) == WANTED


@pytest.mark.parametrize("separator", ["::", "§"])
def test_a_separator_of_several_bytes(tmp_path: Path, separator: str) -> None:
    lines = ["user,item,time", *LINES, "bob,c,1,5"]
    path = write(tmp_path / "rows", *(line.replace(",", separator) for line in lines))
    result = bring_in("csv", path, title_from="item", separator=separator)
    assert (by_source(result.dataset), dropped(result)) == (WANTED, {"cannot be read": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": ""}, "--separator is ''"),
        ({"separator": '"'}, "--separator"),
        ({"separator": "\n"}, "--separator"),
        ({"encoding": "utf-16-le"}, "--encoding: lines of utf-16-le"),
        ({"encoding": "idna"}, "--encoding: lines of idna"),
        ({"min_rating": float("nan")}, "--min-rating is nan"),
        ({"time_unit": "none"}, "--time-unit is 'none'"),
        ({"split_time": "inf"}, "--split-time is 'inf', which is no time"),
        ({"split_time": "1530403200000"}, "--split-time is '1530403200000', which is no time"),
        ({"split_time": "20180701"}, "--split-time is '20180701', which is no time"),
    ],
)
def test_values_that_mean_nothing(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bring_in("csv", csv_of(tmp_path / "rows.csv"), title_from="item", **options)


def test_ids_that_are_nearly_the_same_stay_apart(tmp_path: Path) -> None:
    rows = [
        "u,007,1",
        "u,7,2",
        "u,07,3",
        "u, 7 ,4",
        "v,A,1",
        "v,a,2",
        "v,á,3",
        "v,a\u0301,4",
        "٣,7,1",
        "٣,a,2",
        "٣,A,3",
    ]
    result = bring_in("csv", write(tmp_path / "rows.csv", "user,item,time", *rows), title_from="item")
    ids = {"u": ["007", "7", "07"], "v": ["A", "a", "á", "a\u0301"], "٣": ["7", "a", "A"]}
    assert by_source(result.dataset) == ids
    assert dropped(result) == {"user and item again (first kept)": 1}


def test_numbers_as_ids_are_the_same_in_every_form_and_nan_is_none(tmp_path: Path) -> None:
    users, items = [1.0, 1.0, 1.0, 1.0, float("nan"), None], [7.0, 8.0, 9.5, 7.0, 7.0, 8.0]
    table = pl.DataFrame({"user": users, "item": items, "time": range(6)})
    table.write_parquet(tmp_path / "rows.parquet")
    lines = [
        f'{{"user": {json.dumps(user)}, "item": {item}, "time": {time}}}'
        for time, (user, item) in enumerate(zip(users, items, strict=True))
    ]
    titles = write(tmp_path / "items.jsonl", *(f'{{"item": {i}, "title": "T{i}"}}' for i in ("7.0", "8", "9.5")))
    files = [tmp_path / "rows.parquet", write(tmp_path / "slow.jsonl", *lines)]  # NaN is no JSON to the fast reader
    files.append(write(tmp_path / "fast.jsonl", *(line.replace("NaN", "null") for line in lines)))
    for path in files:
        result = bring_in("csv", path, titles=str(titles))
        assert by_source(result.dataset) == {"1": ["7", "8", "9.5"]}, path
        assert dropped(result) == {"without user": 2, "user and item again (first kept)": 1}
        assert items_of(result.dataset)["7"]["title"] == "T7.0"


def test_a_rating_that_is_no_number_is_none(tmp_path: Path) -> None:
    rows = [*(f"{line};5" for line in LINES), "ann;d;4;nan", "ann;e;5;inf", "ann;f;6;4,5"]
    path = write(
        tmp_path / "rows.csv", "user;item;time;rating", *(row.replace(",", ";", 2) for row in rows[:6]), *rows[6:]
    )
    result = bring_in("csv", path, title_from="item", min_rating=4)
    assert (by_source(result.dataset), dropped(result)) == (WANTED, {"without a rating": 3})


def times_csv(path: Path, *times: str) -> Path:
    return write(path, "user,item,time", *(f"u,{item},{time}" for item, time in zip("abcdefgh", times, strict=False)))


def test_times_of_two_units(tmp_path: Path) -> None:
    path = times_csv(tmp_path / "rows.csv", "1500000000000", "1500000001", "1500000002000")
    with pytest.raises(DataError, match=r"rows\.csv:3: times of two units: 1500000001 here, 1500000002000 elsewhere"):
        bring_in("csv", path, title_from="item")
    start = times_csv(tmp_path / "rows.csv", "1", "86400000", "86400000000")  # a log whose times begin at nought
    assert bring_in("csv", start, title_from="item", time_unit="ms").dataset.times == ((0.001, 86400, 86400000),)


def test_one_number_that_is_no_time_does_not_choose_the_unit(tmp_path: Path) -> None:
    path = times_csv(tmp_path / "rows.csv", "1500000000", "1500000001", "1e300", "1500000002", "-1e300")
    result = bring_in("csv", path, title_from="item")
    assert result.dataset.times == ((1500000000, 1500000001, 1500000002),)
    assert dropped(result) == {"without a readable time": 2}


@pytest.mark.parametrize("clock", ["", "1230", "123059"])
def test_dates_in_figures_are_no_seconds(tmp_path: Path, clock: str) -> None:
    path = times_csv(tmp_path / "rows.csv", *(f"201707{day}{clock}" for day in (14, 15, 16)))
    with pytest.raises(DataError, match=f"times such as 20170716{clock} are dates in figures"):
        bring_in("csv", path, title_from="item")
    if not clock:
        assert bring_in("csv", path, title_from="item", time_unit="s").dataset.times[0][0] == 20170714  # type: ignore[index]


def test_dates_whose_month_nobody_knows(tmp_path: Path) -> None:
    path = times_csv(tmp_path / "rows.csv", *(f"1/{day}/2020 3:04:05 AM" for day in (2, 3, 4)))
    with pytest.raises(DataError, match="only 0 of 3 rows can be used"):
        bring_in("csv", path, title_from="item")


def test_a_split_outside_the_times_says_where_they_lie(tmp_path: Path) -> None:
    path = times_csv(tmp_path / "rows.csv", *(f"2018-07-0{day}" for day in range(1, 7)))
    for moment in ("2018", "2019-01-01", "2018-07-06"):
        with pytest.raises(DataError, match="no user has an item before the split and two after it") as caught:
            bring_in("csv", path, title_from="item", split_time=moment)
        assert "2018-07-01 00:00:00 and 2018-07-06 00:00:00" in str(caught.value.hint)
    on_the_border = bring_in("csv", path, title_from="item", split_time="2018-07-05")  # what is at it comes after it
    assert by_source(on_the_border.dataset) == {"u": list("abcdef")}


def test_the_title_of_a_later_row_counts_where_the_first_has_none(tmp_path: Path) -> None:
    rows = [f"{line},{'' if line.startswith('ann') else line.split(',')[1].upper()}" for line in LINES]
    result = bring_in("csv", write(tmp_path / "rows.csv", "user,item,time,title", *rows))
    assert {item: row["title"] for item, row in items_of(result.dataset).items()} == {"a": "A", "b": "B", "c": "C"}


def test_names_of_users_are_no_titles(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "user,item,time,name", *(f"{line},{line[:3].title()}" for line in LINES))
    with pytest.raises(DataError, match="3 of 3 items have several titles: a is called 'Ann' and 'Bob'"):
        bring_in("csv", path)
    few = [*(f"{line},Item {line.split(',')[1]}" for line in LINES), "cat,a,1,Another", "cat,b,2,Item b", "cat,c,3,"]
    result = bring_in("csv", write(tmp_path / "rows.csv", "user,item,time,title", *few))
    assert items_of(result.dataset)["a"]["title"] == "Item a"
    assert dict(result.choices)["items of several titles"] == "1; the first counts"


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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.inter.json", '{"u": "12 13 14"}', "user u has no list of items"),
        ("x.inter.json", '{"u": [1, [2], null]}', "user u has no list of items"),
        ("x.csv", "u,\"['1', '2']\",3,\"['A']\",C", "2 items and 1 titles in the history"),
        ("x.item.json", '{"1": "A"}', "item 1 is no JSON object"),
    ],
)
def test_sequences_of_another_form(tmp_path: Path, name: str, content: str, message: str) -> None:
    head = "user_id,history_item_id,item_id,history_item_title,item_title\n" if name.endswith("csv") else ""
    if name == "x.item.json":
        (tmp_path / "x.inter.json").write_text('{"u": [1, 2, 3]}')
    (tmp_path / name).write_text(f"{head}{content}\n")
    with pytest.raises(DataError, match=message):
        bring_in("letter", tmp_path)


def test_sequences_of_p5_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "sequential_data.txt").write_bytes(b"u 1 2 3\nw\xff 1 2 3\nw\xfe 1 2 3\n")  # would be one user
    with pytest.raises(DataError, match=r"sequential_data\.txt:2: not valid utf-8"):
        bring_in("p5", tmp_path, title_from="item")
    write(tmp_path / "sequential_data.txt", "u 1 2 3")
    write(tmp_path / "datamaps.json", '{"id2item": ["A"]}')
    with pytest.raises(DataError, match="id2item is no JSON object"):
        bring_in("p5", tmp_path, title_from="item")
