"""The trained retriever's files: its checkpoints, and the folder that sentence-transformers loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from rl4rec_cli.commands.evaluate import evaluate
from rl4rec_cli.commands.export import export
from rl4rec_cli.commands.recommend import recommend
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.data.dataset import Dataset, build_examples
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import ConfigError, EmbeddingError, RunError
from rl4rec_cli.eval.resolve import Overrides
from rl4rec_cli.report.run_page import write_report
from rl4rec_cli.retrieval.embedder import find_embedder, open_embedder
from rl4rec_cli.retrieval.embedding import embed_items
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.retriever import InProcessRetriever
from rl4rec_cli.retrieval.trained import TrainedRetriever
from rl4rec_cli.retrieval.trained_opening import open_trained
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.shell import rl4rec


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, minilm: str) -> tuple[Run, Dataset, Path]:
    """A finished run over MiniLM, its dataset, and the dataset's folder."""
    folder = tmp_path_factory.mktemp("trained")
    made = synthesize(60, 40, 1)
    save_dataset(made, folder / "shop")
    sets = [
        *(f"data.path={folder / 'shop'}", f"retrieval.model={minilm}", f"retrieval.emb_dir={folder / 'emb'}"),
        *("retrieval.device=cpu", f"run.output_dir={folder / 'runs'}", "run.name=one", "eval.cache_dir=null"),
        *("trainer.batch_size=16", "trainer.max_steps=12", "trainer.num_train_epochs=99", "trainer.dim=16"),
        *("trainer.residual_min_count=3", "eval.steps=4", "eval.baselines=[last_item,untrained]"),
    ]
    with redirect_stderr((folder / "said.txt").open("w", encoding="utf-8", buffering=1)):
        (run,) = train(load_config(algorithm="retriever", recipes=["retriever"], sets=sets))
    return run.run, load_dataset(folder / "shop"), folder


def _open(run: Run, dataset: Dataset) -> tuple[TrainedRetriever, InProcessRetriever]:
    encoder = open_retriever(run.config.retrieval, dataset)
    assert isinstance(encoder, InProcessRetriever)
    return open_trained(run.config, dataset, encoder, run.final), encoder


def test_the_command_for_other_runs_embeds_by_it(trained: tuple[Run, Dataset, Path]) -> None:
    """With the recipe of a machine without a GPU, whose embedder reads no model."""
    run, _, folder = trained
    sets = ["retrieval.embedder=sentence-transformers", f"retrieval.model={run.final}"]
    command = rl4rec(
        "train", "grpo", "--dataset", folder / "shop", *(word for text in sets for word in ("--set", text))
    )
    assert command in (folder / "said.txt").read_text(encoding="utf-8")
    config = load_config(algorithm="grpo", recipes=["cpu"], flags={"data.path": str(folder / "shop")}, sets=sets)
    assert find_embedder(config.retrieval).identity == find_embedder(RetrievalSection(model=str(run.final))).identity


def test_plain_sentence_transformers_loads_the_folder(trained: tuple[Run, Dataset, Path]) -> None:
    run, dataset, _ = trained
    retriever, _ = _open(run, dataset)
    model = SentenceTransformer(str(run.final), device="cpu")
    texts = dataset.texts()
    with torch.no_grad():
        documents = retriever.model.items(by_text=True)
        queries = retriever.model.text_queries(documents)
    np.testing.assert_allclose(model.encode_document(texts), documents.numpy(), atol=2e-5)
    np.testing.assert_allclose(model.encode_query(texts), queries.numpy(), atol=2e-5)
    assert not torch.allclose(documents, retriever.items(), atol=1e-3)  # they have more than their texts say


def test_the_folder_is_an_embedder_and_brings_its_items(trained: tuple[Run, Dataset, Path]) -> None:
    run, dataset, folder = trained
    retriever, _ = _open(run, dataset)
    section = RetrievalSection(model=str(run.final), emb_dir=str(folder / "none"), device="cpu")
    served = open_retriever(section, dataset)
    torch.testing.assert_close(served.vectors_ND, retriever.items(), atol=1e-6, rtol=0)
    with torch.no_grad():
        queries = retriever.model.text_queries(retriever.model.items(by_text=True))
    torch.testing.assert_close(served.text_vectors(dataset.texts()), queries, atol=2e-5, rtol=0)
    assert not (folder / "none").exists()  # nothing was embedded


