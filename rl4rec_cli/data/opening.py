"""Opens datasets: from a folder or synthetic, by a run's `data` section.

Decides: which dataset a section or a word names, and the dataset's name.
Hides: reading (`reading.py`) and making data up (`synthetic.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rl4rec_cli.config.dataset_folders import find_folder
from rl4rec_cli.config.sections import DataSection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.reading import META, read_folder
from rl4rec_cli.errors import ConfigError, DataError
from rl4rec_cli.files.paths import expand
from rl4rec_cli.files.reading import parse_json, read_bytes
from rl4rec_cli.shell import command_line


def load_dataset(
    path: str | Path, *, sequential_file: str | Path | None = None, prompt_file: str | Path | None = None
) -> Dataset:
    """Reads and checks the dataset folder `path`.

    The dataset's name is that of `meta.json`, else the folder's.

    Args:
        path: a folder; a plain name without a folder here means the folder in `data/`.
        sequential_file: replaces the folder's `sequential_data.txt`.
        prompt_file: replaces its `prompts.json`.

    Raises:
        DataError: the folder is missing or its files are wrong; `problems` lists every problem.
    """
    if not str(path).strip():
        raise DataError("the dataset's path is empty", hint="name a dataset folder")
    folder = expand(find_folder(str(path)))
    contents = read_folder(
        folder,
        sequences=expand(sequential_file) if sequential_file is not None else None,
        prompts=expand(prompt_file) if prompt_file is not None else None,
    )
    return Dataset(
        name=_name(folder, contents.meta),
        mask_history=contents.meta.get("mask_history", True),
        **contents._asdict(),
    )


def RecommendationDataset(
    sequential_file: str | Path, prompt_file: str | Path | None = None, *, folder: str | Path | None = None
) -> Dataset:
    """Opens a dataset by the names of its files. `load_dataset` opens one by its folder.

    Args:
        sequential_file: a line for each user: the user's id, then item ids, oldest first.
        prompt_file: JSON, users' ids to prompts that replace the template's.
        folder: where `items.jsonl` lies, and `meta.json` if there is one; by default with the sequences.

    Raises:
        DataError: as `load_dataset`.
    """
    place = expand(sequential_file).parent if folder is None else Path(folder)
    return load_dataset(place.resolve(), sequential_file=sequential_file, prompt_file=prompt_file)


def _name(folder: Path, meta: Mapping[str, Any]) -> str:
    # The folder may be called anything, the name becomes part of file names.
    return meta.get("name") or re.sub(r"[^\w.+-]+", "-", folder.resolve().name).lstrip("-.+") or "dataset"


def dataset_name(path: str | Path) -> str:
    """Returns the name that the dataset in a folder has or would have, without reading more of it."""
    folder = expand(find_folder(str(path)))
    try:
        meta = parse_json(read_bytes(folder / META).decode("utf-8-sig"))
    except (OSError, ValueError):  # none, or a broken one, which loading will tell
        meta = {}
    has_name = isinstance(meta, dict) and isinstance(meta.get("name"), str)
    return _name(folder, meta if has_name else {})


def find_path(section: DataSection, name: str) -> str:
    """Returns the folder that `name` means: a path, or the name of one of the section's datasets.

    Raises:
        ConfigError: the section has several datasets, and none of this name.
    """
    folder = expand(name)
    if not folder.is_dir() and name in (names := {dataset_name(path): path for path in section.paths}):
        return names[name]  # the run's own before one of that name in `data/`
    folder = expand(name := find_folder(name))
    if folder.is_dir():
        # One of several is written as it is there: it is no other dataset than the run's.
        several = section.paths if len(section.paths) > 1 else ()
        return next((path for path in several if expand(path).resolve() == folder.resolve()), name)
    if len(names) > 1 and len(folder.parts) == 1:
        raise ConfigError(
            f"{name}: neither a dataset folder nor a dataset of the run", hint=f"it has {', '.join(names)}"
        )
    return name


def open_datasets(section: DataSection) -> list[Dataset]:
    """Opens the datasets that a run's `data` section names: one, or several with different names.

    Raises:
        ConfigError: the section names none, or two have the same name.
        DataError: see `load_dataset`.
    """
    if section.paths:
        files = {"sequential_file": section.sequential_file, "prompt_file": section.prompt_file}
        datasets = [replace(load_dataset(path, **files), fit=section.fit) for path in section.paths]
        folders: dict[str, str] = {}
        for dataset, path in zip(datasets, section.paths, strict=True):
            if dataset.name in folders:
                raise ConfigError(
                    f"two datasets are named {dataset.name}: {folders[dataset.name]} and {path}",
                    hint='give one another name, in its meta.json: {"name": "…"}',
                )
            folders[dataset.name] = path
        return datasets
    if section.synthetic is not None:
        from rl4rec_cli.data.synthetic import synthesize  # numpy: not needed to report a broken folder

        made = synthesize(section.synthetic.users, section.synthetic.items, section.synthetic.seed)
        return [replace(made, fit=section.fit)]
    raise ConfigError(
        "no dataset: data.path is not set",
        hint="give a dataset folder (--dataset PATH, or data.path in a recipe), or --quick-test for made-up data",
    )


def open_dataset(section: DataSection) -> Dataset:
    """Opens the one dataset of a `data` section.

    Raises:
        ConfigError: the section names none, or several.
        DataError: see `load_dataset`.
    """
    if len(section.paths) > 1:
        names = [dataset_name(path) for path in section.paths]
        raise ConfigError(
            f"there are {len(names)} datasets, and this is done on one: {', '.join(names)}",
            hint=f"choose one: {command_line('--dataset', names[0])}",
        )
    return open_datasets(section)[0]
