"""Keeps measurements between evaluations.

Decides: when an evaluation may reuse a measurement: only for the same dataset, users, and everything else it depends
on, and only from a whole file. A file ends with the SHA-256 of all before; if that does not match, it is measured anew.
Hides: the files.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rl4rec_cli import console
from rl4rec_cli.eval.scoring import Measured, Task
from rl4rec_cli.files.digests import sha256, sha256_of_json
from rl4rec_cli.files.names import file_name
from rl4rec_cli.files.writing import replacing
from rl4rec_cli.retrieval.retriever import Ranking

_VERSION = 4  # raise it when a method's scores change: older files are then not read again
_SEAL = 32  # bytes of a SHA-256


def cached(task: Task, key: dict[str, object], compute: Callable[[], Measured]) -> Measured:
    """Returns the cached measurement of the dataset, its examples and `key`, or computes and caches it.

    It measures again if the file is damaged or cannot be read (logged).

    Args:
        key: everything else that the measurement depends on.
    """
    if task.cache is None:
        return compute()
    examples = sha256_of_json([(e.user, e.history, e.target) for e in task.examples])
    whole = {"version": _VERSION, "dataset": task.dataset.digest, "examples": examples, **key}
    text = json.dumps(whole, sort_keys=True, default=str)
    path = task.cache / f"{file_name(task.dataset.name)}-{sha256(text.encode())[:20]}.npz"
    if path.is_file():
        try:
            return _read(path, text, len(task.examples))
        except (OSError, ValueError) as error:
            console.log(f"{path}: cannot be read ({error}), measured again")
    measurement = compute()
    _write(path, text, measurement)
    return measurement


def _read(path: Path, key: str, count: int) -> Measured:
    raw = path.read_bytes()
    data, seal = raw[:-_SEAL], raw[-_SEAL:]
    if sha256(data) != seal.hex():
        raise ValueError("damaged: its content does not match its checksum")
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        ranks, scorable, top_BK = file["ranks"], file["scorable"], file["top"]
    if about["key"] != key or not len(ranks) == len(scorable) == len(top_BK) == count:
        raise ValueError("it holds something else")
    notes = {**about["notes"], "cached": True}
    texts = about["texts"] and [[text] if isinstance(text, str) else text for text in about["texts"]]
    kind, log_probs = about["kind"], about.get("log_probs")
    return Measured(about["name"], Ranking(ranks, scorable), texts, kind, top_BK, notes, log_probs)


def _write(path: Path, key: str, measured: Measured) -> None:
    """Writes a temporary file and renames it. A failure costs time next time, not the result (logged)."""
    about = {
        "key": key,
        "name": measured.name,
        "kind": measured.kind,
        "texts": None if measured.texts is None else [measured.written(row) for row in range(len(measured.texts))],
        **({} if measured.log_probs is None else {"log_probs": measured.log_probs}),
        "notes": measured.notes,
    }
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        about=np.asarray(json.dumps(about)),
        ranks=measured.ranking.ranks,
        scorable=measured.ranking.scorable,
        top=measured.top_BK,
    )
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(buffer.getvalue() + bytes.fromhex(sha256(buffer.getvalue())))
    except OSError as error:
        console.log(f"{path}: cannot be kept ({error.strerror or error}); it is measured anew next time")
