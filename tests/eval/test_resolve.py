"""What the words of a command line name."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl4rec_cli.commands.recommend import open_recommender
from rl4rec_cli.config.layering import dump_config, load_config
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import ConfigError, DataError, RunError
from rl4rec_cli.eval.resolve import Overrides, resolve_target, untrained


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run without a warm start."""
    config = load_config(algorithm="grpo", recipes=["quick-test"], sets=["policy.model=gpt2", "eval.users=7"])
    (tmp_path / "checkpoints" / "checkpoint_final").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    return tmp_path


def test_a_run_is_measured_with_its_own_model_whatever_is_laid_over_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("policy: {model: gemma-3-1b}\neval: {users: 5}\n")
    found, checkpoint, config = resolve_target(
        str(run), Overrides(split="test", baselines="none", recipes=[str(recipe)])
    )
    assert checkpoint == str(run / "checkpoints" / "checkpoint_final")
    assert (config.policy.model, config.eval.users, config.eval.split) == ("gpt2", 5, "test")
    assert untrained(found, config.policy) == "gpt2"
    assert "policy.model=gemma-3-1b is left out" in capsys.readouterr().err
    found, _, config = resolve_target(str(run), Overrides(users=3, sets=["eval.temperature=0.5"]))
    assert found is not None
    assert (config.eval.users, config.eval.temperature, config.policy) == (3, 0.5, found.config.policy)
    assert capsys.readouterr().err == ""


def test_a_model_is_measured_as_the_one_named(tmp_path: Path) -> None:
    found, checkpoint, config = resolve_target("gpt2", Overrides(baselines="popularity,bm25", recipes=["quick-test"]))
    assert (found, checkpoint, config.policy.model) == (None, "gpt2", "gpt2")
    assert config.eval.baselines == ("popularity", "bm25")
    assert untrained(None, config.policy) is None


def test_a_run_named_without_its_folder_is_no_model(
    run: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    sets = [f"run.output_dir={run.parent}", "data.synthetic.users=9"]
    with pytest.raises(RunError, match="no run or model of this name here") as raised:
        resolve_target(run.name, Overrides(sets=sets))
    assert str(run) in str(raised.value.hint)
    assert resolve_target(f"{run.name}-2", Overrides(sets=sets))[1] == f"{run.name}-2"


def test_only_a_run_s_own_items_are_recommended(run: Path) -> None:
    for changed in ("data.synthetic.users=9", "data.path=data/other"):
        with pytest.raises(ConfigError, match="the run was not trained on it"):
            open_recommender(str(run), sets=[changed])
    with pytest.raises(ConfigError, match="data/other: the run was not trained on it"):
        open_recommender(str(run), dataset="data/other")


def test_a_run_s_own_items_are_known_however_they_are_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user is looked for, which comes after: nobody is there of this name."""
    with pytest.raises(DataError, match="no user 'nobody'"):
        open_recommender(str(run), users=["nobody"], sets=["data.train_targets=last"])
    save_dataset(synthesize(20, 20, 0), tmp_path / "shop")
    monkeypatch.chdir(tmp_path)
    trained = ["policy.model=gpt2", "data.synthetic=null", "data.path=shop"]
    (run / "config.yaml").write_text(dump_config(load_config(algorithm="grpo", recipes=["quick-test"], sets=trained)))
    for spelled in ("shop", "./shop", str(tmp_path / "shop")):
        with pytest.raises(DataError, match="no user 'nobody'"):
            open_recommender(str(run), users=["nobody"], dataset=spelled)
    with pytest.raises(ConfigError, match="other synthetic data: the run was not trained on it"):
        open_recommender(str(run), sets=["data.path=null", "data.synthetic.users=20"])
