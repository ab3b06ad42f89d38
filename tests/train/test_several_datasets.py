"""Several datasets in one run: what is said, ranked, rewarded, measured and written is each dataset's own."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rl4rec_cli.cli.main import main
from rl4rec_cli.config.layering import dump_config, load_config
from rl4rec_cli.config.sections import RetrievalSection, RewardSection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.retrieval.opening import open_retriever, open_retrievers
from rl4rec_cli.retrieval.retriever import Ranking
from rl4rec_cli.rewards.scorer import open_scorers, start_scores

SETS = (
    *("prompt.max_history=2", "prompt.max_prompt_length=48", "generation.max_completion_length=5"),
    *("trainer.max_steps=6", "trainer.learning_rate=0.002", "trainer.num_train_epochs=99", "data.train_targets=last"),
    *("eval.baselines=[last_item,untrained]", "eval.users=12", "eval.cache_dir=null", "eval.steps=3"),
    *("logging.steps=1", "logging.save_steps=3", "logging.rollouts=1000", "eval.step_users=27"),
    *("retrieval.lsa_dim=12", "trainer.warm_start={max_steps: 100, batch_size: 16, learning_rate: 3e-3, target: last}"),
    "prompt.templates.toys=Toys: {history}\n",
)
OWN = {
    "grpo": ("trainer.batch_size=4", "trainer.num_generations=4"),
    "ppo": ("trainer.batch_size=8", "trainer.mini_batch_size=4", "trainer.ppo_epochs=2"),
}
TIMES = ("seconds", "step_seconds", "generation_seconds", "reward_seconds", "tokens_per_second", "memory_gib")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Catalogues of 20 and 26 items: the ids of the smaller one are ids of the larger one too."""
    place = tmp_path_factory.mktemp("data")
    for name, made in {"books": synthesize(24, 20, 1), "toys": synthesize(30, 26, 2)}.items():
        save_dataset(replace(made, name=name), place / f"folder-{name}")
    return {name: place / f"folder-{name}" for name in ("books", "toys")}


