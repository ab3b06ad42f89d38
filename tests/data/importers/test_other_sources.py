"""Yelp, Steam, MIND, H&M, LastFM, RecBole, P5 and LETTER: small files in their exact forms, with the traps of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from raw_files import bring_in, by_source, dropped, items_of, write

from rl4rec_cli.errors import ConfigError, DataError


def test_yelp_is_read_in_utc_and_keeps_repeats(tmp_path: Path) -> None:
    reviews = [("u", "b1", "03"), ("u", "b2", "02"), ("u", "b1", "01"), ("u", "b3", "04")]
    lines = [
        json.dumps(
            {"review_id": f"r{n}", "user_id": user, "business_id": item, "stars": 4.0, "useful": 0, "text": "x\ny"}
            | {"date": f"2018-07-{day} 00:00:00"}
        )
        for n, (user, item, day) in enumerate(reviews)
    ]
    write(tmp_path / "yelp_academic_dataset_review.json", *lines)
    shop = {
        "address": "",
        "city": "Reno",
        "stars": 4.5,
        "review_count": 9,
        "attributes": {"WiFi": "u'no'"},
        "hours": None,
    }
    shops = [
        {"business_id": "b1", "name": "Café &amp; Bar", "categories": "Cafes, Bars"},
        {"business_id": "b2", "name": "Shop", "categories": None},
        {"business_id": "b3", "name": "Spa", "categories": "Spas"},
    ]
    write(tmp_path / "yelp_academic_dataset_business.json", *(json.dumps(shop | one) for one in shops))
    write(tmp_path / "yelp_academic_dataset_tip.json", '{"user_id": "u", "business_id": "b1", "text": "x"}')
    result = bring_in("yelp", tmp_path)
    assert by_source(result.dataset) == {"u": ["b1", "b2", "b1", "b3"]}
    assert result.dataset.mask_history is False
    assert result.dataset.times == ((1530403200, 1530489600, 1530576000, 1530662400),)
    items = items_of(result.dataset)
    assert items["b1"]["text"] == "Café & Bar. Categories: Cafes, Bars. City: Reno."
    assert items["b2"]["text"] == "Shop. City: Reno."
    assert not {"stars", "review_count"} & items["b1"].keys()
    assert by_source(bring_in("yelp", tmp_path, duplicates="last").dataset) == {"u": ["b2", "b1", "b3"]}


def test_steam_reads_literals_and_users_without_an_id(tmp_path: Path) -> None:
    rows = [
        ("ann", "10", "2018-01-03"),
        ("ann", "20", "2018-01-01"),
        ("ann", "30", "2018-01-02"),
        ("ann", "20", "2018-01-09"),
    ]
    reviews = [
        f"{{u'username': u'{user}', u'product_id': u'{item}', u'date': u'{day}', u'text': u'so \\'so\\''}}"
        for user, item, day in rows
    ]
    reviews.append("{u'username': u'x', u'user_id': u'7656', u'product_id': u'10', u'date': u'2018-01-01'}")
    write(tmp_path / "steam_reviews.json", *reviews, "{u'username': broken")
    games = [
        "{u'id': u'10', u'app_name': u'Half-Life', u'title': u'Half-Life&reg;', u'genres': [u'Action'], "
        "u'tags': [u'FPS', u'Old']}",
        "{u'app_name': u'Portal', u'id': u'20', u'genres': [u'Puzzle']}",
        "{u'app_name': u'Never', u'id': u'99'}",
    ]
    write(tmp_path / "steam_games.json", *games)
    result = bring_in("steam", tmp_path, title_from="Game {item}")
    assert by_source(result.dataset) == {"ann": ["20", "30", "10"]}
    items = items_of(result.dataset)
    assert items["10"]["text"] == "Half-Life®. Genres: Action. Tags: FPS, Old."
    assert items["20"]["title"] == "Portal"
    assert items["30"]["title"] == "Game 30"
    assert dropped(result) == {
        "cannot be read": 1,
        "user and item again (first kept)": 1,
        "users with fewer than 3 rows (1 round)": 1,
    }
    assert result.table.drops["cannot be read"].first.startswith(f"{tmp_path}/steam_reviews.json:6: no Python literal")


def test_mind_has_history_first_and_noon_after_morning(tmp_path: Path) -> None:
    behaviors = [
        "1\tU1\t11/11/2019 12:05:58 PM\tN1 N2\tN4-1 N5-0",
        "2\tU1\t11/11/2019 9:05:58 AM\tN1 N2\tN3-1 N4-0",
        "3\tU2\t11/12/2019 1:00:00 AM\t\tN5-1 N1-0 N2-1 N3-1",
    ]
    write(tmp_path / "behaviors.tsv", *behaviors)
    write(tmp_path / "news.tsv", *(f'N{i}\tsports\tgolf\tSays "{i}"\tabout\thttp://x\t[]\t[]' for i in range(1, 6)))
    result = bring_in("mind", tmp_path)
    assert by_source(result.dataset) == {"U1": ["N1", "N2", "N3", "N4"], "U2": ["N5", "N2", "N3"]}
    assert result.dataset.times is None
    assert items_of(result.dataset)["N1"]["text"] == 'Says "1". Category: sports > golf.'
    write(tmp_path / "behaviors.tsv", behaviors[0].replace("11/11/2019", "yesterday"))
    with pytest.raises(DataError, match=r"behaviors\.tsv:1: the time cannot be read"):
        bring_in("mind", tmp_path)


def test_hm_ids_keep_their_nought(tmp_path: Path) -> None:
    rows = [(1, "0108775015"), (2, "0108775044"), (2, "0108775015"), (3, "0110065001")]
    head = "t_dat,customer_id,article_id,price,sales_channel_id"
    write(tmp_path / "transactions_train.csv", head, *(f"2018-09-2{day},c0ffee,{item},0.05,2" for day, item in rows))
    names = "article_id,product_code,prod_name,product_type_no,product_type_name,"
    names += "colour_group_name,department_name,detail_desc"
    items = [
        f'{item},1,Strap top,253,Vest top,Black,Jersey,"Top, with ""straps""\nof jersey."'
        for item in dict.fromkeys(i for _, i in rows)
    ]
    write(tmp_path / "articles.csv", names, *items)
    result = bring_in("hm", tmp_path)
    assert by_source(result.dataset) == {"c0ffee": ["0108775015", "0108775044", "0108775015", "0110065001"]}
    assert result.dataset.meta["time_ties"] == {"validation": 1, "test": 0}
    item = items_of(result.dataset)["0108775015"]
    assert item["text"] == (
        'Strap top. Type: Vest top. Colour: Black. Department: Jersey. Top, with "straps" of jersey.'
    )
    assert "product_code" not in item


def test_lastfm_goes_by_first_taggings(tmp_path: Path) -> None:
    rows = [
        (2, 52, 13, 1238536800000),
        (2, 63, 15, 1238536900000),
        (2, 52, 18, 1238537000000),
        (2, 73, 13, 1238540400000),
    ]
    lines = ["\t".join(map(str, row)) for row in rows]
    write(tmp_path / "user_taggedartists-timestamps.dat", "userID\tartistID\ttagID\ttimestamp", *lines)
    artists = ['52\tMo "B"\thttp://x\thttp://p', "63\tBjörk\thttp://x\t", "73\tSigur Rós\thttp://x\thttp://p"]
    write(tmp_path / "artists.dat", "id\tname\turl\tpictureURL", *artists)
    write(tmp_path / "tags.dat", "tagID\ttagValue", "1\tcafé", encoding="cp1252")
    result = bring_in("lastfm", tmp_path)
    assert by_source(result.dataset) == {"2": ["52", "63", "73"]}
    assert result.dataset.times == ((1238536800, 1238536900, 1238540400),)
    assert items_of(result.dataset)["52"]["title"] == 'Mo "B"'


INTER = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
INTER += [f"u\t{item}\t4\t{time}" for item, time in (("i1", "3.0"), ("i2", "1e0"), ("i3", "2"))]


def test_recbole_alone_and_with_items(tmp_path: Path) -> None:
    inter = write(tmp_path / "x.inter", *INTER)
    assert by_source(bring_in("recbole", inter, title_from="item").dataset) == {"u": ["i2", "i3", "i1"]}
    head = "item_id:token\tmovie_title:token_seq\trelease_year:float\tclass:token_seq"
    write(tmp_path / "x.item", head, *(f"i{n}\tToy Story {n}\t1995\tAnimation Comedy" for n in (1, 2, 3)))
    item = items_of(bring_in("recbole", tmp_path).dataset)["i1"]
    assert (item["title"], item["class"], item["release_year"]) == ("Toy Story 1", ["Animation", "Comedy"], 1995.0)
    assert item["text"] == "Toy Story 1. Class: Animation, Comedy."
    write(inter, *(line.replace("\t", ",") for line in INTER))
    with pytest.raises(DataError, match=r"has no type"):
        bring_in("recbole", inter, title_from="item")
    assert by_source(bring_in("recbole", inter, separator=",", title_from="item").dataset) == {"u": ["i2", "i3", "i1"]}
    with pytest.raises(DataError, match=r"no \.inter among"):
        bring_in("recbole", tmp_path / "x.item")
    with pytest.raises(DataError, match="no column 'who'"):
        bring_in("recbole", inter, separator=",", user="who")


def test_recbole_with_titles_of_ones_own(tmp_path: Path) -> None:
    inter = write(tmp_path / "x.inter", *INTER)
    titles = write(tmp_path / "t.csv", "item_id,name,maker", "i1,Toy Story,Pixar", "i2,,A", "i3,Heat,")
    items = items_of(bring_in("recbole", inter, titles=str(titles), title_from="item").dataset)
    assert {name: item["title"] for name, item in items.items()} == {"i1": "Toy Story", "i2": "i2", "i3": "Heat"}
    assert items["i1"]["maker"] == "Pixar"
    # Beside an .item, what the file says comes first, and what it does not say stays.
    item = write(
        tmp_path / "x.item", "item_id:token\tname:token\tyear:float", *(f"i{n}\tOld {n}\t1995" for n in (1, 2, 3))
    )
    items = items_of(bring_in("recbole", [inter, item], titles=str(titles)).dataset)
    assert {name: one["title"] for name, one in items.items()} == {"i1": "Toy Story", "i2": "Old 2", "i3": "Heat"}
    assert {one["year"] for one in items.values()} == {1995.0}
    with pytest.raises(ConfigError, match="--encoding goes with --titles"):
        bring_in("recbole", inter, encoding="latin-1")
    with pytest.raises(ConfigError, match="--titles is not an option of movielens"):
        bring_in("movielens", inter, titles=str(titles))


def test_recbole_benchmark_files(tmp_path: Path) -> None:
    head = "user_id:token\titem_id_list:token_seq\titem_id:token"
    write(tmp_path / "x.train.inter", head, "u\ti1\ti2", "v\ti9\ti8")
    write(tmp_path / "x.valid.inter", head, "u\ti1 i2\ti3", "v\ti9 i8\ti1")
    write(tmp_path / "x.test.inter", head, "u\ti1 i2 i3\ti4")
    result = bring_in("recbole", tmp_path, title_from="item")
    assert by_source(result.dataset) == {"u": ["i1", "i2", "i3", "i4"], "v": ["i9", "i8", "i1"]}
    assert result.dataset.times is None


def test_p5(tmp_path: Path) -> None:
    write(tmp_path / "sequential_data.txt", "1 1 2 3", "2 3 2 1 4")
    maps = {"user2id": {"A": "1"}, "id2item": {str(n): f"B{n}" for n in range(1, 5)}}
    (tmp_path / "datamaps.json").write_text(json.dumps(maps))
    (tmp_path / "Beauty_item2attributes.json").write_text(json.dumps({"1": [4, 7], "2": [7]}))
    result = bring_in("p5", tmp_path, title_from="item")
    assert by_source(result.dataset) == {"1": ["B1", "B2", "B3"], "2": ["B3", "B2", "B1", "B4"]}
    assert items_of(result.dataset)["B1"]["text"] == "B1. Attributes: 4, 7."
    with pytest.raises(DataError, match="no item has a title"):
        bring_in("p5", tmp_path)
    titles = write(
        tmp_path / "elsewhere" / "t.tsv", "asin\ttitle\tbrand", "B1\tHat\tAcme", "B2\tBelt\t", "B9\tNo\t", "B3\t\tX"
    )
    files = [tmp_path / name for name in ("sequential_data.txt", "datamaps.json", "Beauty_item2attributes.json")]
    titled = bring_in("p5", files, titles=str(titles), title_from="item")
    items = items_of(titled.dataset)
    assert {name: item["title"] for name, item in items.items()} == {"B1": "Hat", "B2": "Belt", "B3": "B3", "B4": "B4"}
    assert (items["B1"]["brand"], items["B1"]["text"]) == ("Acme", "Hat. Attributes: 4, 7.")
    assert "t.tsv" in {file["name"] for file in titled.dataset.meta["import"]["files"]}
    with pytest.raises(ConfigError, match="--separator goes with --titles"):
        bring_in("p5", files, separator=",")
    with pytest.raises(DataError, match="no item has a title") as refused:
        bring_in("p5", files, titles=str(write(tmp_path / "other.csv", "item,title", "7,Hat")))
    assert "such as B" in str(refused.value.hint)
    (tmp_path / "datamaps.json").write_text("{")
    with pytest.raises(DataError, match=r"datamaps\.json:\d: not JSON"):
        bring_in("p5", tmp_path, title_from="item")


def test_letter_json(tmp_path: Path) -> None:
    (tmp_path / "Beauty.inter.json").write_text(json.dumps({"0": [2, 0, 1], "1": [1, 2, 0, 1]}))
    items = {str(n): {"title": f"Item {n}", "description": "['Soft.', 'Red.']", "brand": ""} for n in range(3)}
    (tmp_path / "Beauty.item.json").write_text(json.dumps(items))
    (tmp_path / "Beauty.index.json").write_text(json.dumps({"0": ["<a_1>"]}))
    result = bring_in("letter", tmp_path)
    assert by_source(result.dataset) == {"0": ["2", "0", "1"], "1": ["1", "2", "0"]}
    assert items_of(result.dataset)["0"]["description"] == "Soft. Red."


def test_letter_csv(tmp_path: Path) -> None:
    head = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid"
    rows = ["A1,\"['It''s', 'b']\",c,\"[1, 2]\",3,\"['<a_1>']\",<a_3>".replace("''", "\\'")]
    rows += ["A1,\"['x']\",b,[1],2,\"['<a_1>']\",<a_2>"]
    write(tmp_path / "Beauty.csv", head, *rows)
    result = bring_in("letter", tmp_path)
    assert by_source(result.dataset) == {"A1": ["1", "2", "3"]}
    assert items_of(result.dataset)["3"]["title"] == "c"
    write(tmp_path / "Beauty.csv", head, "A1,[,b,[1],2,x,y")
    with pytest.raises(DataError, match=r"Beauty\.csv:2: no Python list"):
        bring_in("letter", tmp_path)


@pytest.mark.parametrize("source", ["yelp", "steam", "mind", "hm", "lastfm", "recbole", "p5", "letter", "amazon2018"])
def test_files_of_another_source_are_refused(tmp_path: Path, source: str) -> None:
    path = write(tmp_path / "rows.txt", "some,thing", "1,2")
    with pytest.raises((DataError, ConfigError)) as caught:
        bring_in(source, path)
    assert "rows.txt" in f"{caught.value} {caught.value.hint}"
