"""Turns results into tables (columns and rows) and differences into words.

Decides: names, order and decimals. It reads an evaluation's JSON, so that a stored result looks the same.
Hides: nothing; the command line prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BEHAVIOUR = "What is recommended and written"
Table = tuple[Sequence[str], list[list[str]]]
"""Columns and rows."""


def shown_names(kinds: Mapping[str, str], notes: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, str]:
    """Returns each method's name in tables, with the number of completions it ranks as one where it is not 1."""
    marks = {name: ["ceiling"] if kind == "ceiling" else [] for name, kind in kinds.items()}
    for name, about in (notes or {}).items():
        if name in marks and "texts_per_user" in about:
            marks[name].append(f"{about['texts_per_user']} completions")
    return {name: f"{name} ({', '.join(some)})" if some else name for name, some in marks.items()}


def tested_title(found: Mapping[str, Any]) -> str:
    """Returns `tuned policy minus …, ndcg@10, 1,000 users`."""
    return f"{found['subject']} minus …, {found['metric']}, {found['users']:,} {found.get('unit', 'users')}"


def tested_tables(found: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """Returns titles and tables of the tested differences: the subject's, and that of the best hybrid with it."""
    tables = [(tested_title(found), difference_table(found["differences"]))]
    if (hybrids := found.get("hybrids")) is not None:
        title = tested_title({**found, "subject": hybrids["ours"]})
        tables.append((title, difference_table({hybrids["theirs"]: hybrids})))
    return tables


def slices_title(found: Mapping[str, Any]) -> str:
    return f"{found['metric']} by slice (users in it)"


def metric_table(methods: Mapping[str, Mapping[str, float]], shown: Mapping[str, str], first: str = "method") -> Table:
    """Returns columns and rows of the means."""
    names = list(next(iter(methods.values()), {}))
    return (first, *names), [
        [shown.get(label, label), *(f"{values[name]:.4f}" for name in names)] for label, values in methods.items()
    ]


def difference_table(differences: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns columns and rows of the subject minus every other method."""
    columns = ("method", "difference", "95 % interval", "p (Holm)", "d", "won / lost", "users needed", "verdict")
    rows = [
        [
            name,
            f"{d['mean']:+.4f}",
            f"[{d['low']:+.4f}, {d['high']:+.4f}]",
            p_text(d["p_holm"]),
            "-" if d["effect_size"] is None else f"{d['effect_size']:+.3f}",
            f"{d['wins']:,} / {d['losses']:,}",
            "-" if d["users_needed"] is None else f"{d['users_needed']:,}",
            d["reads"],
        ]
        for name, d in differences.items()
    ]
    return columns, rows


def slice_table(slices: Mapping[str, Mapping[str, Any]], shown: Mapping[str, str], first: str = "method") -> Table:
    """Returns columns and rows of the headline metric by slice of the users."""
    columns = (first, *(f"{name} ({part['users']:,})" for name, part in slices.items()))
    rows = [[shown[label], *(_decimals(part[label], 4) for part in slices.values())] for label in shown]
    return columns, rows if slices else []


def behaviour_table(
    behaviour: Mapping[str, Mapping[str, float]], shown: Mapping[str, str] | None = None, first: str = "method"
) -> Table:
    """Returns columns and rows of what methods recommend and write."""
    names = list(dict.fromkeys(name for values in behaviour.values() for name in values))
    rows = [
        [(shown or {}).get(label, label), *(_decimals(values.get(name), 3) for name in names)]
        for label, values in behaviour.items()
    ]
    return (first, *(name.replace("_", " ") for name in names)), rows if names else []


def probe_table(probes: Sequence[Mapping[str, Any]]) -> Table:
    """Returns columns and rows of the probes."""
    rows = []
    for probe in probes:
        d, has_passed = probe["difference"], probe["passed"]
        result = "passed" if has_passed else "FAILED" if has_passed is False else "-"
        interval = f"[{d['low']:+.4f}, {d['high']:+.4f}]"
        rows.append([probe["name"], probe["measures"], f"{d['mean']:+.4f}", interval, p_text(d["p_value"]), result])
    return ("probe", "measures", "difference", "95 % interval", "p", "result"), rows


def _decimals(value: float | None, places: int) -> str:
    """Formats a number, or returns `-` for the mean of an empty slice: NaN, or null in a stored result."""
    return "-" if value is None or value != value else f"{value:.{places}f}"


def p_text(p: float) -> str:
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0") if p < 1 else "1"


def against(difference: Mapping[str, Any], other: str) -> str:
    """Returns a difference in words, such as `above last item (.0397) (+.0031 [+.0010, +.0052], p <.001)`."""
    p = p_text(difference["p_holm"])
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    numbers = f"{difference['mean']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}], {p}"
    if difference["reads"] == "no difference shown":
        return f"no difference shown from {other} ({numbers})"
    return f"{'above' if difference['reads'] == 'higher' else 'below'} {other} ({numbers})"
