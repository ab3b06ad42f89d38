"""Embedding that is ended goes on from its part file, to the same bits."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.files.parts import held, part_of
from rl4rec_cli.retrieval import embedding_files, opening
from rl4rec_cli.retrieval.embedders.sentence_transformers import SentenceTransformerEmbedder
from rl4rec_cli.retrieval.embedding_files import embed_dataset, embedding_path
from rl4rec_cli.retrieval.embedding_parts import embed_in_parts

Make = Callable[..., Dataset]
BATCH = 4
WORDS = ("rose", "mint", "lavender", "cedar", "honey", "charcoal", "cream", "gel", "salt", "oil")
TITLES = tuple(" ".join(WORDS[(i + j * j) % 10] for j in range(1 + i % 7)) for i in range(30))


class Stopping:
    """An embedder that does something in the midst of its work; `texts` is what it was asked for."""

    def __init__(self, embedder: Any, at: int = 0, do: Callable[[], None] = lambda: None) -> None:
        self._embedder, self._at, self._do = embedder, at, do
        self.name, self.texts, self._calls = embedder.name, list[str](), 0

    def embed(self, texts: Sequence[str], *, query: bool = False, progress: Any = None) -> torch.Tensor:
        self._calls += 1
        if self._calls == self._at:
            self._do()
        self.texts += texts
        return self._embedder.embed(texts, query=query, progress=progress)


class Hashing:
    """Vectors by a text's characters."""

    name = "hashing"

    def embed(self, texts: Sequence[str], *, query: bool = False, progress: Any = None) -> torch.Tensor:
        rows = [[float(len(t) + 1), float(sum(t.encode()) % 97), float(sum(t.encode()[::2]) % 89)] for t in texts]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(texts), 3)


def interrupt() -> None:
    raise KeyboardInterrupt


def embed(
    dataset: Dataset, embedder: Any, part: Path, *, stored: bool = True, batch_size: int = BATCH, dtype: str = "fp32"
) -> torch.Tensor:
    return embed_in_parts(dataset, embedder, "text", part, batch_size=batch_size, dtype=dtype, store=lambda _: stored)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "vectors.safetensors.part"


@pytest.fixture
def begun(make_dataset: Make, part: Path) -> bytes:
    """A part file of a job that was interrupted after three pieces."""
    with pytest.raises(KeyboardInterrupt):
        embed(make_dataset(TITLES), Stopping(Hashing(), 4, interrupt), part)
    return part.read_bytes()


