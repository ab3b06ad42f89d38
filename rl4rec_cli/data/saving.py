"""Writes datasets as folders.

Decides: that it writes a whole folder, reads it back and compares it before the folder gets its name.
Hides: the form of the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.data.reading import ITEMS, META, PROMPTS, SEQUENCES, TIMES, TRAINING_ONLY
from rl4rec_cli.errors import DataError
from rl4rec_cli.files.folders import new_folder
from rl4rec_cli.files.paths import expand


def check_free(folder: Path) -> Path:
    """Returns a folder's whole path, if a dataset can be saved as it.

    Raises:
        DataError: it exists and is not empty.
    """
    folder = expand(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: already exists and is not an empty folder", hint="name a new folder, or remove it")
    return folder


def save_dataset(dataset: Dataset, folder: Path) -> None:
    """Writes `dataset` as a folder that `load_dataset` reads back to the same digest.

    It writes beside `folder`, reads back and checks, then renames, so that no half-written folder remains.

    Raises:
        DataError: `folder` exists and is not empty, cannot be written, or the dataset is not valid.
    """
    folder = check_free(folder)
    try:
        with new_folder(folder) as beside:
            _write_files(dataset, beside)
            try:
                copy = load_dataset(beside)
                same = copy.digest == dataset.digest and copy.times == dataset.times
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

    def write_users(name: str, users: Iterable[str], values: Iterable[Sequence[object]]) -> None:
        rows = zip(users, values, strict=True)
        write(name, (" ".join([user, *map(str, sequence)]) for user, sequence in rows))

    write_users(SEQUENCES, dataset.users, dataset.sequences)
    if dataset.training_only:
        write_users(TRAINING_ONLY, dataset.training_only_users, dataset.training_only)
    if dataset.times is not None:
        seconds = ([int(time) if float(time).is_integer() else time for time in times] for times in dataset.times)
        write_users(TIMES, dataset.training_users, seconds)
    if dataset.prompts:
        write(PROMPTS, [json.dumps(dict(dataset.prompts), ensure_ascii=False, indent=1)])
    counts = {
        "users": len(dataset.users),
        "items": dataset.num_items,
        "interactions": sum(map(len, (*dataset.sequences, *dataset.training_only))),
        **({"training_only_users": len(dataset.training_only)} if dataset.training_only else {}),
    }
    options = {"name": dataset.name, "mask_history": dataset.mask_history, "counts": counts}
    write(META, [json.dumps({**dataset.meta, **options}, ensure_ascii=False, indent=1)])
