"""Reads a dataset folder and finds everything that is wrong with it.

Decides: what a valid `items.jsonl`, `sequential_data.txt`, `prompts.json` and `meta.json` is, and the wording of each
fault. Hides: the files; `dataset.py` gets checked plain Python values. `parsing.py` reads bytes and JSON.

It collects every problem in every file before it raises an error. It holds back a problem that another one may explain,
so that one broken row is one problem: an item row without a readable id may be the very item that a sequence names, so
ids that the unreadable rows could have had count as known.
"""

from __future__ import annotations

import json
import math
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rl4rec_cli.config.dataset_folders import HOME, known_names
from rl4rec_cli.data.parsing import (
    Problems,
    StrictJson,
    json_document,
    json_flaw,
    kind,
    read_bytes,
    read_lines,
    short,
    some,
    text_flaw,
    without_mark,
)
from rl4rec_cli.errors import DataError

ITEMS = "items.jsonl"
SEQUENCES = "sequential_data.txt"
PROMPTS = "prompts.json"
META = "meta.json"
TRAINING_ONLY = "training_only.txt"
TIMES = "times.txt"
EARLIEST, LATEST = -62_104_060_800, 253_370_764_799
"""Seconds since 1970 of the first moment of year 2 and the last of 9998: others have no date that can be drawn."""

MIN_SEQUENCE = 3
"""Training part, validation target, test target."""
MAX_ID = 2**31 - 1
"""Ids are dense, so this is more items than any catalogue here."""

_NAME = re.compile(r"\w[\w .+()-]{0,119}")
_ITEM_TOKENS = re.compile(r"[0-9]{1,18}(?:\s+[0-9]{1,18})*")

_ITEMS_HINT = f'{ITEMS} has one JSON object per line: {{"item_id": 0, "title": "…", "text": "…"}}, ids 0, 1, 2 …'
_LINES_HINT = (
    f"write each object on a line of its own: jq -c '.[]' {ITEMS} > NEW, or in Python "
    f'open("NEW", "w").writelines(json.dumps(item) + "\\n" for item in json.load(open("{ITEMS}")))'
)
_SEQUENCES_HINT = f"{SEQUENCES} has one user per line: user_id item1 item2 item3 …, oldest first, split by spaces"
_PROMPTS_HINT = f'{PROMPTS} is one JSON object: {{"user_id": "prompt text", …}}'
_TIMES_HINT = (
    f"{TIMES} has the users of {SEQUENCES}, then of {TRAINING_ONLY}; a time in seconds since 1970 for each item"
)
_META_HINT = f'{META} is one JSON object, e.g. {{"name": "beauty", "mask_history": true}}'


class FolderContents(NamedTuple):
    """What a dataset folder holds, checked. `items[i]["item_id"] == i`; `sequences` go with `users`."""

    items: tuple[dict[str, Any], ...]
    users: tuple[str, ...]
    sequences: tuple[tuple[int, ...], ...]
    prompts: dict[str, str]
    meta: dict[str, Any]
    training_only_users: tuple[str, ...]
    training_only: tuple[tuple[int, ...], ...]
    times: tuple[tuple[float, ...], ...] | None


def read_folder(folder: Path, *, sequences: Path | None = None, prompts: Path | None = None) -> FolderContents:
    """Reads and checks the files of `folder`.

    Args:
        sequences, prompts: files that replace the folder's own.

    Raises:
        DataError: the folder is missing, or anything in it is wrong; `problems` lists all of it.
    """
    hint = "name a folder with items.jsonl and sequential_data.txt; `rl4rec data synth DEST` makes one"
    if names := known_names():
        hint += f"; in {HOME}/ there {'is' if len(names) == 1 else 'are'} {', '.join(names[:8])}"
    if not folder.is_dir():
        what = "is a file, not a dataset folder" if folder.exists() else "no such dataset folder"
        raise DataError(f"{folder}: {what}", hint=hint)
    problems = Problems(folder)
    items, item_ids = _read_items(folder / ITEMS, problems)
    line_of: dict[str, int] = {}
    users, rows, all_users = _read_sequences(sequences or folder / SEQUENCES, item_ids, problems, line_of)
    only_users: list[str] = []
    only: list[tuple[int, ...]] = []
    if sequences is None and os.path.lexists(folder / TRAINING_ONLY):
        only_users, only, _ = _read_sequences(folder / TRAINING_ONLY, item_ids, problems, line_of, least=1)
    if prompts is not None and not prompts.exists():  # the folder's own may be absent
        problems.add(problems.name(prompts), "the file is missing", hint=_PROMPTS_HINT)
    texts = _read_prompts(prompts or folder / PROMPTS, set(users) if all_users else None, problems)
    meta = _read_meta(folder / META, problems)
    problems.raise_any()
    times = None
    if sequences is None and os.path.lexists(folder / TIMES):  # they are of the folder's own sequences
        lengths = dict(zip([*users, *only_users], map(len, [*rows, *only]), strict=True))
        times = _read_times(folder / TIMES, lengths, problems)
        problems.raise_any()
    return FolderContents(items, tuple(users), tuple(rows), texts, meta, tuple(only_users), tuple(only), times)