@pytest.fixture(scope="module")
def runs(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of an algorithm through the command line, made once."""
    output, done = tmp_path_factory.mktemp("runs"), dict[str, Path]()

    def run(algorithm: str) -> Path:
        if algorithm not in done:
            sets = [*SETS, *OWN[algorithm], f"run.name={algorithm}", f"retrieval.emb_dir={output}"]
            datasets = [part for folder in folders.values() for part in ("--dataset", str(folder))]
            given = [part for one in sets for part in ("--set", one)]
            assert main(["train", algorithm, "--quick-test", "--output", str(output), *datasets, *given]) == 0
            done[algorithm] = output / algorithm
        return done[algorithm]

    return run


def lines(path: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def true_rank(dataset: Dataset, text: str, target: int, history: tuple[int, ...]) -> int:
    """By the rules of README.md, one score at a time."""
    section = RetrievalSection(backend="in-process", embedder="lsa", lsa_dim=12, device="cpu")
    own = open_retriever(section, dataset)
    query = own.text_vectors([text])[0].double()
    if not query.any():
        return dataset.num_items
    scores = [float(own.vectors_ND[i].double() @ query) for i in range(dataset.num_items)]
    rivals = [i for i in range(dataset.num_items) if i != target and i not in history]
    return 1 + sum(scores[i] >= scores[target] - 1e-12 for i in rivals)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_every_text_is_rewarded_by_its_own_catalogue(
    algorithm: str, runs: Callable[[str], Path], folders: dict[str, Path]
) -> None:
    run = runs(algorithm)
    datasets = {name: load_dataset(folder) for name, folder in folders.items()}
    histories = {
        (name, user): (sequence[:-3], sequence[-3])
        for name, data in datasets.items()
        for user, sequence in zip(data.users, data.sequences, strict=True)
    }
    told: dict[int, dict[str, list[float]]] = {}
    is_elsewhere = 0
    for record in lines(run / "rollouts.jsonl"):
        name, data = record["dataset"], datasets[record["dataset"]]
        history, target = histories[name, record["user"]]
        assert target == record["target"]
        rank = true_rank(data, record["text"], target, history)
        assert record["rank"] == rank
        metric = 1 / np.log2(1 + rank) if rank <= 10 else 0.0
        shaping = 0.2 * (1 - np.log(rank) / np.log(data.num_items))
        is_empty = rank == data.num_items and record["reward"] == 0
        assert is_empty or record["reward"] == pytest.approx(metric + shaping, abs=1e-9)
        told.setdefault(record["step"], {}).setdefault(name, []).append(record["reward"])
        other = datasets["toys" if name == "books" else "books"]
        if target < other.num_items:
            is_elsewhere += true_rank(other, record["text"], target, history) != rank
    assert is_elsewhere > 10  # so that a text ranked in the other catalogue would have been seen
    assert {name for step in told.values() for name in step} == {"books", "toys"}
    for record in lines(run / "training_log.jsonl"):
        if record["phase"] == algorithm and record["step"] in told:
            own = told[record["step"]]
            assert record["avg_reward"] == pytest.approx(np.mean([r for rewards in own.values() for r in rewards]))
            assert {key for key in record if key.startswith("avg_reward/")} == {f"avg_reward/{name}" for name in own}
            for name, rewards in own.items():
                assert record[f"avg_reward/{name}"] == pytest.approx(np.mean(rewards))


@pytest.mark.slow
def test_validation_measures_each_dataset_and_keeps_the_best_mean(runs: Callable[[str], Path]) -> None:
    run = runs("grpo")
    log = lines(run / "validation_log.jsonl")
    assert [record["step"] for record in log] == [3, 6]
    for record in log:
        assert record["users"] == 24 + 27
        assert record["ndcg@10/books"] != record["ndcg@10/toys"]  # or their weights would not be seen
        for metric in ("ndcg@10", "hit@5", "mrr@20"):
            each = [record[f"{metric}/{name}"] for name in ("books", "toys")]
            assert record[metric] == pytest.approx(np.mean(each))
    best = max(log, key=lambda record: (record["ndcg@10"], -record["step"]))
    kept = json.loads((run / "checkpoints" / "checkpoint_best" / "validation.json").read_text())
    wanted = {key: best[key] for key in ("step", "ndcg@10", "ndcg@10/books", "ndcg@10/toys", "users")}
    assert kept == wanted
    results = {name: json.loads((run / "eval" / name / "validation.json").read_text()) for name in ("books", "toys")}
    assert {name: result["dataset"] for name, result in results.items()} == {"books": "books", "toys": "toys"}
    assert not (run / "eval" / "validation.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_run_that_goes_on_is_the_run_that_was_not_interrupted(
    algorithm: str, runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, again = runs(algorithm), tmp_path / algorithm
    shutil.copytree(whole, again)
    shutil.rmtree(again / "eval")
    for name in ("checkpoint_final", "checkpoint_step_6"):
        shutil.rmtree(again / "checkpoints" / name)
    assert [folder.name for folder in (again / "checkpoints").glob("checkpoint_step_*")] == ["checkpoint_step_3"]
    assert main(["train", algorithm, "--resume", str(again)]) == 0
    assert "mean over datasets" in capsys.readouterr().out
    for name in ("training_log.jsonl", "validation_log.jsonl", "rollouts.jsonl"):
        assert lines(again / name) == lines(whole / name)
    for name in ("books", "toys"):
        users = Path("eval") / name / "validation_users.jsonl"
        assert lines(again / users) == lines(whole / users)
    one, other = (load_file(run / "checkpoints" / "checkpoint_final" / "model.safetensors") for run in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert main(["train", algorithm, "--resume", str(again)]) == 0
    assert "is finished" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_done_on_one_dataset_asks_which(
    runs: Callable[[str], Path], folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(runs("grpo"))
    capsys.readouterr()
    for command in (["eval", run], ["compare", run, "popularity"], ["recommend", run, "--user", "u1"]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "there are 2 datasets, and this is done on one: books, toys" in said
        assert "hint: choose one: --dataset books" in said
    assert main(["eval", run, "--dataset", "boks"]) == 2
    assert "boks: neither a dataset folder nor a dataset of the run" in capsys.readouterr().err

    result = Path(run) / "eval" / "toys" / "validation.json"
    before = json.loads(result.read_text())["methods"]
    for asked in ("toys", str(folders["toys"])):
        result.unlink()
        assert main(["eval", run, "--dataset", asked, "--json"]) == 0
        measured = json.loads(capsys.readouterr().out)
        assert (measured["dataset"], measured["methods"]) == ("toys", before)
        # The run's own result, in its place.
        assert sorted(p.name for p in result.parent.glob("[!.]*")) == ["validation.json", "validation_users.jsonl"]

    assert main(["recommend", run, "--dataset", "toys", "--user", "u1", "--json", "-k", "3"]) == 0
    found = json.loads(capsys.readouterr().out)["items"]
    titles = [item["title"] for item in load_dataset(folders["toys"]).items]
    assert [item["title"] for item in found] == [titles[item["item_id"]] for item in found]
    assert main(["recommend", run, "--dataset", str(tmp_path), "--user", "u1"]) == 2
    assert "the run was not trained on it" in capsys.readouterr().err
    assert main(["compare", run, "last_item", "--dataset", "books", "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert (compared["dataset"], compared["remarks"]) == ("books", [])

    assert main(["report", run, "--out", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "grpo on books and toys" in page
    for name in ("books, validation", "toys, validation", "Reward by dataset", "Validation by dataset, ndcg@10"):
        assert name in page
    shown = {record["dataset"]: record["target"] for record in lines(Path(run) / "rollouts.jsonl")[:6]}
    for name, target in shown.items():
        assert str(load_dataset(folders[name]).items[target]["title"]) in page


def test_the_command_line_gives_a_list_and_one_is_no_list(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = map(str, folders.values())
    assert main(["train", "grpo", "--quick-test", "--dataset", a, "--dataset", b, "--dry-run"]) == 0
    assert re.search(rf"path:\n  - {re.escape(a)}\n  - {re.escape(b)}\n", capsys.readouterr().out)
    assert main(["train", "grpo", "--quick-test", "--dataset", a, "--dry-run"]) == 0
    assert f"path: {a}\n" in capsys.readouterr().out
    one = load_config(algorithm="grpo", sets=[f"data.path=[{a}]"])
    assert one == load_config(algorithm="grpo", flags={"data.path": a})
    both = load_config(algorithm="grpo", flags={"data.path": [a, b]})
    assert both.data.paths == (a, b)
    assert "templates: {}" in dump_config(both)


@pytest.mark.parametrize(
    ("sets", "said", "hint"),
    [
        (["data.path=[A, A]"], "data.path names A twice", None),
        (["data.path=[]"], "data.path: must", None),
        (["data.path=[A, B]", "retrieval.file=x.pt"], "retrieval.file: is of one dataset", "retrieval.emb_dir"),
        (["data.path=[A, B]", "retrieval.service.dataset=x"], "retrieval.service.dataset: is of one dataset", None),
        (["prompt.templates.toys=nothing"], "prompt.templates.toys must contain {history}", None),
    ],
)
def test_settings_that_cannot_be(sets: list[str], said: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(algorithm="grpo", sets=sets)
    assert said in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")


def test_names_must_differ_and_templates_must_be_of_a_dataset(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "elsewhere"
    shutil.copytree(folders["toys"], again)
    train = ["train", "grpo", "--quick-test", "--output", str(tmp_path / "runs")]
    assert main([*train, "--dataset", str(folders["toys"]), "--dataset", str(again)]) == 2
    assert f"two datasets are named toys: {folders['toys']} and {again}" in capsys.readouterr().err
    both = [part for folder in folders.values() for part in ("--dataset", str(folder))]
    assert main([*train, *both, "--set", "prompt.templates.tois=x {history}"]) == 2
    said = capsys.readouterr().err
    assert "prompt.templates.tois: the run has no dataset of this name" in said
    assert "hint: it has books, toys" in said


def test_requests_of_all_datasets_are_sent_before_any_is_waited_for() -> None:
    events: list[str] = []

    class Service:
        """Ranks every text by its number, plus what tells the catalogue."""

        num_items = 100

        def __init__(self, name: str, more: int) -> None:
            self.name, self.more = name, more

        def submit_ranks(self, texts: Any, targets: Any, histories: Any) -> Any:
            events.append(f"{self.name} asked for {' '.join(texts)}")
            ranks = np.array([int(text) + self.more for text in texts])
            waiting = Ranking(ranks, np.ones(len(texts), np.bool_))

            class Pending:
                def result(pending) -> Ranking:
                    events.append(f"{self.name} answered")
                    return waiting

            return Pending()

    services: dict[str, Any] = {
        "books": Service("books", 0),
        "toys": Service("toys", 50),
        "unused": Service("unused", 0),
    }
    scorers = open_scorers(services, RewardSection(functions={"ndcg": 1.0, "mrr": 0.0}))
    finish = start_scores(
        scorers, ["1", "2", "3", "4"], [0] * 4, [[]] * 4, ["toys", "books", "toys", "books"], ["u"] * 4
    )
    assert events == ["books asked for 2 4", "toys asked for 1 3"]
    scores = finish()
    assert events[2:] == ["books answered", "toys answered"]
    assert scores.ranks.tolist() == [51, 2, 53, 4]
    assert scores.parts["mrr"].tolist() == [0.0, 0.5, 0.0, 0.25]


def test_a_reward_of_ones_own_is_run_once_and_told_the_dataset(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    file.write_text(
        "calls = []\n"
        "def mine(texts, targets, histories, **more):\n"
        "    calls.append(more['dataset'])\n"
        "    return [float(len(calls))] * len(texts)\n"
    )

    class Fixed:
        num_items = 9

        def target_ranks(self, texts: Any, targets: Any, histories: Any) -> Ranking:
            return Ranking(np.ones(len(texts), np.int64), np.ones(len(texts), np.bool_))

    retrievers: dict[str, Any] = {"books": Fixed(), "toys": Fixed()}
    scorers = open_scorers(retrievers, RewardSection(functions={f"{file}:mine": 1.0}))
    scores = start_scores(scorers, ["a", "b", "c"], [0] * 3, [[]] * 3, ["toys", "books", "toys"], ["u"] * 3)()
    assert scores.rewards.tolist() == [2.0, 1.0, 2.0]


def test_one_embedding_model_serves_all_datasets(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: Any
) -> None:
    from rl4rec_cli.retrieval import catalogue

    class Lengths(scripted):
        def embed(self, texts: Any, *, query: bool = False, progress: Any = None) -> Any:
            return torch.nn.functional.normalize(torch.tensor([[1.0, len(text) / 9] for text in texts]))

    opened: list[str] = []

    def open_embedder(section: Any, dataset: Dataset) -> Any:
        opened.append(dataset.name)
        return Lengths({}, 2)

    monkeypatch.setattr(catalogue, "open_embedder", open_embedder)
    datasets = [load_dataset(folder) for folder in folders.values()]
    section = RetrievalSection(backend="in-process", model="m", emb_dir=str(tmp_path), device="cpu")
    found = open_retrievers(section, datasets)
    assert opened == ["books"]
    assert [one.num_items for one in found] == [20, 26]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["books_text_m.safetensors", "toys_text_m.safetensors"]
    lsa = section.model_copy(update={"embedder": "lsa"})
    open_retrievers(lsa, datasets)
    assert opened == ["books", "books", "toys"]
