"""From rows to sequences: order, ratings, duplicates, k-core, lengths, split.

Decides: the order of these steps and what each means. `tests/data/importers/test_import_equals_direct.py` says the
same in a few lines of plain Python.
Hides: how tens of millions of rows go through them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from rl4rec_cli.data.importers.options import ImportOptions
from rl4rec_cli.data.importers.rows import RowTable
from rl4rec_cli.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Coded:
    """Rows with users and items as numbers: `user` and `item` (UInt32), `rating`, `time` (Int64) and `part`, if any.

    `users` and `items` are the source's ids, whole numbers by their value before other texts by theirs; a row's number
    is a position in them.
    """

    rows: pl.DataFrame
    users: list[str]
    items: list[str]


def code(rows: pl.DataFrame) -> Coded:
    """Numbers the users and items of rows."""
    names: dict[str, list[str]] = {}
    for column in ("user", "item"):
        ids = rows.select(pl.col(column).unique())
        number = pl.col(column).str.extract(r"^([0-9]{1,18})$").cast(pl.Int64)
        ids = ids.sort(number, column, nulls_last=True).with_row_index("code")
        names[column] = ids[column].to_list()
        rows = rows.join(ids, on=column, how="left", maintain_order="left").drop(column).rename({"code": column})
    return Coded(rows, names["user"], names["item"])


def put_in_order(rows: pl.DataFrame, options: ImportOptions) -> pl.DataFrame:
    """Sorts rows by user, given part of a split, time and the rule for ties. Rows come in the order of the files."""
    if options.tie_seed is not None and "time" in rows.columns:
        keys = np.random.default_rng(options.tie_seed).permutation(rows.height).astype(np.uint32)
    else:
        keys = np.arange(rows.height, dtype=np.uint32)
    rows = rows.with_columns(pl.Series("tie", keys))
    by_item = ["item"] if options.ties == "item" and "time" in rows.columns else []
    order = ["user", *(name for name in ("part", "time") if name in rows.columns), *by_item, "tie"]
    return rows.sort(order).drop("tie")


def keep_rated(rows: pl.DataFrame, least: float | None, table: RowTable) -> pl.DataFrame:
    """Drops rows that are rated lower, or not at all.

    Raises:
        DataError: the source has no ratings.
    """
    if least is None:
        return rows
    if "rating" not in rows.columns:
        raise DataError("--min-rating: the source has no ratings", hint="leave it out, or name a column: --rating")
    is_kept = (pl.col("rating") >= least).fill_null(False)
    left = rows.filter(is_kept)
    unrated = rows["rating"].null_count()
    table.drop("without a rating", unrated)
    table.drop(f"rated below {least:g}", rows.height - left.height - unrated)
    return left


def drop_duplicates(rows: pl.DataFrame, how: str, table: RowTable) -> pl.DataFrame:
    """Keeps the first or last of a user's ordered rows of one item, or all (`none`)."""
    if how == "none":
        return rows
    keep: Any = how
    left = rows.unique(["user", "item"], keep=keep, maintain_order=True)
    table.drop(f"user and item again ({how} kept)", rows.height - left.height)
    return left


def take_core(rows: pl.DataFrame, k: int, least_length: int) -> tuple[pl.DataFrame, int]:
    """Drops users with fewer than `k` or `least_length` rows and items with fewer than `k`, until none is left.

    Returns the rest and the number of rounds that dropped something.
    """
    users, items = (rows[name].to_numpy() for name in ("user", "item"))
    is_kept = np.arange(rows.height)
    rounds = 0
    while len(users):
        stay = (np.bincount(users) >= max(k, least_length))[users]
        stay &= (np.bincount(items) >= k)[items]
        if stay.all():
            break
        rounds += 1
        users, items, is_kept = users[stay], items[stay], is_kept[stay]
    return rows[is_kept] if rounds else rows, rounds