def test_other_items_are_embedded_by_their_texts(
    trained: tuple[Run, Dataset, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, dataset, _ = trained
    other = synthesize(8, 25, 9)
    section = RetrievalSection(model=str(run.final), emb_dir=str(tmp_path), device="cpu")
    served = open_retriever(section, other)
    assert "of other items than those" in capsys.readouterr().err
    expected = embed_items(other, open_embedder(section, other), "text")
    torch.testing.assert_close(served.vectors_ND, expected)
    # The next time they are read from the cache, and the trained items are untouched.
    assert torch.equal(open_retriever(section, other).vectors_ND, served.vectors_ND)
    assert capsys.readouterr().err.count("of other items than those") == 1
    assert len(open_retriever(section, dataset).vectors_ND) == dataset.num_items


def test_what_it_is_known_by_changes_with_its_weights(trained: tuple[Run, Dataset, Path], tmp_path: Path) -> None:
    import shutil

    run, _, _ = trained
    copy = tmp_path / "checkpoint_final"
    shutil.copytree(run.final, copy)
    identity = find_embedder(RetrievalSection(model=str(copy))).identity
    assert identity == find_embedder(RetrievalSection(model=str(run.final))).identity
    (copy / "retriever.safetensors").write_bytes(b"other")
    assert find_embedder(RetrievalSection(model=str(copy))).identity != identity


def test_a_row_of_the_result_is_recomputed_by_numpy(trained: tuple[Run, Dataset, Path]) -> None:
    """Ranks of the validation users from the files alone: no code of ours."""
    from safetensors.numpy import load_file

    run, dataset, folder = trained
    (vectors,) = [load_file(path)["embeddings"].astype(float) for path in (folder / "emb").glob("*.safetensors")]
    part = {name: value.astype(float) for name, value in load_file(run.final / "retriever.safetensors").items()}
    counts = np.bincount([i for row in dataset.sequences for i in row[:-2]], minlength=dataset.num_items)
    items = vectors @ part["text.weight"].T + part["text.bias"] + part["residual.weight"] * (counts >= 3)[:, None]
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    gains = []
    for row in dataset.sequences:
        history, target = list(row[:-2]), row[-2]
        recent = items[history[::-1][:20]]
        weights = np.exp(part["recency"][: len(recent)])
        scale = 0.3 * np.sqrt(items.shape[1])
        query = scale * (weights[:, None] * recent).sum(0) / weights.sum()
        query += part["last.weight"] @ (scale * recent[0]) + part["last.bias"]
        scores = items @ query
        others = [i for i in range(len(items)) if i != target and i not in history]
        rank = 1 + sum(scores[i] >= scores[target] for i in others)
        gains.append(1 / np.log2(rank + 1) if rank <= 10 else 0.0)
    saved = json.loads((run.folder / "eval" / "validation.json").read_text())
    assert saved["methods"]["trained retriever"]["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-6)


def test_the_run_is_measured_and_recommends(trained: tuple[Run, Dataset, Path]) -> None:
    run, dataset, _ = trained
    evaluation = evaluate(run.folder)
    saved = json.loads((run.folder / "eval" / "validation.json").read_text())
    assert evaluation.subject == "trained retriever"
    assert {"last item", "before training", "trained retriever"} <= saved["methods"].keys()
    assert {probe.name for probe in evaluation.probes} == {"shuffled history", "another user's history"}
    retriever, _ = _open(run, dataset)
    (answer,) = recommend(run.folder, users=["u3"], k=5)
    assert answer.text is None
    assert "text" not in answer.as_json()
    history = dataset.sequences[dataset.user_index("u3")]
    scores = (retriever.queries([history])[0] @ retriever.items().T).numpy()
    scores[list(history)] = -np.inf
    assert [item.item_id for item in answer.items] == np.argsort(-scores)[:5].tolist()


def test_batches_of_histories_do_not_matter(
    trained: tuple[Run, Dataset, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, dataset, _ = trained
    retriever, _ = _open(run, dataset)
    histories = [example.history for example in build_examples(dataset, "test")]
    together = retriever.queries(histories)
    monkeypatch.setattr("rl4rec_cli.retrieval.projection._POSITIONS", 1)
    torch.testing.assert_close(retriever.queries(histories), together, atol=1e-6, rtol=0)


def test_items_are_projected_once_for_the_same_weights(trained: tuple[Run, Dataset, Path], tmp_path: Path) -> None:
    run, dataset, _ = trained
    retriever, _ = _open(run, dataset)
    retriever.write(tmp_path / "before")
    before = retriever.matrix
    retriever.search([dataset.sequences[0]], 3)
    assert retriever.matrix is before
    assert retriever.items() is before.vectors_ND
    # As training moves them: the fused kernel leaves no trace on a tensor.
    optimizer = torch.optim.AdamW(retriever.model.parameters(), lr=0.1, fused=True)
    retriever.model.train()
    retriever.model.items().square().mul(torch.arange(retriever.items().shape[1])).sum().backward()
    optimizer.step()
    moved = retriever.matrix
    assert not torch.allclose(moved.vectors_ND, before.vectors_ND, atol=1e-3)
    assert torch.equal(moved.vectors_ND, retriever.model.items().detach())
    assert not retriever.model.training
    retriever.load(tmp_path / "before")
    assert torch.equal(retriever.items(), before.vectors_ND)


def test_damaged_and_foreign_checkpoints_are_refused(trained: tuple[Run, Dataset, Path], tmp_path: Path) -> None:
    run, dataset, _ = trained
    retriever, encoder = _open(run, dataset)
    folder = tmp_path / "checkpoint"
    retriever.write(folder)
    titles = tuple({**item, "text": f"{item['text']} again"} for item in dataset.items)
    with pytest.raises(RunError, match="trained on other items"):
        open_trained(run.config, replace(dataset, items=titles), encoder, folder)
    weights = bytearray((folder / "retriever.safetensors").read_bytes())
    weights[-3] ^= 1
    (folder / "retriever.safetensors").write_bytes(weights)
    with pytest.raises(RunError, match="does not match its checksum"):
        retriever.load(folder)
    (folder / "retriever.safetensors").unlink()
    with pytest.raises(RunError, match="cannot be read"):
        retriever.load(folder)


def test_vllm_refuses_a_folder_with_two_ways(trained: tuple[Run, Dataset, Path]) -> None:
    run, _, _ = trained
    with pytest.raises(EmbeddingError, match="vLLM cannot run it"):
        find_embedder(RetrievalSection(embedder="vllm", model=str(run.final))).check()


def test_an_embedder_that_is_no_model_gives_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make_dataset: Callable[..., Dataset]
) -> None:
    sets = [
        *("data.synthetic.users=30", "data.synthetic.items=20", "trainer.batch_size=8", "trainer.max_steps=2"),
        *(f"run.output_dir={tmp_path}", "run.name=lsa", "eval.cache_dir=null", "eval.baselines=[]"),
    ]
    train(load_config(algorithm="retriever", recipes=["quick-test"], sets=sets))
    assert "is no model" in capsys.readouterr().err
    assert not (tmp_path / "lsa" / "checkpoints" / "checkpoint_final" / "modules.json").exists()


def test_a_hybrid_with_transitions_is_measured_and_recommends(trained: tuple[Run, Dataset, Path]) -> None:
    run, _, _ = trained
    evaluation = evaluate(run.folder, Overrides(fuse="transitions", sets=["eval.probes=false"]))
    names = {method.name for method in evaluation.methods}
    assert {"trained retriever + transitions", "last item + transitions"} <= names
    (answer,) = recommend(run.folder, users=["u3"], k=5, fuse="transitions")
    assert answer.fused is not None
    assert len(answer.items) == 5


def test_the_export_is_the_folder_with_a_card(trained: tuple[Run, Dataset, Path], tmp_path: Path) -> None:
    run, dataset, _ = trained
    written = export(run.folder, output=tmp_path / "out")
    assert written.form == "retriever"
    assert {"modules.json", "README.md", "item_vectors.safetensors", "retriever.safetensors"} <= set(written.files)
    assert not {"recipe.yaml", "progress.json"} & set(written.files)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| **trained retriever** |" in card
    assert "base_model" not in card
    assert str(tmp_path.parent) not in card
    text = [dataset.texts()[0]]
    ours, theirs = (SentenceTransformer(str(path), device="cpu") for path in (tmp_path / "out", run.final))
    np.testing.assert_array_equal(ours.encode_query(text), theirs.encode_query(text))
    with pytest.raises(ConfigError, match="are for policies"):
        export(run.folder, form="adapter", output=tmp_path / "other")
    with pytest.raises(RunError, match="not a folder of sentence-transformers"):
        export(run.folder, checkpoint="best", output=tmp_path / "other")


def test_the_report_speaks_of_a_retriever(trained: tuple[Run, Dataset, Path]) -> None:
    run, _, _ = trained
    page = write_report(str(run.folder)).read_text()
    assert "encoder model" in page  # the folder of MiniLM is named so
    assert "12 steps of retriever" in page
    assert "the most likely completion" not in page
    assert "No completions are logged" not in page


@pytest.mark.ray
def test_the_service_serves_it_with_its_items(trained: tuple[Run, Dataset, Path], start: Callable[..., Any]) -> None:
    run, dataset, folder = trained
    own = {"embedder": "sentence-transformers", "model": str(run.final), "emb_dir": str(folder / "none")}
    section, _ = start("TrainedRetriever", [folder / "shop"], **own)
    served = open_retriever(section, dataset)
    here = open_retriever(section.model_copy(update={"backend": "in-process"}), dataset)
    texts, targets = dataset.texts()[:9], list(range(9, 18))
    histories = [[item] for item in range(9)]
    assert served.target_ranks(texts, targets, histories).ranks.tolist() == (
        here.target_ranks(texts, targets, histories).ranks.tolist()
    )
    torch.testing.assert_close(served.vectors_ND, here.vectors_ND)
