"""The type an embedder computes in: the configured one, whatever its files hold; each type's vectors are its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.errors import ConfigError, EmbeddingError
from rl4rec_cli.retrieval import embedding_files
from rl4rec_cli.retrieval.embedder import find_embedder, open_embedder
from rl4rec_cli.retrieval.embedders import vllm as vllm_embedder
from rl4rec_cli.retrieval.embedders.lsa import lsa_name
from rl4rec_cli.retrieval.embedders.models import model_identity
from rl4rec_cli.retrieval.embedders.sentence_transformers import SentenceTransformerEmbedder
from rl4rec_cli.retrieval.embedding_files import embed_dataset, stored_embeddings
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.retriever import InProcessRetriever

Make = Callable[..., Dataset]
TEXTS = ("rose hand cream", "mint shower gel", "a long text about a shower gel that smells of mint and of little else")


@pytest.fixture(scope="module", params=["float16", "bfloat16"])
def half_model(request: pytest.FixtureRequest, minilm: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a model whose files are in half precision."""
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("models") / request.param
    dtype = getattr(torch, request.param)
    SentenceTransformer(minilm, device="cpu", model_kwargs={"dtype": dtype}).save(str(folder))
    stored = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in stored.values() if weight.is_floating_point()} == {dtype}
    return str(folder)


@pytest.fixture
def section(half_model: str, tmp_path: Path) -> RetrievalSection:
    return RetrievalSection(model=half_model, emb_dir=str(tmp_path / "emb"), device="cpu")


def by_library(model: str, texts: Any, dtype: Any) -> torch.Tensor:
    """Vectors as the library itself gives them; `auto`: in the type of the files, as earlier versions had them."""
    from sentence_transformers import SentenceTransformer

    whole = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": dtype})
    vectors = whole.encode(list(texts), convert_to_tensor=True)
    return torch.nn.functional.normalize(vectors.float(), dim=1)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def written_before(path: Path, vectors: torch.Tensor | None = None) -> None:
    """Make a file what an earlier version would have written: without a type, with these vectors."""
    from rl4rec_cli.retrieval.embedding_rows import vectors_digest

    metadata = metadata_of(path)
    del metadata["dtype"]
    vectors = load_file(path)["embeddings"] if vectors is None else vectors
    save_file({"embeddings": vectors}, path, metadata={**metadata, "sha256": vectors_digest(vectors)})


def test_a_model_in_half_precision_embeds_in_fp32(half_model: str) -> None:
    embedder = SentenceTransformerEmbedder(half_model, device="cpu", batch_size=8)
    assert {weight.dtype for weight in embedder._model.parameters()} == {torch.float32}
    vectors = embedder.embed(TEXTS)
    assert (vectors - by_library(half_model, TEXTS, torch.float32)).abs().max() < 1e-6
    assert (vectors - by_library(half_model, TEXTS, "auto")).norm(dim=1).min() > 2e-4
    assert embedder.name == model_identity(half_model)


@pytest.mark.parametrize(("dtype", "near"), [("bf16", 0.99), ("fp16", 0.9999)])
def test_another_type_gives_other_vectors_under_another_name(minilm: str, dtype: str, near: float) -> None:
    section = RetrievalSection(model=minilm, device="cpu", dtype=dtype)  # type: ignore[arg-type]
    half = open_embedder(section, None)  # type: ignore[arg-type]
    full = SentenceTransformerEmbedder(minilm, device="cpu", batch_size=8)
    assert half.name == find_embedder(section).identity == f"{full.name} in {dtype}"
    ours, theirs = half.embed(TEXTS), full.embed(TEXTS)
    assert ours.dtype == torch.float32
    assert (ours.norm(dim=1) - 1).abs().max() < 1e-6
    assert near < (ours * theirs).sum(dim=1).min() < 1
    assert not torch.allclose(ours, theirs, atol=1e-5)


def test_identities_in_fp32_are_those_of_earlier_versions(minilm: str) -> None:
    assert find_embedder(RetrievalSection(model="some/model")).identity == "some/model"
    assert find_embedder(RetrievalSection(model=minilm)).identity == model_identity(minilm)
    assert find_embedder(RetrievalSection(embedder="lsa", lsa_dim=16)).identity == lsa_name(16)
    assert (
        find_embedder(RetrievalSection(embedder="vllm", model="some/model", dtype="fp16")).identity
        == "some/model in fp16"
    )


