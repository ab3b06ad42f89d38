"""From raw files to a dataset: the steps that all sources share.

Decides: the order of steps, what is printed and what `meta.json` keeps of them. Items are read after the first k-core,
so that only those in use are held; dropping items without a title and taking the core again gives the same as the
other way round.
Hides: the steps (`sequences.py`, `catalogue.py`), the sources (one module each) and their files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rl4rec_cli.config.importers import IMPORTERS, SOURCES
from rl4rec_cli.data.audit.findings import count_of
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.importers.catalogue import Catalogue
from rl4rec_cli.data.importers.files import find_files
from rl4rec_cli.data.importers.importer import FILE, Importer
from rl4rec_cli.data.importers.options import ImportOptions
from rl4rec_cli.data.importers.rows import RowTable
from rl4rec_cli.data.importers.sequences import (
    Coded,
    Sequences,
    check_any,
    check_measured,
    code,
    drop_duplicates,
    keep_rated,
    put_in_order,
    split_rows,
    take_core,
)
from rl4rec_cli.data.importers.tables import LINE
from rl4rec_cli.data.importers.times import TimeReader, parse_moment
from rl4rec_cli.errors import ConfigError, DataError
from rl4rec_cli.files.digests import sha256_of_file

ID_SEED = 0
"""Of the order in which items are numbered."""
USABLE_SHARE = 0.5
"""Least share of rows with user, item and time; with fewer, columns or units are others than they seem."""
UNKNOWN_SHARE = 0.5
"""Largest share of items that the source does not describe; with more, they are another data set's."""


@dataclass(frozen=True)
class Imported:
    """A dataset from raw files, not saved yet, with what was chosen and what became of the rows."""

    dataset: Dataset
    table: RowTable
    choices: tuple[tuple[str, str], ...]
    """Option and value, each in words."""


def import_files(source: str, paths: Sequence[str | Path], options: ImportOptions, *, name: str) -> Imported:
    """Imports files of a source.

    Args:
        source: a name in `config/importers.py`, or a plug-in's.
        paths: files, folders or zip archives.
        name: the dataset's name, unless the options have one.

    Raises:
        ConfigError: an option or the source is unknown, or does not go with the others.
        DataError: files are missing, damaged or of another source; or no row is left.
    """
    opener = IMPORTERS.load(source)
    table = RowTable()
    importer: Importer = opener(find_files(paths), options, table)
    options.check_own(source, importer.takes)
    moment = _moment(options, importer)
    choices: list[tuple[str, str]] = []

    rows, unit = _read_rows(importer)
    has_times = "time" in rows.columns
    if moment is not None and not has_times:
        raise ConfigError("--split-time: the source has no times", hint="leave it out: the last item is the target")
    titles = _titles(importer, rows) if "title" in rows.columns else None
    coded = code(rows.drop("title", FILE, LINE, strict=False))
    del rows
    ordered = put_in_order(coded.rows, options)
    ordered = keep_rated(ordered, options.min_rating, table)
    duplicates = options.duplicates or importer.duplicates
    ordered = drop_duplicates(ordered, duplicates, table)
    core, rounds = take_core(ordered, options.k_core, options.min_length)
    check_any(ordered, core, options)

    catalogue = Catalogue(text=options.text, usual=importer.text, title_from=options.title_from, leaks=options.leaks)
    described = _describe(importer, catalogue, coded, core, titles, table)
    titled, more = take_core(described, options.k_core, options.min_length)
    check_any(described, titled, options)
    core_name = f"k-core {options.k_core}" if options.k_core > 1 else f"users with fewer than {options.min_length} rows"
    table.drop(
        f"{core_name} ({count_of(rounds + more, 'round')})",
        ordered.height - core.height + described.height - titled.height,
    )
    sequences = split_rows(titled, moment, table)
    check_measured(sequences, titled)

    if importer.lines.drops:
        broken = importer.lines.drops["cannot be read"]
        importer.notes["other lines that cannot be read"] = (
            f"{broken.rows:,}, the first {_relative(broken.first, importer)}"
        )
    choices += [
        ("--min-rating", "all" if options.min_rating is None else f"{options.min_rating:g}"),
        ("--duplicates", duplicates),
        ("--k-core", f"{options.k_core} ({count_of(rounds + more, 'round')})"),
        ("--min-length", str(options.min_length)),
        ("times", unit if has_times else "none: rows are in the order of the files"),
        ("--ties", options.ties if has_times else "file"),
        ("split", _split_in_words(options, importer)),
        ("item ids", "in the source's order (--keep-ids)" if options.keep_ids else "shuffled"),
        ("--title-from", options.title_from or "none: items without a title are dropped"),
        ("--text", catalogue.template().text),
        *((what, str(value)) for what, value in importer.notes.items()),
    ]
    if catalogue.left_out:
        choices.append(("left out", f"{', '.join(catalogue.left_out)} (--leaks keeps them)"))
    dataset = _dataset(sequences, coded, catalogue, options, duplicates, name)
    meta = _meta(source, importer, options, table, choices, sequences)
    return Imported(_with_meta(dataset, meta), table, tuple(choices))


