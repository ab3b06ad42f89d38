"""A comparison in words: its tables and lines, as Markdown and as a page.

Decides: order and wording; that titles and generated texts, which come from outside, stay text everywhere.
Hides: the page's template (`compare_page.html.j2`, see `html.py`) and its plots (`plots.py`). Everything is made of
`Comparison.as_json()`, so a page can be made again from a stored one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl4rec_cli import console
from rl4rec_cli.eval.tables import (
    BEHAVIOUR,
    Table,
    behaviour_table,
    metric_table,
    p_text,
    shown_names,
    slice_table,
    slices_title,
)
from rl4rec_cli.shell import command_line

PAIR_COLUMNS = (
    *("first minus second", "difference", "95 % interval", "p (Holm)", "d", "won / lost / tied"),
    *("users needed", "reading"),
)
_TITLE = 48
"""Characters of a title on a terminal."""
TITLES = 3


def pair_table(report: Mapping[str, Any]) -> Table:
    """Returns columns and rows of the tested differences."""
    rows = [
        [
            f"{pair['ours']} − {pair['theirs']}",
            f"{pair['mean']:+.4f}",
            _interval(pair["low"], pair["high"]),
            p_text(pair["p_holm"]),
            "-" if pair["effect_size"] is None else f"{pair['effect_size']:+.3f}",
            f"{pair['wins']:,} / {pair['losses']:,} / {pair['ties']:,}",
            "-" if pair["users_needed"] is None else f"{pair['users_needed']:,}",
            pair["reads"],
        ]
        for pair in report["pairs"]
    ]
    return PAIR_COLUMNS, rows


def seeds_table(report: Mapping[str, Any]) -> Table:
    """Returns columns and rows of the tested differences over several seeds, without pairs that have one seed."""
    rows = [
        [
            f"{pair['ours']} − {pair['theirs']}",
            " ".join(f"{mean:+.4f}" for mean in pair["seeds"]["means"]),
            f"{pair['seeds']['std']:.4f}",
            _interval(pair["seeds"]["users_low"], pair["seeds"]["users_high"]),
        ]
        for pair in report["pairs"]
        if pair["seeds"] is not None
    ]
    return ("first minus second", "difference by seed", "deviation between seeds", "95 % interval, users alone"), rows


def settings_table(report: Mapping[str, Any]) -> Table:
    """Returns columns and rows of the settings that differ between the runs."""
    labels = list(dict.fromkeys(label for cells in report["settings"].values() for label in cells))
    rows = [[key, *(cells[label] for label in labels)] for key, cells in report["settings"].items()]
    return ("setting", *labels), rows


def system_table(report: Mapping[str, Any]) -> Table:
    """Returns columns and rows that explain each system's name."""
    rows = [
        [label, about["kind"], ", ".join(about["is"]), ", ".join(map(str, about["seeds"]))]
        for label, about in report["contestants"].items()
    ]
    return ("system", "kind", "measured", "seed"), rows


def opening_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns a line for each run: `runs/a: Test split opened 2 times (…).`"""
    line_by_run = {one["run"]: one["line"] for each in report["test_openings"].values() for one in each}
    lines = [f"{run}: {line}" for run, line in line_by_run.items()]
    if report["split"] == "test" and not lines:
        return ["Test split opened; not recorded, as no run was named."]
    return lines


def openings_line(report: Mapping[str, Any]) -> str:
    """Returns `Test split opened: a 2 times, b 1 time`, or an empty text for the validation split."""
    if report["split"] != "test":
        return ""
    counts = {one["run"]: one["count"] for each in report["test_openings"].values() for one in each}
    phrases = (f"{run} {count} time{'s' if count != 1 else ''}" for run, count in counts.items())
    return f"Test split opened: {', '.join(phrases) or 'not recorded, as no run was named'}."


def page_title(report: Mapping[str, Any]) -> str:
    """Returns `A against B, C`."""
    first, *others = report["methods"]
    return f"{first} against {', '.join(others)}"


def heading(report: Mapping[str, Any]) -> str:
    """Returns `beauty, test split, 22,363 users`."""
    return f"{report['dataset']}, {report['split']} split, {report['users']:,} users"


def tested_line(report: Mapping[str, Any]) -> str:
    """Returns the metric, the tested pairs and the number of users in one line."""
    count = len(report["pairs"])
    holm = f", p adjusted over {count} (Holm)" if count > 1 else ""
    return f"{report['metric']}, {report['tested']}{holm}, {report['users']:,} users"


def completion_or_best(side: Mapping[str, Any]) -> str:
    """Returns what a system wrote for a user, or its first item if it writes nothing."""
    if side["text"] is not None:
        return str(side["text"]) or "(empty)"
    return f"[{side['best'][0]}]" if side["best"] else "-"


def clip(text: str) -> str:
    """Returns a title, cut to fit a line and safe for a terminal."""
    text = " ".join(console.clean(text).split())
    return text if len(text) <= _TITLE else f"{text[: _TITLE - 1]}…"


def means_table(report: Mapping[str, Any]) -> Table:
    """Returns columns and rows of every system's metrics."""
    return metric_table(report["methods"], _shown(report), "system")


def _shown(report: Mapping[str, Any]) -> dict[str, str]:
    return shown_names({label: report["contestants"][label]["kind"] for label in report["methods"]})