def test_an_interrupted_command_goes_on_to_the_same_file(
    tmp_path: Path, make_dataset: Make, minilm: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = make_dataset(TITLES)
    section = RetrievalSection(model=minilm, device="cpu", batch_size=BATCH, emb_dir=str(tmp_path))
    whole = embed_dataset(dataset, section, str(tmp_path / "whole.safetensors"))
    model = SentenceTransformerEmbedder(minilm, device="cpu", batch_size=BATCH)
    first, second = Stopping(model, 4, interrupt), Stopping(model)
    embedders = iter((first, second))
    monkeypatch.setattr(embedding_files, "open_embedder", lambda *_: next(embedders))
    with pytest.raises(KeyboardInterrupt):
        embed_dataset(dataset, section, None)
    path = embedding_path(section, dataset)
    assert not path.exists()
    assert f"{part_of(path)} keeps 12 of 30 items: the same command goes on from there" in capsys.readouterr().err
    assert embed_dataset(dataset, section, None) == path
    assert f"{part_of(path)}: 12 of 30 items are embedded already" in capsys.readouterr().err
    assert load_file(path)["embeddings"].equal(load_file(whole)["embeddings"])
    assert sorted(first.texts + second.texts) == sorted(set(dataset.texts()))
    assert not part_of(path).exists()


def test_a_killed_process_leaves_what_it_did(make_dataset: Make, part: Path) -> None:
    dataset = make_dataset(TITLES)
    pid = os.fork()
    if pid == 0:
        try:
            embed(dataset, Stopping(Hashing(), 6, lambda: os.kill(os.getpid(), signal.SIGKILL)), part)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    rest = Stopping(Hashing())
    assert embed(dataset, rest, part).equal(Hashing().embed(dataset.texts()))
    assert len(rest.texts) == len(set(dataset.texts())) - 5 * BATCH
    assert not part.exists()


def test_a_piece_that_is_cut_or_damaged_is_made_again(make_dataset: Make, part: Path, begun: bytes) -> None:
    dataset = make_dataset(TITLES)
    whole = Hashing().embed(dataset.texts())
    distinct = len(set(dataset.texts()))
    flipped = begun[:-1] + bytes([begun[-1] ^ 1])
    for content, kept in ((begun, 3), (begun[:-5], 2), (flipped, 2), (begun + b'{"start": 12, "rows"', 3), (b"", 0)):
        part.write_bytes(content)
        rest = Stopping(Hashing())
        assert embed(dataset, rest, part).equal(whole)
        assert len(rest.texts) == distinct - kept * BATCH
        assert not part.exists()


def test_a_part_of_something_else(
    make_dataset: Make, part: Path, begun: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of other items, another model or type, or other batches is replaced; one that is none of ours stays."""
    dataset = make_dataset(TITLES)
    other_order = make_dataset(TITLES[::-1])
    earlier = begun.replace(b'"dtype": "fp32", ', b"")  # of a version that did not name the type
    assert earlier != begun
    for data, batch, dtype, content in (
        (other_order, BATCH, "fp32", begun),
        (dataset, BATCH + 1, "fp32", begun),
        (dataset, BATCH, "bf16", begun),
        (dataset, BATCH, "fp32", earlier),
    ):
        part.write_bytes(content)
        rest = Stopping(Hashing())
        assert embed(data, rest, part, batch_size=batch, dtype=dtype).equal(Hashing().embed(data.texts()))
        assert sorted(rest.texts) == sorted(set(data.texts()))
        assert "was of other items, another model or type, or other batches: begun anew" in capsys.readouterr().err
        assert not part.exists()
    part.write_text("a letter")
    assert embed(dataset, Hashing(), part).equal(Hashing().embed(dataset.texts()))
    assert part.read_text() == "a letter"
    assert "is none of ours and is left alone" in capsys.readouterr().err


def test_what_cannot_be_kept_meanwhile_costs_nothing_but_time(
    make_dataset: Make, part: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another process writes to it, there is no such folder, the disk is full in the midst, nothing could be stored."""
    dataset = make_dataset(TITLES)
    whole = Hashing().embed(dataset.texts())
    with held(part):
        assert embed(dataset, Hashing(), part).equal(whole)
    assert "another process writes to it" in capsys.readouterr().err
    part.write_text("a file")
    assert embed(dataset, Hashing(), part / "x.part").equal(whole)
    part.unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        assert embed(dataset, Hashing(), part).equal(whole)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large: nothing is kept if this is interrupted" in capsys.readouterr().err
    assert not part.exists()
    assert embed(dataset, Hashing(), part, stored=False).equal(whole)
    again = Stopping(Hashing())
    assert embed(dataset, again, part).equal(whole)
    assert again.texts == []


def test_a_cache_that_cannot_be_kept_is_said_and_passed_over(
    tmp_path: Path, make_dataset: Make, minilm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    section = RetrievalSection(model=minilm, device="cpu", emb_dir=str(tmp_path / "file" / "emb"))
    opened = opening.open_retriever(section, make_dataset())
    assert opened.num_items == 6
    said = "item vectors cannot be kept (Not a directory): they are embedded anew next time"
    assert said in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):  # here the file is what is wanted
        embed_dataset(make_dataset(), section, None)


def test_an_empty_catalogue_and_one_text(make_dataset: Make, part: Path) -> None:
    assert embed(make_dataset(("a", "a", "a")), Hashing(), part).shape == (3, 3)
    assert embed(make_dataset(()), Hashing(), part).shape == (0, 3)
    assert np.isfinite(embed(make_dataset(TITLES[:1]), Hashing(), part).numpy()).all()