def check_any(before: pl.DataFrame, after: pl.DataFrame, options: ImportOptions) -> None:
    """Refuses an empty k-core, and says which k would leave something.

    Raises:
        DataError: no row is left.
    """
    if after.height:
        return
    tries = (k for k in range(options.k_core - 1, 0, -1) if take_core(before, k, options.min_length)[0].height)
    best = next(tries, None)
    raise DataError(
        f"no row is left: --k-core {options.k_core}, --min-length {options.min_length} drop all {before.height:,}",
        hint=f"the largest k that leaves some is {best}: --k-core {best}"
        if best
        else f"no user has {options.min_length} rows: a user needs one each to train, to validate and to test",
    )


@dataclass(frozen=True)
class Sequences:
    """Rows in order, and where each user's begin. The last two of a measured user are its targets.

    `rows` has `user`, `item` and maybe `time`; `is_measured` (one for each of `users`, in the order of rows) is false
    of users who only train.
    """

    rows: pl.DataFrame
    users: Array
    starts: Array
    is_measured: Array

    def ties(self) -> dict[str, int] | None:
        """Counts the targets of each split that have the time of the item before; None without times."""
        if "time" not in self.rows.columns:
            return None
        times = self.rows["time"].to_numpy()
        ends = np.append(self.starts[1:], self.rows.height)[self.is_measured]
        return {
            split: int((times[ends - back] == times[ends - back - 1]).sum())
            for split, back in (("validation", 2), ("test", 1))
        }


def check_measured(sequences: Sequences, rows: pl.DataFrame) -> None:
    """Refuses a split that leaves nothing to measure.

    Args:
        rows: the rows before the split, whose times the hint names.

    Raises:
        DataError: no user has an item that trains and both targets.
    """
    if sequences.is_measured.any():
        return
    hint = "name the files of all parts"
    if "time" in rows.columns and "part" not in rows.columns:
        between = " and ".join(
            datetime.fromtimestamp(int(end) / 10**6, UTC).isoformat(" ", "seconds").removesuffix("+00:00")
            for end in (rows["time"].to_numpy().min(), rows["time"].to_numpy().max())
        )
        hint = f"the rows lie between {between}: choose a --split-time in between, or leave it out"
    raise DataError("no user has an item before the split and two after it", hint=hint)


def split_rows(rows: pl.DataFrame, moment: int | None, table: RowTable) -> Sequences:
    """Cuts ordered rows into sequences, at a moment or at the given parts (0 train, 1 validation, 2 test), if any.

    By leave-one-out every user is measured. At a moment, the first two rows from then on are a user's targets, and
    later ones are dropped. With given parts, they are the first rows of the validation and of the test part. Users
    without a target for each keep what trains, and users without a row that trains are dropped.
    """
    if moment is None and "part" not in rows.columns:
        users, starts = np.unique(rows["user"].to_numpy(), return_index=True)
        return Sequences(rows, users, starts, np.ones(len(users), dtype=bool))
    if "part" not in rows.columns:
        late = pl.col("time") >= moment
        nth = late.cum_sum().over("user").cast(pl.Int64)
        rows = rows.with_columns(pl.when(late).then(nth).otherwise(0).alias("part"))
    first_of_part = pl.int_range(pl.len()).over("user", "part") == 0
    in_use = rows.filter((pl.col("part") == 0) | ((pl.col("part") <= 2) & first_of_part))
    table.drop("after the targets", rows.height - in_use.height)
    trains = (pl.col("part") == 0).any().over("user")
    trained = in_use.filter(trains)
    table.drop("of users with nothing before the split", in_use.height - trained.height)
    has_both = (pl.col("part") == 1).any().over("user") & (pl.col("part") == 2).any().over("user")
    trained = trained.with_columns(has_both.alias("measured"))
    left = trained.filter(pl.col("measured") | (pl.col("part") == 0))
    table.drop("after the split, of users without both targets", trained.height - left.height)
    users, starts = np.unique(left["user"].to_numpy(), return_index=True)
    return Sequences(left.drop("part", "measured"), users, starts, left["measured"].to_numpy()[starts])
