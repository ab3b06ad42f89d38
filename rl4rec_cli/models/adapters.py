"""Whether a loaded model carries an adapter, and what is adapted."""

from __future__ import annotations

from typing import Any


def is_peft(model: Any) -> bool:
    return hasattr(model, "peft_config")


def largest_rank(adapter: Any) -> int:
    """The largest rank that an adapter has on any layer."""
    return int(max([adapter.r, *(getattr(adapter, "rank_pattern", None) or {}).values()]))
