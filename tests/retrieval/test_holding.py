"""How item vectors are held: every way gives the same ranks, and what is chosen is what the sizes say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.errors import ConfigError, EmbeddingError
from rl4rec_cli.plan import machine
from rl4rec_cli.plan.catalogue import hold_catalogue, vector_bytes, why_not_mapped
from rl4rec_cli.retrieval import catalogue, embedding_files
from rl4rec_cli.retrieval.embedding import normalised
from rl4rec_cli.retrieval.embedding_files import load_embeddings, save_embeddings, stored_embeddings
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.retriever import InProcessRetriever
from rl4rec_cli.retrieval.service.shards import FileRows, Shard

Make = Callable[..., Dataset]
GB = 10**9
ITEMS, DIM = 700, 24
WAYS = [(storage, wish) for storage in ("fp32", "fp16", "int8") for wish in ("on", "off")]


class Scripted:
    """A vector for each text, by its number."""

    name = "scripted"

    def embed(self, texts: Any, *, query: bool = False, progress: Any = None) -> torch.Tensor:
        rows = [torch.randn(DIM, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
        return normalised(torch.stack(rows))


@pytest.fixture
def dataset(make_dataset: Make) -> Dataset:
    return make_dataset([f"item {i}" for i in range(ITEMS)], sequences=[[1, 2, 3, 4, 5]])


@pytest.fixture
def section(tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> RetrievalSection:
    """A file of vectors in which many lie within an int8 step of each other, and some are equal."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(20, DIM, generator=generator)
    vectors = centres.repeat(ITEMS // 20, 1) + 2e-4 * torch.randn(ITEMS, DIM, generator=generator)
    vectors[100:140] = vectors[:40]
    path = tmp_path / "items.safetensors"
    save_embeddings(path, normalised(vectors), model="scripted", emb_type="text", dataset=dataset)
    monkeypatch.setattr(catalogue, "open_embedder", lambda *_: Scripted())
    return RetrievalSection(backend="in-process", model="scripted", file=str(path), device="cpu")


def held(section: RetrievalSection, storage: str, wish: str) -> RetrievalSection:
    return section.model_copy(update={"storage": storage, "memory_map": wish})


def open_here(section: RetrievalSection, dataset: Dataset) -> InProcessRetriever:
    opened = open_retriever(section, dataset)
    assert isinstance(opened, InProcessRetriever)
    return opened


# Ranks


@pytest.mark.parametrize(("storage", "wish"), WAYS)
def test_every_way_gives_the_same_ranks_finds_scores_and_identity(
    storage: str, wish: str, section: RetrievalSection, dataset: Dataset
) -> None:
    plain, other = open_here(section, dataset), open_here(held(section, storage, wish), dataset)
    texts, targets = [f"text {i}" for i in range(64)], list(range(0, 640, 10))
    histories = [[i, i + 1] for i in range(64)]
    expected = plain.target_ranks(texts, targets, histories).ranks
    assert other.target_ranks(texts, targets, histories).ranks.tolist() == expected.tolist()
    assert other.search(texts, 10) == plain.search(texts, 10)
    assert np.array_equal(other.calculate_reward(texts), plain.calculate_reward(texts))
    assert other.item_vectors([5, 6]).equal(plain.item_vectors([5, 6]))
    assert other.digest == plain.digest
    assert (other.matrix.storage, plain.matrix.storage) == (storage, "fp32")
    if storage != "fp32":
        # The test can fail: ranks by the copy alone are others.
        copy_ND = other.matrix.block(0, ITEMS)
        queries_BD = plain.text_vectors(texts)
        scores_BN = queries_BD @ copy_ND.T
        alone = (scores_BN >= scores_BN.gather(1, torch.tensor(targets)[:, None])).sum(dim=1)
        assert alone.tolist() != expected.tolist()


def test_mapped_vectors_lie_in_the_file_and_in_no_memory(section: RetrievalSection, dataset: Dataset) -> None:
    stored = stored_embeddings(held(section, "fp32", "on"), dataset)
    assert stored is not None
    address = stored.vectors_ND.data_ptr()
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ranges = [(*(int(end, 16) for end in line.split()[0].split("-")), line) for line in maps]
    (line,) = [line for low, high, line in ranges if low <= address < high]
    assert line.endswith(str(section.file))
    assert " r--" in line
    assert str(stored.file) == section.file


def test_a_shard_reads_its_rows_of_the_file(section: RetrievalSection, dataset: Dataset) -> None:
    vectors_ND = load_embeddings(Path(str(section.file)), dataset=dataset, emb_type="text")
    checksum = embedding_files.file_checksum(Path(str(section.file)))
    queries = Scripted().embed([f"text {i}" for i in range(9)]).numpy()
    goals = np.linspace(-0.5, 0.5, 9)
    rows = FileRows(str(section.file), 200, 500, checksum)
    expected = Shard({"shop": vectors_ND[200:500].numpy()}).count_at_least("shop", queries, goals, [[]] * 9)
    for storage in ("fp32", "fp16", "int8"):
        shard = Shard({"shop": rows}, storages={"shop": storage})  # type: ignore[dict-item]
        assert shard.count_at_least("shop", queries, goals, [[]] * 9).tolist() == expected.tolist()
    with pytest.raises(EmbeddingError, match="not the file that the retrieval service has loaded"):
        Shard({"shop": rows._replace(sha256="0" * 64)})
    with pytest.raises(EmbeddingError, match="no such embedding file on this machine"):
        Shard({"shop": rows._replace(path="/nowhere/items.safetensors")})


# What cannot be mapped


@pytest.mark.parametrize("change", ["length", "type"])
def test_what_cannot_be_mapped_is_told_and_held_in_memory_where_nobody_insists(
    change: str, tmp_path: Path, section: RetrievalSection, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = torch.randn(ITEMS, DIM, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "own.safetensors"
    save_file({"embeddings": vectors if change == "length" else normalised(vectors).half()}, path)
    own = section.model_copy(update={"file": str(path), "storage": "int8"})
    with pytest.raises(EmbeddingError, match="cannot be memory-mapped") as caught:
        stored_embeddings(held(own, "int8", "on"), dataset)
    assert "memory_map=off" in (caught.value.hint or "")
    stored = stored_embeddings(own, dataset)
    assert stored is not None
    assert (stored.file, stored.holding.words) == (None, "int8 beside fp32 in memory")
    assert "cannot be memory-mapped" in stored.holding.reason
    assert torch.allclose(stored.vectors_ND.norm(dim=1), torch.ones(ITEMS))


def test_a_pt_file_and_lsa_are_not_mapped(tmp_path: Path, section: RetrievalSection, dataset: Dataset) -> None:
    path = tmp_path / "items.pt"
    torch.save(torch.randn(ITEMS, DIM), path)
    for own, words in (
        (section.model_copy(update={"file": str(path)}), "no .safetensors file"),
        (RetrievalSection(embedder="lsa", device="cpu"), "lsa is fitted anew"),
    ):
        with pytest.raises(ConfigError, match=words):
            stored_embeddings(held(own, "auto", "on"), dataset)
    stored = stored_embeddings(section.model_copy(update={"file": str(path), "storage": "fp16"}), dataset)
    assert stored is not None
    assert stored.holding.words == "fp16 beside fp32 in memory"


def test_a_mapped_file_is_checked_as_any(section: RetrievalSection, dataset: Dataset) -> None:
    path = Path(str(section.file))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(EmbeddingError, match="does not match its checksum"):
        stored_embeddings(held(section, "int8", "on"), dataset)


def test_bad_values() -> None:
    for setting in ("retrieval.storage=fp8", "retrieval.memory_map=sometimes"):
        with pytest.raises(ConfigError, match=setting.split("=")[0].replace(".", r"\.")):
            load_config(algorithm=None, sets=[setting])
    assert load_config(algorithm=None, sets=["retrieval.memory_map=on"]).retrieval.memory_map == "on"


# What is chosen

TEN_MILLION = (10_000_000, 384)  # 15.4 GB as fp32, 7.7 as fp16, 3.9 as int8


@pytest.mark.parametrize(
    ("free", "on_gpu", "not_mapped", "settings", "words"),
    [
        (40, False, None, {}, "fp32 in memory"),
        (20, False, None, {}, "fp16 beside the mapped file"),
        (10, False, None, {}, "int8 beside the mapped file"),
        (4, False, None, {}, "fp32 in the mapped file"),
        (4, False, "there is none", {}, "fp32 in memory"),
        (4, False, None, {"memory_map": "off"}, "fp32 in memory"),
        (40, False, None, {"memory_map": "on"}, "fp32 in the mapped file"),
        (40, False, None, {"storage": "int8"}, "int8 beside the mapped file"),
        (40, False, None, {"storage": "int8", "memory_map": "off"}, "int8 beside fp32 in memory"),
        (4, False, None, {"storage": "fp32"}, "fp32 in the mapped file"),
        (40, True, None, {}, "fp32 in memory"),
        (20, True, None, {}, "fp16 beside the mapped file"),
        (10, True, "there is none", {}, "int8 beside fp32 in memory"),
        (4, True, None, {}, "int8 beside the mapped file"),
        (40, True, None, {"memory_map": "on"}, "fp32 in memory"),
    ],
)
def test_what_is_chosen(free: int, on_gpu: bool, not_mapped: str | None, settings: Any, words: str) -> None:
    section = RetrievalSection(**settings)
    chosen = hold_catalogue(section, *TEN_MILLION, free * GB, on_gpu=on_gpu, not_mapped=not_mapped)
    assert chosen.words == words
    assert f"15.4 GB of {free:.1f} GB free" in chosen.reason
    taken = {"fp32": 15_360_000_000, "fp16": 7_680_000_000, "int8": 3_880_000_000}[chosen.storage]
    if not on_gpu and chosen.is_mapped and chosen.storage == "fp32":
        taken = 0
    if not on_gpu and words.endswith("beside fp32 in memory"):
        taken += 15_360_000_000
    assert chosen.bytes == taken


def test_replicas_count_each() -> None:
    one, three = (
        hold_catalogue(RetrievalSection(), *TEN_MILLION, 40 * GB, on_gpu=False, not_mapped=None, copies=copies)
        for copies in (1, 3)
    )
    assert (one.storage, three.storage) == ("fp32", "int8")
    assert vector_bytes(*TEN_MILLION, "int8") * 3 <= 20 * GB


def test_what_is_chosen_is_what_is_opened(
    section: RetrievalSection, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = ITEMS * DIM * 4
    for free, storage, is_mapped in ((2 * whole, "fp32", False), (whole, "fp16", True), (whole * 0.7, "int8", True)):
        monkeypatch.setattr(machine, "ram", lambda free=free: (10 * whole, int(free)))
        opened = open_here(section, dataset)
        assert opened.matrix.storage == storage
        (line,) = capsys.readouterr().err.splitlines() or [""]
        assert ("mapped file" in line and "more than half" in line) == is_mapped


def test_settings_say_what_can_be_mapped() -> None:
    assert why_not_mapped(RetrievalSection()) is None
    assert why_not_mapped(RetrievalSection(file="x.safetensors")) is None
    assert "x.pt" in str(why_not_mapped(RetrievalSection(file="x.pt")))


@pytest.mark.parametrize("kind", ["cut", "noise", "flat", "ints", "two"])
def test_a_file_that_cannot_be_mapped_is_a_named_error(
    kind: str, tmp_path: Path, section: RetrievalSection, dataset: Dataset
) -> None:
    vectors = normalised(torch.randn(ITEMS, DIM))
    path = tmp_path / f"{kind}.safetensors"
    tensors = {"flat": vectors.flatten(), "ints": vectors.int()}
    save_file({"a": tensors.get(kind, vectors), **({"b": vectors.clone()} if kind == "two" else {})}, path)
    if kind in ("cut", "noise"):
        path.write_bytes(path.read_bytes()[:-5] if kind == "cut" else b"\xff" * 200)
    with pytest.raises(EmbeddingError, match=rf"{kind}\.safetensors"):
        stored_embeddings(held(section.model_copy(update={"file": str(path)}), "fp32", "on"), dataset)
