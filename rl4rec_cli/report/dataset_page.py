"""`rl4rec data stats --html`: a dataset as one page.

Decides: what the page shows, in which order and words: pictures, the figures that `data stats` prints, and for an
imported dataset the choices of the import and the rows that it dropped.
Hides: the page's template (`dataset_page.html.j2`) and what is drawn (`dataset_plots.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import __version__, console
from rl4rec_cli.report import dataset_plots
from rl4rec_cli.report.html import figures, render

if TYPE_CHECKING:
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.eval.tables import Table

LARGEST = 12
"""Most popular items that are listed."""


def as_html(dataset: Dataset, stats: Mapping[str, Any]) -> str:
    """Returns the page: one file without a script and without an address to fetch from.

    Args:
        stats: what `dataset_stats` returns.
    """
    heading = f"{stats['users']:,} users, {stats['items']:,} items, {stats['interactions']:,} interactions"
    return render(
        Path(__file__).with_name("dataset_page.html.j2"),
        title=dataset.name,
        heading=heading,
        plots=figures(dataset_plots.figures_of(dataset)),
        has_times=dataset.times is not None,
        stats=(console.FIGURE_COLUMNS, [[name, str(value)] for name, value in console.figure_rows(stats)]),
        popular=popular_table(dataset),
        imported=import_tables(dataset.meta),
        made=f"rl4rec {__version__}, dataset digest {dataset.digest}",
    )


def popular_table(dataset: Dataset) -> Table:
    """Returns columns and rows of the items that were chosen most often."""
    from collections import Counter

    counts = Counter(item for sequence in (*dataset.sequences, *dataset.training_only) for item in sequence)
    rows = [
        [str(dataset.items[item]["title"]), f"{count:,}", f"{count / counts.total():.1%}"]
        for item, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:LARGEST]
    ]
    return ("item", "times chosen", "of all choices"), rows


def import_tables(meta: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """Returns what `data import` noted in `meta.json`: its choices and its rows. Anybody may have edited the file.

    Returns nothing for a dataset that was not imported.
    """
    note = meta.get("import")
    if not isinstance(note, Mapping):
        return []
    tables: list[tuple[str, Table]] = []
    choices, rows = note.get("choices"), note.get("rows")
    if isinstance(choices, Mapping):
        tables.append(("Choices of the import", (("choice", "value"), [[str(k), str(v)] for k, v in choices.items()])))
    if isinstance(rows, Mapping) and isinstance(rows.get("dropped"), list):
        drops = [drop for drop in rows["dropped"] if isinstance(drop, Mapping)]
        lines = [[_count(rows.get("read")), "read", ""]]
        lines += [[_count(d.get("rows")), str(d.get("reason", "-")), str(d.get("first", ""))] for d in drops]
        lines.append([_count(rows.get("left")), "left", ""])
        tables.append(("Rows of the source", (("rows", "what became of them", "first"), lines)))
    return tables


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"