def test_types_have_files_of_their_own(minilm: str, make_dataset: Make, tmp_path: Path) -> None:
    dataset = make_dataset()
    full = RetrievalSection(model=minilm, emb_dir=str(tmp_path), device="cpu")
    half = full.model_copy(update={"dtype": "bf16"})
    paths = [embed_dataset(dataset, section, None) for section in (full, half)]
    assert [path.name.removeprefix(f"shop_text_{Path(minilm).name}") for path in paths] == [
        ".safetensors",
        "_bf16.safetensors",
    ]
    assert [metadata_of(path)["dtype"] for path in paths] == ["fp32", "bf16"]
    assert [metadata_of(path)["model"] for path in paths] == [
        model_identity(minilm),
        f"{model_identity(minilm)} in bf16",
    ]
    stored = [stored_embeddings(section, dataset) for section in (full, half)]
    vectors = [read.vectors_ND for read in stored if read is not None]
    assert not torch.equal(*vectors)
    for section, path in ((half, paths[0]), (full, paths[1])):
        with pytest.raises(EmbeddingError, match="but texts will be embedded by") as caught:
            stored_embeddings(section.model_copy(update={"file": str(path)}), dataset)
        assert "retrieval.dtype" in str(caught.value.hint)


def test_item_vectors_that_an_earlier_version_made_in_half_precision_are_made_anew(
    section: RetrievalSection, make_dataset: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = make_dataset()
    path = embed_dataset(dataset, section, None)
    right = load_file(path)["embeddings"]
    written_before(path, by_library(section.model, dataset.texts(), "auto"))
    retriever = open_retriever(section, dataset)
    assert f"{path}: its vectors were not computed in fp32; the items are embedded again" in capsys.readouterr().err
    assert torch.equal(retriever.vectors_ND, right)
    assert metadata_of(path)["dtype"] == "fp32"
    written = path.stat().st_mtime_ns
    open_retriever(section, dataset)
    assert path.stat().st_mtime_ns == written


def test_vectors_that_stay_in_their_file_are_made_anew_too_or_not_used(
    section: RetrievalSection, make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset()
    mapped = section.model_copy(update={"memory_map": "on"})
    path = embed_dataset(dataset, section, None)
    right = load_file(path)["embeddings"]
    for is_writable in (True, False):
        written_before(path, by_library(section.model, dataset.texts(), "auto"))
        if is_writable:
            assert torch.equal(open_retriever(mapped, dataset).vectors_ND, right)
            continue
        monkeypatch.setattr(embedding_files, "why_unwritable", lambda _: "a read-only disk")
        with pytest.raises(EmbeddingError, match="cannot be memory-mapped: their file could not be written"):
            open_retriever(mapped, dataset)
        assert torch.equal(open_retriever(section, dataset).vectors_ND, right)


def test_item_vectors_that_an_earlier_version_made_in_full_precision_stay(
    minilm: str, make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where they were computed in batches of another length, which moves their last bits."""
    dataset = make_dataset([" ".join(["rose"] * length) for length in (1, 5, 11, 20)])
    section = RetrievalSection(model=minilm, emb_dir=str(tmp_path), device="cpu")
    path = embed_dataset(dataset, section.model_copy(update={"batch_size": 1}), None)
    written_before(path)
    before = path.read_bytes()
    retriever = open_retriever(section, dataset)
    assert isinstance(retriever, InProcessRetriever)
    assert torch.equal(retriever.vectors_ND, load_file(path)["embeddings"])
    assert not torch.equal(retriever.vectors_ND, retriever.embedder.embed(dataset.texts()))
    assert path.read_bytes() == before
    assert "embedded" not in capsys.readouterr().err


def test_a_named_file_is_used_as_it_is(
    section: RetrievalSection, make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever names a file gets its vectors, where they are the model's: those of a bare tensor by their cosine."""
    dataset = make_dataset()
    vectors = by_library(section.model, dataset.texts(), "auto")
    torch.save(vectors, tmp_path / "mine.pt")
    signed = embed_dataset(dataset, section, str(tmp_path / "earlier.safetensors"))
    written_before(signed, vectors)
    for path, line in ((tmp_path / "mine.pt", "6 items embedded anew agree with"), (signed, "")):
        retriever = open_retriever(section.model_copy(update={"file": str(path)}), dataset)
        assert torch.allclose(retriever.vectors_ND, vectors, atol=1e-6)
        assert line in capsys.readouterr().err
    assert not Path(section.emb_dir).exists()


def test_a_service_must_compute_in_the_type_that_is_asked_for(make_dataset: Make) -> None:
    from rl4rec_cli.retrieval.service.client import _check_same

    dataset = make_dataset()
    about = {"emb_type": "text", "query_prompt": "", "num_items": 6, "mask_history": True}
    about["items_digest"] = dataset.items_digest("text")
    full, half = RetrievalSection(model="some/model"), RetrievalSection(model="some/model", dtype="bf16")
    for section in (full, half):
        _check_same(section, dataset, "shop", {**about, "embedder": find_embedder(section).identity})
    with pytest.raises(ConfigError, match="embedder 'some/model', this run asks for 'some/model in bf16'"):
        _check_same(half, dataset, "shop", {**about, "embedder": find_embedder(full).identity})


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_vllm_gets_the_type_and_a_querys_prompt(dtype: str, minilm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}
    lengths: list[list[int]] = []

    def ask(_: str, ids: list[list[int]], *, doing: str) -> Any:
        lengths.append([len(row) for row in ids])
        return np.ones((len(ids), 3), np.float32)

    def start(_: str, given: dict[str, Any], **more: Any) -> Any:
        options.update(given)
        return SimpleNamespace(ask=ask, close=lambda: None)

    monkeypatch.setattr(vllm_embedder, "VllmProcess", start)
    settings: dict[str, Any] = {"model": minilm, "device": "cpu", "dtype": dtype, "query_prompt": "a b c "}
    section = RetrievalSection(embedder="vllm", **settings)
    embedder = open_embedder(section, None)  # type: ignore[arg-type]
    assert embedder.embed(["d", "", "d"]).norm(dim=1).tolist() == pytest.approx([1, 0, 1])
    embedder.embed(["d"], query=True)
    assert lengths == [[2, 3], [6]]  # with the tokens at both ends
    assert options["dtype"] == {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[dtype]
    assert embedder.name == find_embedder(section).identity


def test_a_type_that_would_do_nothing_or_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"retrieval\.dtype=bf16 goes with .* lsa computes in fp32"):
        load_config(algorithm="grpo", sets=["retrieval.embedder=lsa", "retrieval.dtype=bf16"])
    assert load_config(algorithm="grpo", sets=["retrieval.embedder=lsa", "retrieval.dtype=fp32"])
    for wrong in ("float16", "auto", "half", "8"):
        with pytest.raises(ConfigError, match=r"retrieval\.dtype: must be 'fp32', 'bf16' or 'fp16'"):
            load_config(algorithm="grpo", sets=[f"retrieval.dtype={wrong}"])


def test_the_command_embeds_in_a_type(
    minilm: str, make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rl4rec_cli.cli.main import main
    from rl4rec_cli.data.saving import save_dataset

    save_dataset(make_dataset(sequences=[[0, 1, 2, 3]]), tmp_path / "shop")
    out = tmp_path / "shop.safetensors"
    words = ["embed", str(tmp_path / "shop"), "--model", minilm, "--device", "cpu", "--out", str(out)]
    assert main([*words, "--dtype", "fp16"]) == 0
    assert metadata_of(out)["dtype"] == "fp16"
    assert main([*words, "--dtype", "half"]) == 2
    assert "--dtype" in capsys.readouterr().err


def test_measurements_of_different_types_are_kept_apart(
    tiny_folder: Path, make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rl4rec_cli.eval import cache
    from rl4rec_cli.eval.policies import Models

    monkeypatch.setattr(cache, "cached", lambda task, key, compute: json.dumps(key, default=str))
    task: Any = SimpleNamespace(dataset=make_dataset(), examples=(), retriever=SimpleNamespace(digest="d"))

    def key(*sets: str) -> Any:
        sets = ("retrieval.model=some/model", f"policy.model={tiny_folder}", *sets)
        return Models(load_config(algorithm="grpo", sets=sets), task).measure("policy", str(tiny_folder))

    assert json.loads(key())["embedder"] == ["some/model", ""]  # as earlier versions have it
    assert len({key(), key("retrieval.dtype=bf16"), key("retrieval.dtype=fp16")}) == 3
    assert key() == key("retrieval.dtype=fp32")
