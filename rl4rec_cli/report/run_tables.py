"""Tables of a run's page: its settings, and the environment in which it began."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rl4rec_cli.config.base import Section

if TYPE_CHECKING:
    from rl4rec_cli.eval.tables import Table


def settings_table(config: Section) -> Table:
    """Returns columns and rows of the settings that are not the defaults."""
    return ("setting", "value", "default"), _changed(config, "")


def _changed(section: Section, path: str) -> list[list[str]]:
    rows = []
    for name, about in type(section).model_fields.items():
        value, default = getattr(section, name), about.get_default(call_default_factory=True)
        key = f"{path}{name}"
        if isinstance(value, Section):
            if type(value) is not type(default) and name != "trainer":  # one that is optional is something by itself
                rows.append([key, "set", _setting(default)])
            rows += _changed(value, f"{key}.")
        elif value != default:
            rows.append([key, _setting(value), _setting(default)])
    return rows


def _setting(value: Any) -> str:
    if isinstance(value, Section):
        return "set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def environment_table(recorded: Mapping[str, Any]) -> Table:
    """Returns columns and rows of what a result depends on besides the configuration."""
    versions = recorded.get("versions")
    flat = (
        {**{k: v for k, v in recorded.items() if k != "versions"}, **versions}
        if isinstance(versions, dict)
        else recorded
    )
    rows = [
        [str(key), " ".join(map(str, value)) if isinstance(value, list) else _setting(value)]
        for key, value in flat.items()
    ]
    return ("what", "value"), rows
