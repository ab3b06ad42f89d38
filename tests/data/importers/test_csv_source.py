"""Files of one's own: forms, columns, times, texts."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from raw_files import bring_in, by_source, dropped, items_of, write

from rl4rec_cli.errors import ConfigError, DataError

ROWS = [("ann", "a", 1), ("ann", "b", 2), ("ann", "c", 3), ("bob", "c", 1), ("bob", "a", 2), ("bob", "b", 3)]
WANTED = {"ann": ["a", "b", "c"], "bob": ["c", "a", "b"]}


def rows_csv(path: Path, separator: str = ",", rows: list[tuple[str, str, int]] = ROWS) -> Path:
    return write(path, separator.join(["user", "item", "time"]), *(separator.join(map(str, row)) for row in rows))


@pytest.mark.parametrize(
    "form", ["csv", "tsv", "semicolon", "parquet", "jsonl", "gz", "zst", "zip", "no suffix", "bom"]
)
def test_every_form_is_told_by_its_content(tmp_path: Path, form: str) -> None:
    path = tmp_path / "rows"
    rows_csv(path, {"tsv": "\t", "semicolon": ";"}.get(form, ","))
    plain = path.read_bytes()
    records = [dict(zip(("user", "item", "time"), row, strict=True)) for row in ROWS]
    if form == "parquet":
        pl.DataFrame(records).write_parquet(path)
    elif form == "jsonl":
        write(path, *map(json.dumps, records))
    elif form == "gz":
        path.write_bytes(gzip.compress(plain))
    elif form == "zst":
        path.write_bytes(pa.compress(plain, "zstd", asbytes=True))
    elif form == "bom":
        path.write_bytes(b"\xef\xbb\xbf" + plain)
    elif form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inner/rows.csv", plain)
    result = bring_in("csv", path, title_from="item")
    assert by_source(result.dataset) == WANTED
    assert result.table.read == result.table.left == 6
    assert result.dataset.times == ((1, 2, 3), (1, 2, 3))


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    for place in (0, 3):
        pl.DataFrame(ROWS[place : place + 3], schema=["user_id", "track", "played_at"], orient="row").write_parquet(
            tmp_path / f"train-0000{place}.parquet"
        )
    result = bring_in("csv", tmp_path, title_from="item")
    assert by_source(result.dataset) == WANTED
    assert [file["name"] for file in result.dataset.meta["import"]["files"]] == [
        "train-00000.parquet",
        "train-00003.parquet",
    ]


def test_what_lies_beside_tables_is_left_out_and_told(tmp_path: Path) -> None:
    pl.DataFrame(ROWS, schema=["user", "item", "time"], orient="row").write_parquet(tmp_path / "data.parquet")
    write(tmp_path / "README.md", "---", "license: mit", "---")
    write(tmp_path / "LICENSE", "Take it.")
    write(tmp_path / ".gitattributes", "*.parquet filter=lfs")
    result = bring_in("csv", tmp_path, title_from="item")
    assert by_source(result.dataset) == WANTED
    assert dict(result.choices)["files left out"] == "LICENSE, README.md"
    write(tmp_path / "more.csv", "who,what", "1,2")  # what may be a table is an error, and not left out
    with pytest.raises(DataError, match=r"more\.csv: no column looks like the user"):
        bring_in("csv", tmp_path, title_from="item")


def test_columns_by_option_and_a_file_of_items(tmp_path: Path) -> None:
    rows = write(tmp_path / "plays.tsv", "who\twhat\twhen\tcity", *(f"{u}\t{i}\t{t}\tX" for u, i, t in ROWS))
    titles = write(
        tmp_path / "tracks.csv",
        "what;headline;brand;also_bought;ean",
        'a;"Tom &amp;amp; Jerry; again";Acme;b c;001',
        "b;<b>Bold</b>\tname;;a;",
        "c;<span id=x>var a = 1;Acme;a;3",
    )
    columns = {"user": "who", "item": "what", "time": "when", "titles": str(titles), "title": "headline"}
    result = bring_in("csv", rows, **columns, title_from="{brand} {what}" if False else "item", separator=None)
    items = items_of(result.dataset)
    assert items["a"]["title"] == "Tom & Jerry; again"
    assert items["a"]["text"] == "Tom & Jerry; again. Brand: Acme. Ean: 001."
    assert items["b"]["title"] == "Bold name"
    assert items["b"]["text"] == "Bold name."
    assert items["c"]["title"] == "c"  # page source is no title
    assert not any("also_bought" in item for item in items.values())
    assert dict(result.choices)["left out"].startswith("also_bought")
    leaky = bring_in(
        "csv", rows, **columns, title_from="item", leaks=True, text="{title}[ ({brand})][ with {also_bought}]"
    )
    assert items_of(leaky.dataset)["a"]["text"] == "Tom & Jerry; again (Acme) with b c"
    assert items_of(leaky.dataset)["b"]["text"] == "Bold name with a"


def test_items_without_a_title_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = rows_csv(tmp_path / "rows.csv", rows=[*ROWS, ("ann", "d", 4), ("ann", "e", 5), ("bob", "e", 6)])
    titles = write(tmp_path / "items.csv", "item,title", "a,A", "b,B", "c,C", "d,")
    result = bring_in("csv", rows, titles=str(titles))
    assert by_source(result.dataset) == WANTED
    assert dropped(result) == {"of items that are not described": 2, "of items without a title": 1}
    assert {drop.reason: drop.first for drop in result.table.drops.values()} == {
        "of items that are not described": "item e",
        "of items without a title": "item d",
    }


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (("1500000000", "1500000001", "1500000002"), (1500000000, 1500000001, 1500000002)),
        (("1500000000123", "1500000001000", "1500000002000"), (1500000000.123, 1500000001, 1500000002)),
        (("1500000000000000", "1500000001000000", "1500000002000000"), (1500000000, 1500000001, 1500000002)),
        (("2017-07-14", "2017-07-15 00:00:01", "2017-07-15T00:00:02Z"), (1499990400, 1500076801, 1500076802)),
        (
            ("2017-07-14T02:00:00+02:00", "2017-07-14 00:00", "2017-07-14T00:00:00.5"),
            (1499990400, 1499990400, 1499990400.5),
        ),
    ],
)
def test_times_of_every_unit(tmp_path: Path, times: tuple[str, ...], seconds: tuple[float, ...]) -> None:
    path = write(tmp_path / "rows.csv", "user,item,time", *(f"u,{i},{t}" for i, t in zip("abc", times, strict=True)))
    assert bring_in("csv", path, title_from="item").dataset.times == (seconds,)


def test_milliseconds_read_as_seconds(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "user,item,time", *(f"u,{i},1500000000000" for i in "abc"))
    with pytest.raises(DataError, match=r"the year 49,5\d\d: they are milliseconds"):
        bring_in("csv", path, title_from="item", time_unit="s")


def test_rows_in_order_without_times(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "user,item", "u,b", "u,a", "v,c", "u,c", "v,a", "v,b")
    result = bring_in("csv", path, time="none", title_from="item", ties="shuffle:3")
    assert by_source(result.dataset) == {"u": ["b", "a", "c"], "v": ["c", "a", "b"]}
    assert result.dataset.times is None
    assert "time_ties" not in result.dataset.meta
    with pytest.raises(ConfigError, match="the source has no times"):
        bring_in("csv", path, time="none", title_from="item", split_time="2020-01-01")


def test_spaces_in_ids(tmp_path: Path) -> None:
    rows = [(f"{user} lee", f"{item} x", time) for user, item, time in ROWS]
    result = bring_in("csv", rows_csv(tmp_path / "rows.csv", rows=rows), title_from="item")
    assert by_source(result.dataset) == {f"{u}%20lee": [f"{i} x" for i in items] for u, items in WANTED.items()}
    rows += [("ann%20lee", item, time) for _, item, time in rows[:3]]
    with pytest.raises(DataError, match="two users would be called ann%20lee"):
        bring_in("csv", rows_csv(tmp_path / "rows.csv", rows=rows), title_from="item")


@pytest.mark.parametrize(
    ("header", "option"),
    [
        ("user,customer_id,item,time", "columns user and customer_id can both be the user"),
        ("user,product,asin,time", "columns product and asin can both be the item"),
        ("user,thing,rating,time", "no column looks like the item"),
        ("user,item,rating,place", "no column looks like the time"),
    ],
)
def test_a_column_is_guessed_only_if_one_can_be_it(tmp_path: Path, header: str, option: str) -> None:
    path = write(tmp_path / "rows.csv", header, "1,2,3,4")
    with pytest.raises(DataError, match=option) as caught:
        bring_in("csv", path, title_from="item")
    assert header.replace(",", ", ") in str(caught.value.hint)


def test_line_ends_in_quotes_and_empty_lines(tmp_path: Path) -> None:
    lines = ["user,item,time", 'ann,"a\nx",1', "", "ann,b,2", "ann,c,3", ",d,4", "ann,,5", "ann,e,"]
    result = bring_in("csv", write(tmp_path / "rows.csv", *lines), title_from="item")
    assert by_source(result.dataset) == {"ann": ["a\nx", "b", "c"]}
    assert {drop.reason: drop.first for drop in result.table.drops.values()} == {
        "without user": f"{tmp_path}/rows.csv:7",
        "without item": f"{tmp_path}/rows.csv:8",
        "without a readable time": f"{tmp_path}/rows.csv:9",
    }


def test_the_templates_of_texts(tmp_path: Path) -> None:
    path = rows_csv(tmp_path / "rows.csv")
    with pytest.raises(ConfigError, match="no item has a field 'brand'"):
        bring_in("csv", path, title_from="item", text="{title} {brand}")
    for template in ("{title", "{}", "{title}[ {item}"):
        with pytest.raises(ConfigError, match="is no template"):
            bring_in("csv", path, title_from="item", text=template)


def test_the_first_mistakes_of_a_newcomer_are_told_the_way_out(tmp_path: Path) -> None:
    rows = rows_csv(tmp_path / "rows.csv")
    items = write(tmp_path / "items.csv", "item,title", "a,A", "b,B", "c,C")
    with pytest.raises(DataError, match="3 of 3 items in use are not described") as refused:
        bring_in("csv", rows)
    assert "--titles FILE" in str(refused.value.hint)
    with pytest.raises(DataError, match="no column looks like the user") as refused:
        bring_in("csv", [rows, items])
    assert "a file of items goes with --titles" in str(refused.value.hint)
    others = write(tmp_path / "others.csv", "item,title", "x,A", "y,B")
    with pytest.raises(DataError, match="not described") as refused:
        bring_in("csv", rows, titles=str(others))
    assert f"are the ids in {others} those of the rows, such as a?" in str(refused.value.hint)