def _moment(options: ImportOptions, importer: Importer) -> int | None:
    if options.split_time is None:
        return None
    if importer.is_split:
        raise ConfigError(
            "--split-time: the files are split already", hint="leave it out, or name files without a split"
        )
    return parse_moment(options.split_time)


def _split_in_words(options: ImportOptions, importer: Importer) -> str:
    if importer.is_split:
        return "as the files have it"
    return "leave-one-out" if options.split_time is None else f"at {options.split_time} (--split-time)"


def _read_rows(importer: Importer) -> tuple[pl.DataFrame, str]:
    """Returns all usable rows, their times in microseconds, and the unit of the times in words."""
    table = importer.table
    frames = [_usable(importer, frame) for frame in importer.interactions()]
    if not frames or not table.read:
        raise DataError(f"{importer.used[0] if importer.used else 'source'}: there are no rows")
    rows = pl.concat(frames)
    frames.clear()
    unit = ""
    if "time" in rows.columns:
        reader = importer.times or TimeReader("s")
        if (odd := reader.odd(rows["time"])) is not None:
            row, top = rows.row(odd, named=True), rows["time"].to_numpy().max()
            place = importer.place(row[FILE], row[LINE])
            raise DataError(
                f"{place}: times of two units: {row['time']:.0f} here, {top:.0f} elsewhere",
                hint="give all times one unit, and take the rows of another one out",
            )
        times, unit = reader.microseconds(rows["time"])
        rows = rows.with_columns(times.alias("time"))
    if table.left < USABLE_SHARE * table.read:
        reasons = "; ".join(f"{d.reason}: {d.rows:,}, first {d.first}" for d in table.drops.values())
        raise DataError(
            f"only {table.left:,} of {table.read:,} rows can be used ({reasons})",
            hint="are these the right files and columns?",
        )
    return rows, unit


def _titles(importer: Importer, rows: pl.DataFrame) -> pl.DataFrame:
    """Returns each item's first title.

    Raises:
        DataError: most items have several titles, so that they are something else, such as names of users.
    """
    named = rows.select("item", pl.col("title").str.strip_chars()).filter(pl.col("title") != "")
    named = named.unique(maintain_order=True)
    first = named.unique("item", keep="first", maintain_order=True)
    again = named.filter(pl.col("item").is_duplicated())
    several = again["item"].n_unique()
    if several > UNKNOWN_SHARE * first.height:
        item = again["item"][0]
        one, other = again.filter(pl.col("item") == item)["title"].head(2)
        raise DataError(
            f"{several:,} of {first.height:,} items have several titles: {item} is called {one!r} and {other!r}",
            hint="name the column of titles by --title, or the file of the items by --titles",
        )
    if several:
        importer.notes["items of several titles"] = f"{several:,}; the first counts"
    return first


def _usable(importer: Importer, frame: pl.DataFrame) -> pl.DataFrame:
    """Drops and counts the rows of a frame without user, item or time, and those before 1970."""
    tests: list[tuple[str, pl.Expr]] = [
        (f"without {name}", pl.col(name).is_null() | (pl.col(name) == "")) for name in ("user", "item")
    ]
    if "time" in frame.columns:
        tests += [("without a readable time", pl.col("time").is_null()), ("negative time", pl.col("time") < 0)]
    for reason, is_bad in tests:
        bad = frame.filter(is_bad)
        if bad.height:
            first = bad.row(0, named=True)
            importer.table.drop(reason, bad.height, importer.place(first[FILE], first[LINE]))
            frame = frame.filter(~is_bad)
    return frame


def _describe(
    importer: Importer,
    catalogue: Catalogue,
    coded: Coded,
    core: pl.DataFrame,
    titles: pl.DataFrame | None,
    table: RowTable,
) -> pl.DataFrame:
    """Fills the catalogue with the items of these rows, and returns the rows whose items have a title."""
    codes = core["item"].unique().to_list()
    wanted = {coded.items[number]: number for number in codes}
    if titles is not None:
        for item, title in titles.iter_rows():
            if item in wanted:
                catalogue.add(item, {"title": title})
    for source_id, fields in importer.items(wanted.keys()):
        if source_id in wanted:
            catalogue.add(source_id, fields)
    unknown = [item for item in wanted if item not in catalogue]
    if len(unknown) > UNKNOWN_SHARE * len(wanted) and importer.options.title_from is None:
        raise DataError(
            f"{len(unknown):,} of {len(wanted):,} items in use are not described, such as {unknown[0]}",
            hint=_titles_hint(importer, unknown[0]),
        )
    titled = catalogue.name_items(wanted)
    has_title = np.zeros(len(coded.items), dtype=bool)
    has_title[[wanted[item] for item in titled]] = True
    is_known = np.zeros(len(coded.items), dtype=bool)
    is_known[[number for item, number in wanted.items() if item in catalogue]] = True
    items = core["item"].to_numpy()
    untitled = {item for item in wanted if item not in titled}
    first = next(iter(sorted(untitled & set(unknown))), ""), next(iter(sorted(untitled - set(unknown))), "")
    table.drop("of items that are not described", int((~is_known[items]).sum()), first[0] and f"item {first[0]}")
    table.drop("of items without a title", int((is_known & ~has_title)[items].sum()), first[1] and f"item {first[1]}")
    if catalogue.repeats:
        importer.notes["items described again"] = f"{catalogue.repeats:,} times; the first with a title counts"
    left = core.filter(pl.Series(has_title[items]))
    if not left.height:
        raise DataError("no item has a title", hint=_titles_hint(importer, next(iter(wanted))))
    return left


