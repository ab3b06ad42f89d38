"""SASRec: the sequential baseline that a text-writing policy has to beat, trained by rl4rec rather than quoted.

Kang & McAuley 2018, "Self-Attentive Sequential Recommendation": `sasrec_model.py`, trained by `sasrec_training.py`.

Decides: when a cached model is used: for the same dataset, settings and seed, and if its file is whole.
Hides: the files of trained models.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rl4rec_cli import console
from rl4rec_cli.errors import first_line
from rl4rec_cli.eval.sasrec_model import SasRec, SasRecSettings, build_model
from rl4rec_cli.eval.sasrec_training import train_model
from rl4rec_cli.files.digests import sha256_of_json, sha256_of_tensors
from rl4rec_cli.files.names import file_name
from rl4rec_cli.files.writing import replacing
from rl4rec_cli.models.devices import resolve_device

if TYPE_CHECKING:
    from rl4rec_cli.data.dataset import Dataset

__all__ = ["SasRec", "SasRecSettings", "open_sasrec"]

DEFAULTS = SasRecSettings()
FORMAT = "rl4rec-sasrec-1"
"""Version of the cached files and of the training code: raise it when a change would train another model."""


def open_sasrec(
    dataset: Dataset,
    *,
    cache_dir: Path | None,
    seed: int = 0,
    settings: SasRecSettings = DEFAULTS,
    device: str = "cpu",
) -> SasRec:
    """Returns the dataset's SASRec for this seed and these settings: the one in `cache_dir`, or else a new one.

    It trains on the training part of every sequence and selects weights on the validation targets. Where the dataset's
    `fit` has them in the training part, it trains for as many rounds as they chose without. It never reads test
    targets. It replaces a cached file that is damaged or does not match its name (logged).

    Args:
        cache_dir: folder of trained models; None keeps nothing.
        device: `auto`, `cpu`, `cuda` …

    Raises:
        DataError: no training part has two items.
    """
    device = resolve_device(device, "device")
    identity = {"dataset": dataset.digest, "settings": asdict(settings), "seed": seed}
    path = None if cache_dir is None else _cache_path(cache_dir, dataset.name, identity)
    if path is not None and (cached_model := _load(path, dataset, identity, settings, device)) is not None:
        return cached_model
    rounds = None
    if not dataset.has_validation:  # as long as validation chose where it was not trained on
        chosen_on = replace(dataset, fit="train")
        chosen = open_sasrec(chosen_on, cache_dir=cache_dir, seed=seed, settings=settings, device=device)
        rounds = int(chosen.summary["best_round"])
    with torch.random.fork_rng(devices=[torch.device(device)] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        model, summary = train_model(dataset, settings, seed, device, rounds=rounds)
    if path is not None:
        _save(path, model, identity, summary)
    return SasRec(model, settings, summary, device)


def _cache_path(folder: Path, name: str, identity: dict[str, Any]) -> Path:
    key = sha256_of_json([FORMAT, identity])
    return Path(folder) / f"sasrec_{file_name(name)}_{key[:16]}.safetensors"


def _save(path: Path, model: Any, identity: dict[str, Any], summary: dict[str, Any]) -> None:
    """Writes weights and JSON into one temporary file and renames it. A failure is logged."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    weights = {name: value.to("cpu").contiguous() for name, value in model.state_dict().items()}
    note = {
        "identity": identity,
        "summary": summary,
        "sha256": sha256_of_tensors(weights),
        "summary_sha256": sha256_of_json(summary),
    }
    try:
        with replacing(path) as temporary:
            save_file(weights, temporary, metadata={"format": FORMAT, "rl4rec": json.dumps(note)})
    except (OSError, SafetensorError) as error:
        # The model in memory is good: raising would lose it, while not caching costs one more training at most.
        console.log(f"warning: {path}: cannot keep the trained SASRec: {error}")


def _load(
    path: Path, dataset: Dataset, identity: dict[str, Any], settings: SasRecSettings, device: str
) -> SasRec | None:
    """Returns the cached model, or None if no usable file exists (logged)."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        note = json.loads(metadata["rl4rec"])
        if metadata.get("format") != FORMAT or note["identity"] != identity:
            raise ValueError("made from other data or with other settings")
        # safetensors does not notice a flipped byte.
        is_whole = note["sha256"] == sha256_of_tensors(weights)
        summary_digest = sha256_of_json(note["summary"])
        if not is_whole or note.get("summary_sha256", summary_digest) != summary_digest:
            raise ValueError("its content does not match its checksum")
        model = build_model(dataset.num_items, settings)
        model.load_state_dict(weights)
        return SasRec(model.to(device), settings, dict(note["summary"]), device)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = first_line(error)
        console.log(f"warning: {path}: not usable, SASRec is trained again: {reason}")
        return None
