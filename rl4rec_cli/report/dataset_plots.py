"""Plots of a dataset: lengths, popularity, and when items were chosen.

Decides: what each picture counts, its bins, and the words below it.
Hides: matplotlib, by way of `plots.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec_cli.data.audit.findings import count_of
from rl4rec_cli.report.html import Figure
from rl4rec_cli.report.plots import drawing, plain_log_ticks, series_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rl4rec_cli.data.dataset import Dataset

BINS = 60
"""Stretches of time that a picture tells apart."""
SINGLE_BARS = 30
"""Sequences of up to so many items have a bar for each length."""
DAY = 86_400.0
GAPS = (
    *(("same time", 0.0), ("1 min", 60.0), ("1 hour", 3600.0), ("1 day", DAY)),
    *(("1 week", 7 * DAY), ("30 days", 30 * DAY), ("1 year", 365 * DAY), ("more", np.inf)),
)
"""Longest time between two choices of each bar."""


def figures_of(dataset: Dataset) -> list[Figure]:
    """Returns the pictures of a dataset; those of time only where it has times."""
    figures = [_lengths(dataset), _popularity(dataset)]
    if dataset.times is not None:
        figures += [_over_time(dataset, dataset.times), _gaps(dataset, dataset.times)]
    return figures


def _lengths(dataset: Dataset) -> Figure:
    """Users by the number of their items, on a logarithmic axis where some have many."""
    lengths = np.array([len(sequence) for sequence in (*dataset.sequences, *dataset.training_only)])
    low, high = int(lengths.min()), int(lengths.max())
    is_log = high > SINGLE_BARS
    edges = np.arange(low, high + 2) - 0.5
    if is_log:
        edges = np.unique(np.round(np.geomspace(low, high + 1, 26))) - 0.5

    def draw(axis: Axes) -> None:
        axis.hist(lengths, edges.tolist(), color=series_colour(0), rwidth=0.92)
        _whole_numbers(axis.yaxis)
        if is_log:
            axis.set_xscale("log")
            plain_log_ticks(axis.xaxis)
        else:
            _whole_numbers(axis.xaxis)
        axis.set_xlabel("items of a user")
        axis.set_ylabel("users")
        axis.grid(axis="x", visible=False)

    middle = float(np.median(lengths))
    words = f"From {low:,} to {high:,} items; half of the users have {middle:,g} or fewer."
    return "Lengths of sequences", words, drawing(draw, "lengths")


def _popularity(dataset: Dataset) -> Figure:
    """How often each item was chosen, the most popular first, both axes logarithmic."""
    flat = np.fromiter(chain.from_iterable((*dataset.sequences, *dataset.training_only)), np.int64)
    counts = np.sort(np.bincount(flat, minlength=dataset.num_items))[::-1]
    chosen = counts[counts > 0]
    places = np.unique(np.round(np.geomspace(1, len(chosen), 160)).astype(int))

    def draw(axis: Axes) -> None:
        axis.plot(places, chosen[places - 1], color=series_colour(0), marker="o" if len(chosen) == 1 else "")
        axis.set_xscale("log")
        axis.set_yscale("log")
        plain_log_ticks(axis.xaxis)
        plain_log_ticks(axis.yaxis)
        axis.set_xlabel("items, the most popular first")
        axis.set_ylabel("times chosen")

    top = -(-dataset.num_items // 10)
    words = f"The most popular tenth of the items ({top:,}) has {counts[:top].sum() / len(flat):.0%} of the choices."
    if len(chosen) < dataset.num_items:
        never = dataset.num_items - len(chosen)
        words += f" {count_of(never, 'item')} {'was' if never == 1 else 'were'} never chosen: not drawn."
    return "Popularity of items", words, drawing(draw, "popularity")


def _over_time(dataset: Dataset, times: Sequence[Sequence[float]]) -> Figure:
    """Shares of what trains and of the test targets, by time."""
    users = len(dataset.users)
    parts = {
        "training part": [time for own in times[:users] for time in own[:-2]] + [*chain.from_iterable(times[users:])],
        "test targets": [own[-1] for own in times[:users]],
    }
    first, last = min(map(min, parts.values())), max(map(max, parts.values()))
    reach = max(last - first, 1.0)
    edges = first + reach * np.linspace(0, 1, BINS + 1)

    def draw(axis: Axes) -> None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        for place, (name, values) in enumerate(parts.items()):
            counts, _ = np.histogram(values, edges)
            shares = 100 * counts / len(values)
            axis.stairs(shares, edges / DAY, color=series_colour(place), label=name, linestyle=("-", "--")[place])
        axis.set_xlim(edges[0] / DAY, edges[-1] / DAY)  # a margin may lie before year 1
        axis.xaxis_date()
        locator = AutoDateLocator(minticks=3, maxticks=6)
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axis.set_ylabel("% of each, by time")

    trains, targets = (_day(float(np.median(values))) for values in parts.values())
    words = f"Half of the training part was chosen by {trains}, half of the test targets by {targets}."
    return "When items were chosen", words, drawing(draw, "times", legend=2)


def _gaps(dataset: Dataset, times: Sequence[Sequence[float]]) -> Figure:
    """How long after the one before an item was chosen: of all neighbours, and of test targets alone."""
    every = np.concatenate([np.diff(own) for own in times])
    targets = np.array([own[-1] - own[-2] for own in times[: len(dataset.users)]])
    parts = {"all": every, "test targets": targets}
    # `side="left"`: a gap of just a minute is one of "1 min".
    shares = {
        name: 100 * np.bincount(np.searchsorted([most for _, most in GAPS], gaps), minlength=len(GAPS)) / len(gaps)
        for name, gaps in parts.items()
    }

    def draw(axis: Axes) -> None:
        at = np.arange(len(GAPS))
        for place, (name, heights) in enumerate(shares.items()):
            axis.bar(at + 0.4 * place - 0.2, heights, 0.36, color=series_colour(place), label=name)
        axis.set_xticks(at, [name for name, _ in GAPS], rotation=35, ha="right")
        axis.set_ylabel("%")
        axis.set_xlabel("time since the item before, at most")
        axis.grid(axis="x", visible=False)

    words = (
        f"{shares['test targets'][0]:.1f} % of the test targets have the time of the item before: their order is not "
        f"known from times. Of all items that follow another it is {shares['all'][0]:.1f} %."
    )
    return "Time between two choices", words, drawing(draw, "gaps", legend=2)


def _day(time: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time, UTC).date().isoformat()


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
