"""Embedding files and embedders: what is kept, what is refused and in which words."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import safe_open, save_file

from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.errors import DataError, EmbeddingError
from rl4rec_cli.retrieval.embedders.lsa import LsaEmbedder
from rl4rec_cli.retrieval.embedders.models import check_model, model_identity
from rl4rec_cli.retrieval.embedders.sentence_transformers import SentenceTransformerEmbedder
from rl4rec_cli.retrieval.embedding import embed_items, is_blank, normalised
from rl4rec_cli.retrieval.embedding_files import (
    embed_dataset,
    embedding_path,
    load_embeddings,
    save_embeddings,
    stored_embeddings,
)
from rl4rec_cli.retrieval.embedding_rows import vectors_digest
from rl4rec_cli.retrieval.opening import open_retriever

Make = Callable[..., Dataset]
DIM = 8


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(6, DIM, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.fixture
def stored(tmp_path: Path, make_dataset: Make, vectors: torch.Tensor) -> Path:
    path = tmp_path / "emb" / "shop_text_model.safetensors"
    save_embeddings(path, vectors, model="some/model", emb_type="text", dataset=make_dataset())
    return path


def refusal(path: Path, dataset: Dataset, **options: Any) -> str:
    with pytest.raises(EmbeddingError) as caught:
        load_embeddings(path, dataset=dataset, emb_type="text", **options)
    assert str(path) in caught.value.message
    assert caught.value.exit_code == 2
    return caught.value.message


def save_pt(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


# --- files ---


def test_safetensors_round_trip_to_the_bit(stored: Path, make_dataset: Make, vectors: torch.Tensor) -> None:
    dataset = make_dataset()
    assert torch.equal(load_embeddings(stored, dataset=dataset, emb_type="text", model="some/model"), vectors)
    with safe_open(stored, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["model"] == "some/model"
    assert metadata["emb_type"] == "text"
    assert metadata["dataset"] == "shop"
    assert metadata["items_digest"] == dataset.items_digest("text")
    assert (metadata["num_items"], metadata["dim"]) == ("6", str(DIM))
    assert [p.name for p in stored.parent.iterdir()] == [stored.name]
    (new := stored.with_name("new")).touch()
    assert stored.stat().st_mode == new.stat().st_mode  # safetensors alone would keep it from everybody else


def test_pt_round_trip(tmp_path: Path, make_dataset: Make, vectors: torch.Tensor) -> None:
    path = tmp_path / "beauty_review_description_mxbai-embed-large-v1.pt"
    save_embeddings(path, vectors, model="m", emb_type="text", dataset=make_dataset())
    assert torch.equal(torch.load(path, weights_only=True), vectors)
    assert torch.equal(load_embeddings(path, dataset=make_dataset(), emb_type="text", model="any"), vectors)


@pytest.mark.parametrize("scale", [1e-25, 3.0, 1e25])
def test_rows_are_brought_to_length_one(
    tmp_path: Path, make_dataset: Make, vectors: torch.Tensor, scale: float
) -> None:
    path = save_pt(tmp_path / "a.pt", vectors * scale)
    assert torch.allclose(load_embeddings(path, dataset=make_dataset(), emb_type="text"), vectors, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_read(tmp_path: Path, make_dataset: Make, vectors: torch.Tensor, dtype: Any) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"embeddings": vectors.to(dtype)}, path, metadata={"sha256": vectors_digest(vectors.to(dtype))})
    loaded = load_embeddings(path, dataset=make_dataset(), emb_type="text")
    assert loaded.dtype == torch.float32
    assert torch.allclose(loaded, vectors, atol=1e-2)


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, make_dataset: Make) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    for name, write in {
        "torch.pt": lambda p: torch.save(Evil(), p),
        "bare.pt": lambda p: p.write_bytes(pickle.dumps(Evil())),
        "legacy.pt": lambda p: torch.save({"a": Evil()}, p, _use_new_zipfile_serialization=False),
    }.items():
        write(tmp_path / name)
        assert "not a whole .pt file" in refusal(tmp_path / name, make_dataset())
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(6), "shape [6]"),
        (torch.ones(6, 2, 2), "shape [6, 2, 2]"),
        (torch.ones(6, 0), "shape [6, 0]"),
        (torch.ones(5, DIM), "5 rows, but dataset shop has 6 items"),
        (torch.ones(7, DIM), "7 rows"),
        (torch.ones(6, DIM, dtype=torch.int64), "type torch.int64"),
        (torch.ones(6, DIM, dtype=torch.complex64), "type torch.complex64"),
        (torch.ones(6, DIM).to_sparse(), "without dense values"),
        (torch.empty(6, DIM, device="meta"), "without dense values"),
        ({"embeddings": torch.ones(6, DIM)}, "holds a dict"),
        ([torch.ones(6, DIM)], "holds a list"),
    ],
)
def test_wrong_shape_type_or_content(tmp_path: Path, make_dataset: Make, value: Any, words: str) -> None:
    assert words in refusal(save_pt(tmp_path / "a.pt", value), make_dataset())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor(tmp_path: Path, make_dataset: Make) -> None:
    nested = torch.nested.nested_tensor([torch.ones(DIM), torch.ones(2)])
    assert "a nested tensor" in refusal(save_pt(tmp_path / "a.pt", nested), make_dataset())


def test_parameters_are_read_without_their_gradient(tmp_path: Path, make_dataset: Make, vectors: torch.Tensor) -> None:
    path = save_pt(tmp_path / "a.pt", torch.nn.Parameter(vectors))
    assert not load_embeddings(path, dataset=make_dataset(), emb_type="text").requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_is_named(
    tmp_path: Path, make_dataset: Make, vectors: torch.Tensor, bad: float
) -> None:
    vectors[4, 3] = bad
    for path in (tmp_path / "a.pt", tmp_path / "a.safetensors"):
        save_embeddings(path, vectors, model="m", emb_type="text", dataset=make_dataset())
        message = refusal(path, make_dataset())
        assert "not finite" in message
        assert "row 4 (item 4)" in message


def test_zero_rows(tmp_path: Path, make_dataset: Make, vectors: torch.Tensor) -> None:
    assert "every row is zero" in refusal(save_pt(tmp_path / "zero.pt", torch.zeros(6, DIM)), make_dataset())
    vectors[2] = 0
    path = save_pt(tmp_path / "one.pt", vectors)
    assert "first row 2 (item 2)" in refusal(path, make_dataset())
    without_text = make_dataset(fields=[{"text": "\u200b" if i == 2 else "words"} for i in range(6)])
    assert torch.equal(load_embeddings(path, dataset=without_text, emb_type="text"), vectors)


def test_other_items_and_other_models_are_refused(stored: Path, make_dataset: Make) -> None:
    other = make_dataset(["other", *[f"title {i}" for i in range(5)]])
    assert "made from other items" in refusal(stored, other)
    assert "'some/model'" in refusal(stored, make_dataset(), model="another/model")
    with pytest.raises(EmbeddingError, match="made from other items"):
        load_embeddings(stored, dataset=make_dataset(), emb_type="title")


def test_every_truncation_is_refused(tmp_path: Path, make_dataset: Make, vectors: torch.Tensor) -> None:
    for name in ("a.safetensors", "a.pt"):
        path = tmp_path / name
        save_embeddings(path, vectors, model="m", emb_type="text", dataset=make_dataset())
        whole = path.read_bytes()
        for size in [0, 1, 7, 8, 9, *range(10, len(whole), 37), len(whole) - 1]:
            path.write_bytes(whole[:size])
            assert "not a whole" in refusal(path, make_dataset())


def test_a_flipped_byte_never_gives_other_vectors(stored: Path, make_dataset: Make, vectors: torch.Tensor) -> None:
    whole = stored.read_bytes()
    refused_in_data = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        stored.write_bytes(damaged)
        try:
            loaded = load_embeddings(stored, dataset=make_dataset(), emb_type="text", model="some/model")
        except EmbeddingError:
            refused_in_data += position >= len(whole) - vectors.numel() * 4
        else:
            assert torch.equal(loaded, vectors)
    assert refused_in_data == vectors.numel() * 4


def test_garbage_is_refused(tmp_path: Path, make_dataset: Make) -> None:
    rng = np.random.default_rng(0)
    for name in ("a.pt", "a.safetensors"):
        for _ in range(40):
            path = tmp_path / name
            path.write_bytes(rng.bytes(int(rng.integers(1, 300))))
            refusal(path, make_dataset())


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_file_that_is_something_else(name: str, tmp_path: Path, make_dataset: Make, vectors: torch.Tensor) -> None:
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert refusal(path, make_dataset()) == f"{path} is a Git LFS pointer, not the file itself"
    save_pt(path, vectors)
    if name == "a.safetensors":
        assert refusal(path, make_dataset()) == f"{path} is a zip archive"


def test_a_missing_file_says_how_to_make_it(tmp_path: Path, make_dataset: Make) -> None:
    assert "no such embedding file" in refusal(tmp_path / "nothing.safetensors", make_dataset())


@pytest.mark.parametrize("name", ["a.bin", "a", "a.safetensors.gz"])
def test_a_wrong_ending_writes_nothing(tmp_path: Path, make_dataset: Make, vectors: torch.Tensor, name: str) -> None:
    with pytest.raises(EmbeddingError, match=r"written as \.safetensors or \.pt"):
        save_embeddings(tmp_path / name, vectors, model="m", emb_type="text", dataset=make_dataset())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_a_folder_that_is_a_file(tmp_path: Path, make_dataset: Make, vectors: torch.Tensor, ending: str) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / f"a{ending}"
    with pytest.raises(EmbeddingError, match="cannot write 192 bytes") as caught:
        save_embeddings(path, vectors, model="m", emb_type="text", dataset=make_dataset())
    assert str(path) in caught.value.message
    (tmp_path / f"b{ending}").mkdir()
    with pytest.raises(EmbeddingError, match="cannot write"):
        save_embeddings(tmp_path / f"b{ending}", vectors, model="m", emb_type="text", dataset=make_dataset())
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"b{ending}", "file"]


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_a_write_that_breaks_off_leaves_what_was_there(
    tmp_path: Path, make_dataset: Make, vectors: torch.Tensor, ending: str
) -> None:
    path = tmp_path / f"a{ending}"
    save_embeddings(path, vectors, model="m", emb_type="text", dataset=make_dataset())
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(EmbeddingError, match="cannot write 2,400,000 bytes") as caught:
            save_embeddings(path, torch.ones(6, 100_000), model="m", emb_type="text", dataset=make_dataset())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in caught.value.message
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_file_names_stay_in_their_folder(make_dataset: Make) -> None:
    section = RetrievalSection(model="mixedbread-ai/mxbai-embed-large-v1", emb_dir="data_emb", emb_type="text")
    path = embedding_path(section, make_dataset(name="beauty"))
    assert path == Path("data_emb/beauty_text_mxbai-embed-large-v1.safetensors")
    section = RetrievalSection(model="../../m", emb_dir="data_emb", emb_type="../../x")
    assert embedding_path(section, make_dataset(name="../../y")).parent == Path("data_emb")


# --- lsa ---


def test_lsa_rows_are_unit_and_unknown_text_is_zero(make_dataset: Make) -> None:
    texts = make_dataset().texts()
    embedder = LsaEmbedder(texts, dim=64)
    assert torch.allclose(embedder.embed(texts).norm(dim=1), torch.ones(6), atol=1e-5)
    silent = embedder.embed(["", "  \n\t", "\u200b\u200b", "zzz qqq", "?!.", "rose"])
    assert silent[:5].eq(0).all()
    assert silent[5].norm() == pytest.approx(1, abs=1e-5)
    assert embedder.embed(texts, query=True).equal(LsaEmbedder(texts, dim=64).embed(texts))
    own = embedder.embed(texts) @ embedder.embed(texts).T
    assert own.argmax(dim=1).tolist() == list(range(6))


@pytest.mark.parametrize("text", ["word", "two words", "one two three four five"])
@pytest.mark.filterwarnings("error")
def test_lsa_of_one_item(text: str) -> None:
    embedder = LsaEmbedder([text], dim=128)
    rows = embedder.embed([text, "nothing", text.split()[0]])
    assert rows[0].norm() == pytest.approx(1, abs=1e-5)
    assert rows[1].eq(0).all()


def test_lsa_beyond_its_dimensions_is_zero_not_noise() -> None:
    # One dimension holds the first, larger topic; a word of the other is orthogonal to it.
    embedder = LsaEmbedder(["red green", "red green blue", "red blue", "yellow"], dim=1)
    assert embedder.embed(["yellow"]).eq(0).all()


def test_lsa_knows_texts_without_blanks_by_their_parts() -> None:
    titles = ["口香糖限量版", "口红限量版", "牙膏大号", "牙刷大号"]
    embedder = LsaEmbedder(titles, dim=8)
    near = embedder.embed(["口香糖", "牙膏"]) @ embedder.embed(titles).T
    assert near.argmax(dim=1).tolist() == [0, 2]


@pytest.mark.parametrize(("titles", "is_said"), [(["ab", "cd", "ef", "gh ab"], False), (["ab", "cd", "ef"], True)])
def test_lsa_says_that_it_knows_next_to_nothing(
    titles: list[str], is_said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    LsaEmbedder(titles, dim=2)
    assert ("lsa knows next to nothing" in capsys.readouterr().err) == is_said


def test_lsa_without_words(make_dataset: Make) -> None:
    with pytest.raises(EmbeddingError, match="lsa cannot be fitted") as caught:
        LsaEmbedder(["?", "!", "… –"], dim=4)
    assert caught.value.hint


def test_lsa_embeds_an_empty_list(make_dataset: Make) -> None:
    rows = LsaEmbedder(make_dataset().texts(), dim=4)
    with pytest.raises(EmbeddingError, match="fitted anew"):
        stored_embeddings(RetrievalSection(embedder="lsa", file="x.safetensors"), make_dataset())
    assert rows.embed(["rose"]).shape == (1, 4)


@pytest.mark.parametrize("text", ["", " ", "\n\t\r", "\u200b", "\u2060\ufeff", "\x00\x07", "\u3000"])
def test_blank(text: str) -> None:
    assert is_blank(text)
    assert not is_blank(text + "ö")


# --- sentence-transformers ---


@pytest.fixture(scope="module")
def sentences(minilm: str) -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder(minilm, device="cpu", batch_size=3)


TEXTS = [
    "rose hand cream",
    "a",
    "a long text about a shower gel that smells of mint and of little else",
    "",
    "gel",
    "a",
]


def test_sentences_are_unit_rows_in_order(sentences: SentenceTransformerEmbedder, minilm: str) -> None:
    rows = sentences.embed(TEXTS)
    assert rows.shape == (6, 384)
    assert rows.dtype == torch.float32
    assert rows[3].eq(0).all()
    assert torch.allclose(rows.norm(dim=1)[[0, 1, 2, 4, 5]], torch.ones(5), atol=1e-6)
    assert rows[1].equal(rows[5])
    alone = SentenceTransformerEmbedder(minilm, device="cpu", batch_size=64).embed(TEXTS)
    one_by_one = torch.cat([sentences.embed([text]) for text in TEXTS])
    assert torch.allclose(rows, alone, atol=1e-6)
    assert torch.allclose(rows, one_by_one, atol=1e-6)
    assert rows[0] @ rows[4] < 0.9
    reference = sentences._model.encode(TEXTS[:3], convert_to_tensor=True)
    assert torch.allclose(rows[:3], reference, atol=1e-6)


def test_items_of_one_text_have_one_vector_in_any_batch(sentences: SentenceTransformerEmbedder) -> None:
    # In the batch of the long text the short one would be padded, and differ in its last bits.
    seen: list[int] = []
    rows = sentences.embed([f"cream {i}" for i in range(4)] + ["cream 0", "cream " * 40] * 2, progress=seen.append)
    assert rows[0].equal(rows[4])
    assert rows[0].equal(rows[6])
    assert rows[5].equal(rows[7])
    assert sum(seen) == 8
    assert sentences.embed([]).shape == (0, 384)


def test_the_query_prompt_goes_before_queries_only(sentences: SentenceTransformerEmbedder, minilm: str) -> None:
    asking = SentenceTransformerEmbedder(minilm, device="cpu", batch_size=8, query_prompt="search for: ")
    assert torch.allclose(asking.embed(["cream"]), sentences.embed(["cream"]), atol=1e-6)
    assert torch.allclose(asking.embed(["cream"], query=True), sentences.embed(["search for: cream"]), atol=1e-6)
    assert asking.embed(["cream"], query=True) @ sentences.embed(["cream"]).T < 0.99
    assert asking.embed(["  "], query=True).eq(0).all()


def test_a_models_own_default_prompt_is_not_used(sentences: SentenceTransformerEmbedder, minilm: str) -> None:
    other = SentenceTransformerEmbedder(minilm, device="cpu", batch_size=8)
    other._model.prompts = {"ask": "search for: "}
    other._model.default_prompt_name = "ask"
    assert torch.allclose(other.embed(["cream"]), sentences.embed(["cream"]), atol=1e-6)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model", "a/b/c/d", ""])
def test_a_model_that_cannot_be_loaded(name: str) -> None:
    with pytest.raises(EmbeddingError, match="cannot load the embedding model") as caught:
        SentenceTransformerEmbedder(name, device="cpu", batch_size=8)
    assert "\n" not in caught.value.message
    assert "lsa" in str(caught.value.hint)


def test_an_embedder_that_cannot_take_its_own_tokens(tiny_folder: Path, tmp_path: Path) -> None:
    """What it cannot do is said before anything is embedded."""
    folder = tmp_path / "no-pad"
    shutil.copytree(tiny_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    pad = settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(EmbeddingError, match="its tokenizer has no padding token"):
        check_model(str(folder))
    with pytest.raises(EmbeddingError, match="its tokenizer has no padding token") as caught:
        SentenceTransformerEmbedder(str(folder), device="cpu", batch_size=8)
    assert "tokenizer.pad_token = tokenizer.eos_token" in str(caught.value.hint)
    settings["pad_token"] = "[PAD]"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(EmbeddingError, match=r"rows: none for '\[PAD\]'"):
        SentenceTransformerEmbedder(str(folder), device="cpu", batch_size=8)
    with pytest.raises(EmbeddingError, match=r"rows: none for '\[PAD\]'"):
        check_model(str(folder))
    settings["pad_token"] = pad
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    check_model(str(folder))
    assert SentenceTransformerEmbedder(str(folder), device="cpu", batch_size=8).embed(["rose", "mint gel"]).ndim == 2
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(EmbeddingError, match="is a Git LFS pointer"):
        SentenceTransformerEmbedder(str(folder), device="cpu", batch_size=8)


def test_an_embedder_of_the_hub_without_the_hub() -> None:
    with pytest.raises(EmbeddingError, match="the Hub is switched off by HF_HUB_OFFLINE") as caught:
        SentenceTransformerEmbedder("nobody/no-such-model", device="cpu", batch_size=8)
    assert "`hf download nobody/no-such-model`" in str(caught.value.hint)


def test_a_path_that_is_no_model(tmp_path: Path, minilm: str) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in Path(minilm).iterdir():
        if file.is_file() and file.stat().st_size < 2_000_000:
            (damaged / file.name).write_bytes(file.read_bytes())
    (damaged / "1_Pooling").mkdir()
    (damaged / "1_Pooling" / "config.json").write_bytes((Path(minilm) / "1_Pooling" / "config.json").read_bytes())
    (damaged / "model.safetensors").write_bytes(b"not a model")
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    for path in (damaged, tmp_path / "file.txt", tmp_path / "empty"):
        with pytest.raises(EmbeddingError, match="cannot load the embedding model"):
            SentenceTransformerEmbedder(str(path), device="cpu", batch_size=8)


# --- from a configuration ---


def test_the_cache_is_written_once_and_gives_the_same_bits(tmp_path: Path, make_dataset: Make, minilm: str) -> None:
    section = RetrievalSection(model=minilm, emb_dir=str(tmp_path / "emb"), device="cpu")
    first = open_retriever(section, make_dataset())
    path = embedding_path(section, make_dataset())
    written = path.stat().st_mtime_ns
    again = open_retriever(section, make_dataset())
    assert path.stat().st_mtime_ns == written
    assert first.item_vectors(range(6)).equal(again.item_vectors(range(6)))
    assert again.target_ranks(["rose hand cream."], [0], [[]]).ranks.tolist() == [1]


def test_a_bad_file_or_field_is_told_before_a_model_is_loaded(tmp_path: Path, make_dataset: Make) -> None:
    """A model that does not exist would give another message."""
    path = save_pt(tmp_path / "a.pt", torch.ones(5, DIM))
    with pytest.raises(EmbeddingError, match="5 rows"):
        open_retriever(RetrievalSection(model="nobody/none", file=str(path)), make_dataset())
    with pytest.raises(DataError, match="field 'nothing'"):
        open_retriever(RetrievalSection(model="nobody/none", emb_type="nothing"), make_dataset())
    with pytest.raises(DataError, match="field 'nothing'"):
        embed_dataset(make_dataset(), RetrievalSection(model="nobody/none", emb_type="nothing"), None)
    with pytest.raises(EmbeddingError, match="are written as"):
        embed_dataset(make_dataset(), RetrievalSection(model="nobody/none"), str(tmp_path / "x.npy"))


def test_a_file_of_other_dimensions(tmp_path: Path, make_dataset: Make, minilm: str) -> None:
    path = save_pt(tmp_path / "a.pt", torch.ones(6, DIM))
    with pytest.raises(EmbeddingError, match=r"8 dimensions.*384"):
        open_retriever(RetrievalSection(model=minilm, file=str(path), device="cpu"), make_dataset())


@pytest.fixture(scope="module")
def shop(make_dataset: Make) -> Dataset:
    return make_dataset([f"{a} {b}" for a in ("rose", "mint", "salt", "lime") for b in ("soap", "comb", "oil")])


@pytest.fixture(scope="module")
def shop_vectors(shop: Dataset, minilm: str) -> torch.Tensor:
    return embed_items(shop, SentenceTransformerEmbedder(minilm, device="cpu", batch_size=128), "text")


def test_vectors_that_the_named_embedder_did_not_make_are_refused(
    tmp_path: Path, shop: Dataset, shop_vectors: torch.Tensor, minilm: str
) -> None:
    """Random numbers, rows one place further, another field; bare tensors and foreign files."""
    from safetensors.torch import save_file

    section = RetrievalSection(model=minilm, device="cpu", emb_dir=str(tmp_path))
    noise = torch.randn(12, 384, generator=torch.Generator().manual_seed(0))
    wrong = {"random.pt": noise, "random.safetensors": noise, "shifted.pt": shop_vectors.roll(1, 0)}
    for name, vectors in wrong.items():
        path = tmp_path / name
        torch.save(vectors, path) if path.suffix == ".pt" else save_file({"embeddings": vectors}, path)
        with pytest.raises(
            EmbeddingError, match=r"of 8 items embedded anew 8 differ.*item 0 -?0\.\d\d\d, item \d"
        ) as caught:
            open_retriever(section.model_copy(update={"file": str(path)}), shop)
        assert str(path) in caught.value.message
        assert model_identity(minilm) in caught.value.message
    # What the cache is looked for by its name alone is no better.
    embedding_path(section, shop).write_bytes((tmp_path / "random.safetensors").read_bytes())
    with pytest.raises(EmbeddingError, match="8 differ"):
        open_retriever(section, shop)


def test_vectors_stored_in_fewer_bits_or_computed_in_bf16_are_the_embedders(
    tmp_path: Path, shop: Dataset, shop_vectors: torch.Tensor, minilm: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(minilm, device="cpu", model_kwargs={"dtype": torch.bfloat16})
    scale = shop_vectors.abs().amax(1, keepdim=True) / 127
    for vectors in (
        shop_vectors.half(),
        shop_vectors.bfloat16(),
        (shop_vectors / scale).round() * scale,
        model.encode(shop.texts(), convert_to_tensor=True),
        shop_vectors * 3,
    ):
        torch.save(vectors, tmp_path / "a.pt")
        open_retriever(RetrievalSection(model=minilm, device="cpu", file=str(tmp_path / "a.pt")), shop)
        assert f"a.pt: 8 items embedded anew agree with {model_identity(minilm)}" in capfd.readouterr().err


def test_embed_dataset_writes_what_open_retriever_reads(tmp_path: Path, make_dataset: Make, minilm: str) -> None:
    section = RetrievalSection(model=minilm, emb_dir=str(tmp_path / "emb"), device="cpu")
    path = embed_dataset(make_dataset(), section, str(tmp_path / "mine.pt"))
    reading = section.model_copy(update={"file": str(path)})
    loaded = stored_embeddings(reading, make_dataset())
    embedder = SentenceTransformerEmbedder(minilm, device="cpu", batch_size=128)
    assert loaded is not None
    assert loaded.vectors_ND.equal(embed_items(make_dataset(), embedder, "text"))


def test_no_assert_guards_input(tmp_path: Path, make_dataset: Make) -> None:
    save_dataset(make_dataset(sequences=[[0, 1, 2, 3]]), tmp_path / "shop")
    save_pt(tmp_path / "a.pt", torch.full((6, DIM), float("nan")))
    code = f"""
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.errors import EmbeddingError
from rl4rec_cli.retrieval.embedding_files import load_embeddings
from pathlib import Path
try:
    load_embeddings(Path({str(tmp_path / "a.pt")!r}), dataset=load_dataset({str(tmp_path / "shop")!r}), emb_type="text")
