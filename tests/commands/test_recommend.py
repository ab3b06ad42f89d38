"""`recommend`, `plan` and the dry run as functions: they return what the commands print."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl4rec_cli.cli.main import main
from rl4rec_cli.commands.dry_run import dry_run
from rl4rec_cli.commands.evaluate import evaluate
from rl4rec_cli.commands.placement import as_json, place
from rl4rec_cli.commands.recommend import Fusing, Recommendation, open_recommender, recommend
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import dump_config, load_config
from rl4rec_cli.data.dataset import build_examples
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import ConfigError, DataError
from rl4rec_cli.eval import hybrids
from rl4rec_cli.eval.resolve import Overrides
from rl4rec_cli.retrieval import opening

SMALL = (
    *("data.synthetic.users=24", "data.synthetic.items=20", "generation.max_completion_length=6"),
    *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=400", "retrieval.lsa_dim=16"),
    *("trainer.batch_size=4", "trainer.num_generations=4", "trainer.max_steps=1"),
    *("trainer.warm_start={max_steps: 40, num_train_epochs: 99, batch_size: 8, learning_rate: 3e-3, target: last}",),
    *("eval.users=8", "eval.baselines=[]", "eval.cache_dir=null", "eval.steps=null"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    flags = {"run.output_dir": str(folder), "run.name": "r"}
    train(load_config(algorithm="grpo", recipes=["quick-test"], flags=flags, sets=SMALL))
    return folder / "r"


def test_answers_are_what_the_command_prints(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Recommendation] = []
    answers = recommend(run, users=["u3", "u1"], k=4, show=seen.append)
    assert seen == answers
    assert capsys.readouterr().out == ""
    assert main(["recommend", str(run), "--user", "u3", "--user", "u1", "-k", "4", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [{"user": one.user, **one.as_json()} for one in answers] == lines
    assert [item.rank for item in answers[0].items] == [1, 2, 3, 4]
    assert not {item.item_id for item in answers[0].items} & {item.item_id for item in answers[0].history}
    titles = [item.title for item in answers[0].history]
    [typed] = recommend(run, titles=titles, k=4)
    assert typed.user is None
    assert (typed.text, typed.items) == (answers[0].text, answers[0].items)
    recommender = open_recommender(str(run))
    assert recommender.answer(recommender.history_of("u1"), k=4, user="u1") == answers[1]


FUSED = ("generation.max_completion_length=4", "eval.probes=false")


def test_a_sequence_model_has_its_say(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the weight that `eval` chose for the test split, and by the same code, to the last item."""
    sets = [*FUSED, f"eval.cache_dir={tmp_path}"]
    result = evaluate(run, Overrides(split="test", fuse="transitions", baselines="none", sets=sets))
    [weight] = result.methods[-1].notes["weights"]  # type: ignore[misc]
    capsys.readouterr()
    answers = recommend(run, users=["u3", "u1"], k=6, sets=sets, fuse="transitions")
    said = capsys.readouterr().err
    assert "Writing completions" not in said, "the weight is kept"
    assert "transitions is fitted on everything that is known" in said
    assert "Fitted on the training parts of the users' sequences (data.fit=train)" in said
    plain = recommend(run, users=["u3"], k=6, sets=sets)[0]
    assert plain.fused is None
    assert "fused" not in plain.as_json()
    recommender = open_recommender(str(run), sets=sets)
    dataset, retriever = recommender.dataset, recommender.retriever
    for answer in answers:
        assert answer.fused == Fusing("transitions", weight, "everything")
        history = recommender.history_of(str(answer.user))
        counts = np.bincount([i for s in dataset.sequences for i in s], minlength=dataset.num_items)
        after = counts * 0.5 / (counts.max() + 1)
        for sequence in dataset.sequences:
            for one, other in itertools.pairwise(sequence):
                after[other] += one == history[-1]
        cosines = retriever.vectors_ND.double().numpy() @ retriever.text_vectors([answer.text])[0].double().numpy()
        shares = [(w, part) for w, part in ((weight, cosines), (1 - weight, after)) if w]
        fused = sum(w * part / part.std() for w, part in shares) if len(shares) > 1 else shares[0][1]
        left = [i for i in range(dataset.num_items) if i not in history]
        assert [item.item_id for item in answer.items] == sorted(left, key=lambda i: (-fused[i], i))[:6]
        assert [item.score for item in answer.items] == pytest.approx(
            [fused[i.item_id] for i in answer.items], abs=1e-5
        )
    assert answers[0].text == plain.text
    told = [part for one in sets for part in ("--set", one)]
    assert main(["recommend", str(run), "--user", "u3", "-k", "6", "--fuse", "transitions", *told, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answers[0].as_json()
    assert main(["recommend", str(run), "--user", "u3", "-k", "6", "--fuse", "transitions", *told]) == 0
    title = f"Recommended, by the completion ({weight:g}) and transitions ({1 - weight:g})"
    assert title in capsys.readouterr().out.splitlines()


def test_completions_are_written_once_though_nothing_is_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rl4rec_cli.policy.generation as generation

    written: list[int] = []
    generate = generation.generate_texts

    def counted(policy: Any, prompts: Any, *args: Any, **kwargs: Any) -> list[str]:
        written.append(len(prompts))
        return generate(policy, prompts, *args, **kwargs)

    monkeypatch.setattr(generation, "generate_texts", counted)
    for split, calls in (("validation", [8]), ("test", [8, 24])):
        written.clear()
        evaluate(run, Overrides(split=split, fuse="transitions", baselines="none", sets=FUSED))
        assert written == calls, "the users who are measured, and on the test split those who choose the weight"


def test_an_empty_completion_leaves_the_sequence_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rl4rec_cli.policy.generation as generation

    hybrid = open_recommender(str(run), sets=FUSED, fuse="transitions")
    monkeypatch.setattr(generation, "generate_texts", lambda *args, **kwargs: [""])
    history = hybrid.history_of("u1")
    assert hybrid.hybrid is not None
    half, alone = (replace(hybrid, hybrid=replace(hybrid.hybrid, weight=weight)) for weight in (0.5, 0.0))
    assert half.answer(history).items == alone.answer(history).items
    assert half.answer(history).text == ""
    with pytest.raises(DataError, match="neither the embedder nor transitions can rank by it"):
        replace(hybrid, hybrid=replace(hybrid.hybrid, weight=1.0)).answer(history)


def test_what_cannot_be_fused_is_told_before_anything_is_loaded(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["recommend", str(run), "--user", "u1", "--fuse", "bm25"]) == 2
    assert "eval.fuse" in capsys.readouterr().err
    monkeypatch.setattr(hybrids, "choosers", lambda dataset: build_examples(dataset, "validation")[:1])
    monkeypatch.setattr(opening, "open_retriever", None)
    assert main(["recommend", str(run), "--user", "u1", "--fuse", "sasrec"]) == 2
    said = capsys.readouterr().err
    assert "SASRec cannot be fused: validation users choose the weight, and there are fewer than two (1 " in said
    assert "leave out --fuse" in said
    assert "Traceback" not in said


def test_a_user_without_an_answer(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rl4rec_cli.policy.generation as generation

    title = str(synthesize(24, 20, 0).items[0]["title"])
    texts = iter(["", "", title])
    monkeypatch.setattr(generation, "generate_texts", lambda *args, **kwargs: [next(texts)])
    seen: list[Recommendation] = []
    with pytest.raises(DataError, match="the policy wrote an empty completion"):
        recommend(run, users=["u1", "u2"], show=seen.append)
    assert seen == []
    with pytest.raises(DataError, match="1 of 2 users have no answer"):
        recommend(run, users=["u1", "u2"], go_on=True, show=seen.append)
    assert [(one.user, one.text) for one in seen] == [("u2", title)]
    with pytest.raises(ConfigError, match="give users or titles"):
        recommend(run)


def test_the_plan_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(algorithm=None, recipes=["beauty-grpo"], flags={"policy.model": "llama-3.2-1b"})
    placement, asked = place(config, ["24"]), ["plan", "-r", "beauty-grpo", "--model", "llama-3.2-1b"]
    assert capsys.readouterr().out == ""
    assert main([*asked, "--gpu", "24", "--json"]) == int(not placement.fits)
    assert json.loads(capsys.readouterr().out) == as_json(placement)


def test_a_dry_run_is_what_the_command_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"run.output_dir": str(tmp_path)}
    plan = dry_run(load_config(algorithm="grpo", recipes=["quick-test"], flags=flags))
    assert capsys.readouterr().out == ""
    assert plan.placement is not None
    assert plan.problem is None
    assert main(["train", "grpo", "--quick-test", "--dry-run", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out == dump_config(plan.config)
    lines = [line for line in plan.lines() if not line.startswith("memory: ")]  # what is free changes meanwhile
    assert lines
    assert set(lines) < set(printed.err.splitlines())
    assert not list(tmp_path.iterdir())
