"""Plots of results as inline SVG.

Decides: what each plot shows; that a plot needs no script and fetches nothing, keeps text as text, and uses the page's
colours (`var(--ink)`, `var(--line)`, `var(--s0)` …), which follow light and dark.
Hides: matplotlib. The first plot imports it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec_cli.report.plot_names import short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from numpy.typing import NDArray

SERIES = 8
"""Colours; more series begin again with other line styles."""
WINDOW, PART = 10, 40
"""A curve is averaged over so many values, or over this part of all where that is more."""
SMOOTHED = 30
"""More values than these are averaged."""
AVERAGED = f"Bold, with more than {SMOOTHED} values: mean of the last {WINDOW}, in long runs of a {PART}th of all."
STRETCHES = 200
"""Stretches of a curve that the width of a plot can show apart."""
INK, _LINE = "#010101", "#020202"
_STYLES = ("-", "--", "-.", ":")
_TICKS = (1, 2, 5)


def metric_bars(report: Mapping[str, Any], family: str) -> str:
    """Draws means with 95 % intervals of a metric (`ndcg`) at every cut-off."""
    labels, ks = list(report["methods"]), report["ks"]
    names = _names(labels)

    def draw(axis: Axes) -> None:
        width = 0.8 / len(labels)
        for place, label in enumerate(labels):
            means = np.array([report["methods"][label][f"{family}@{k}"] for k in ks])
            ends = np.array([report["intervals"][label][f"{family}@{k}"] for k in ks], float)
            at = np.arange(len(ks)) + (place - (len(labels) - 1) / 2) * width
            reach = np.clip(np.nan_to_num(np.abs(ends.T - means)), 0, None)
            axis.bar(at, means, width * 0.92, color=series_colour(place), label=names[label])
            axis.errorbar(at, means, reach, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        axis.set_xticks(np.arange(len(ks)), [f"{family}@{k}" for k in ks])
        axis.grid(axis="x", visible=False)

    return drawing(draw, f"bars-{family}", legend=len(labels))


def differences(report: Mapping[str, Any]) -> str:
    """Draws every tested difference with its 95 % interval, and a line at 0."""
    pairs, names = report["pairs"], _names(report["methods"])

    def draw(axis: Axes) -> None:
        for row, pair in enumerate(pairs):
            low, high = (pair["mean"] if pair[end] is None else pair[end] for end in ("low", "high"))
            colour = (
                series_colour(0) if pair["reads"] == "higher" else series_colour(1) if pair["reads"] == "lower" else INK
            )
            axis.plot([low, high], [row, row], color=colour, linewidth=2)
            axis.plot([pair["mean"]], [row], "o", color=colour, markersize=6)
            name = f"{names[pair['ours']]} − {names[pair['theirs']]}"
            axis.annotate(name, (0, row), (4, 9), xycoords=axis.get_yaxis_transform(), textcoords="offset points")
        axis.axvline(0, color=INK, linewidth=0.8, linestyle="--")
        axis.set_yticks([])
        axis.set_ylim(len(pairs) - 0.6, -0.7)
        axis.set_xlabel(f"difference in {report['metric']}, 95 % interval")

    return drawing(draw, "differences", height=1.0 + 0.45 * len(pairs))


def won_and_lost(report: Mapping[str, Any]) -> str:
    """Draws the share of users won, tied and lost in every tested pair."""
    pairs, names = report["pairs"], _names(report["methods"])

    def draw(axis: Axes) -> None:
        for row, pair in enumerate(pairs):
            begin = 0.0
            for key, colour in (("wins", series_colour(0)), ("ties", _LINE), ("losses", series_colour(1))):
                share = 100 * pair[key] / max(1, report["users"])
                axis.barh(row, share, 0.36, left=begin, color=colour, label=_WON[key] if row == 0 else None)
                begin += share
            name = f"{names[pair['ours']]} against {names[pair['theirs']]}"
            axis.annotate(name, (0, row), (1, 11), xycoords=axis.get_yaxis_transform(), textcoords="offset points")
        axis.set_yticks([])
        axis.set_ylim(len(pairs) - 0.5, -0.8)
        axis.set_xlim(0, 100)
        axis.set_xlabel("% of users")
        axis.grid(visible=False)

    return drawing(draw, "won", height=1.35 + 0.5 * len(pairs), legend=3)


_WON = {"wins": "first higher", "ties": "the same", "losses": "second higher"}


def user_differences(report: Mapping[str, Any], differences_B: NDArray[np.float64]) -> str:
    """Draws a histogram of the first pair's differences, without users who have none: they would hide the rest."""
    nonzero_B = differences_B[differences_B != 0]

    def draw(axis: Axes) -> None:
        reach = max(float(np.abs(nonzero_B).max(initial=0)), 1e-9)
        edges = [reach * step / 20 for step in range(-20, 21)]
        for place, part_B in enumerate((nonzero_B[nonzero_B > 0], nonzero_B[nonzero_B < 0])):
            side = "first" if place == 0 else "second"
            axis.hist(part_B, edges, color=series_colour(place), label=f"{side} higher: {len(part_B):,} users")
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set_xlabel(f"difference in {report['metric']} of one user")
        axis.set_ylabel("users")

    return drawing(draw, "users", legend=2)