def _titles_hint(importer: Importer, item: str) -> str:
    """Says where titles may come from, when items have none."""
    ids = "--title-from item names items by their ids"
    if "titles" not in importer.takes:
        return f"are rows and items of the same data set? {ids}"
    if importer.options.titles is None:
        return f"--titles FILE names the file that describes the items; {ids}"
    return f"are the ids in {importer.options.titles} those of the rows, such as {item}? {ids}"


def _dataset(
    sequences: Sequences,
    coded: Coded,
    catalogue: Catalogue,
    options: ImportOptions,
    duplicates: str,
    name: str,
) -> Dataset:
    codes = np.unique(sequences.rows["item"].to_numpy())
    numbered = codes if options.keep_ids else np.random.default_rng(ID_SEED).permutation(codes)
    number_of = np.zeros(len(coded.items), dtype=np.int64)
    number_of[numbered] = np.arange(len(numbered))
    flat = number_of[sequences.rows["item"].to_numpy()].tolist()
    ends = [*sequences.starts[1:].tolist(), len(flat)]
    bounds = list(zip(sequences.starts.tolist(), ends, strict=True))
    parts = [tuple(flat[a:b]) for a, b in bounds]
    users = _user_names([coded.users[number] for number in sequences.users.tolist()])
    measured = sequences.is_measured.tolist()
    order = [i for i, is_measured in enumerate(measured) if is_measured]
    rest = [i for i, is_measured in enumerate(measured) if not is_measured]
    times = None
    if "time" in sequences.rows.columns:
        seconds = (sequences.rows["time"].to_numpy() / 10**6).tolist()
        times = tuple(tuple(seconds[slice(*bounds[i])]) for i in (*order, *rest))
    return Dataset(
        name=options.name or _plain_name(name),
        items=catalogue.rows(coded.items[number] for number in numbered.tolist()),
        users=tuple(users[i] for i in order),
        sequences=tuple(parts[i] for i in order),
        prompts={},
        mask_history=duplicates != "none",
        meta={},
        training_only_users=tuple(users[i] for i in rest),
        training_only=tuple(parts[i] for i in rest),
        times=times,
    )


def _plain_name(folder: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", folder).lstrip("-.+") or "dataset"


def _user_names(users: Sequence[str]) -> list[str]:
    """Writes users as words: `ann lee` is `ann%20lee`.

    Raises:
        DataError: another user is called that already.
    """
    names = [re.sub(r"\s", lambda m: "".join(f"%{b:02X}" for b in m[0].encode()), user) for user in users]
    if len(set(names)) < len(names):
        twice = next(a for a, b in zip(sorted(names), sorted(names)[1:], strict=False) if a == b)
        raise DataError(f"two users would be called {twice}", hint="user ids hold no spaces in a dataset: rename one")
    return names


def _meta(
    source: str,
    importer: Importer,
    options: ImportOptions,
    table: RowTable,
    choices: Sequence[tuple[str, str]],
    sequences: Sequences,
) -> dict[str, Any]:
    published = SOURCES[source].published if source in SOURCES else ""
    ties = sequences.ties()
    rows = table.as_json()
    for drop in rows["dropped"]:
        drop["first"] = _relative(drop["first"], importer)
    return {
        "source": f"{source}{f' ({published})' if published else ''}, by rl4rec data import",
        "import": {
            "source": source,
            "files": [
                {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
                for path in dict.fromkeys(file.path for file in importer.used)
            ],
            "options": options.as_json(),
            "choices": dict(choices),
            "rows": rows,
        },
        **({"time_ties": ties} if ties is not None else {}),
    }


def _relative(place: str, importer: Importer) -> str:
    """Names a place's file without its folder: the same files elsewhere give the same bytes."""
    for file in sorted(importer.used, key=lambda file: -len(str(file))):
        if place.startswith(f"{file}:"):
            return file.path.name + place.removeprefix(str(file.path))
    return place


def _with_meta(dataset: Dataset, meta: dict[str, Any]) -> Dataset:

    return replace(dataset, meta=meta)
