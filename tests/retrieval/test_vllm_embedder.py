"""Vectors by vLLM itself are those of sentence-transformers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import ends

from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.errors import EmbeddingError
from rl4rec_cli.retrieval.embedders.sentence_transformers import SentenceTransformerEmbedder
from rl4rec_cli.retrieval.embedders.vllm import VllmEmbedder
from rl4rec_cli.retrieval.embedding_files import load_embeddings
from rl4rec_cli.retrieval.opening import open_retriever

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vllm; `make test-vllm` installs it"),
]

TEXTS = (
    *("rose hand cream", "mint shower gel", "Mint  SHOWER gel", "rose hand cream", "", "   ", "\u00e9\U0001f9f4 ' \""),
    *("a longer text about lavender bath salt and how it came to be " * 60, "x" * 700),
)


@pytest.fixture(scope="module")
def embedder(minilm: str) -> Iterator[VllmEmbedder]:
    made = VllmEmbedder(minilm, device="cpu", batch_size=4, query_prompt="query: ")
    yield made
    made.close()


@pytest.mark.parametrize("query", [False, True])
def test_vectors_are_those_of_sentence_transformers(embedder: VllmEmbedder, minilm: str, query: bool) -> None:
    plain = SentenceTransformerEmbedder(minilm, device="cpu", batch_size=4, query_prompt="query: ")
    ours, theirs = embedder.embed(TEXTS, query=query), plain.embed(TEXTS, query=query)
    assert embedder.name == plain.name
    assert ours.shape == theirs.shape == (len(TEXTS), 384)
    said = [i for i, text in enumerate(TEXTS) if text.strip()]
    assert (ours * theirs).sum(1)[said].min() > 0.9999
    assert (ours - theirs).abs().max() < 1e-5
    assert torch.equal(ours[0], ours[3])  # equal texts tie exactly
    assert not ours[[4, 5]].any()


def test_progress_counts_texts_and_nothing_has_a_width(embedder: VllmEmbedder) -> None:
    seen: list[int] = []
    embedder.embed(TEXTS, progress=seen.append)
    assert sum(seen) == len(TEXTS)
    assert embedder.embed([]).shape == (0, 384)


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EmbeddingError, match="cannot load the embedding model"):
        VllmEmbedder(str(tmp_path), device="cpu", batch_size=4)


def test_a_run_embeds_items_and_rewards_by_it(minilm: str, tmp_path: Path) -> None:
    given = [
        *("data.synthetic.users=60", "data.synthetic.items=24", "eval.users=20", "eval.baselines=[last_item]"),
        *("trainer.warm_start=null", "trainer.max_steps=1", "trainer.batch_size=2", "trainer.num_generations=2"),
        *("retrieval.embedder=vllm", f"retrieval.model={minilm}", "run.name=r", "eval.cache_dir=null"),
    ]
    sets = [part for text in given for part in ("--set", text)]
    command = [sys.executable, "-m", "rl4rec_cli.cli.main", "train", "grpo", "--quick-test", *sets]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert RetrievalSection(embedder="vllm").embedder == "vllm"
    (file,) = (tmp_path / "data_emb").glob("*.safetensors")
    from rl4rec_cli.config.sections import DataSection
    from rl4rec_cli.data.opening import open_dataset

    dataset = open_dataset(DataSection.model_validate({"synthetic": {"users": 60, "items": 24}, "path": None}))
    stored = load_embeddings(file, dataset=dataset, emb_type="text", model=minilm)
    plain = SentenceTransformerEmbedder(minilm, device="cpu", batch_size=8).embed(dataset.texts("text"))
    assert (stored * plain).sum(1).min() > 0.9999


@pytest.mark.ray
def test_a_service_embeds_by_it_and_takes_it_along_when_it_ends(
    cluster: tuple[Any, str, Path],
    start: Callable[..., Any],
    catalogue: tuple[Path, Dataset],
    minilm: str,
    embedder: VllmEmbedder,
) -> None:
    folder, dataset = catalogue
    ray = cluster[0]
    section, actors = start("by-vllm", [folder], embedder="vllm", model=minilm)
    (pid,) = _engines_of(ray.get(actors[0].health.remote())["pid"])
    texts, targets = ["worda", dataset.texts("text")[7]], [3, 7]
    ours = open_retriever(section, dataset).target_ranks(texts, targets, [[], []])
    vectors = embedder.embed(dataset.texts("text"))
    plain = VllmEmbedder.embed(embedder, texts)
    assert ours.ranks.tolist() == [
        int((vectors @ q >= vectors[t] @ q - 1e-6).sum()) for q, t in zip(plain, targets, strict=True)
    ]
    ray.kill(actors[0])
    assert ends(pid)


def _engines_of(parent: int) -> set[int]:
    found = set()
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended meanwhile
            words = process.read_bytes().split(b"\0")
            if b"rl4rec_cli.engine.worker" in words and str(parent).encode() in words:
                found.add(int(process.parent.name))
    return found
