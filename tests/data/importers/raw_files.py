"""Small raw files in the exact forms of their publishers, made up, and an import of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.importers.importing import Imported, import_files
from rl4rec_cli.data.importers.options import ImportOptions


def write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    """Writes lines as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return path


def bring_in(source: str, paths: Sequence[Path] | Path, **options: Any) -> Imported:
    """Imports files; by default without a k-core, and ties in the order of the file."""
    chosen = ImportOptions(**{"k_core": 0, "ties": "file", **options})
    return import_files(source, [paths] if isinstance(paths, Path) else paths, chosen, name="small")


def by_source(dataset: Dataset) -> dict[str, list[str]]:
    """What each user chose, by the source's ids of the items."""
    names = [str(item["source_id"]) for item in dataset.items]
    parts = (*dataset.sequences, *dataset.training_only)
    return {u: [names[i] for i in part] for u, part in zip(dataset.training_users, parts, strict=True)}


def items_of(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """The catalogue, by the source's ids."""
    return {str(item["source_id"]): dict(item) for item in dataset.items}


def dropped(result: Imported) -> dict[str, int]:
    """Rows dropped, by reason."""
    return {drop.reason: drop.rows for drop in result.table.drops.values()}