def _read_items(path: Path, problems: Problems) -> tuple[tuple[dict[str, Any], ...], set[int] | None]:
    """Returns the items by id, and the ids that sequences may name (None: unknown, the file cannot be read)."""
    raw = read_bytes(path, problems, _ITEMS_HINT)
    if raw is None:
        return (), None
    if document := json_document(raw):
        problems.add(problems.name(path), f"the file is {document}, not one object per line", hint=_LINES_HINT)
        return (), None
    reader = StrictJson()
    rows: dict[int, dict[str, Any]] = {}
    line_of: dict[int, int] = {}
    without_id = count = 0
    for number, line in read_lines(problems.name(path), raw, problems):
        count += 1
        item_id = (
            None
            if line is None
            else _read_item(f"{problems.name(path)}:{number}", line, reader, rows, line_of, problems)
        )
        if item_id is None:
            without_id += 1
        else:
            line_of[item_id] = number
    top = max(rows, default=-1)
    gaps = top + 1 - len(rows)
    if gaps > without_id:
        first = []
        for i in range(top):
            if i not in rows:
                first.append(i)
                if len(first) == 5:
                    break
        reason = f"ids must run from 0 to {count - 1:,} without gaps (largest is {top:,}); missing "
        problems.add(problems.name(path), reason + some(first, gaps), field="item_id", hint=_ITEMS_HINT)
    item_ids = set(rows)
    if without_id:
        item_ids.update(range(count))
    dense = top + 1 == len(rows)
    return tuple(rows[i] for i in range(len(rows))) if dense else (), item_ids


def _read_item(
    where: str,
    line: str,
    reader: StrictJson,
    rows: dict[int, dict[str, Any]],
    line_of: dict[int, int],
    problems: Problems,
) -> int | None:
    """Check one row and put it into `rows`. Returns its id, or None where it has none of its own."""
    try:
        row, flaws = reader.parse(line)
    except ValueError as error:
        problems.add(where, json_flaw(error), hint=_ITEMS_HINT)
        return None
    if not isinstance(row, dict):
        problems.add(where, f"must be a JSON object, is {kind(row)}", hint=_ITEMS_HINT)
        return None
    for field, reason in flaws:
        problems.add(where, reason, field=field)
    for field in ("title", "text"):
        flaw = text_flaw(row[field]) if field in row else "is missing"
        if flaw and not (flaws and field in dict(flaws)):
            problems.add(where, flaw, field=field, hint=_ITEMS_HINT)
    item_id = row.get("item_id")
    if "item_id" not in row:
        flaw = "is missing"
    elif isinstance(item_id, bool) or not isinstance(item_id, int):  # bool is a subclass of int
        flaw = f"must be an integer, is {kind(item_id)}"
    elif item_id < 0:
        flaw = f"must not be negative, is {short(str(item_id), quote=False)}"
    elif item_id > MAX_ID:
        flaw = f"is too large: {short(str(item_id), quote=False)}"
    elif item_id in rows:
        flaw = f"{item_id} stands already in line {line_of[item_id]}"
    else:
        rows[item_id] = row
        return item_id
    if "item_id" not in dict(flaws):
        problems.add(where, flaw, field="item_id", hint=_ITEMS_HINT)
    return None


def _read_sequences(
    path: Path, item_ids: set[int] | None, problems: Problems, line_of: dict[str, int], *, least: int = MIN_SEQUENCE
) -> tuple[list[str], list[tuple[int, ...]], bool]:
    """Returns users, their sequences, and whether every line has a readable user.

    Args:
        line_of: where users stand, to which it adds.
        least: items of the shortest sequence.
    """
    raw = read_bytes(path, problems, _SEQUENCES_HINT)
    complete = True
    before = len(line_of)
    sequences: list[tuple[int, ...]] = []
    if raw is None:
        return [], [], False
    for number, line in read_lines(problems.name(path), raw, problems):
        if line is None:
            complete = False
            continue
        where = f"{problems.name(path)}:{number}"
        if "\r" in line:  # would silently join two users into one
            problems.add(where, "a carriage return inside the line", hint="end lines with \\n or \\r\\n, not \\r alone")
            complete = False
            continue
        user, *tokens = line.split()
        if user in line_of:
            problems.add(where, f"{short(user)} stands already in line {line_of[user]}", field="user_id")
        else:
            line_of[user] = number
        if tokens and _ITEM_TOKENS.fullmatch(line, len(user) + 1):
            sequence = tuple(map(int, tokens))
        else:
            bad = [short(token) for token in tokens if not re.fullmatch(r"[0-9]{1,18}", token)]
            if bad:
                reason = f"item ids must be integers from 0, not {some(bad)}"
                problems.add(where, reason, field="items", hint=_SEQUENCES_HINT)
                continue
            sequence = tuple(map(int, tokens))
        if len(sequence) < least:
            reason = f"{len(sequence)} item{'s' * (len(sequence) != 1)}; at least {least} are needed"
            hint = f"leave out users with fewer than {least} items: one each to train, to validate and to test"
            hint = hint if tokens else _SEQUENCES_HINT  # most likely another separator
            problems.add(where, reason, field="items", hint=hint)
        if item_ids is not None and not item_ids.issuperset(sequence):
            unknown = list(dict.fromkeys(item for item in sequence if item not in item_ids))
            reason = f"unknown item id{'s' * (len(unknown) > 1)} {some(unknown)}"
            hint = f"every id in {SEQUENCES} must be an item_id in {ITEMS}"
            problems.add(where, reason, field="items", hint=hint)
        sequences.append(sequence)
    return list(line_of)[before:], sequences, complete


