"""The table of what `rl4rec data import` reads, one line for each source.

Decides: their names, where the code of each is, and what the command's help says of it.
Hides: nothing. It imports nothing heavy, because the command line reads it for its help.
"""

from __future__ import annotations

from dataclasses import dataclass

from rl4rec_cli.config.plugins import Registry


@dataclass(frozen=True)
class Source:
    target: str
    """`module:Class` below `rl4rec_cli.data.importers`, an `Importer`."""
    files: str
    """Which files to name, in a few words."""
    published: str
    """Where they are published."""


SOURCES: dict[str, Source] = {
    "csv": Source("csv:Csv", "your own CSV, TSV, Parquet or JSON lines", "columns by --user, --item, …"),
    "movielens": Source(
        "movielens:MovieLens", "100k, 1M, 10M, 20M, 25M, 32M or latest: folder or zip", "grouplens.org/datasets"
    ),
}
IMPORTERS = Registry(
    "source",
    "rl4rec.importers",
    {name: f"rl4rec_cli.data.importers.{source.target}" for name, source in SOURCES.items()},
)
"""`rl4rec data import NAME`. The code is an `Importer` (`data/importers/importer.py`)."""
