"""Reads results of evaluations.

Decides: that a file is a result only if every table can be made from it.
Hides: the many kinds of damage that editing by hand can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl4rec_cli.errors import RunError
from rl4rec_cli.eval import tables
from rl4rec_cli.files.reading import object_flaw, read_object

_WANTS: dict[str, type | tuple[type, ...]] = {
    "methods": dict,
    "kinds": dict,
    "differences": dict,
    "verdict": str,
    "metric": str,
    "users": int,
    "subject": (type(None), str),
}
_MAY: dict[str, type | tuple[type, ...]] = {
    "dataset": str,
    "dataset_digest": str,
    "audit": str,
    "checkpoint": dict,
    "hybrids": dict,
}


def read_result(path: Path) -> dict[str, Any]:
    """Reads `eval/SPLIT.json` of a run.

    Raises:
        RunError: the file cannot be read, or is no result.
    """
    result = read_object(path, _WANTS)
    hint = "`rl4rec eval` with the run measures anew and writes it"
    if flaw := object_flaw(result, {name: kind for name, kind in _MAY.items() if name in result}):
        raise RunError(f"{path}: is no result: {flaw}", hint=hint)
    try:
        result_tables(result)
    except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        raise RunError(f"{path}: is no result that can be read: {type(error).__name__}: {error}", hint=hint) from error
    return result


def result_tables(found: Mapping[str, Any]) -> list[tuple[str, tables.Table]]:
    """Returns every table of a result that has rows, with its title."""
    labels = tables.shown_names(found["kinds"], found.get("notes"))
    where = f"{found['users']:,} {found.get('unit', 'users')}"
    titled_tables = [
        (f"Means over {where}", tables.metric_table(found["methods"], labels)),
        *tables.tested_tables(found),
        ("Probes", tables.probe_table(found.get("probes", []))),
        (tables.slices_title(found), tables.slice_table(found.get("slices", {}), labels)),
        (tables.BEHAVIOUR, tables.behaviour_table(found.get("behaviour", {}), labels)),
    ]
    return [(name, table) for name, table in titled_tables if table[1]]
