"""Several completions of each user, ranked as one: by `eval`, `compare` and `recommend`, and said wherever it is so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl4rec_cli.cli.main import main
from rl4rec_cli.commands.compare import compare
from rl4rec_cli.commands.evaluate import evaluate
from rl4rec_cli.commands.recommend import open_recommender, recommend
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.eval.resolve import Overrides
from rl4rec_cli.eval.result_files import read_result, result_tables

SMALL = (
    *("data.synthetic.users=24", "data.synthetic.items=20", "generation.max_completion_length=6"),
    *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=400", "retrieval.lsa_dim=16"),
    *("trainer.batch_size=4", "trainer.num_generations=4", "trainer.max_steps=1"),
    *("trainer.warm_start={max_steps: 40, num_train_epochs: 99, batch_size: 8, learning_rate: 3e-3, target: last}",),
    *("eval.users=8", "eval.baselines=[untrained]", "eval.steps=1"),
)
SAMPLES = ("generation.texts_per_user=3", "eval.temperature=1.0")
BEAMS = ("generation.texts_per_user=3", "generation.num_beams=4")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    flags = {"run.output_dir": str(folder), "run.name": "r", "eval.cache_dir": str(folder / "cache")}
    train(load_config(algorithm="grpo", recipes=["quick-test"], flags=flags, sets=(*SMALL, *SAMPLES)))
    return folder / "r"


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "validation_users.jsonl").read_text().splitlines()]


def ranks_of(run: Path, written: list[dict[str, Any]], method: str, fusion: Any) -> list[int]:
    recommender = open_recommender(run)
    dataset = recommender.dataset
    histories = [dataset.sequences[dataset.user_index(one["user"])][:-2] for one in written]
    texts = [one["texts"][method] for one in written]
    ranking = recommender.retriever.fused_ranks(texts, [one["target"] for one in written], histories, fusion)
    return ranking.ranks.tolist()


def test_training_measures_several_and_says_so(run: Path) -> None:
    result, written = read_result(run / "eval" / "validation.json"), records(run / "eval")
    assert (result["texts_per_user"], result["fusion"]) == (3, "logsumexp")
    assert "with 3 completions of each user" in result["verdict"]
    assert result["notes"]["tuned policy"] == {"texts_per_user": 3, "fusion": "logsumexp"}
    assert all(len(one["texts"]["tuned policy"]) == 3 for one in written)
    assert any(len(set(one["texts"]["tuned policy"])) > 1 for one in written)
    assert len(written[0]["texts"]) == 2
    for method in written[0]["texts"]:
        assert [one["ranks"][method] for one in written] == ranks_of(run, written, method, "logsumexp")
    means = result_tables(result)[0][1][1]
    assert "tuned policy (3 completions)" in [row[0] for row in means]
    best = json.loads((run / "checkpoints" / "checkpoint_best" / "validation.json").read_text())
    assert best["texts_per_user"] == 3
    log = [json.loads(line) for line in (run / "validation_log.jsonl").read_text().splitlines()]
    assert {one["texts_per_user"] for one in log} == {3}


@pytest.mark.parametrize(("sets", "fusion"), [(BEAMS, "max"), (SAMPLES, "rrf")])
def test_eval_ranks_what_the_records_hold(
    run: Path, sets: tuple[str, ...], fusion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    temperature = "0" if sets is BEAMS else "1"
    words = [
        word
        for one in (*sets, f"eval.temperature={temperature}", f"generation.fusion={fusion}")
        for word in ("--set", one)
    ]
    assert main(["eval", str(run), *words]) == 0
    printed = capsys.readouterr().out
    assert f"3 completions of each user are ranked as one, by {fusion}: " in printed
    assert "second embedder: BM25" in printed
    assert "tuned policy (3 completions)" in printed
    [folder] = [
        path.parent
        for path in run.glob("eval/variant-*/validation.json")
        if json.loads(path.read_text())["fusion"] == fusion
    ]
    written = records(folder)
    assert [one["ranks"]["tuned policy"] for one in written] == ranks_of(run, written, "tuned policy", fusion)
    if sets is BEAMS:
        assert all(len(set(one["texts"]["tuned policy"])) > 1 for one in written)


def test_one_completion_is_written_as_ever_and_nothing_says_several(run: Path) -> None:
    sets = ("generation.texts_per_user=1", "eval.temperature=0")
    evaluation = evaluate(run, Overrides(sets=sets))
    result = evaluation.as_json()
    assert not {"texts_per_user", "fusion", "texts_line"} & set(result)
    assert "completions of each user" not in result["verdict"]
    assert all(isinstance(one["texts"]["tuned policy"], str) for one in evaluation.records())
    again = evaluate(run, Overrides(sets=sets))  # from the cache, which holds plain texts
    assert again.records() == evaluation.records()
    assert next(probe.name for probe in again.probes).startswith("second embedder")


def test_compare_names_how_many(run: Path) -> None:
    comparison = compare([run, run / "checkpoints" / "checkpoint_start", "popularity"])
    assert comparison.labels[0] == "r (3 completions)"
    assert "r (3 completions) reaches" in comparison.pairs[0]["verdict"]
    assert all(len(one["texts"]["r (3 completions)"][0]) == 3 for one in comparison.records())
    shown = comparison._user(0, ("r (3 completions)",), 0.0)["sides"]["r (3 completions)"][0]["text"]
    assert shown.count(" | ") >= 2


def test_recommend_by_several(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [answer] = recommend(run, users=["u3"], k=4)
    assert len(answer.texts) == 3
    assert answer.text == " | ".join(answer.texts)
    recommender = open_recommender(run)
    found = recommender.retriever.fused_search([answer.texts], 4, [[item.item_id for item in answer.history]])[0]
    assert [item.item_id for item in answer.items] == found.items
    for user in ("u1", "u3"):
        again = recommender.answer(recommender.history_of(user), k=4, user=user)
    assert again == answer
    whole = answer.as_json()
    assert "text" not in whole
    assert (whole["texts"], whole["texts_per_user"], whole["fusion"]) == (list(answer.texts), 3, "logsumexp")
    assert main(["recommend", str(run), "--user", "u3"]) == 0
    assert "3 completions, ranked as one by logsumexp:" in capsys.readouterr().out
    [alone] = recommend(run, users=["u3"], k=4, sets=["generation.texts_per_user=1", "eval.temperature=0"])
    assert (len(alone.texts), alone.fusion) == (1, None)
    assert alone.as_json()["text"] == alone.text


@pytest.mark.parametrize("weights", ["equal", "probability"])
def test_recommend_writes_no_more_at_once_than_a_batch(
    run: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rl4rec_cli.policy.generation as generation

    at_once: list[int] = []
    write_ids = generation.write_ids

    def counted(policy: Any, model: Any, prompts: Any, sampling: Any) -> Any:
        at_once.append(len(prompts))
        return write_ids(policy, model, prompts, sampling)

    monkeypatch.setattr(generation, "write_ids", counted)
    sets = ("generation.texts_per_user=5", "eval.temperature=1", f"generation.text_weights={weights}")
    for size, calls in ((2, [2, 2, 1]), (64, [5])):
        at_once.clear()
        [answer] = recommend(run, users=["u3"], k=4, sets=[*sets, f"eval.batch_size={size}"])
        assert len(answer.texts) == 5
        assert at_once == calls


def test_texts_weigh_as_much_as_they_are_probable(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = (*SAMPLES, "generation.text_weights=probability", "eval.probes=false")
    evaluation = evaluate(run, Overrides(sets=sets, fuse="transitions"))
    result, written = evaluation.as_json(), evaluation.records()
    assert result["text_weights"] == "probability"
    assert "ranked as one, by logsumexp, weighed by probability: " in result["texts_line"]
    equal = evaluate(run, Overrides(sets=(*SAMPLES, "eval.probes=false"))).records()
    assert [one["texts"]["tuned policy"] for one in equal] == [one["texts"]["tuned policy"] for one in written]
    assert "log_probs" not in equal[0]
    method = "tuned policy"
    recommender = open_recommender(run)
    dataset = recommender.dataset
    histories = [dataset.sequences[dataset.user_index(one["user"])][:-2] for one in written]
    ranking = recommender.retriever.fused_ranks(
        [one["texts"][method] for one in written],
        [one["target"] for one in written],
        histories,
        "logsumexp",
        [one["log_probs"][method] for one in written],
    )
    assert [one["ranks"][method] for one in written] == ranking.ranks.tolist()
    assert [one["ranks"][method] for one in written] != [one["ranks"][method] for one in equal]
    assert all(logp < 0 for one in written for logp in one["log_probs"][method])
    # From the cache the weights come along, and the hybrid reads them there.
    again = evaluate(run, Overrides(sets=sets, fuse="transitions"))
    assert again.records() == written
    words = [word for one in sets for word in ("--set", one)]
    assert main(["recommend", str(run), "--user", "u3", *words]) == 0
    assert "ranked as one by logsumexp, weighed by probability:" in capsys.readouterr().out
    [answer] = recommend(run, users=["u3"], k=4, sets=sets)
    assert answer.log_probs is not None
    found = recommender.retriever.fused_search(
        [answer.texts], 4, [[item.item_id for item in answer.history]], "logsumexp", [answer.log_probs]
    )[0]
    assert [item.item_id for item in answer.items] == found.items
    assert len(answer.as_json()["log_probs"]) == 3


@pytest.mark.parametrize("fusion", ["logsumexp", "rrf"])
def test_several_are_joined_to_a_sequence_model(run: Path, fusion: str) -> None:
    overrides = Overrides(
        split="test", fuse="transitions", sets=(*SAMPLES, f"generation.fusion={fusion}", "eval.probes=false")
    )
    evaluation = evaluate(run, overrides)
    ours = "tuned policy + transitions"
    measured = evaluation.method(ours)
    assert measured is not None
    [weight] = measured.notes["weights"]  # type: ignore[misc]
    assert measured.notes["texts_per_user"] == 3
    assert f"3 completions of each user are ranked as one, by {fusion}" in evaluation.as_json()["texts_line"]
    recommender = open_recommender(run)
    dataset, retriever = recommender.dataset, recommender.retriever
    items = retriever.vectors_ND.double().numpy()
    followers = np.zeros((dataset.num_items, dataset.num_items))
    counts = np.zeros(dataset.num_items)
    for part in dataset.training_parts:
        np.add.at(counts, list(part), 1)
        np.add.at(followers, (list(part[:-1]), list(part[1:])), 1)
    for example, one in zip(evaluation.examples, evaluation.records(), strict=True):
        vectors = retriever.text_vectors(list(dict.fromkeys(one["texts"]["tuned policy"]))).double().numpy()
        scores = vectors[vectors.any(1)] @ items.T
        own = np.log(np.exp(10 * scores).sum(0)) / 10
        if fusion == "rrf":
            counted = [i for i in range(dataset.num_items) if i not in example.history or i == example.target]
            own = sum(1 / (60 + (row[counted] >= row[:, None] - 1e-12).sum(1)) for row in scores)
        theirs = followers[example.history[-1]] + counts * (0.5 / (counts.max() + 1))
        mixed = weight * own / own.std() + (1 - weight) * theirs / theirs.std()
        rivals = [i for i in range(dataset.num_items) if i != example.target and i not in example.history]
        assert one["ranks"][ours] == 1 + sum(mixed[i] >= mixed[example.target] - 1e-11 for i in rivals)
    again = evaluate(run, overrides)  # from the cache
    assert again.records() == evaluation.records()


def test_compare_and_recommend_join_several_to_a_sequence_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = compare([run, "popularity"], Overrides(fuse="transitions"))
    assert "r (3 completions) + transitions" in comparison.labels
    assert main(["recommend", str(run), "--user", "u3", "--fuse", "transitions", "-k", "20"]) == 0
    shown = capsys.readouterr().out
    assert "3 completions, ranked as one by logsumexp:" in shown
    assert "by the completions (" in shown
    [answer] = recommend(run, users=["u3"], k=20, fuse="transitions")
    assert answer.fused is not None
    assert (len(answer.texts), answer.fusion, answer.fused.sequence_model) == (3, "logsumexp", "transitions")
    assert {item.item_id for item in answer.items} == set(range(20)) - {item.item_id for item in answer.history}


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["generation.texts_per_user=3"], "all completions of a user are the same"),
        (["generation.texts_per_user=3", "generation.num_beams=2"], "cannot give 3 completions"),
        (["generation.text_weights=probability"], "one completion has nothing to be weighed against"),
        (["generation.num_beams=2", "eval.temperature=1"], "beam search does not sample"),
        (["generation.num_beams=2", "generation.engine=vllm"], "vLLM samples only"),
        (["generation.num_beams=2", "policy.fast_inference=true"], "the engine of policy.fast_inference samples only"),
    ],
)
def test_what_does_not_go_together_is_refused(sets: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(algorithm="grpo", recipes=["quick-test"], sets=sets)
