"""Dataset folders: what is read back, what is refused and in which words, and the examples made from sequences."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl4rec_cli.config.sections import DataSection, SyntheticSection
from rl4rec_cli.data.dataset import Dataset, Example, build_examples, count_train_examples
from rl4rec_cli.data.opening import load_dataset, open_dataset
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.stats import dataset_stats
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import ConfigError, DataError


def item(i: int, **fields: Any) -> dict[str, Any]:
    return {"item_id": i, "title": f"title {i}", "text": f"text {i}", **fields}


GOOD_ITEMS = [json.dumps(item(i)) for i in range(6)]
GOOD_ROWS = ["ann 0 1 2", "bob 3 4 5 0", "eve 5 4 3 2 1"]


def write_folder(
    folder: Path,
    *,
    items: list[str] | bytes | None = None,
    rows: list[str] | bytes | None = None,
    prompts: str | bytes | None = None,
    meta: str | bytes | None = None,
) -> Path:
    """A valid folder of 6 items and 3 users, but for the files given."""
    folder.mkdir(exist_ok=True)

    def put(name: str, content: list[str] | str | bytes | None) -> None:
        if content is not None:
            text = "".join(f"{line}\n" for line in content) if isinstance(content, list) else content
            (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    put("items.jsonl", GOOD_ITEMS if items is None else items)
    put("sequential_data.txt", GOOD_ROWS if rows is None else rows)
    put("prompts.json", prompts)
    put("meta.json", meta)
    return folder


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        load_dataset(folder)
    assert caught.value.exit_code == 2
    assert caught.value.hint is None or caught.value.hint.strip()
    return caught.value.problems


def with_item(line: str, *, at: int = 2) -> list[str]:
    """The good items with the row of id `at` (line at + 1) replaced."""
    return [*GOOD_ITEMS[:at], line, *GOOD_ITEMS[at + 1 :]]


def with_row(line: str) -> list[str]:
    return [GOOD_ROWS[0], line, GOOD_ROWS[2]]


# --- reading -----------------------------------------------------------------------------------------------------


def test_reads_a_folder(tmp_path: Path) -> None:
    items = [json.dumps(item(i, brand=f"b{i}")) for i in (2, 0, 1)]
    meta = '{"name": "shop 1.0", "mask_history": false, "source": "here", "extra": [1]}'
    prompts = '{"bob": "wants soap"}'
    data = load_dataset(
        write_folder(tmp_path, items=items, rows=["bob 2 2 1", "7\t0  1 2 "], prompts=prompts, meta=meta)
    )
    assert data.name == "shop 1.0"
    assert [row["item_id"] for row in data.items] == [0, 1, 2]
    assert data.items[1]["brand"] == "b1"
    assert data.num_items == 3
    assert data.users == ("bob", "7")
    assert data.sequences == ((2, 2, 1), (0, 1, 2))
    assert data.prompts == {"bob": "wants soap"}
    assert data.mask_history is False
    assert data.meta["extra"] == [1]
    assert data.texts() == ["text 0", "text 1", "text 2"]
    assert data.texts("brand") == ["b0", "b1", "b2"]
    assert data.user_index("7") == 1


@pytest.mark.parametrize(
    ("folder", "name"), [("beauty", "beauty"), ("my data: 1", "my-data-1"), ("..x", "x"), ("-", "dataset")]
)
def test_name_comes_from_the_folder_and_is_fit_for_file_names(tmp_path: Path, folder: str, name: str) -> None:
    data = load_dataset(write_folder(tmp_path / folder))
    assert data.name == name
    assert data.mask_history is True
    assert data.prompts == {}


def test_byte_order_mark_crlf_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    plain = load_dataset(write_folder(tmp_path / "plain", prompts='{"ann": "x"}', meta='{"name": "n"}'))
    mark = b"\xef\xbb\xbf"
    windows = write_folder(
        tmp_path / "windows",
        items=mark + "\r\n\r\n".join(GOOD_ITEMS).encode(),
        rows=mark + b"\r\n" + "\r\n".join(GOOD_ROWS).encode() + b"\r\n  \r\n",
        prompts=mark + b'{"ann":\r\n"x"}\r\n',
        meta=mark + b'{"name": "n"}',
    )
    assert load_dataset(windows) == plain


def test_line_separators_inside_a_title_do_not_split_a_line(tmp_path: Path) -> None:
    title = "soft\u2028soap\x85\u00a0x"
    rows = with_item(json.dumps(item(2, title=title), ensure_ascii=False))
    assert load_dataset(write_folder(tmp_path, items=rows)).items[2]["title"] == title


def test_a_text_of_one_mebibyte_is_read_and_a_longer_one_refused(tmp_path: Path) -> None:
    text = "é" * (1 << 19)
    good = write_folder(tmp_path / "good", items=with_item(json.dumps(item(2, text=text))))
    assert load_dataset(good).texts()[2] == text
    bad = write_folder(tmp_path / "bad", items=with_item(json.dumps(item(2, text=text + "x"))))
    assert problems_of(bad) == ["items.jsonl:3: text: is 1,048,577 bytes long; at most 1,048,576 are allowed"]


# --- one test per fault ------------------------------------------------------------------------------------------


def raw_item(fields: str) -> list[str]:
    return with_item('{"item_id": 2, "title": "t", "text": "x", ' + fields + "}")


NOT_UTF8 = "\n".join(GOOD_ITEMS[:2]).encode() + b"\n" + b'{"item_id": 2, "title": "caf\xe9"}\n'
BEFORE = len("\n".join(GOOD_ITEMS[:2])) + 1

ITEM_FAULTS: dict[str, tuple[list[str] | bytes, str]] = {
    "empty": (b"", "items.jsonl: the file is empty"),
    "blank": (b"\xef\xbb\xbf \r\n\n", "items.jsonl: the file is empty"),
    "utf-16": ("\ufeff{}".encode("utf-16-le"), "items.jsonl: the file is UTF-16, not UTF-8"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "items.jsonl: the file is a Git LFS pointer, not the file itself",
    ),
    "gzip": (gzip.compress(b"{}"), "items.jsonl: the file is compressed by gzip"),
    "array": (
        f"[{', '.join(GOOD_ITEMS)}]".encode(),
        "items.jsonl: the file is one JSON array, not one object per line",
    ),
    "array-in-lines": (
        ("[\n" + ",\n".join(GOOD_ITEMS) + "\n]\n").encode(),
        "items.jsonl: the file is one JSON array, not one object per line",
    ),
    "object-in-lines": (
        json.dumps({"items": []}, indent=1).encode(),
        "items.jsonl: the file is one JSON object over several lines, not one object per line",
    ),
    "not-utf-8": (
        NOT_UTF8,
        f"items.jsonl:3: not valid UTF-8: byte 0xe9 at offset 28 of the line, {BEFORE + 28} of the file",
    ),
    "bad-json": (
        with_item('{"item_id": 2, "title" "t"}'),
        "items.jsonl:3: not valid JSON: Expecting ':' delimiter at column 24",
    ),
    "list": (with_item("[1]"), "items.jsonl:3: must be a JSON object, is a list"),
    "no-id": (with_item('{"title": "t", "text": "x"}'), "items.jsonl:3: item_id: is missing"),
    "text-id": (
        with_item(json.dumps(item(2) | {"item_id": "2"})),
        'items.jsonl:3: item_id: must be an integer, is the text "2"',
    ),
    "float-id": (
        with_item(json.dumps(item(2) | {"item_id": 2.0})),
        "items.jsonl:3: item_id: must be an integer, is the number 2.0",
    ),
    "bool-id": (
        with_item(json.dumps(item(1) | {"item_id": True}), at=1),
        "items.jsonl:2: item_id: must be an integer, is true",
    ),
    "null-id": (
        with_item(json.dumps(item(2) | {"item_id": None})),
        "items.jsonl:3: item_id: must be an integer, is null",
    ),
    "negative-id": (with_item(json.dumps(item(-2))), "items.jsonl:3: item_id: must not be negative, is -2"),
    "huge-id": (with_item(json.dumps(item(10**40))), f"items.jsonl:3: item_id: is too large: 1{'0' * 39}…"),
    "duplicate-id": (with_item(json.dumps(item(1))), "items.jsonl:3: item_id: 1 stands already in line 2"),
    "no-title": (with_item('{"item_id": 2, "text": "x"}'), "items.jsonl:3: title: is missing"),
    "no-text": (with_item('{"item_id": 2, "title": "x"}'), "items.jsonl:3: text: is missing"),
    "title-type": (
        with_item(json.dumps(item(2, title=["a"]))),
        "items.jsonl:3: title: must be text, is a list",
    ),
    "empty-title": (with_item(json.dumps(item(2, title=""))), "items.jsonl:3: title: is empty"),
    "blank-text": (with_item(json.dumps(item(2, text=" \n"))), "items.jsonl:3: text: is empty"),
    "nan": (
        raw_item('"price": NaN'),
        "items.jsonl:3: price: a number that is not finite (NaN, Infinity or too large); leave it out or write null",
    ),
    "overflow": (
        raw_item('"size": [1e999]'),
        "items.jsonl:3: size: a number that is not finite (NaN, Infinity or too large); leave it out or write null",
    ),
    "nan-id": (
        with_item('{"item_id": NaN, "title": "t", "text": "x"}'),
        "items.jsonl:3: item_id: a number that is not finite (NaN, Infinity or too large); leave it out or write null",
    ),
    "digits": (raw_item('"n": ' + "9" * 5000), "items.jsonl:3: not valid JSON: a number has too many digits"),
    "duplicate-key": (raw_item('"title": "u"'), "items.jsonl:3: title: the key stands twice in one object"),
    "surrogate": (
        raw_item('"brand": "\\ud83d"'),
        "items.jsonl:3: brand: half of a surrogate pair (\\ud800 to \\udfff), which is no character",
    ),
    "deep": (raw_item('"x": ' + "[" * 60 + "]" * 60), "items.jsonl:3: nested more than 50 deep"),
    "bottomless": (with_item("[" * 200_000), "items.jsonl:3: nested more than 50 deep"),
    "escapes": (
        with_item(json.dumps(item(2) | {"item_id": "\x1b[2J"})),
        'items.jsonl:3: item_id: must be an integer, is the text "\\u001b[2J"',
    ),
}


@pytest.mark.parametrize("fault", ITEM_FAULTS)
def test_each_item_fault_is_one_problem(tmp_path: Path, fault: str) -> None:
    items, expected = ITEM_FAULTS[fault]
    rows = ["ann 0 1 0", "bob 1 1 0"] if isinstance(items, bytes) else None
    assert problems_of(write_folder(tmp_path, items=items, rows=rows)) == [expected]


SHORT = "at least 3 are needed"
ROW_FAULTS: dict[str, tuple[list[str] | bytes, str]] = {
    "empty": (b"\n", "sequential_data.txt: the file is empty"),
    "not-utf-8": (
        b"ann 0 1 2\nbo\xff 1 2 3\n",
        "sequential_data.txt:2: not valid UTF-8: byte 0xff at offset 2 of the line, 12 of the file",
    ),
    "unknown": (with_row("bob 0 1 6"), "sequential_data.txt:2: items: unknown item id 6"),
    "many-unknown": (
        with_row("bob 9 8 9 7 11 12 13 0"),
        "sequential_data.txt:2: items: unknown item ids 9, 8, 7, 11, 12, … (6 in all)",
    ),
    "no-items": (with_row("bob"), f"sequential_data.txt:2: items: 0 items; {SHORT}"),
    "one-item": (with_row("bob 1"), f"sequential_data.txt:2: items: 1 item; {SHORT}"),
    "two-items": (with_row("bob 1 2"), f"sequential_data.txt:2: items: 2 items; {SHORT}"),
    "word": (with_row("bob 1 two 3"), 'sequential_data.txt:2: items: item ids must be integers from 0, not "two"'),
    "negative": (with_row("bob 1 -2 3"), 'sequential_data.txt:2: items: item ids must be integers from 0, not "-2"'),
    "float": (with_row("bob 1 2.0 3"), 'sequential_data.txt:2: items: item ids must be integers from 0, not "2.0"'),
    "underscore": (
        with_row("bob 1 0_2 3"),
        'sequential_data.txt:2: items: item ids must be integers from 0, not "0_2"',
    ),
    "other-digits": (with_row("bob 1 ٢ 3"), 'sequential_data.txt:2: items: item ids must be integers from 0, not "٢"'),
    "commas": (
        with_row("bob,1,2,3"),
        f"sequential_data.txt:2: items: 0 items; {SHORT}",
    ),
    "duplicate-user": (with_row("ann 3 4 5"), 'sequential_data.txt:2: user_id: "ann" stands already in line 1'),
    "escapes": (
        with_row("bob 1 \x9b2J 3"),  # an escape sequence for terminals in one character
        'sequential_data.txt:2: items: item ids must be integers from 0, not "\\u009b2J"',
    ),
    "old-mac": (with_row("bob 1 2 3\rdan 1 2 3"), "sequential_data.txt:2: a carriage return inside the line"),
}


@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_each_sequence_fault_is_one_problem(tmp_path: Path, fault: str) -> None:
    rows, expected = ROW_FAULTS[fault]
    assert problems_of(write_folder(tmp_path, rows=rows)) == [expected]


PROMPT_FAULTS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "prompts.json: the file is empty"),
    "bad-json": ('{"ann": "x",\n"bob": }', "prompts.json:2: not valid JSON: Expecting value at column 8"),
    "list": ('["x"]', "prompts.json: must be a JSON object, is a list"),
    "unknown-user": ('{"ann": "x",\n "zoe": "y"}', "prompts.json:2: zoe: no such user in sequential_data.txt"),
    "empty-prompt": ('{"ann": " "}', "prompts.json:1: ann: the prompt is empty"),
    "number": ('{\n\n"ann": 3}', "prompts.json:3: ann: the prompt must be text, is the number 3"),
    "duplicate": ('{"ann": "x",\n\n"ann": "y"}', "prompts.json:3: ann: the key stands twice in one object"),
    "not-utf-8": (
        b'{\n"ann": "\xff"}',
        "prompts.json:2: not valid UTF-8: byte 0xff at offset 8 of the line, 10 of the file",
    ),
}


@pytest.mark.parametrize("fault", PROMPT_FAULTS)
def test_each_prompts_fault_is_one_problem(tmp_path: Path, fault: str) -> None:
    prompts, expected = PROMPT_FAULTS[fault]
    assert problems_of(write_folder(tmp_path, prompts=prompts)) == [expected]


META_FAULTS: dict[str, tuple[str, str]] = {
    "list": ("[]", "meta.json: must be a JSON object, is a list"),
    "bad-json": ("{", "meta.json:1: not valid JSON: Expecting property name enclosed in double quotes at column 2"),
    "mask-text": (
        '{"name": "n",\n"mask_history": "no"}',
        'meta.json:2: mask_history: must be true or false, is the text "no"',
    ),
    "mask-number": ('{"mask_history": 0}', "meta.json:1: mask_history: must be true or false, is the number 0"),
    "name-type": ('{"name": 3}', "meta.json:1: name: must be text, is the number 3"),
    "name-path": (
        '{"name": "../x"}',
        'meta.json:1: name: "../x" is no name: letters, digits, spaces and . _ + ( ) - only, a letter or digit first',
    ),
}


@pytest.mark.parametrize("fault", META_FAULTS)
def test_each_meta_fault_is_one_problem(tmp_path: Path, fault: str) -> None:
    meta, expected = META_FAULTS[fault]
    assert problems_of(write_folder(tmp_path, meta=meta)) == [expected]


def test_ids_that_are_not_dense_name_the_missing_ones(tmp_path: Path) -> None:
    items = [json.dumps(item(i)) for i in (0, 2, 3, 20)]
    folder = write_folder(tmp_path, items=items, rows=["ann 0 2 3"])
    assert problems_of(folder) == [
        "items.jsonl: item_id: ids must run from 0 to 3 without gaps (largest is 20); "
        "missing 1, 4, 5, 6, 7, … (17 in all)"
    ]
    one_based = write_folder(tmp_path, items=[json.dumps(item(i)) for i in (1, 2, 3)], rows=["ann 1 2 3"])
    assert problems_of(one_based) == [
        "items.jsonl: item_id: ids must run from 0 to 2 without gaps (largest is 3); missing 0"
    ]


def test_sequences_and_prompts_may_lie_elsewhere(tmp_path: Path) -> None:
    own = write_folder(tmp_path / "own", prompts='{"ann": "own"}')
    bare = write_folder(tmp_path / "bare")
    (bare / "sequential_data.txt").unlink()
    rows, prompts = tmp_path / "rows.txt", tmp_path / "asked.json"
    rows.write_text("ann 0 1 2\n")
    prompts.write_text('{"ann": "elsewhere"}')
    section = DataSection(path=str(own), sequential_file=str(rows), prompt_file=str(prompts))
    read = open_dataset(section)
    assert (read.users, dict(read.prompts)) == (("ann",), {"ann": "elsewhere"})
    assert read.digest == load_dataset(bare, sequential_file=rows, prompt_file=prompts).digest
    assert read.digest != load_dataset(own, sequential_file=rows).digest != load_dataset(own).digest


def test_faults_of_files_that_lie_elsewhere_name_them_by_their_paths(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own")
    rows, prompts = tmp_path / "rows.txt", tmp_path / "asked.json"
    rows.write_text("ann 0 1 99\n")
    prompts.write_text('{"bob": "x"}')
    with pytest.raises(DataError) as caught:
        load_dataset(folder, sequential_file=rows, prompt_file=prompts)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [f"{rows}:1", f"{prompts}:1"]
    with pytest.raises(DataError, match=r"gone\.txt: the file is missing"):
        load_dataset(folder, sequential_file=tmp_path / "gone.txt")
    with pytest.raises(DataError, match=r"gone\.json: the file is missing"):
        load_dataset(folder, prompt_file=tmp_path / "gone.json")


def test_a_plain_name_is_looked_for_in_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_folder(tmp_path / "data" / "shop")
    assert load_dataset("shop").num_items == 6
    with pytest.raises(DataError, match=r"^shops: no such dataset folder") as caught:
        load_dataset("shops")
    assert str(caught.value.hint).endswith("in data/ there is shop")


def test_missing_folder_and_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such dataset folder") as caught:
        load_dataset(tmp_path / "nowhere")
    assert "items.jsonl and sequential_data.txt" in (caught.value.hint or "")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file: is a file, not a dataset folder"):
        load_dataset(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert problems_of(tmp_path / "empty") == [
        "items.jsonl: the file is missing",
        "sequential_data.txt: the file is missing",
    ]
    (tmp_path / "empty" / "items.jsonl").mkdir()
    assert problems_of(tmp_path / "empty")[0] == "items.jsonl: cannot be read: Is a directory"


# --- many at once ------------------------------------------------------------------------------------------------


def test_all_problems_of_all_files_come_in_one_pass(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        items=["{", json.dumps(item(1)), json.dumps(item(2, title="")), json.dumps(item(1)), json.dumps(item(4))],
        rows=["ann 0 1 2", "bob 1", "ann 1 2 4", "dan 1 99 4", "eve x 1 2"],
        prompts='{"zoe": ""}',
        meta='{"mask_history": 1}',
    )
    with pytest.raises(DataError) as caught:
        load_dataset(folder)
    assert [problem.rsplit(":", 1)[0] for problem in caught.value.problems] == [
        "items.jsonl:1: not valid JSON",
        "items.jsonl:3: title",
        "items.jsonl:4: item_id",
        "sequential_data.txt:2: items",
        "sequential_data.txt:3: user_id",
        "sequential_data.txt:4: items",
        "sequential_data.txt:5: items",
        "prompts.json:1: zoe",
        "prompts.json:1: zoe",
        "meta.json:1: mask_history",
    ]
    assert "10 problems" in caught.value.message
    assert (caught.value.hint or "").startswith("items.jsonl has one JSON object per line")


@given(broken=st.sets(st.integers(0, 39), min_size=1), kind=st.sampled_from(["{", "[]", '{"item_id": -1}', "title"]))
@settings(max_examples=40, deadline=None)
def test_n_bad_rows_are_n_problems(tmp_path_factory: pytest.TempPathFactory, broken: set[int], kind: str) -> None:
    lines = [json.dumps(item(i)) for i in range(40)]
    for i in broken:
        lines[i] = json.dumps(item(i, title="")) if kind == "title" else kind
    folder = write_folder(tmp_path_factory.mktemp("d"), items=lines, rows=[f"u{i} {i} {39 - i} {i}" for i in range(40)])
    found = [problem.split(": ", 1)[0] for problem in problems_of(folder)]
    per_row = 3 if kind.startswith('{"') else 1  # that row also lacks title and text
    assert found == [f"items.jsonl:{i + 1}" for i in sorted(broken) for _ in range(per_row)]


def test_breaking_any_one_line_is_noticed(tmp_path: Path) -> None:
    """A line cut in half is never read as something else."""
    whole = load_dataset(write_folder(tmp_path))
    for i, line in enumerate(GOOD_ITEMS):
        broken = write_folder(tmp_path, items=[*GOOD_ITEMS[:i], line[: len(line) // 2], *GOOD_ITEMS[i + 1 :]])
        assert [problem.split(": ")[0] for problem in problems_of(broken)] == [f"items.jsonl:{i + 1}"]
    assert load_dataset(write_folder(tmp_path)) == whole


# --- saving ------------------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
texts = words.filter(lambda s: bool(s.strip()))
user_names = words.map(lambda s: "".join(s.split()).replace("\ufeff", "")).filter(bool)
extras = st.dictionaries(
    words.filter(lambda s: s not in ("item_id", "title", "text")),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
        max_leaves=3,
    ),
    max_size=2,
)


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    size = draw(st.integers(1, 5))
    users = tuple(draw(st.lists(user_names, min_size=1, max_size=4, unique=True)))
    sequence = st.lists(st.integers(0, size - 1), min_size=3, max_size=6).map(tuple)
    return Dataset(
        name=draw(st.sampled_from(["n", "Beauty 2014 (5-core)", "größe_1.0"])),
        items=tuple({"item_id": i, "title": draw(texts), "text": draw(texts)} | draw(extras) for i in range(size)),
        users=users,
        sequences=tuple(draw(sequence) for _ in users),
        prompts=draw(st.dictionaries(st.sampled_from(users), texts, max_size=2)),
        mask_history=draw(st.booleans()),
        meta=draw(st.dictionaries(st.sampled_from(["source", "licence"]), words)),
    )


@given(dataset=datasets())
@settings(max_examples=60, deadline=None)
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> None:
    folder = tmp_path_factory.mktemp("parent") / "made" / "here"
    save_dataset(dataset, folder)
    loaded = load_dataset(folder)
    fields = ("name", "items", "users", "sequences", "prompts", "mask_history", "digest")
    assert {f: getattr(loaded, f) for f in fields} == {f: getattr(dataset, f) for f in fields}
    assert dict(dataset.meta).items() <= dict(loaded.meta).items()
    assert loaded.meta["counts"]["users"] == len(dataset.users)
    assert [path.name for path in folder.parent.iterdir()] == ["here"]  # nothing left beside it


@pytest.fixture
def small(tmp_path: Path) -> Dataset:
    return load_dataset(write_folder(tmp_path / "small"))


def test_saving_never_overwrites(tmp_path: Path, small: Dataset) -> None:
    (tmp_path / "empty").mkdir()
    save_dataset(small, tmp_path / "empty")
    before = {path: path.read_bytes() for path in (tmp_path / "empty").iterdir()}
    with pytest.raises(DataError, match="already exists and is not an empty folder"):
        save_dataset(small, tmp_path / "empty")
    assert {path: path.read_bytes() for path in (tmp_path / "empty").iterdir()} == before
    with pytest.raises(DataError, match=r"meta\.json/x: cannot be written: (File exists|Not a directory)"):
        save_dataset(small, tmp_path / "empty" / "meta.json" / "x")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"users": ("a b", "bob", "eve")}, "must be integers"),
        ({"sequences": ((0, 1), (1, 2, 3), (1, 2, 3))}, "at least 3"),
        ({"name": "../x"}, "is no name"),
        ({"users": ("\ufeffann", "bob", "eve")}, "reads back differently"),
        ({"prompts": {"ann": "\ud83d"}}, "UTF-8 cannot write"),
        ({"items": ({"item_id": 0, "title": "t", "text": "x", "price": float("nan")},)}, "not finite"),
    ],
)
def test_an_invalid_dataset_is_not_saved(tmp_path: Path, small: Dataset, change: dict[str, Any], reason: str) -> None:
    fields = {name: getattr(small, name) for name in Dataset.__dataclass_fields__}
    with pytest.raises(DataError, match=reason):
        save_dataset(Dataset(**(fields | change)), tmp_path / "out" / "set")
    assert list((tmp_path / "out").iterdir()) == []


# --- the dataset -------------------------------------------------------------------------------------------------


def test_digests_change_with_what_they_stand_for(tmp_path: Path, small: Dataset) -> None:
    same = load_dataset(write_folder(tmp_path / "same", items=list(reversed(GOOD_ITEMS)), meta='{"name": "other"}'))
    assert same.digest == small.digest
    assert same.items_digest() == small.items_digest()

    changes: list[Callable[[Path], Path]] = [
        lambda p: write_folder(p, items=with_item(json.dumps(item(2, text="changed")))),
        lambda p: write_folder(p, items=with_item(json.dumps(item(2, price=1)))),
        lambda p: write_folder(p, rows=[*GOOD_ROWS[:2], "eve 5 4 3 1 2"]),
        lambda p: write_folder(p, rows=[GOOD_ROWS[1], GOOD_ROWS[0], GOOD_ROWS[2]]),
        lambda p: write_folder(p, prompts='{"ann": "x"}'),
        lambda p: write_folder(p, meta='{"mask_history": false}'),
    ]
    loaded = [load_dataset(change(tmp_path / f"c{i}")) for i, change in enumerate(changes)]
    assert len({small.digest, *(d.digest for d in loaded)}) == len(changes) + 1
    assert [d.items_digest() == small.items_digest() for d in loaded] == [False] + [True] * 5
    assert small.items_digest("title") != small.items_digest("text")

    pairs = [("abc", "d"), ("ab", "cd")]
    moved = [[*GOOD_ITEMS[:2], json.dumps(item(2, text=a)), json.dumps(item(3, text=b))] for a, b in pairs]
    rows = ["ann 0 1 2"]
    one, other = (load_dataset(write_folder(tmp_path / f"m{i}", items=m, rows=rows)) for i, m in enumerate(moved))
    assert one.items_digest() != other.items_digest()  # the same letters, another border


def test_a_field_that_items_lack_is_named_with_the_items(tmp_path: Path) -> None:
    items = [json.dumps(item(i, brand=brand)) for i, brand in enumerate(["a", "", None, 3, "b", " "])]
    data = load_dataset(write_folder(tmp_path, items=items))
    with pytest.raises(DataError, match=r"field 'brand' .* 4 of 6 items \(item_id 1, 2, 3, 5\)") as caught:
        data.texts("brand")
    assert caught.value.hint == "fields that every item has as text: text, title"
    with pytest.raises(DataError, match=r"field 'nose' .* 6 of 6 items \(item_id 0, 1, 2, 3, 4, …\)"):
        data.items_digest("nose")


def test_an_unknown_user_gets_a_suggestion(small: Dataset) -> None:
    with pytest.raises(DataError, match="no user 'anne'") as caught:
        small.user_index("anne")
    assert caught.value.hint == "did you mean ann?"
    with pytest.raises(DataError) as caught:
        small.user_index("1234567")
    assert caught.value.hint == "users are named like ann"


def test_open_dataset(tmp_path: Path) -> None:
    assert open_dataset(DataSection(path=str(write_folder(tmp_path / "x")))).name == "x"
    made = open_dataset(DataSection(synthetic=SyntheticSection(users=3, items=20, seed=4)))
    assert (made.name, len(made.users), made.num_items) == ("synthetic-3x20-s4", 3, 20)
    with pytest.raises(ConfigError, match="no dataset") as caught:
        open_dataset(DataSection())
    assert "data.path" in (caught.value.hint or "")


# --- examples ----------------------------------------------------------------------------------------------------


def test_leave_one_out() -> None:
    data = Dataset(
        "n", tuple(map(item, range(9))), ("a", "b", "c"), ((0, 1, 2), (3, 4, 5, 6), (8, 7, 6, 5, 5)), {}, True, {}
    )
    assert build_examples(data, "test") == [
        Example("a", (0, 1), 2),
        Example("b", (3, 4, 5), 6),
        Example("c", (8, 7, 6, 5), 5),  # the target may stand in the history
    ]
    assert build_examples(data, "validation") == [
        Example("a", (0,), 1),
        Example("b", (3, 4), 5),
        Example("c", (8, 7, 6), 5),
    ]
    assert build_examples(data, "train") == [Example("b", (3,), 4), Example("c", (8, 7), 6)]
    assert build_examples(data, "train", train_targets="all") == [
        Example("b", (3,), 4),
        Example("c", (8,), 7),
        Example("c", (8, 7), 6),
    ]
    with pytest.raises(ConfigError, match="no split 'dev'"):
        build_examples(data, "dev")  # type: ignore[arg-type]


@given(dataset=datasets())
@settings(max_examples=50, deadline=None)
def test_training_examples_never_see_held_out_items(dataset: Dataset) -> None:
    held_out = {user: len(sequence) - 2 for user, sequence in zip(dataset.users, dataset.sequences, strict=True)}
    by_user = dict(zip(dataset.users, dataset.sequences, strict=True))
    for targets in ("last", "all"):
        examples = build_examples(dataset, "train", train_targets=targets)  # type: ignore[arg-type]
        for example in examples:
            assert example.history
            seen = (*example.history, example.target)
            assert len(seen) <= held_out[example.user]
            assert by_user[example.user][: len(seen)] == seen
    assert len(examples) == sum(max(n - 1, 0) for n in held_out.values())


# --- figures and real data ---------------------------------------------------------------------------------------


def test_stats_of_a_small_dataset(tmp_path: Path) -> None:
    rows = ["a 0 1 2", "b 1 1 2 1", "c 3 3 0 4 4"]
    stats = dataset_stats(
        load_dataset(write_folder(tmp_path, rows=rows, items=with_item(json.dumps(item(1) | {"item_id": 2}))))
    )
    assert stats["users"] == 3
    assert stats["interactions"] == 12
    assert stats["density"] == pytest.approx(12 / 18)
    assert stats["sequence_length"] == {"min": 3, "median": 4, "mean": 4.0, "max": 5}
    assert stats["item_count"] == {"min": 0, "median": 2, "max": 4}
    assert stats["items_never_seen"] == 1
    assert stats["users_with_repeats"] == 2
    assert stats["targets_in_history"] == {"validation": 0, "test": 2}
    assert stats["targets_unseen_in_training"] == {"validation": 2, "test": 2}
    assert stats["text_words"] == {"median": 2, "max": 2}
    assert (stats["distinct_titles"], stats["distinct_texts"]) == (5, 5)
    assert stats["train_examples"] == {"last": 2, "all": 3}
    assert json.loads(json.dumps(stats)) == stats


ROOT = Path(__file__).parents[2]
BEAUTY = Path(os.environ.get("RL4REC_REALDATA") or ROOT / "data") / "amazon_beauty"


@pytest.mark.realdata
@pytest.mark.skipif(
    not BEAUTY.is_dir(), reason=f"no {BEAUTY}; set RL4REC_REALDATA to the folder that has amazon_beauty"
)
def test_beauty_counts_are_those_of_its_source() -> None:
    stats = dataset_stats(load_dataset(BEAUTY))
    assert (stats["users"], stats["items"], stats["interactions"]) == (22363, 12101, 198502)
    assert stats["sequence_length"] == {"min": 5, "median": 6, "mean": 8.8764, "max": 204}
    assert (stats["item_count"]["min"], stats["items_never_seen"]) == (5, 0)
    assert stats["text_words"] == {"median": 20, "max": 60}
    assert stats["distinct_titles"] == 12073
    assert stats["users_with_repeats"] == 0
    assert stats["targets_in_history"] == {"validation": 0, "test": 0}
    assert stats["targets_unseen_in_training"]["test"] == 138
    assert stats["train_examples"] == {"last": 22363, "all": 198502 - 3 * 22363}


@pytest.mark.parametrize("how", ["last", "all"])
def test_training_examples_are_counted_without_making_them(how: str) -> None:
    data = synthesize(30, 40, 1)
    short = dataclasses.replace(data, sequences=tuple(s[: 3 + i % 4] for i, s in enumerate(data.sequences)))
    examples = Counter(e.user for e in build_examples(short, "train", train_targets=how))
    assert count_train_examples(short, how) == [examples[user] for user in short.users]


def test_an_empty_path_is_no_dataset() -> None:
    with pytest.raises(DataError, match="path is empty"):
        load_dataset("")


def test_times_and_users_who_only_train_are_kept(tmp_path: Path) -> None:
    from dataclasses import replace

    base = synthesize(3, 20, 0)
    sequences = tuple(sequence[:4] for sequence in base.sequences)
    dataset = replace(
        base,
        sequences=sequences,
        training_only_users=("only",),
        training_only=((5, 6),),
        times=((1, 2, 2.5, 2.5), (1, 1, 1, 2), (0, 3, 3, 4), (7, 8)),
    )
    save_dataset(dataset, tmp_path / "a")
    copy = load_dataset(tmp_path / "a")
    assert (copy.times, copy.training_only, copy.digest) == (dataset.times, dataset.training_only, dataset.digest)
    assert dataset.digest != replace(dataset, training_only=((6, 5),)).digest
    assert copy.time_ties() == {"validation": 2, "test": 1}
    assert copy.training_parts == (*(sequence[:2] for sequence in sequences), (5, 6))
    assert [e for e in build_examples(copy, "train") if e.user == "only"] == [Example("only", (5,), 6)]
    assert {e.user for e in build_examples(copy, "test")} == set(base.users)
    assert sum(count_train_examples(copy, "all")) == len(build_examples(copy, "train", train_targets="all"))


@pytest.mark.parametrize(
    ("lines", "flaw"),
    [
        (["u1 1 2 3", "u2 1 2 3"], "times.txt: 2 users instead of 3"),
        (["u1 1 2 3", "u3 1 2 3", "u2 1 2 3"], 'times.txt:2: is of "u3", where the sequences have "u2"'),
        (["u1 1 2 3", "u2 1 2", "u3 1 2 3"], "times.txt:2: 2 times for 3 items"),
        (["u1 1 3 2", "u2 1 2 3", "u3 1 2 3"], "times.txt:1: times must be finite numbers that do not fall"),
        (["u1 1 x 3", "u2 1 2 3", "u3 1 2 3"], "times.txt:1: times must be finite numbers that do not fall"),
        (["u1 1 2 3", "u2 1 2 3", "u3 1 2 3", "u4 1"], "times.txt:4: is one too many"),
    ],
)
def test_times_that_are_not_of_the_sequences(tmp_path: Path, lines: list[str], flaw: str) -> None:
    from dataclasses import replace

    base = synthesize(3, 20, 0)
    save_dataset(replace(base, sequences=tuple(sequence[:3] for sequence in base.sequences)), tmp_path / "a")
    (tmp_path / "a" / "times.txt").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path / "a")
    assert flaw in str(caught.value)
