"""Tables of a run's page: its settings, its checkpoints, and the environment in which it began."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rl4rec_cli.config.base import Section

if TYPE_CHECKING:
    from rl4rec_cli.eval.tables import Table
    from rl4rec_cli.train.checkpoints import CheckpointState


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


def checkpoint_table(checkpoints: Sequence[CheckpointState]) -> Table:
    """Returns columns and rows of the checkpoints: which of them load, and from which a run can resume."""
    rows = []
    for checkpoint in checkpoints:
        state = "whole"
        if checkpoint.problems:
            state = f"DAMAGED: {'; '.join(checkpoint.problems[:3])}"
        elif checkpoint.missing:
            state = f"loads; to go on with it {', '.join(checkpoint.missing)} is missing"
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in checkpoint.metrics.items())
        what = f"{_WHAT.get(checkpoint.name, '')}{': ' if metrics else ''}{metrics}"
        step = "-" if checkpoint.step is None else f"{checkpoint.step:,}"
        rows.append([checkpoint.name, step, _size(checkpoint.size), state, what])
    return ("checkpoint", "step", "size", "state", "what it is"), rows


_WHAT = {
    "checkpoint_start": "before training",
    "checkpoint_best": "best on validation users",
    "checkpoint_final": "the result",
}


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB"
