"""Datasets and the examples made from them.

Decides: what a dataset is in memory, how leave-one-out turns a sequence into examples, and what identifies a dataset.
Hides: nothing of files; `opening.py` reads a dataset, `saving.py` writes one.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

from rl4rec_cli.errors import ConfigError, DataError
from rl4rec_cli.files.digests import sha256_of_parts

Split = Literal["train", "validation", "test"]
Fit = Literal["train", "train_and_validation", "everything"]
FIT_WORDS: dict[Fit, str] = {
    "train": "the training parts of the users' sequences",
    "train_and_validation": "the training parts and the validation targets",
    "everything": "everything that is known, validation and test targets included",
}
"""What is trained was fitted on it."""


class Texts(Protocol):
    """Data of any task, as the texts that embedders and tokenizers are fitted on."""

    @property
    def tokenizer_texts(self) -> list[str]: ...

    def texts(self, field: str = "text") -> list[str]: ...


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
    fit: Fit = "train"
    """What everything that is trained is fitted on. With `train_and_validation` the training part of a sequence ends
    before its last item alone, and there is no validation split. With `everything` it is the whole sequence, and there
    is no test split either."""
    training_only_users: tuple[str, ...] = ()
    """Users of whom nothing is held out, in addition to `users`."""
    training_only: tuple[tuple[int, ...], ...] = ()
    """What they chose, oldest first, at least one item."""
    times: tuple[tuple[float, ...], ...] | None = None
    """When it was chosen, in seconds since 1970, item by item: of `sequences`, then of `training_only`."""

    @property
    def has_validation(self) -> bool:
        """Whether there are validation targets, which nothing is fitted on."""
        return self.fit == "train"

    @property
    def has_test(self) -> bool:
        """Whether there are test targets, which nothing is fitted on."""
        return self.fit != "everything"

    @property
    def held_out(self) -> int:
        """Last items of a sequence that nothing is fitted on."""
        return int(self.has_validation) + int(self.has_test)

    @cached_property
    def training_parts(self) -> tuple[tuple[int, ...], ...]:
        """What everything is fitted on, of each of `training_users`."""
        return (*(sequence[: len(sequence) - self.held_out] for sequence in self.sequences), *self.training_only)

    @property
    def training_users(self) -> tuple[str, ...]:
        """The users, then those who only train."""
        return (*self.users, *self.training_only_users)

    @property
    def num_items(self) -> int:
        return len(self.items)

    def texts(self, field: str = "text") -> list[str]:
        """Returns `field` of every item in id order.

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

    @property
    def tokenizer_texts(self) -> list[str]:
        """Returns what a tokenizer is trained on: titles at the start of a line, and after a blank."""
        return [text for item in self.items for text in (str(item["title"]), " " + str(item["title"]))]

    def items_digest(self, field: str = "text") -> str:
        """SHA-256 (hex) over the number of items and their `field` in id order: the identity of item embeddings."""
        return sha256_of_parts([str(self.num_items), *self.texts(field)])

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over items, sequences, prompts, options and `fit`; not over times, the name or other `meta`."""
        parts = [json.dumps(dict(item), sort_keys=True) for item in self.items]
        rows = [
            f"{user} {' '.join(map(str, sequence))}" for user, sequence in zip(self.users, self.sequences, strict=True)
        ]
        prompts = json.dumps(dict(self.prompts), sort_keys=True)
        fit = {} if self.fit == "train" else {"fit": self.fit}
        only = zip(self.training_only_users, self.training_only, strict=True)
        only_rows = [f"{user} {' '.join(map(str, sequence))}" for user, sequence in only]
        training = {"training_only": sha256_of_parts(only_rows)} if only_rows else {}
        options = json.dumps({"mask_history": self.mask_history, **fit, **training})
        return sha256_of_parts([str(len(parts)), *parts, str(len(rows)), *rows, prompts, options])

    @cached_property
    def _user_index(self) -> dict[str, int]:
        return {user: i for i, user in enumerate(self.users)}

    def time_ties(self) -> dict[str, int] | None:
        """Counts the targets of each split that have the time of the item before; None without times."""
        if self.times is None:
            return None
        own = self.times[: len(self.users)]
        splits = {"validation": 2, "test": 1}
        return {split: sum(times[-back] == times[-back - 1] for times in own) for split, back in splits.items()}

    def user_index(self, user: str) -> int:
        """Returns the position of `user` in `users` and `sequences`.

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
    """Counts the training examples of each of `training_users`, in their order, without making them."""
    lengths = (len(part) for part in dataset.training_parts)
    return [min(length - 1, 1) if train_targets == "last" else length - 1 for length in lengths]


def joint_digest(datasets: Sequence[Dataset]) -> str:
    """Identifies a run's data: by its dataset's digest, or SHA-256 (hex) over names and digests of several."""
    if len(datasets) == 1:
        return datasets[0].digest
    return sha256_of_parts([part for dataset in datasets for part in (dataset.name, dataset.digest)])


def build_examples(dataset: Dataset, split: Split, *, train_targets: Literal["last", "all"] = "last") -> list[Example]:
    """Builds the leave-one-out examples of one split, in user order.

    The last item of a sequence is the test target and the second last the validation target, each with everything
    before it as history. The items before both are the training part: its last item is the target (`last`), or each
    of its items is (`all`). Examples without history are left out.

    Raises:
        ConfigError: there is no such split. DataError: the split's targets are trained on.
    """
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"no split '{split}'", hint="splits are train, validation and test")
    if train_targets not in ("last", "all"):
        raise ConfigError(f"train_targets is '{train_targets}'", hint="it is last or all")
    if split != "train" and not dataset.has_test:
        raise DataError(
            f"dataset {dataset.name}: nothing is held out to be measured on, as what is trained is fitted on "
            f"everything that is known (data.fit={dataset.fit})",
            hint="recommend with it; what is to be measured is trained with data.fit=train, or train_and_validation",
        )
    if split == "validation" and not dataset.has_validation:
        raise DataError(
            f"dataset {dataset.name}: there is no validation split, as what is trained is fitted on its targets, too "
            f"(data.fit={dataset.fit})",
            hint="measure on the test split (--split test); choices are made with data.fit=train",
        )
    examples = []
    if split == "train":
        for user, part in zip(dataset.training_users, dataset.training_parts, strict=True):
            last = len(part) - 1
            for position in range(1 if train_targets == "all" else max(last, 1), last + 1):
                examples.append(Example(user, part[:position], part[position]))
        return examples
    for user, sequence in zip(dataset.users, dataset.sequences, strict=True):
        position = len(sequence) - {"test": 1, "validation": 2}[split]
        examples.append(Example(user, sequence[:position], sequence[position]))
    return examples
