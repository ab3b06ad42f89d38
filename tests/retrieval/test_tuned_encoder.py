"""A tuned MiniLM: its folder for sentence-transformers, and its measurement from the files alone."""

from __future__ import annotations

import json
from pathlib import Path

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
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import EmbeddingError, RunError
from rl4rec_cli.report.run_page import write_report
from rl4rec_cli.retrieval.embedder import find_embedder
from rl4rec_cli.retrieval.embedders.models import check_tunable
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.trained_opening import open_trained
from rl4rec_cli.retrieval.tuned_encoder import TunedEncoder
from rl4rec_cli.runs.folder import Run


@pytest.fixture(scope="module", params=["full", "lora"])
def tuned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, minilm: str
) -> tuple[Run, Dataset, Path]:
    """A finished run from MiniLM, its dataset, and the folder of all."""
    folder = tmp_path_factory.mktemp(request.param)
    save_dataset(synthesize(40, 30, 1), folder / "shop")
    sets = [
        *(f"data.path={folder / 'shop'}", f"retrieval.model={minilm}", f"retrieval.emb_dir={folder / 'emb'}"),
        *("retrieval.device=cpu", f"run.output_dir={folder / 'runs'}", "run.name=one", "eval.cache_dir=null"),
        *(f"trainer.kind={request.param}", "trainer.batch_size=8", "trainer.max_steps=3", "trainer.warmup_steps=0"),
        *("eval.steps=null", "eval.baselines=[last_item]", "eval.probes=false"),
    ]
    (run,) = train(load_config(algorithm="retriever", recipes=["retriever"], sets=sets))
    return run.run, load_dataset(folder / "shop"), folder


def _open(run: Run, dataset: Dataset) -> TunedEncoder:
    trained = open_trained(run.config, dataset, open_retriever(run.config.retrieval, dataset), run.final)
    assert isinstance(trained, TunedEncoder)
    return trained


def test_a_row_of_the_result_is_recomputed_from_the_folder(tuned: tuple[Run, Dataset, Path]) -> None:
    """By plain sentence-transformers and numpy: ranks of the validation users, no code of ours."""
    run, dataset, _ = tuned
    model = SentenceTransformer(str(run.final), device="cpu")
    items = model.encode([str(item["text"]) for item in dataset.items]).astype(float)
    titles = [str(item["title"]) for item in dataset.items]
    gains = []
    for row in dataset.sequences:
        history, target = list(row[:-2]), row[-2]
        query = model.encode("\n".join(titles[i] for i in history[-10:])).astype(float)
        scores = items @ query
        others = [i for i in range(len(items)) if i != target and i not in history]
        rank = 1 + sum(scores[i] >= scores[target] - 1e-9 for i in others)
        gains.append(1 / np.log2(rank + 1) if rank <= 10 else 0.0)
    saved = json.loads((run.folder / "eval" / "validation.json").read_text())
    assert saved["methods"]["trained retriever"]["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-3)


def test_the_folder_is_another_model_than_its_base(tuned: tuple[Run, Dataset, Path], minilm: str) -> None:
    run, dataset, _ = tuned
    names = [name for name, _ in SentenceTransformer(str(run.final), device="cpu").named_parameters()]
    assert names == [name for name, _ in SentenceTransformer(minilm, device="cpu").named_parameters()]  # no adapter
    base = SentenceTransformer(minilm, device="cpu").encode(dataset.texts())
    theirs = SentenceTransformer(str(run.final), device="cpu").encode(dataset.texts())
    assert np.abs(base - theirs).max() > 1e-3
    ours = _open(run, dataset)
    np.testing.assert_allclose(ours._embedded(dataset.texts(), "items").numpy(), theirs, atol=2e-5)
    np.testing.assert_allclose(ours.items().numpy(), theirs, atol=2e-5)  # read from the folder


def test_items_are_embedded_anew_after_a_step(tuned: tuple[Run, Dataset, Path]) -> None:
    """With the optimiser that trains: its fused kernel changes weights without a trace on the tensors."""
    ours = _open(*tuned[:2])
    before = ours.items()
    assert ours.items() is before
    trained = [p for p in ours.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, fused=True)
    ours.model.train()
    ours.model(ours.model.preprocess(["red nail polish"]))["sentence_embedding"].sum().backward()
    optimizer.step()
    assert not torch.allclose(ours.items(), before, atol=1e-4)
    ours.load(tuned[0].final)
    torch.testing.assert_close(ours.items(), before)


def test_the_folder_is_an_embedder_for_other_runs(tuned: tuple[Run, Dataset, Path]) -> None:
    run, dataset, folder = tuned
    section = RetrievalSection(model=str(run.final), emb_dir=str(folder / "none"), device="cpu")
    served = open_retriever(section, dataset)
    torch.testing.assert_close(served.vectors_ND, _open(run, dataset).items(), atol=2e-5, rtol=0)
    assert not (folder / "none").exists()  # it brings its items
    find_embedder(RetrievalSection(embedder="vllm", model=str(run.final))).check()
    check_tunable(section)  # it can be tuned on


def test_it_is_measured_recommended_reported_and_exported(tuned: tuple[Run, Dataset, Path], tmp_path: Path) -> None:
    run, dataset, _ = tuned
    evaluation = evaluate(run.folder)
    assert evaluation.subject == "trained retriever"
    (answer,) = recommend(run.folder, users=["u3"], k=5)
    ours, history = _open(run, dataset), dataset.sequences[dataset.user_index("u3")]
    scores = (ours.queries([history])[0] @ ours.items().T).numpy()
    scores[list(history)] = -np.inf
    assert [item.item_id for item in answer.items] == np.argsort(-scores)[:5].tolist()
    assert "3 steps of retriever" in write_report(str(run.folder)).read_text()
    export(run.folder, output=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the encoder itself was tuned" in card
    assert ("LoRA adapter" in card) == (run.config.trainer.model_dump()["kind"] == "lora")
    text = dataset.texts()[:1]
    ours_plain, theirs = (SentenceTransformer(str(path), device="cpu") for path in (tmp_path / "out", run.final))
    np.testing.assert_array_equal(ours_plain.encode(text), theirs.encode(text))


def test_the_oldest_items_of_a_long_history_are_left_out(tuned: tuple[Run, Dataset, Path]) -> None:
    run, dataset, _ = tuned
    ours = _open(run, dataset)
    history = list(range(10))
    titles = [str(dataset.items[i]["title"]) for i in history]
    assert ours.histories.write(history) == "\n".join(titles)
    limit = ours._count(["\n".join(titles[4:])])[0]
    ours.histories._limit = limit
    assert ours.histories.write(history) == "\n".join(titles[4:])


def test_foreign_and_damaged_checkpoints_are_refused(tuned: tuple[Run, Dataset, Path], tmp_path: Path) -> None:
    run, dataset, _ = tuned
    ours = _open(run, dataset)
    ours.write(tmp_path / "checkpoint")
    facts = json.loads((tmp_path / "checkpoint" / "retriever.json").read_text())
    for change, words in (({"items": "other"}, "trained on other items"), ({"sha256": "0"}, "does not match")):
        (tmp_path / "checkpoint" / "retriever.json").write_text(json.dumps({**facts, **change}))
        with pytest.raises(RunError, match=words):
            ours.load(tmp_path / "checkpoint")


def test_a_projections_folder_is_not_tuned(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.base.modules.router.Router"}]')
    with pytest.raises(EmbeddingError, match="a way for queries"):
        check_tunable(RetrievalSection(model=str(tmp_path)))
