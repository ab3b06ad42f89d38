"""Amazon reviews of three years, with the traps of each."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from raw_files import bring_in, by_source, dropped, items_of, write

from rl4rec_cli.errors import DataError

DAY = 86400
CHOICES = [("A1", "B1", 1), ("A1", "B2", 2), ("A1", "B3", 2), ("A2", "B3", 1), ("A2", "B2", 1), ("A2", "B1", 3)]
SEQUENCES = {"A1": ["B1", "B2", "B3"], "A2": ["B3", "B2", "B1"]}


def packed(path: Path, *lines: str) -> Path:
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return path


def review(user: str, item: str, day: int, **more: Any) -> str:
    record = {"reviewerID": user, "asin": item, "helpful": [0, 0], "reviewText": "x\u2028y", "overall": 5.0}
    return json.dumps(record | {"unixReviewTime": day * DAY, "reviewTime": "01 1, 1970"} | more)


def of_2014(folder: Path) -> list[Path]:
    meta = [
        {
            "asin": "B1",
            "title": 'Red &amp; blue "lacquer"',
            "price": 3.5,
            "imUrl": "http://x",
            "related": {"also_bought": ["B2", "B3"]},
            "salesRank": {"Beauty": 7},
            "brand": "OPI",
            "categories": [["Beauty", "Makeup", "Nails"], ["Beauty", "Gifts"]],
        },
        {"asin": "B2", "title": "It's a brush", "categories": [["Beauty"]], "description": "Soft\n<b>hair</b>."},
        {"asin": "B3", "related": {"also_viewed": ["B1"]}, "categories": [["Beauty", "Hair"]]},
        {"asin": "B9", "title": "Never chosen"},
    ]
    return [
        packed(folder / "reviews_Beauty_5.json.gz", *(review(*choice) for choice in CHOICES)),
        packed(folder / "meta_Beauty.json.gz", *(repr(record) for record in meta), "{'asin': broken"),
    ]


def test_2014_reads_python_literals_and_leaves_out_what_gives_answers_away(tmp_path: Path) -> None:
    result = bring_in("amazon2014", of_2014(tmp_path), title_from="Item {item} of {categories}")
    assert by_source(result.dataset) == SEQUENCES
    items = items_of(result.dataset)
    assert items["B1"]["title"] == 'Red & blue "lacquer"'
    assert items["B1"]["text"] == 'Red & blue "lacquer". Brand: OPI. Categories: Makeup > Nails; Gifts.'
    assert items["B2"]["description"] == "Soft hair ."
    assert items["B3"]["title"] == "Item B3 of Hair"
    assert not any({"related", "salesRank"} & item.keys() for item in items.values())
    assert result.dataset.meta["time_ties"] == {"validation": 1, "test": 1}
    assert "related" in bring_in("amazon2014", of_2014(tmp_path), title_from="item", leaks=True).dataset.items[0]


def test_2014_items_without_a_title_and_their_rows_are_dropped(tmp_path: Path) -> None:
    reviews, meta = of_2014(tmp_path)
    more = [review("A3", item, day) for day, item in enumerate(["B1", "B2", "B3", "B9", "B8"])]
    packed(reviews, *(review(*choice) for choice in CHOICES), *more)
    result = bring_in("amazon2014", [reviews, meta])
    assert by_source(result.dataset) == {"A3": ["B1", "B2", "B9"]}
    assert dropped(result) == {
        "of items that are not described": 1,
        "of items without a title": 3,
        "users with fewer than 3 rows (1 round)": 4,
    }


@pytest.mark.parametrize("turned", [False, True])
def test_files_are_told_apart_by_their_fields(tmp_path: Path, turned: bool) -> None:
    files = of_2014(tmp_path)
    result = bring_in("amazon2014", files[::-1] if turned else files, title_from="item")
    assert by_source(result.dataset) == SEQUENCES


def test_2014_ratings_without_reviews(tmp_path: Path) -> None:
    ratings = write(tmp_path / "ratings_Beauty.csv", *(f"{u},{i},4.0,{day * DAY}" for u, i, day in CHOICES))
    result = bring_in("amazon2014", [ratings, of_2014(tmp_path)[1]], title_from="item", min_rating=4)
    assert by_source(result.dataset) == SEQUENCES


def test_code_in_metadata_is_not_run(tmp_path: Path) -> None:
    reviews, meta = of_2014(tmp_path)
    target = tmp_path / "ran"
    lines = [f"{{'asin': 'B1', 'title': open({str(target)!r}, 'w')}}", *["{'asin': 'B2', 'title': 'x'}"] * 400]
    packed(meta, *lines)
    result = bring_in("amazon2014", [reviews, meta], title_from="item")
    assert not target.exists()
    assert items_of(result.dataset)["B1"]["title"] == "B1"


def test_2018_titles_of_page_source_and_repeated_lines(tmp_path: Path) -> None:
    page = "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();"
    meta = [
        {"asin": "B1", "title": page, "category": ["Beauty", "Nails"], "also_buy": ["B2"], "rank": "7 in Beauty"},
        {"asin": "B1", "title": "Lacquer &quot;red&quot;", "brand": "OPI", "category": ["Beauty", "Nails"]},
        {"asin": "B2", "title": "<span id='t'>x</span>", "category": [], "description": [], "similar_item": "<a>"},
        {
            "asin": "B3",
            "title": "Brush",
            "category": ["Hair &amp; Care"],
            "description": ["One.", "Two."],
            "price": "$3",
        },
    ]
    files = [
        packed(
            tmp_path / "Beauty_5.json.gz", *(review(*c, verified=True, vote="3", style={"a": "b"}) for c in CHOICES)
        ),
        packed(tmp_path / "meta_Beauty.json.gz", *map(json.dumps, meta)),
    ]
    result = bring_in("amazon2018", files, title_from="item")
    items = items_of(result.dataset)
    assert items["B1"]["title"] == 'Lacquer "red"'
    assert items["B1"]["text"] == 'Lacquer "red". Brand: OPI. Categories: Beauty > Nails.'
    assert items["B2"]["title"] == "B2"
    assert items["B3"]["description"] == "One. Two."
    assert items["B3"]["text"] == "Brush. Categories: Hair & Care."
    assert not any({"also_buy", "sales_rank", "similar_item"} & item.keys() for item in items.values())
    assert dict(result.choices)["items described again"].startswith("1 times")
    with pytest.raises(DataError, match="neither reviews nor metadata of this source"):
        bring_in("amazon2014", files)


def meta_2023(folder: Path) -> Path:
    meta = [
        {
            "main_category": "Beauty",
            "title": f"Item {i}",
            "parent_asin": f"B{i}",
            "store": "Acme",
            "average_rating": 4.0,
            "rating_number": 900,
            "features": ["soft", "red"],
            "categories": ["Beauty", "Nails"],
            "bought_together": None,
            "price": None,
        }
        for i in (1, 2, 3)
    ]
    return packed(folder / "meta_All_Beauty.jsonl.gz", *map(json.dumps, meta))


def test_2023_raw_goes_by_parent_asin_and_milliseconds(tmp_path: Path) -> None:
    lines = [
        json.dumps(
            {"rating": 5.0, "title": "t", "text": "x", "asin": f"C{n}", "parent_asin": item, "user_id": user}
            | {"timestamp": day * DAY * 1000 + 1500000000000}
        )
        for n, (user, item, day) in enumerate(CHOICES)
    ]
    old = json.dumps({"rating": 1.0, "parent_asin": "B1", "user_id": "A1", "timestamp": -5})
    result = bring_in("amazon2023", [packed(tmp_path / "All_Beauty.jsonl.gz", *lines, old), meta_2023(tmp_path)])
    assert by_source(result.dataset) == SEQUENCES
    assert dropped(result) == {"negative time": 1}
    assert result.dataset.times is not None
    assert result.dataset.times[0][0] == 1500000000 + DAY
    item = items_of(result.dataset)["B1"]
    assert item["text"] == "Item 1. Brand: Acme. Categories: Beauty > Nails."
    assert not {"rating_number", "average_rating", "bought_together", "price"} & item.keys()
    with pytest.raises(DataError, match="neither reviews nor metadata"):
        bring_in("amazon2014", [tmp_path / "All_Beauty.jsonl.gz", meta_2023(tmp_path)])


def test_2023_seconds_are_no_milliseconds(tmp_path: Path) -> None:
    lines = ["user_id,parent_asin,rating,timestamp", *(f"{u},{i},5.0,{1500000000 + d}" for u, i, d in CHOICES)]
    with pytest.raises(DataError, match="they are seconds"):
        bring_in("amazon2023", [write(tmp_path / "All_Beauty.csv", *lines), meta_2023(tmp_path)])


def test_2023_benchmark_splits_are_kept(tmp_path: Path) -> None:
    head = "user_id,parent_asin,rating,timestamp,history"
    parts = {
        "train": ["A1,B1,5.0,1500000000000,", "A2,B3,5.0,1500000000000,", "A3,B1,4.0,1500000000000,"],
        "valid": ["A1,B2,5.0,1500000001000,B1", "A2,B2,5.0,1500000001000,B3", "A3,B2,5.0,1500000001000,B1"],
        "test": ["A1,B3,5.0,1500000002000,B1 B2", "A2,B1,1.0,1500000002000,B3 B2"],
    }
    files = [write(tmp_path / f"All_Beauty.{part}.csv", head, *lines) for part, lines in parts.items()]
    result = bring_in("amazon2023", [files[2], files[0], files[1], meta_2023(tmp_path)])
    # The user without a row in the test part has too few rows: three are needed.
    assert by_source(result.dataset) == SEQUENCES
    assert dict(result.choices)["split"] == "as the files have it"
    with pytest.raises(DataError, match=r"one file each of \.train, \.valid and \.test"):
        bring_in("amazon2023", [files[0], files[2], meta_2023(tmp_path)])


def test_what_is_missing(tmp_path: Path) -> None:
    reviews, meta = of_2014(tmp_path)
    with pytest.raises(DataError, match="no metadata among"):
        bring_in("amazon2014", reviews)
    with pytest.raises(DataError, match="metadata alone"):
        bring_in("amazon2014", meta)
    result = bring_in("amazon2014", reviews, title_from="item")
    assert {item["title"] for item in result.dataset.items} == {"B1", "B2", "B3"}
