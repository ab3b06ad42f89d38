"""`rl4rec data import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rl4rec_cli.cli.options import Grouped, Json, epilog
from rl4rec_cli.config.importers import SOURCES

_ROWS, _ITEMS, _COLUMNS = "Rows and sequences", "Items", "Columns (source csv)"
_SOURCE_LINES = "".join(f"\n\n  {name}: {source.files}; {source.published}" for name, source in SOURCES.items())


def _option(metavar: str, text: str, panel: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(metavar=metavar, help=text, rich_help_panel=panel)
    return option


def _flag(name: str, text: str, panel: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(name, help=text, rich_help_panel=panel)
    return option


def add_to(app: typer.Typer) -> None:
    app.command(
        "import",
        cls=Grouped,
        short_help="Make a dataset folder of raw files: Amazon, MovieLens, your own CSV, …",
        help="Make a dataset folder of raw files, which may be packed (gzip, zstd, zip). Nothing is downloaded.\n\n"
        "Every choice is printed, with the rows that were read and dropped and why; meta.json keeps it. The same "
        "command on the same files gives the same folder. The audit runs at the end.\n\n"
        f"Sources, and where they are published:{_SOURCE_LINES}",
        epilog=epilog(
            "rl4rec data import amazon2023 raw/All_Beauty.jsonl.gz raw/meta_All_Beauty.jsonl.gz data/beauty23",
            "rl4rec data import csv plays.parquet data/mine --user listener --item track --titles tracks.csv",
        ),
    )(import_)


def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="What the files are, as listed above.")],
    files: Annotated[list[str], typer.Argument(metavar="FILES…", help="Files, folders or zip archives.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write.")],
    min_rating: Annotated[
        float | None, _option("R", "Leave out rows rated lower, or not at all; default: keep all.", _ROWS)
    ] = None,
    duplicates: Annotated[
        str | None,
        _option(
            "first|last|none",
            "Which of a user's rows of an item stays; none: none is dropped. Default: the source's.",
            _ROWS,
        ),
    ] = None,
    k_core: Annotated[int, _option("K", "Least rows of each user and item; 0: any.", _ROWS)] = 5,
    min_length: Annotated[int, _option("N", "Least rows of a user, at least 3.", _ROWS)] = 3,
    ties: Annotated[str, _option("file|shuffle:SEED|item", "Order of a user's rows of one time.", _ROWS)] = "shuffle:0",
    split_time: Annotated[
        str | None,
        _option("T", "Train before this time, predict what comes then; default: leave each user's last out.", _ROWS),
    ] = None,
    title_from: Annotated[
        str | None,
        _option("FIELD", "Field or template that names items without a title; default: drop them.", _ITEMS),
    ] = None,
    text: Annotated[
        str | None,
        _option("TEMPLATE", "Items' texts, as '{title}.[ Brand: {brand}.]': brackets go if empty.", _ITEMS),
    ] = None,
    leaks: Annotated[bool, _flag("--leaks", "Keep fields that give answers away.", _ITEMS)] = False,
    keep_ids: Annotated[
        bool, _flag("--keep-ids", "Number items in the order of the source's ids; default: at random.", _ITEMS)
    ] = False,
    name: Annotated[str | None, _option("NAME", "The dataset's name; default: OUT's.", _ITEMS)] = None,
    user: Annotated[str | None, _option("COLUMN", "User ids.", _COLUMNS)] = None,
    item: Annotated[str | None, _option("COLUMN", "Item ids.", _COLUMNS)] = None,
    time: Annotated[str | None, _option("COLUMN", "Times; none: rows are in order.", _COLUMNS)] = None,
    rating: Annotated[str | None, _option("COLUMN", "Ratings.", _COLUMNS)] = None,
    title: Annotated[str | None, _option("COLUMN", "Titles of items.", _COLUMNS)] = None,
    titles: Annotated[
        str | None, _option("FILE", "File that describes the items; recbole and p5 take it, too.", _COLUMNS)
    ] = None,
    separator: Annotated[str | None, _option("CHARACTER", "Between fields; default: look.", _COLUMNS)] = None,
    encoding: Annotated[str | None, _option("NAME", "Of the text; default: utf-8.", _COLUMNS)] = None,
    time_unit: Annotated[str | None, _option("s|ms|us|ns|iso", "Of the times; default: look.", _COLUMNS)] = None,
    as_json: Json = False,
) -> None:
    options = dict(locals())
    from rl4rec_cli import console
    from rl4rec_cli.commands.import_data import import_dataset
    from rl4rec_cli.data.importers.options import ImportOptions
    from rl4rec_cli.shell import rl4rec

    for other in ("source", "files", "out", "as_json"):
        del options[other]
    done = import_dataset(source, files, Path(out), ImportOptions(**options))
    dataset, table = done.imported.dataset, done.imported.table
    if as_json:
        console.print_json({"dataset": out, "meta": dict(dataset.meta), "audit": done.audit.as_json()})
    else:
        console.table("", ["choice", "value"], done.imported.choices)
        rows = [(drop.reason, f"{drop.rows:,}", drop.first) for drop in table.drops.values()]
        console.result("")
        console.table(
            "",
            ["rows", "count", "first"],
            [("read", f"{table.read:,}", ""), *rows, ("left", f"{table.left:,}", "")],
        )
    users = len(dataset.training_users)
    console.log(f"wrote {out}: {users:,} users, {dataset.num_items:,} items, {table.left:,} interactions")
    console.log(done.audit.one_line(out))
    console.log(f"next: {rl4rec('data', 'stats', out)}")
