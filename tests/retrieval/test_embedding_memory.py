"""Embedding a catalogue holds its matrix once, and gives the bits of one that is put together at the end."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.retrieval.embedding import each_once, embed_items, normalised
from rl4rec_cli.retrieval.embedding_parts import embed_in_parts

Make = Callable[..., Dataset]
BATCH = 64
DIM = 512
ITEMS = 20_000
TITLES = [f"item {i} " + "x" * (i * 7 % 30) * (i % 3) for i in range(ITEMS - 500)]
TITLES += TITLES[:500]


class Numbers:
    """Vectors of any length by a text's number; some are unit rows already, and blank texts have one, too."""

    name = "numbers"

    def rows(self, texts: Sequence[str]) -> torch.Tensor:
        seeds = torch.tensor([float(sum(text.encode())) + len(text) for text in texts])
        vectors = torch.sin(seeds[:, None] * torch.linspace(0.1, 3, DIM)) * (1 + seeds[:, None] % 5)
        unit = seeds % 2 == 0
        vectors[unit] = normalised(vectors[unit])
        return vectors

    def embed(self, texts: Sequence[str], *, query: bool = False, progress: Any = None) -> torch.Tensor:
        return each_once(texts, self.rows, self.name, batch_size=BATCH, progress=progress)


def in_parts(dataset: Dataset, part: Path, embedder: Any = None, *, stored: bool = True) -> torch.Tensor:
    embedder = embedder or Numbers()
    return embed_in_parts(
        dataset, embedder, "text", part, batch_size=BATCH, dtype="fp32", store=lambda vectors_ND: stored
    )


def peak(make: Callable[[], torch.Tensor]) -> float:
    """The most bytes that torch and Python hold at once, in sizes of the result."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        tracemalloc.start()
        vectors = make()
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    held, most = 0, 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    assert most >= vectors.nbytes
    return (most + python) / vectors.nbytes


@pytest.fixture(scope="module")
def dataset(make_dataset: Make) -> Dataset:
    return make_dataset(TITLES)


def test_a_catalogue_takes_the_memory_of_its_matrix_once(dataset: Dataset, tmp_path: Path) -> None:
    """With Python's own lists and digests, and the blocks in which rows are normalised."""
    dataset.texts("text")
    dataset.items_digest("text")
    assert peak(lambda: embed_items(dataset, Numbers(), "text")) < 1.3
    part = tmp_path / "vectors.part"
    assert peak(lambda: in_parts(dataset, part, stored=False)) < 1.3
    assert peak(lambda: in_parts(dataset, part)) < 1.3  # every row from the part file


def test_the_bits_are_those_of_a_matrix_put_together_at_the_end(dataset: Dataset, tmp_path: Path) -> None:
    texts = [*dataset.texts("text"), "", " "]
    order = sorted(dict.fromkeys(texts), key=len)
    row = {text: i for i, text in enumerate(order)}
    pieces = [Numbers().rows(order[start : start + BATCH]) for start in range(0, len(order), BATCH)]
    whole = normalised(torch.cat(pieces)[[row[text] for text in texts]])
    whole[-2:] = 0
    seen: list[int] = []
    assert Numbers().embed(texts, progress=seen.append).equal(whole)
    assert sum(seen) == len(texts)
    assert max(seen) > BATCH  # equal texts count, too
    assert in_parts(dataset, tmp_path / "vectors.part").equal(whole[:-2])
