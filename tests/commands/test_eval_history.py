"""`--fuse history`: a policy is ranked together with the history query of the retriever in whose space it writes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from history_runs import ITEMS, WARM, make_retriever, policy_sets

from rl4rec_cli.cli.main import main
from rl4rec_cli.commands.compare import compare
from rl4rec_cli.commands.evaluate import evaluate
from rl4rec_cli.commands.recommend import Fusing, open_recommender, recommend
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.errors import ConfigError, DataError
from rl4rec_cli.eval.resolve import Overrides
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.trained_opening import open_trained
from rl4rec_cli.runs.folder import Run

HISTORY, JOINED = "history query", "tuned policy + history query"
Made = tuple[Run, Run, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, minilm: str) -> Made:
    """A retriever's run, that of a policy which writes in its space, and the folder of both."""
    folder = tmp_path_factory.mktemp("eval-history")
    retriever = make_retriever(folder, minilm)
    sets = (*policy_sets(retriever, folder), f"run.output_dir={folder / 'runs'}", f"eval.cache_dir={folder / 'cache'}")
    [policy] = train(load_config(algorithm="grpo", recipes=["quick-test"], sets=[*sets, WARM, "eval.probes=false"]))
    return retriever, policy.run, folder


def history_rows(made: Made, histories: list[tuple[int, ...]]) -> Any:
    """The whole retriever's scores of all items, and its matrix of the items: float64."""
    retriever, _, folder = made
    dataset = load_dataset(folder / "shop")
    trained = open_trained(
        retriever.config, dataset, open_retriever(retriever.config.retrieval, dataset), retriever.final
    )
    items = trained.items().double().numpy()
    return trained.queries(histories).double().numpy() @ items.T, items


def rank(scores: Any, target: int, history: tuple[int, ...]) -> int:
    rivals = [i for i in range(ITEMS) if i != target and i not in history]
    return 1 + sum(scores[i] >= scores[target] - 1e-9 for i in rivals)


def mixed(weight: float, own: Any, theirs: Any) -> Any:
    parts = [(share, part) for share, part in ((weight, own), (1 - weight, theirs)) if share]
    return sum(share * part / part.std() for share, part in parts)


def check_records(made: Made, folder: Path, split: str) -> dict[str, Any]:
    """Ranks again, by hand, what an evaluation left; returns its result."""
    _, policy, data = made
    result = json.loads((folder / f"{split}.json").read_text())
    [weight] = result["notes"][JOINED]["weights"]
    written = [json.loads(line) for line in (folder / f"{split}_users.jsonl").read_text().splitlines()]
    dataset = load_dataset(data / "shop")
    held = {"validation": 2, "test": 1}[split]
    histories = [dataset.sequences[dataset.user_index(one["user"])][:-held] for one in written]
    rows, items = history_rows(made, histories)
    embedder = open_retriever(policy.config.retrieval, dataset)
    for one, history, theirs in zip(written, histories, rows, strict=True):
        texts = one["texts"]["tuned policy"]
        vectors = embedder.text_vectors(list(dict.fromkeys([texts] if isinstance(texts, str) else texts)))
        scores = vectors.double().numpy()[vectors.numpy().any(1)] @ items.T
        own = np.log(np.exp(10 * scores).sum(0)) / 10 if len(scores) else None
        assert one["ranks"][HISTORY] == rank(theirs, one["target"], history)
        joined = theirs if own is None else mixed(weight, own, theirs)
        assert one["ranks"][JOINED] == rank(joined, one["target"], history)
    assert all(len({one["ranks"][name] for one in written}) > 3 for name in (HISTORY, JOINED, "tuned policy"))
    return dict(result)


