"""Writes datasets as folders.

Decides: that it writes a whole folder, reads it back and compares it before the folder gets its name.
Hides: the form of the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.data.reading import ITEMS, META, PROMPTS, SEQUENCES
from rl4rec_cli.errors import DataError
from rl4rec_cli.files.folders import new_folder


def save_dataset(dataset: Dataset, folder: Path) -> None:
    """Writes `dataset` as a folder that `load_dataset` reads back to the same digest.

    It writes beside `folder`, reads back and checks, then renames, so that no half-written folder remains.

    Raises:
        DataError: `folder` exists and is not empty, cannot be written, or the dataset is not valid.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: already exists and is not an empty folder", hint="name a new folder, or remove it")
    try:
        with new_folder(folder) as beside:
            _write_files(dataset, beside)
            try:
                same = load_dataset(beside).digest == dataset.digest
            except DataError as error:
                message = f"dataset {dataset.name} is not valid and was not saved as {folder}"
                raise DataError(message, hint=error.hint, problems=error.problems) from error
            if not same:
                raise DataError(f"dataset {dataset.name} reads back differently and was not saved as {folder}")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise DataError(f"dataset {dataset.name} has a character that UTF-8 cannot write: {error}") from error


def _write_files(dataset: Dataset, folder: Path) -> None:
    def write(name: str, lines: Iterable[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")

    write(ITEMS, (json.dumps(dict(item), ensure_ascii=False) for item in dataset.items))
    rows = zip(dataset.users, dataset.sequences, strict=True)
    write(SEQUENCES, (" ".join([user, *map(str, sequence)]) for user, sequence in rows))
    if dataset.prompts:
        write(PROMPTS, [json.dumps(dict(dataset.prompts), ensure_ascii=False, indent=1)])
    counts = {
        "users": len(dataset.users),
        "items": dataset.num_items,
        "interactions": sum(map(len, dataset.sequences)),
    }
    options = {"name": dataset.name, "mask_history": dataset.mask_history, "counts": counts}
    write(META, [json.dumps({**dataset.meta, **options}, ensure_ascii=False, indent=1)])