def _interval(low: float | None, high: float | None) -> str:
    """Returns an interval as text, or `-` for a single user or seed, which has none."""
    return "-" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"


def as_markdown(report: Mapping[str, Any]) -> str:
    """Returns the comparison as Markdown with GitHub's tables and without HTML."""
    extremes = report["most_different"]
    parts = [f"# {_md(page_title(report))}", _md(heading(report))]
    parts.append("\n".join(f"- **{_md(verdict)}**" for verdict in report["verdicts"]))
    parts += ["## Metrics", _md_table(means_table(report))]
    parts += ["## Paired differences", _md(tested_line(report)), _md_table(pair_table(report))]
    if seeds_table(report)[1]:
        parts += ["### Over seeds", _md_table(seeds_table(report))]
    for key, label in (("ours_better", extremes["ours"]), ("theirs_better", extremes["theirs"])):
        columns = ["user", "last titles of the history", "target", f"{extremes['ours']}", f"{extremes['theirs']}"]
        rows = [
            [user["user"], " · ".join(user["history"]), user["target"], *(_md_side(s) for s in user["sides"].values())]
            for user in extremes[key]
        ]
        parts += [f"## Users whom {_md(label)} serves better", _md_table((columns, rows)) if rows else "None."]
    for title, table in _more_tables(report):
        parts += [f"## {title}", _md_table(table)]
    parts += ["## What stands behind it", "\n".join(f"- {_md(line)}" for line in background(report))]
    return "\n\n".join(parts) + "\n"


def _more_tables(report: Mapping[str, Any]) -> list[tuple[str, Table]]:
    tables = [
        (slices_title(report), slice_table(report["slices"], _shown(report), "system")),
        (BEHAVIOUR, behaviour_table(report["behaviour"], _shown(report), "system")),
        ("Settings that differ", settings_table(report)),
        ("Who is who", system_table(report)),
    ]
    return [(title, table) for title, table in tables if table[1]]


def background(report: Mapping[str, Any]) -> list[str]:
    """Returns the lines that a reader needs to trust the result."""
    audits = dict.fromkeys(report["audit"].values())
    line = ": ".join(filter(None, (f"rl4rec {report['version']}, {report['time']}", command_line(*report["command"]))))
    digest = f"Dataset {report['dataset']}, digest {report['dataset_digest']}, {report['items']:,} items."
    return [*report["remarks"], *opening_lines(report), *audits, digest, line]


def _md_side(side: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"rank {one['rank']:,}: {completion_or_best(one)}" for one in side)


def _md_table(table: Table) -> str:
    columns, rows = table
    lines = [columns, ["---"] * len(columns)]
    cells = ["| " + " | ".join(line) + " |" for line in ([_md(c) for c in lines[0]], lines[1])]
    return "\n".join([*cells, *("| " + " | ".join(map(_md, row)) + " |" for row in rows)])


def _md(text: str) -> str:
    """Escapes text for Markdown: nothing in it becomes a tag, a link, a table border or a formula."""
    text = " ".join(console.clean(text).split())
    text = re.sub(r"[\\`*<>|~$&#]|\[(?![+-]\d)|\](?=[(\[:])|(?<!\w)_|_(?!\w)|@(?=[A-Za-z])|:(?=//)", r"\\\g<0>", text)
    return re.sub(r"(?i)\bwww\.", "www\\.", text)


def as_html(report: Mapping[str, Any]) -> str:
    """Returns the page: one file without a script and without an address to fetch from."""
    from rl4rec_cli.report.html import figures, render

    return render(
        Path(__file__).with_name("compare_page.html.j2"),
        report=report,
        title=page_title(report),
        heading=heading(report),
        openings=openings_line(report),
        tested=tested_line(report),
        metrics=means_table(report),
        pairs=pair_table(report),
        seeds=seeds_table(report),
        plots=figures(_plots(report)),
        more=_more_tables(report),
        background=background(report),
    )


def _plots(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns title, caption and drawing of each plot."""
    import numpy as np

    from rl4rec_cli.eval.metrics import METRICS
    from rl4rec_cli.report import plots

    pair = report["pairs"][0]
    seeds = ", where there are several seeds for other seeds too" if seeds_table(report)[1] else ""
    spans = f"Means over users with 95 % intervals{seeds}."
    figures = [(f"{m.label} at the cut-offs", spans, plots.metric_bars(report, name)) for name, m in METRICS.items()]
    means = " ".join(f"{p['ours']} minus {p['theirs']}: {p['mean']:+.4f}." for p in report["pairs"])
    caption = f"The first minus the second; an interval that reaches 0 shows no difference. {means}"
    figures.append(("Paired differences", caption, plots.differences(report)))
    caption = f"By {report['metric']} of each user."
    figures.append(("Users won, tied and lost", caption, plots.won_and_lost(report)))
    differences_B = np.array([record["difference"] for record in report["records"]])
    caption = f"{pair['ours']} minus {pair['theirs']}; {pair['ties']:,} users without a difference are left out."
    figures.append(("Differences of single users", caption, plots.user_differences(report, differences_B)))
    caption = "Users whose target is within rank k; higher is better."
    figures.append(("How high the targets stand", caption, plots.rank_curves(report)))
    if report["rewards"]:
        caption = (
            "What reinforcement learning optimised; comparable only between runs with the same reward. "
            f"{plots.AVERAGED}"
        )
        figures.append(("Reward in training", caption, plots.reward_curves(report)))
    return figures