def _read_times(path: Path, lengths: dict[str, int], problems: Problems) -> tuple[tuple[float, ...], ...]:
    """Returns the times of each user, in the order of `lengths`, which says how many a user has."""
    raw = read_bytes(path, problems, _TIMES_HINT)
    times: list[tuple[float, ...]] = []
    users = iter(lengths.items())
    for number, line in read_lines(problems.name(path), raw, problems) if raw is not None else ():
        user, *tokens = (line or "").split() or [""]
        name, length = next(users, ("", 0))
        try:
            row = tuple(map(float, tokens))
        except ValueError:
            row = (math.nan,)
        if user != name:
            reason = f"is of {short(user)}, where the sequences have {short(name)}" if name else "is one too many"
        elif len(tokens) != length:
            reason = f"{len(tokens):,} times for {length:,} items"
        elif not all(map(math.isfinite, row)) or any(a > b for a, b in pairwise(row)):
            reason = "times must be finite numbers that do not fall"
        elif row and not (row[0] >= EARLIEST and row[-1] <= LATEST):
            reason = (
                f"{row[0] if row[0] < EARLIEST else row[-1]:.15g} lies in no year from 2 to 9998: it is not in seconds"
            )
        else:
            times.append(row)
            continue
        problems.add(f"{problems.name(path)}:{number}", reason, hint=_TIMES_HINT)
        return ()  # what follows would be of other users
    if raw is not None and len(times) < len(lengths):
        problems.add(problems.name(path), f"{len(times):,} users instead of {len(lengths):,}", hint=_TIMES_HINT)
    return tuple(times)


def _read_object(path: Path, problems: Problems, hint: str) -> tuple[dict[str, Any], str] | None:
    """Returns the JSON object in an optional file and its text, or None if the file is absent or broken."""
    if not os.path.lexists(path):
        return None
    raw = read_bytes(path, problems, hint)
    if raw is None:
        return None
    before = len(problems.lines)
    for _ in read_lines(problems.name(path), raw, problems):
        pass
    if len(problems.lines) > before:  # not UTF-8
        return None
    text = without_mark(raw).decode("utf-8")
    try:
        value, flaws = StrictJson().parse(text)
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        problems.add(f"{problems.name(path)}{line}", json_flaw(error), hint=hint)
        return None
    if not isinstance(value, dict):
        problems.add(problems.name(path), f"must be a JSON object, is {kind(value)}", hint=hint)
        return None
    for field, reason in flaws:
        problems.add(_where(problems.name(path), text, field), reason, field=field)
    return value, text


def _where(name: str, text: str, key: str | None) -> str:
    """Returns `file:line` of the last place where `key` is a key, or `file` if the key is there with escapes."""
    if key is None:
        return name
    matches = list(re.finditer(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:", text))
    return f"{name}:{text.count(chr(10), 0, matches[-1].start()) + 1}" if matches else name


def _read_prompts(path: Path, users: set[str] | None, problems: Problems) -> dict[str, str]:
    content = _read_object(path, problems, _PROMPTS_HINT)
    if content is None:
        return {}
    prompts, text = content
    for user, prompt in prompts.items():
        if users is not None and user not in users:
            problems.add(_where(problems.name(path), text, user), f"no such user in {SEQUENCES}", field=user)
        if flaw := text_flaw(prompt):
            problems.add(_where(problems.name(path), text, user), f"the prompt {flaw}", field=user, hint=_PROMPTS_HINT)
    return prompts


def _read_meta(path: Path, problems: Problems) -> dict[str, Any]:
    content = _read_object(path, problems, _META_HINT)
    if content is None:
        return {}
    meta, text = content
    if "mask_history" in meta and not isinstance(meta["mask_history"], bool):
        reason = f"must be true or false, is {kind(meta['mask_history'])}"
        problems.add(_where(problems.name(path), text, "mask_history"), reason, field="mask_history", hint=_META_HINT)
    if "name" in meta:
        name = meta["name"]
        if not isinstance(name, str):
            problems.add(
                _where(problems.name(path), text, "name"),
                f"must be text, is {kind(name)}",
                field="name",
                hint=_META_HINT,
            )
        elif not _NAME.fullmatch(name):  # it becomes part of file names
            reason = f"{short(name)} is no name: letters, digits, spaces and . _ + ( ) - only, a letter or digit first"
            problems.add(_where(problems.name(path), text, "name"), reason, field="name", hint=_META_HINT)
    return meta