def test_eval_ranks_by_both_and_by_the_history_alone(made: Made) -> None:
    _, policy, _ = made
    command = ["eval", str(policy.folder), "--fuse", "history", "--split", "test"]
    process = subprocess.run(
        [sys.executable, "-m", "rl4rec_cli", *command], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    [folder] = policy.folder.glob("eval/variant-*")
    result = check_records(made, folder, "test")
    assert list(result["methods"]) == [HISTORY, "tuned policy", JOINED]
    assert result["kinds"] == {HISTORY: "baseline", "tuned policy": "policy", JOINED: "policy"}
    assert (result["hybrids"]["ours"], result["hybrids"]["theirs"]) == (JOINED, HISTORY)
    assert HISTORY in result["differences"]
    assert f"; the best hybrid with it, {JOINED}, reaches " in result["verdict"]
    assert f" the best without it, {HISTORY} (" in result["verdict"]
    assert f"{JOINED} minus …, ndcg@10, 80 users" in process.stdout


def test_several_completions_are_joined_too(made: Made) -> None:
    _, policy, _ = made
    sets = ("generation.texts_per_user=3", "eval.temperature=1.0")
    evaluation = evaluate(policy.folder, Overrides(fuse="history", split="test", users=30, sets=sets))
    assert evaluation.kept_in is not None
    assert check_records(made, evaluation.kept_in, "test")["notes"][JOINED]["texts_per_user"] == 3


def test_compare_says_the_same(made: Made) -> None:
    _, policy, _ = made
    evaluation = evaluate(policy.folder, Overrides(fuse="history"))
    comparison = compare([policy.folder, "popularity"], Overrides(fuse="history"))
    assert comparison.labels == ["policy", "popularity", "policy + history query", HISTORY]
    for ours, theirs in (("policy + history query", JOINED), (HISTORY, HISTORY)):
        measured = evaluation.method(theirs)
        assert measured is not None
        assert comparison.measured[ours][0].ranking.ranks.tolist() == measured.ranking.ranks.tolist()
    assert [(pair["ours"], pair["theirs"]) for pair in comparison.pairs][-1] == ("policy + history query", HISTORY)
    assert comparison.report["contestants"][HISTORY]["kind"] == "baseline"


def test_recommend_ranks_by_both(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    _, policy, _ = made
    result = evaluate(policy.folder, Overrides(fuse="history", split="test"))
    [weight] = result.methods[-1].notes["weights"]  # type: ignore[misc]
    capsys.readouterr()
    [answer] = recommend(policy.folder, users=["u3"], k=6, fuse="history")
    said = capsys.readouterr().err
    assert "history query is fitted on the training parts of the users' sequences" in said
    assert "Writing completions" not in said, "the weight is kept"
    assert answer.fused == Fusing(HISTORY, weight, "train")
    history = open_recommender(policy.folder).history_of("u3")
    [theirs], items = history_rows(made, [history])
    dataset = load_dataset(made[2] / "shop")
    own = open_retriever(policy.config.retrieval, dataset).text_vectors([answer.text])[0].double().numpy() @ items.T
    fused = mixed(weight, own, theirs)
    left = [i for i in range(ITEMS) if i not in history]
    assert [item.item_id for item in answer.items] == sorted(left, key=lambda i: (-fused[i], i))[:6]
    assert main(["recommend", str(policy.folder), "--user", "u3", "--fuse", "history"]) == 0
    assert f"by the completion ({weight:g}) and history query ({1 - weight:g})" in capsys.readouterr().out


def without_policy(made: Made, *more: str) -> Overrides:
    retriever, _, folder = made
    sets = ["retrieval.embedder=sentence-transformers", f"retrieval.model={retriever.final}", "eval.cache_dir=null"]
    return Overrides(dataset=str(folder / "shop"), baselines="none", fuse="history", sets=[*sets, *more])


def test_without_a_policy_the_history_query_ranks_alone(made: Made) -> None:
    evaluation = evaluate(None, without_policy(made))
    assert [method.name for method in evaluation.methods] == [HISTORY]
    assert evaluation.hybrids is None
    with_policy = evaluate(made[1].folder, Overrides(fuse="history")).method(HISTORY)
    assert with_policy is not None
    assert evaluation.methods[0].ranking.ranks.tolist() == with_policy.ranking.ranks.tolist()


def test_what_is_no_such_retriever_is_refused(made: Made, minilm: str, capsys: pytest.CaptureFixture[str]) -> None:
    retriever, policy, folder = made
    assert main(["eval", str(policy.folder), "--fuse", "history", "--set", f"retrieval.model={minilm}"]) == 2
    said = capsys.readouterr().err
    assert "error: eval.fuse=history: " in said
    assert f"{minilm} is no trained retriever" in said
    assert "hint: give one as retrieval.model; `rl4rec train retriever` makes one" in said
    for attempt in (
        lambda: evaluate(retriever.folder, Overrides(fuse="history")),
        lambda: compare([retriever.folder, "popularity"], Overrides(fuse="history")),
        lambda: recommend(retriever.folder, users=["u3"], fuse="history"),
    ):
        with pytest.raises(ConfigError, match=r"eval\.fuse=history: .* is no trained retriever"):
            attempt()
    moved = folder / "moved"
    shutil.copytree(retriever.final, moved)
    with pytest.raises(ConfigError, match="does not lie in its run, whose settings it is read by"):
        evaluate(None, without_policy(made, f"retrieval.model={moved}"))


def test_validation_targets_that_it_was_fitted_on_choose_nothing(made: Made, tmp_path: Path) -> None:
    retriever, policy, folder = made
    # A copy that says it was fitted on them.
    both = tmp_path / "both"
    shutil.copytree(retriever.folder, both)
    recipe = yaml.safe_load((both / "config.yaml").read_text())
    recipe["data"]["fit"] = "train_and_validation"
    (both / "config.yaml").write_text(yaml.safe_dump(recipe))
    digest = replace(load_dataset(folder / "shop"), fit="train_and_validation").digest
    (both / "datasets.json").write_text(json.dumps({"datasets": {"shop": digest}}))
    model = f"retrieval.model={both / 'checkpoints' / 'checkpoint_final'}"
    for fuse, attempt in (
        ("history", lambda over: evaluate(policy.folder, over)),
        ("history", lambda over: compare([policy.folder, "popularity"], over)),
    ):
        with pytest.raises(ConfigError, match=r"fitted with data\.fit=train_and_validation, and here data\.fit=train"):
            attempt(Overrides(split="test", fuse=fuse, sets=[model]))
    for attempt in (
        lambda over: evaluate(policy.folder, over),
        lambda over: compare([policy.folder, "popularity"], over),
    ):
        with pytest.raises(
            DataError, match=r"the validation targets cannot choose for others with .*, which was fitted"
        ):
            attempt(Overrides(split="test", fuse="transitions", sets=[model]))
    with pytest.raises(DataError, match="the validation targets cannot choose for others with "):
        recommend(policy.folder, users=["u3"], fuse="transitions", sets=[model])
    alike = [model, "data.fit=train_and_validation", "eval.probes=false", "eval.cache_dir=null"]
    with pytest.raises(DataError, match="has seen their targets") as caught:
        evaluate(policy.folder, Overrides(split="test", fuse="history", sets=alike))
    assert "eval.fuse_weights={tuned policy: 0.85}" in (caught.value.hint or "")
    named = [*alike, "eval.fuse_weights={tuned policy: 0.4}"]
    evaluation = evaluate(policy.folder, Overrides(split="test", fuse="history", users=20, sets=named))
    assert evaluation.methods[-1].notes["weights"] == [0.4]
    assert "fit_line" in evaluation.about
