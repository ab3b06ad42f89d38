"""Datasets and the examples made from them.

Decides: what a dataset is in memory, how leave-one-out turns a sequence into examples, and what identifies a dataset.
Hides: where it came from (a folder or the synthetic maker) and how folders are written; `reading.py` knows what a
valid file is.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rl4rec_cli.config.dataset_folders import find_folder
from rl4rec_cli.config.sections import DataSection
from rl4rec_cli.data.reading import ITEMS, META, PROMPTS, SEQUENCES, read_folder
from rl4rec_cli.errors import ConfigError, DataError
from rl4rec_cli.files.reading import parse_json, read_bytes
from rl4rec_cli.shell import command_line

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Example:
    """One prediction to make: what `user` chose so far (oldest first, not empty) and what came next."""

    user: str
    history: tuple[int, ...]
    target: int


@dataclass(frozen=True)
class Dataset:
    """A catalogue and the users who chose from it.

    `items[i]["item_id"] == i`, each with a `title` and a `text` that are not empty, and the extra fields of the file.
    `sequences[u]` is what `users[u]` chose, oldest first, at least three items. `prompts` maps users to prompt texts
    that override the template.

    With `mask_history` the items of an example's history are not ranked, since a user is not expected to choose them
    again, but the target always is: a target that also stands in the history is allowed and is never masked. Without
    it (users repeat items) nothing is masked.
    """

    name: str
    items: tuple[Mapping[str, Any], ...]
    users: tuple[str, ...]
    sequences: tuple[tuple[int, ...], ...]
    prompts: Mapping[str, str]
    mask_history: bool
    meta: Mapping[str, Any]

    @property
    def num_items(self) -> int:
        return len(self.items)

    def texts(self, field: str = "text") -> list[str]:
        """`field` of every item in id order.

        Raises:
            DataError: the field is missing, empty or no text in some item.
        """
        values = [item.get(field) for item in self.items]
        bad = [i for i, value in enumerate(values) if not isinstance(value, str) or not value.strip()]
        if bad:
            first = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
            common = sorted(set.intersection(*({k for k, v in i.items() if isinstance(v, str)} for i in self.items)))
            raise DataError(
                f"dataset {self.name}: field '{field}' is missing, empty or no text in {len(bad):,} of "
                f"{self.num_items:,} items (item_id {first})",
                hint=f"fields that every item has as text: {', '.join(common)}",
            )
        return [value for value in values if isinstance(value, str)]

    def items_digest(self, field: str = "text") -> str:
        """SHA-256 (hex) over the number of items and their `field` in id order: the identity of item embeddings."""
        return _sha256([str(self.num_items), *self.texts(field)])

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over items, sequences, prompts and options; not over the name or the rest of `meta`."""
        parts = [json.dumps(dict(item), sort_keys=True) for item in self.items]
        rows = [
            f"{user} {' '.join(map(str, sequence))}" for user, sequence in zip(self.users, self.sequences, strict=True)
        ]
        prompts = json.dumps(dict(self.prompts), sort_keys=True)
        options = json.dumps({"mask_history": self.mask_history})
        return _sha256([str(len(parts)), *parts, str(len(rows)), *rows, prompts, options])

    @cached_property
    def _user_index(self) -> dict[str, int]:
        return {user: i for i, user in enumerate(self.users)}

    def user_index(self, user: str) -> int:
        """Position of `user` in `users` and `sequences`.

        Raises:
            DataError: there is no such user.
        """
        index = self._user_index.get(user)
        if index is None:
            close = difflib.get_close_matches(user, self.users, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"users are named like {self.users[0]}"
            raise DataError(f"dataset {self.name} has no user '{user}'", hint=hint)
        return index


def count_train_examples(dataset: Dataset, train_targets: Literal["last", "all"]) -> list[int]:
    """How many training examples each user gives, in the order of `users`, without making them."""
    lengths = (len(sequence) - 2 for sequence in dataset.sequences)
    return [min(length - 1, 1) if train_targets == "last" else length - 1 for length in lengths]


def _sha256(parts: Iterable[str]) -> str:
    """Hash of the parts, each with its length before it, so that moving a border changes the hash."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        hasher.update(b"%d:" % len(data))
        hasher.update(data)
    return hasher.hexdigest()


def load_dataset(
    path: str | Path, *, sequential_file: str | Path | None = None, prompt_file: str | Path | None = None
) -> Dataset:
    """Read and check the dataset folder `path`.

    The name is `meta.json`'s, else the folder's.

    Args:
        path: a folder; a plain name that is none here means that in `data/`.
        sequential_file: read instead of the folder's `sequential_data.txt`.
        prompt_file: read instead of its `prompts.json`.

    Raises:
        DataError: the folder is missing or its files are wrong; every problem is in `problems`.
    """
    if not str(path).strip():
        raise DataError("the dataset's path is empty", hint="name a dataset folder")
    folder = Path(find_folder(str(path))).expanduser()
    items, users, sequences, prompts, meta = read_folder(
        folder,
        sequences=Path(sequential_file).expanduser() if sequential_file is not None else None,
        prompts=Path(prompt_file).expanduser() if prompt_file is not None else None,
    )
    return Dataset(
        name=_name(folder, meta),
        items=items,
        users=users,
        sequences=sequences,
        prompts=prompts,
        mask_history=meta.get("mask_history", True),
        meta=meta,
    )


def _name(folder: Path, meta: Mapping[str, Any]) -> str:
    # The folder may be called anything, the name becomes part of file names.
    return meta.get("name") or re.sub(r"[^\w.+-]+", "-", folder.resolve().name).lstrip("-.+") or "dataset"


def dataset_name(path: str | Path) -> str:
    """The name that the dataset in a folder has or would have, without reading more of it."""
    folder = Path(find_folder(str(path))).expanduser()
    try:
        meta = parse_json(read_bytes(folder / META).decode("utf-8-sig"))
    except (OSError, ValueError):  # none, or a broken one, which loading will tell
        meta = {}
    has_name = isinstance(meta, dict) and isinstance(meta.get("name"), str)
    return _name(folder, meta if has_name else {})


def find_path(section: DataSection, asked: str) -> str:
    """The folder that is asked for: by its path, or by the name of one of the section's datasets.

    Raises:
        ConfigError: the section has several, and none of this name.
    """
    folder = Path(asked).expanduser()
    if not folder.is_dir() and asked in (names := {dataset_name(path): path for path in section.paths}):
        return names[asked]  # the run's own before one of that name in `data/`
    folder = Path(asked := find_folder(asked)).expanduser()
    if folder.is_dir():
        # One of several is written as it is there: it is no other dataset than the run's.
        several = section.paths if len(section.paths) > 1 else ()
        return next((path for path in several if Path(path).expanduser().resolve() == folder.resolve()), asked)
    if len(names) > 1 and len(folder.parts) == 1:
        raise ConfigError(
            f"{asked}: neither a dataset folder nor a dataset of the run", hint=f"it has {', '.join(names)}"
        )
    return asked


def open_datasets(section: DataSection) -> list[Dataset]:
    """The datasets that a run's `data` section names: one, or several with different names.

    Raises:
        ConfigError: the section names none, or two have one name.
        DataError: see `load_dataset`.
    """
    if section.paths:
        files = {"sequential_file": section.sequential_file, "prompt_file": section.prompt_file}
        datasets = [load_dataset(path, **files) for path in section.paths]
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

        return [synthesize(section.synthetic.users, section.synthetic.items, section.synthetic.seed)]
    raise ConfigError(
        "no dataset: data.path is not set",
        hint="give a dataset folder (--dataset PATH, or data.path in a recipe), or --quick-test for made-up data",
    )


def open_dataset(section: DataSection) -> Dataset:
    """The one dataset of a `data` section.

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


def joint_digest(datasets: Sequence[Dataset]) -> str:
    """What identifies a run's data: the digest of its dataset, or SHA-256 (hex) over names and digests of several."""
    if len(datasets) == 1:
        return datasets[0].digest
    return _sha256([part for dataset in datasets for part in (dataset.name, dataset.digest)])


def save_dataset(dataset: Dataset, folder: Path) -> None:
    """Write `dataset` as a folder that `load_dataset` reads back to the same digest.

    It is written beside `folder`, read back and checked, then renamed, so that no half-written folder is left.

    Raises:
        DataError: `folder` exists and is not empty, cannot be written, or the dataset is not valid.
    """
    folder = Path(folder).expanduser().resolve()
    beside = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.tmp"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: already exists and is not an empty folder", hint="name a new folder, or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        _write_files(dataset, beside)
        try:
            same = load_dataset(beside).digest == dataset.digest
        except DataError as error:
            message = f"dataset {dataset.name} is not valid and was not saved as {folder}"
            raise DataError(message, hint=error.hint, problems=error.problems) from error
        if not same:
            raise DataError(f"dataset {dataset.name} reads back differently and was not saved as {folder}")
        beside.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise DataError(f"dataset {dataset.name} has a character that UTF-8 cannot write: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


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


def build_examples(dataset: Dataset, split: Split, *, train_targets: Literal["last", "all"] = "last") -> list[Example]:
    """Leave-one-out examples of one split, in user order.

    The last item of a sequence is the test target and the second last the validation target, each with everything
    before it as history. What comes before both is the training part: its last item is the target (`last`), or each
    of its items is (`all`). Examples without history are left out.
    """
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"no split '{split}'", hint="splits are train, validation and test")
    if train_targets not in ("last", "all"):
        raise ConfigError(f"train_targets is '{train_targets}'", hint="it is last or all")
    examples = []
    for user, sequence in zip(dataset.users, dataset.sequences, strict=True):
        end = len(sequence) - {"test": 1, "validation": 2, "train": 3}[split]  # position of the last target
        first = 1 if split == "train" and train_targets == "all" else end
        for position in range(max(first, 1), end + 1):
            examples.append(Example(user, sequence[:position], sequence[position]))
    return examples
