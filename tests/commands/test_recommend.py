"""`recommend`, `plan` and the dry run as functions: they return what the commands print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl4rec_cli.cli.main import main
from rl4rec_cli.commands.dry_run import dry_run
from rl4rec_cli.commands.placement import as_json, place
from rl4rec_cli.commands.recommend import Recommendation, open_recommender, recommend
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import dump_config, load_config
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import ConfigError, DataError

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
