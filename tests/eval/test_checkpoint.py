"""Which of a run's checkpoints is taken, and that every output says so."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from rl4rec_cli.cli.main import main
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.policy import PolicySection
from rl4rec_cli.errors import ConfigError, RunError
from rl4rec_cli.eval.checkpoint import checkpoint_line, describe_checkpoint, find_checkpoint
from rl4rec_cli.eval.resolve import find_run
from rl4rec_cli.policy.loading import load_policy
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.runs.making import open_run

SMALL = (
    *("data.synthetic.users=24", "data.synthetic.items=20", "generation.max_completion_length=6"),
    *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=400", "retrieval.lsa_dim=16"),
    *("trainer.batch_size=4", "trainer.num_generations=4", "trainer.max_steps=3", "trainer.learning_rate=0.005"),
    *("trainer.warm_start={max_steps: 40, num_train_epochs: 99, batch_size: 8, learning_rate: 3e-3, target: last}",),
    *("eval.users=24", "eval.baselines=[untrained, last_item]", "eval.cache_dir=null", "eval.probes=false"),
    *("eval.steps=1", "eval.step_users=8", "logging.save_steps=2"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every kind of checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    flags = {"run.output_dir": str(folder), "run.name": "tuned"}
    train(load_config(algorithm="grpo", recipes=["quick-test"], flags=flags, sets=SMALL), (1,))
    return folder / "tuned"


def answer(capsys: pytest.CaptureFixture[str], *command: str) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    output = capsys.readouterr()
    return json.loads(output.out), output.err


def test_a_word_names_a_checkpoint_and_none_the_last_step(run: Path) -> None:
    opened = open_run(run)
    names = {None: "final", "best": "best", "final": "final", "start": "start", "step_2": "step_2"}
    for word, name in names.items():
        assert find_checkpoint(opened, word) == run / "checkpoints" / f"checkpoint_{name}"
    assert find_checkpoint(opened, "checkpoint_best") == opened.best
    with pytest.raises(RunError, match="no checkpoint step_9 in it") as caught:
        find_checkpoint(opened, "step_9")
    assert caught.value.hint == "there: start, step_2, step_3, best, final"
    for word in ("newest", "../tuned", "step_", "step_2/..", ""):
        with pytest.raises(ConfigError, match="must be best, final, start or step_N"):
            find_checkpoint(opened, word)
    with pytest.raises(ConfigError, match="is a checkpoint already"):
        find_run(str(opened.best), "final")


def test_every_output_says_which_checkpoint_it_is_of(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = json.loads((run / "checkpoints" / "checkpoint_best" / "validation.json").read_text())
    own = json.loads((run / "eval" / "validation.json").read_text())
    assert (own["checkpoint"]["name"], own["checkpoint"]["best_step"]) == ("checkpoint_final", best["step"])
    assert own["checkpoint"]["weights"]
    assert f"The best step on validation users was {best['step']}: --checkpoint best" in own["checkpoint_line"]

    result, said = answer(capsys, "eval", str(run), "--checkpoint", "best")
    assert result["checkpoint"]["name"] == "checkpoint_best"
    assert (result["checkpoint"]["step"], result["checkpoint"]["users"]) == (best["step"], 8)
    assert result["checkpoint_line"] in said
    assert "who are among those measured here: its figures read too high" in said
    assert json.loads((run / "eval" / "checkpoint_best" / "validation.json").read_text())["checkpoint"]["users"] == 8
    # The run's own result is still that of its last step.
    assert json.loads((run / "eval" / "validation.json").read_text()) == own

    asked = ["recommend", str(run), "--titles", "rose; mint", "--checkpoint", "start", "--json"]
    assert main(asked) in (0, 2)  # so little trained, it may write nothing
    assert "Checkpoint: checkpoint_start." in capsys.readouterr().err

    result, _ = answer(capsys, "compare", str(run), "last_item", "--checkpoint", "best")
    assert "tuned/checkpoint_best" in result["contestants"]
    assert result["contestants"]["tuned/checkpoint_best"]["checkpoints"][0]["step"] == best["step"]

    folder = tmp_path / "out"
    assert main(["export", str(run), "--checkpoint", "best", "--output", str(folder)]) == 0
    card = (folder / "README.md").read_text()
    assert f"checkpoint: checkpoint_best, after step {best['step']}: the best ndcg@10 on 8 validation users" in card
    assert main(["report", str(run)]) == 0
    assert "Measured: checkpoint_final." in (run / "report.html").read_text()


def test_a_result_is_of_the_weights_that_were_measured(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that goes on has other weights under the same names, and what was measured before is not theirs."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "checkpoint_final")
    (copy / "eval" / "validation.json").unlink()
    result, _ = answer(capsys, "eval", str(copy))
    assert result["checkpoint"]["name"] == "checkpoint_step_3"
    # The run is not finished: this is no result that would let it pass for one that is.
    assert not (copy / "eval" / "validation.json").exists()
    kept = json.loads((copy / "eval" / "checkpoint_step_3" / "validation.json").read_text())
    assert kept["checkpoint"] == result["checkpoint"]

    shutil.copy(run / "eval" / "validation.json", copy / "eval")
    shutil.copytree(run / "checkpoints" / "checkpoint_start", copy / "checkpoints" / "checkpoint_final")
    assert main(["export", str(copy), "--output", str(tmp_path / "out")]) == 0
    assert "This checkpoint was not measured." in (tmp_path / "out" / "README.md").read_text()
    assert main(["report", str(copy)]) == 0
    said = "eval/validation.json was measured with other weights than checkpoint_final has now"
    assert said in capsys.readouterr().err
    assert main(["report", str(run)]) == 0
    assert said not in capsys.readouterr().err


def test_only_a_run_has_checkpoints(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = [
        ["eval", "gpt2", "--dataset", "d", "--checkpoint", "best"],
        ["eval", "--dataset", "d", "--checkpoint", "best"],
        ["compare", "bm25", "last_item", "--dataset", "d", "--checkpoint", "best"],
        ["recommend", str(run / "checkpoints" / "checkpoint_best"), "--user", "u1", "--checkpoint", "best"],
    ]
    for command in refused:
        assert main(command) == 2, command
        assert "--checkpoint best" in capsys.readouterr().err


def test_a_best_one_without_figures_is_told_without(tmp_path: Path) -> None:
    run = Run(tmp_path, load_config(algorithm="grpo"))
    for name in ("best", "final"):
        (run.checkpoints / f"checkpoint_{name}").mkdir(parents=True)
    for text in (None, "{", "[]", '{"step": "two", "ndcg@10": 0.1}'):
        if text is not None:
            (run.best / "validation.json").write_text(text)
        assert describe_checkpoint(run, run.best) == {"name": "checkpoint_best"}
        assert checkpoint_line(describe_checkpoint(run, run.final)) == "Checkpoint: checkpoint_final."


def flip_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4000:] = bytes(b ^ 0x11 for b in data[-4000:])
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Any, str]] = {
    "changed weights": (flip_weights, "model.safetensors is not what was written"),
    "cut weights": (lambda f: os.truncate(f / "model.safetensors", 5000), "model.safetensors has 5,000 bytes instead"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "no manifest worth the name": (lambda f: (f / "manifest.json").write_text("{}"), "manifest.json is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_every_command_and_whole_ones_are_named(
    kind: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, what = DAMAGES[kind]
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    damage(copy / "checkpoints" / "checkpoint_final")
    commands = [
        ["eval", str(copy)],
        ["recommend", str(copy), "--titles", "rose"],
        ["export", str(copy), "--output", str(tmp_path / "out")],
        ["compare", str(copy), "last_item"],
        ["eval", str(copy / "checkpoints" / "checkpoint_final"), "--users", "3"],
    ]
    before = json.loads((copy / "eval" / "validation.json").read_text())
    for command in commands if kind == "changed weights" else commands[:2]:
        assert main(command) == 1, command
        said = capsys.readouterr().err
        assert f"error: {copy}/checkpoints/checkpoint_final is damaged: {what}" in said
        assert "hint: whole checkpoints of this run: best, start, step_2, step_3 (--checkpoint step_3)" in said
        assert "gemma" not in said
    assert json.loads((copy / "eval" / "validation.json").read_text()) == before
    assert not (tmp_path / "out").exists()
    if kind == "changed weights":
        assert main(["eval", str(copy), "--checkpoint", "step_2", "--baselines", "none"]) == 0


def test_what_people_change_by_hand_is_said_and_taken(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "checkpoints" / "checkpoint_final", tmp_path / "mine")
    path = tmp_path / "mine" / "generation_config.json"
    path.write_text(path.read_text().replace("{", '{"temperature": 0.3,', 1))
    section = PolicySection(model=str(tmp_path / "mine"), device="cpu")
    load_policy(section)
    load_policy(section)
    said = capsys.readouterr().err
    assert said.count("generation_config.json has ") == 1
    assert "it is taken as it is" in said
    (tmp_path / "mine" / "manifest.json").unlink()  # a folder of somebody else's
    load_policy(section)