def rank_curves(report: Mapping[str, Any]) -> str:
    """Draws the share of users whose target stands within rank k, over a logarithmic k, averaged over seeds."""
    labels, items = list(report["methods"]), report["items"]
    names = _names(labels)

    def draw(axis: Axes) -> None:
        ks = np.unique(np.round(np.geomspace(1, max(2, items), 120)).astype(int))
        for place, label in enumerate(labels):
            ranks = np.array([record["ranks"][label] for record in report["records"]]).ravel()
            shares = np.searchsorted(np.sort(ranks), ks, side="right") / max(1, len(ranks))
            axis.plot(ks, 100 * shares, color=series_colour(place), linestyle=_style(place), label=names[label])
        axis.plot(ks, 100 * ks / items, color=INK, linewidth=0.8, linestyle=":", label="chance")
        axis.set_xscale("log")
        ticks = [tick * 10**power for power in range(8) for tick in _TICKS if tick * 10**power <= items]
        ticks = ticks if len(ticks) <= 9 else [tick for tick in ticks if str(tick)[0] == "1"]
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.set_xticks([], minor=True)
        axis.set_xlim(1, max(2, items))
        axis.set_ylim(0, 100)
        axis.set_xlabel("rank k")
        axis.set_ylabel("% of users with the target within k")

    return drawing(draw, "ranks", legend=len(labels) + 1)


def reward_curves(report: Mapping[str, Any]) -> str:
    """Draws the mean reward of the texts in training by step. Every seed is a line."""
    lines = [
        Curve(label if number == 0 else None, run["steps"], run["values"], list(report["methods"]).index(label))
        for label, runs in report["rewards"].items()
        for number, run in enumerate(runs)
    ]
    return curves("rewards", lines, xlabel="step of reinforcement learning", ylabel="reward")


@dataclass(frozen=True)
class Curve:
    """Values by step. A value that is None or not finite is a gap.

    Attributes:
        label: the name in the legend, or None to leave it out.
        place: number of its colour.
        is_measured: each value was measured by itself: it gets a point, and no averages are drawn.
    """

    label: str | None
    steps: Sequence[int]
    values: Sequence[float | None]
    place: int = 0
    is_measured: bool = False


def curves(
    name: str,
    lines: Sequence[Curve],
    *,
    xlabel: str,
    ylabel: str,
    ranks: bool = False,
    share: bool = False,
    marks: Sequence[tuple[int, str]] = (),
) -> str:
    """Draws values by step and, for more than `SMOOTHED` values, a trailing mean in bold.

    Of many values it draws as many as the width can show, with the highest and lowest of each stretch.

    Args:
        name: the prefix of every id in the plot.
        ranks: use a logarithmic axis with 1 at the top.
        share: values are shares of 1, drawn as % from 0 to 100.
        marks: steps to mark by a line, each with a letter or number to print at it ("" for none).
    """
    names = _names(line.label for line in lines if line.label is not None)
    label_count = sum(line.label is not None for line in lines)

    def draw(axis: Axes) -> None:
        for line in lines:
            _draw_curve(axis, line, 100.0 if share else 1.0, names.get(line.label or ""))
        for step, sign in marks:
            axis.axvline(step, color=INK, linewidth=0.8, linestyle=":" if sign else "--", alpha=0.6)
            place: dict[str, Any] = {"xycoords": axis.get_xaxis_transform(), "textcoords": "offset points"}
            axis.annotate(sign, (step, 1), (2, -8), fontsize=8, **place)
        if ranks:
            axis.set_yscale("log")
            axis.invert_yaxis()
            plain_log_ticks(axis.yaxis)
        if share:
            axis.set_ylim(-3, 103)
        _whole_steps(axis)
        axis.set_xlabel(xlabel)
        axis.set_ylabel(f"{ylabel}, %" if share else ylabel)

    return drawing(draw, name, legend=label_count if label_count > 1 else 0)