except EmbeddingError as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True)
    assert "6 rows are not finite" in done.stdout


def test_model_in_a_folder_is_known_by_its_files_not_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for clone in ("one", "two"):
        (tmp_path / clone / "model").mkdir(parents=True)
        (tmp_path / clone / "model" / "config.json").write_text("{}")
        (tmp_path / clone / "model" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path / "one")
    identity = model_identity("model")
    assert identity.startswith("model@")
    assert identity == model_identity("./model") == model_identity(str(tmp_path / "two" / "model"))
    (tmp_path / "two" / "model" / "model.safetensors").write_bytes(b"weightz")
    assert model_identity(str(tmp_path / "two" / "model")) != identity
    assert model_identity("sentence-transformers/all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_damaged_file_of_the_cache_is_made_again(
    tmp_path: Path, make_dataset: Make, vectors: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    section = RetrievalSection(embedder="sentence-transformers", model="some/model", emb_dir=str(tmp_path))
    path = embedding_path(section, make_dataset())
    save_embeddings(path, vectors, model="some/model", emb_type="text", dataset=make_dataset())
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 16
    path.write_bytes(whole)
    assert stored_embeddings(section, make_dataset()) is None
    assert "its content does not match its checksum; the items are embedded again" in capsys.readouterr().err
    with pytest.raises(EmbeddingError, match="checksum"):
        stored_embeddings(section.model_copy(update={"file": str(path)}), make_dataset())


@pytest.mark.parametrize(("one", "other"), [("世界", "数据"), ("a b", "a-b"), ("é", "è"), ("x" * 300, "x" * 301)])
def test_names_of_any_script_have_files_of_their_own(
    one: str, other: str, tmp_path: Path, make_dataset: Make, vectors: torch.Tensor
) -> None:
    section = RetrievalSection(embedder="sentence-transformers", model="some/model", emb_dir=str(tmp_path))
    for name, factor in ((one, 1), (other, -1)):
        dataset = make_dataset(name=name)
        path = embedding_path(section, dataset)
        save_embeddings(path, vectors * factor, model="some/model", emb_type="text", dataset=dataset)
    assert len(list(tmp_path.iterdir())) == 2
    for name, factor in ((one, 1), (other, -1)):
        loaded = stored_embeddings(section, make_dataset(name=name))
        assert loaded is not None
        assert torch.allclose(loaded.vectors_ND, normalised(vectors * factor))


def test_plain_names_keep_their_files(make_dataset: Make) -> None:
    section = RetrievalSection(embedder="sentence-transformers", model="org/all-MiniLM-L6-v2", emb_dir="d")
    path = embedding_path(section, make_dataset(name="Beauty_2.0-x"))
    assert path == Path("d/Beauty_2.0-x_text_all-MiniLM-L6-v2.safetensors")
