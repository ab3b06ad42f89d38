"""Sizes of a run's models, before anything is loaded.

Decides: where a policy's and an embedder's sizes come from (a preset, a folder's `config.json`, the Hub's local cache;
never the network), and the sizes assumed of a catalogue or an embedder that is not there.
Hides: the Hub's cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli.errors import PolicyError
from rl4rec_cli.files.paths import expand
from rl4rec_cli.models.names import PRESETS, find_preset
from rl4rec_cli.models.shape import ModelFacts, RetrievalFacts, read_facts
from rl4rec_cli.policy.sources import ADAPTER, check_files, read_base, refuse_gguf
from rl4rec_cli.retrieval.embedder import find_embedder

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import PolicySection, TinySection
    from rl4rec_cli.config.sections import DataSection, RunConfig

# Parameters and dimensions, as published.
_EMBEDDERS = {
    "mixedbread-ai/mxbai-embed-large-v1": (335_141_888, 1024, 24, 16, 512),
    "sentence-transformers/all-MiniLM-L6-v2": (22_713_216, 384, 6, 12, 256),
}
"""Parameters, width, layers, heads, and the longest text in tokens."""
_ITEMS = 100_000


def policy_facts(section: PolicySection) -> ModelFacts:
    """Returns the policy's sizes.

    Raises:
        PolicyError: no preset, no folder with a config.json, and not in the Hub's cache; or an unknown architecture.
    """
    if section.model == "tiny":
        return _tiny(section.tiny)
    preset = find_preset(section.model)
    if preset is not None:
        return preset.facts
    folder = expand(section.model)
    refuse_gguf(folder)
    check_files(folder)
    if (folder / ADAPTER).is_file():
        return policy_facts(section.model_copy(update={"model": read_base(folder)[0]}))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise PolicyError(f"{section.model}: a folder without config.json", hint=_tries())
        return read_facts(section.model, _read(folder / "config.json"))
    path = _cached(section.model, section.revision)
    if path is None:
        raise PolicyError(
            f"{section.model}: no preset, no folder, and its config.json is not in the Hub's cache", hint=_tries()
        )
    return read_facts(section.model, _read(path))


def _tries() -> str:
    names = ", ".join(PRESETS)
    return f"give tiny, {names}, or a folder with config.json; `hf download NAME config.json` brings one from the Hub"


def _tiny(section: TinySection) -> ModelFacts:
    heads = (section.heads, section.heads, section.head_width)
    shape = (section.hidden_size, section.layers, *heads, 4 * section.hidden_size)
    return ModelFacts("tiny", "llama", *shape, section.vocab_size, 2048, True)


def _cached(name: str, revision: str | None) -> Path | None:
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache

    entry = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(entry) if isinstance(entry, str) else None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolicyError(f"{path}: cannot be read: {error}", hint="the model's folder is damaged") from error
    if not isinstance(settings, dict):
        raise PolicyError(f"{path}: holds no settings", hint="the model's folder is damaged")
    return settings


def retrieval_facts(config: RunConfig) -> RetrievalFacts:
    """Returns the sizes of catalogue and embedder. Its notes name those that are assumed.

    A task without a catalogue counts as one item: what its rewards read is small beside the policy.
    """
    data, retrieval, has_catalogue = config.data, config.retrieval, config.task.has_catalogue
    notes: list[str] = []
    if not has_catalogue:
        return RetrievalFacts(1, 0, 1, (), 0, 0, 0)
    items = _count_items(data)
    if items is None:
        items = _ITEMS
        notes.append(f"no dataset is named: a catalogue of {items:,} items is assumed")
    embedder = find_embedder(retrieval)
    sizes = (0, embedder.dim, 0, 0, 0) if embedder.model is None else _embedder(embedder.model, notes)
    parameters, dim, layers, heads, context = sizes
    return RetrievalFacts(items, parameters, dim, tuple(notes), layers, heads, context)


def _count_items(section: DataSection) -> int | None:
    """Counts the items of all datasets by the lines of items.jsonl, or returns None if one is not there.

    Training checks these files; this only counts.
    """
    if section.synthetic is not None:
        return section.synthetic.items
    files = [expand(path) / "items.jsonl" for path in section.paths]
    if not files or not all(file.is_file() for file in files):
        return None
    count = 0
    for file in files:
        with file.open("rb") as lines:
            count += sum(1 for line in lines if line.strip())
    return count


def _embedder(name: str, notes: list[str]) -> tuple[int, int, int, int, int]:
    if name in _EMBEDDERS:
        return _EMBEDDERS[name]
    folder = expand(name)
    path = folder / "config.json" if folder.is_dir() else _cached(name, None)
    settings = _read(path) if path is not None and path.is_file() else {}
    try:
        width, layers, ffn = (int(settings[key]) for key in ("hidden_size", "num_hidden_layers", "intermediate_size"))
        positions = int(settings.get("max_position_embeddings", 512))
        heads = int(settings.get("num_attention_heads", 16))
    except (KeyError, TypeError, ValueError):
        sizes = _EMBEDDERS["mixedbread-ai/mxbai-embed-large-v1"]
        notes.append(f"the embedder {name} is not known: {sizes[0] / 1e6:.0f} M parameters are assumed")
        return sizes
    parameters = (int(settings["vocab_size"]) + positions) * width + layers * (4 * width * width + 2 * width * ffn)
    limit = folder / "sentence_bert_config.json"
    context = (_read(limit).get("max_seq_length") if limit.is_file() else None) or positions
    return parameters, width, layers, heads, int(context)