def _draw_curve(axis: Axes, line: Curve, factor: float, label: str | None) -> None:
    style: dict[str, Any] = {"color": series_colour(line.place), "linestyle": _style(line.place)}
    steps = np.asarray(line.steps, float)
    values = factor * np.array([np.nan if value is None else value for value in line.values], float)
    values[~np.isfinite(values)] = np.nan
    if len(values) <= SMOOTHED or line.is_measured:
        # A value between two gaps, or the only one, would be no line at all.
        axis.plot(*_thinned(steps, values), label=label, marker="o", markersize=3, **style)
        return
    means = _trailing_mean(values, max(WINDOW, len(values) // PART))
    axis.plot(*_thinned(steps, means), label=label, **style)
    axis.plot(*_thinned(steps, values), alpha=0.25, linewidth=0.7, **style)


def _thinned(steps: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Keeps the first, lowest, highest and last value of each of `STRETCHES` stretches, and a gap if there is one."""
    if len(values) <= 4 * STRETCHES:
        return steps, values
    indices: set[int] = set()
    for rows in np.array_split(np.arange(len(values)), STRETCHES):
        indices |= {int(rows[0]), int(rows[-1])}
        part = values[rows]
        if not np.isnan(part).all():
            indices |= {int(rows[np.nanargmin(part)]), int(rows[np.nanargmax(part)])}
        indices |= set(rows[np.isnan(part)][:1].tolist())
    order = sorted(indices)
    return steps[order], values[order]


def _whole_steps(axis: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = axis.dataLim.intervalx
    if low == high:
        axis.set_xlim(low - 1, high + 1)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))


def plain_log_ticks(axis: XAxis | YAxis) -> None:
    """Labels a logarithmic axis with whole numbers: 1, 2, 5, 10 … if they span more than a power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    ratio = high / max(low, 1e-9)
    subs = _TICKS if ratio < 200 else (1,)
    axis.set_major_locator(LogLocator(subs=subs) if ratio > 10 else MaxNLocator(nbins=6, integer=high - low > 2))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda rank, _: f"{rank:,.5g}"))


def _trailing_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Returns the means of the last `window` values without gaps. No mean depends on a later value."""
    there = ~np.isnan(values)
    sums = np.cumsum(np.insert(np.nan_to_num(values), 0, 0.0))
    counts = np.cumsum(np.insert(there, 0, 0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    means = (sums[ends] - sums[starts]) / np.maximum(1, counts[ends] - counts[starts])
    return np.where(there, means, np.nan)


def drawing(draw: Callable[[Axes], None], name: str, *, height: float = 2.9, legend: int = 0) -> str:
    """Draws one plot as an `<svg>` element.

    Args:
        name: the prefix of every id in it, so that a page can hold several plots.
        height: inches, without the legend.
        legend: number of entries; 0 draws no legend.
    """
    with _look():
        from matplotlib.figure import Figure

        rows = -(-legend // 2)
        figure = Figure(figsize=(4.4, height + 0.2 * rows), layout="constrained")
        axis = figure.add_subplot()
        draw(axis)
        if legend:
            figure.legend(loc="outside upper left", ncols=2, frameon=False, handlelength=1.6, columnspacing=1.2)
        file = io.StringIO()
        # Without its metadata a figure names no address and no date: the same result gives the same file.
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _for_page(file.getvalue(), name)


@contextmanager
def _look() -> Iterator[None]:
    import matplotlib

    colours = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    settings: Any = {
        **colours,
        "svg.fonttype": "none",
        "svg.hashsalt": "rl4rec",
        "font.family": "sans-serif",
        "font.size": 9,
        "text.parse_math": False,  # a `$` in a name is a `$`
        "axes.facecolor": "none",
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": _LINE,
        "grid.linewidth": 0.6,
        "savefig.transparent": True,
    }
    with matplotlib.rc_context(settings):
        yield


def _for_page(text: str, name: str) -> str:
    """Returns the `<svg>` element alone, with unique ids and the page's colours. HTML needs no namespaces."""
    text = text[text.index("<svg") :]
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in {INK: "ink", _LINE: "line", **{series_colour(i): f"s{i}" for i in range(SERIES)}}.items():
        text = text.replace(colour, f"var(--{variable})")
    # Scales with the page; its own size in points would not.
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)


def series_colour(place: int) -> str:
    return f"#0a0a{16 + place % SERIES:02x}"


def _style(place: int) -> str:
    return _STYLES[place // SERIES % len(_STYLES)] if place >= SERIES else _STYLES[place % len(_STYLES)]


def _legend_name(name: str) -> str:
    # matplotlib leaves names that begin with `_` out of legends.
    return f"\u200a{name}" if name.startswith("_") else name


def _names(labels: Iterable[str]) -> dict[str, str]:
    return {label: _legend_name(name) for label, name in short_names(labels).items()}
