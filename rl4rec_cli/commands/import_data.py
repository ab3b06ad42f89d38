"""What `rl4rec data import` does: read, save, audit.

Decides: the order, and that a folder that cannot be written is refused before anything is read.
Hides: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl4rec_cli.data.audit.audit import Audit, audit_dataset
from rl4rec_cli.data.importers.importing import Imported, import_files
from rl4rec_cli.data.importers.options import ImportOptions
from rl4rec_cli.data.saving import check_free, save_dataset
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.files.paths import expand
from rl4rec_cli.files.writing import why_unwritable


@dataclass(frozen=True)
class Import:
    """An import that is saved, and its audit."""

    imported: Imported
    audit: Audit


def import_dataset(source: str, files: Sequence[str | Path], folder: Path, options: ImportOptions) -> Import:
    """Imports raw files of a source into a dataset folder.

    Args:
        source: a name in `config/importers.py`, or a plug-in's.
        files: files, folders or zip archives.
        folder: is written whole or not at all.

    Raises:
        ConfigError: an option or the source is unknown, or does not go with the others.
        DataError: files are missing, damaged or of another source; no row is left; the folder is not free.
    """
    whole = expand(folder)
    if whole.is_file():
        raise ConfigError(
            f"{folder} is a file: OUT, which comes last, is the folder to write", hint="name a new folder"
        )
    check_free(folder)
    if (reason := why_unwritable(whole.resolve())) is not None:
        raise ConfigError(f"{folder}: cannot be written: {reason}", hint="name a folder elsewhere")
    imported = import_files(source, files, options, name=whole.resolve().name)
    save_dataset(imported.dataset, folder)
    return Import(imported, audit_dataset(imported.dataset))
