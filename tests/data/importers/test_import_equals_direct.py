"""Random interactions, written as CSV and imported, equal a few lines of plain Python, for every option."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rl4rec_cli.data.importers.importing import import_files
from rl4rec_cli.data.importers.options import ImportOptions
from rl4rec_cli.errors import DataError

Row = tuple[str, str, int, float]  # user, item, time, rating
Expected = dict[str, tuple[list[str], list[int]]]


def core(rows: list[Row], k: int, least: int) -> list[Row]:
    while True:
        users, items = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
        left = [row for row in rows if users[row[0]] >= max(k, least) and items[row[1]] >= k]
        if len(left) == len(rows):
            return rows
        rows = left


def direct(rows: list[Row], titled: set[str], options: ImportOptions) -> tuple[Expected, Expected]:
    """Items and times of measured users, and of those who only train, by user."""
    if options.tie_seed is not None:
        tie = np.random.default_rng(options.tie_seed).permutation(len(rows)).tolist()
    else:
        tie = list(range(len(rows)))
    key = {"item": lambda i: (int(rows[i][1]), i)}.get(options.ties, lambda i: tie[i])
    rows = [rows[i] for i in sorted(range(len(rows)), key=lambda i: (rows[i][2], key(i)))]
    if options.min_rating is not None:
        rows = [row for row in rows if row[3] >= options.min_rating]
    if options.duplicates != "none":
        if options.duplicates == "last":
            rows.reverse()
        seen: set[tuple[str, str]] = set()
        rows = [row for row in rows if row[:2] not in seen and not seen.add(row[:2])]  # type: ignore[func-returns-value]
        if options.duplicates == "last":
            rows.reverse()
    rows = core([row for row in rows if row[1] in titled], options.k_core, options.min_length)
    measured: Expected = {}
    only: Expected = {}
    for user in {row[0] for row in rows}:
        own = [row for row in rows if row[0] == user]
        into = measured
        if options.split_time is not None:
            before = [row for row in own if row[2] < int(options.split_time)]
            after = own[len(before) :]
            if not before:
                continue
            own, into = (before + after[:2], measured) if len(after) >= 2 else (before, only)
        into[user] = [row[1] for row in own], [row[2] for row in own]
    return measured, only


def imported(folder: Path, options: ImportOptions, items: str) -> tuple[Any, Expected, Expected]:
    done = import_files("csv", [folder / "rows.csv"], options, name="made-up")
    dataset = done.dataset
    source = [str(item["source_id"]) for item in dataset.items]
    assert dataset.times is not None
    users = [
        (user, ([source[i] for i in part], list(times)))
        for user, part, times in zip(
            dataset.training_users, (*dataset.sequences, *dataset.training_only), dataset.times, strict=True
        )
    ]
    count = len(dataset.users)
    return done, dict(users[:count]), dict(users[count:])


@given(
    seed=st.integers(0, 10**6),
    k=st.integers(0, 4),
    least=st.integers(3, 4),
    ties=st.sampled_from(["file", "item", "shuffle:0", "shuffle:7"]),
    duplicates=st.sampled_from(["first", "last", "none"]),
    min_rating=st.sampled_from([None, 2.0, 3.5]),
    split=st.sampled_from([None, "4"]),
    keep_ids=st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_import_equals_direct(
    seed: int,
    k: int,
    least: int,
    ties: str,
    duplicates: str,
    min_rating: float | None,
    split: str | None,
    keep_ids: bool,
) -> None:
    draw = random.Random(seed)
    rows = [
        (f"u{draw.randrange(9)}", str(draw.randrange(1, 13)), draw.randrange(9), draw.randrange(2, 11) / 2)
        for _ in range(draw.randrange(20, 140))
    ]
    titled = {item for item in map(str, range(1, 13)) if draw.random() < 0.9}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [f"{user},{item},{time},{rating}" for user, item, time, rating in rows]
        (folder / "rows.csv").write_text("\n".join(["user,item,time,rating", *lines]))
        (folder / "items.csv").write_text(
            "\n".join(["item,title", *(f"{i},{f'Item {i}' if str(i) in titled else ''}" for i in range(1, 13))])
        )
        options = ImportOptions(
            k_core=k,
            min_length=least,
            ties=ties,
            duplicates=duplicates,
            min_rating=min_rating,
            split_time=split,
            keep_ids=keep_ids,
            titles=str(folder / "items.csv"),
        )
        measured, only = direct(rows, titled, options)
        if not measured:
            try:
                imported(folder, options, "")
            except DataError:
                return
            raise AssertionError("nothing is left, and that is no error")
        done, got_measured, got_only = imported(folder, options, "")
    assert got_measured == measured
    assert got_only == only
    dataset, table = done.dataset, done.table
    assert table.read == len(rows)
    assert table.left == sum(len(items) for items, _ in (*measured.values(), *only.values()))
    assert {str(item["source_id"]) for item in dataset.items} == {
        i for items, _ in (*measured.values(), *only.values()) for i in items
    }
    if keep_ids:
        assert [int(i["source_id"]) for i in dataset.items] == sorted(int(i["source_id"]) for i in dataset.items)
    ties_by_hand = {
        split: sum(times[-back] == times[-back - 1] for _, times in measured.values())
        for split, back in (("validation", 2), ("test", 1))
    }
    assert dataset.meta["time_ties"] == dataset.time_ties() == ties_by_hand
    assert dataset.mask_history == (duplicates != "none")
