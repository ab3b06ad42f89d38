"""What becomes of a run whose data are changed after it was trained: nothing is mixed up, and everybody says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl4rec_cli.cli.main import main
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.data.provenance import changed_datasets, keep_datasets, trained_on
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import RunError
from rl4rec_cli.runs.making import open_run

SMALL = (
    *("generation.max_completion_length=6", "prompt.max_history=2", "retrieval.lsa_dim=16"),
    *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=400"),
    *("trainer.batch_size=4", "trainer.num_generations=4", "trainer.max_steps=1", "trainer.learning_rate=0.005"),
    *("trainer.warm_start={max_steps: 30, num_train_epochs: 99, batch_size: 8, learning_rate: 3e-3, target: last}",),
    *("eval.users=24", "eval.baselines=[last_item]", "eval.cache_dir=null", "eval.steps=null"),
)


def edit(data: Path) -> None:
    """The last item of every user becomes another one."""
    rows = [line.split() for line in (data / "sequential_data.txt").read_text().splitlines()]
    lines = [" ".join([*row[:-1], str((int(row[-1]) + 1) % 20)]) for row in rows]
    (data / "sequential_data.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and the run `tuned`, which was trained on it."""
    folder = tmp_path_factory.mktemp("work")
    save_dataset(synthesize(24, 20, 0), folder / "data")
    flags = {"run.output_dir": str(folder), "run.name": "tuned", "data.path": str(folder / "data")}
    sets = (*SMALL, "data.synthetic=null")
    train(load_config(algorithm="grpo", recipes=["quick-test"], flags=flags, sets=sets), (1,))
    return folder


@pytest.fixture
def edited(trained: Path) -> Iterator[Path]:
    """The same after its data were changed; put back afterwards."""
    shutil.copytree(trained / "data", trained / "before")
    edit(trained / "data")
    yield trained
    shutil.rmtree(trained / "data")
    (trained / "before").rename(trained / "data")


def test_the_digest_is_kept_with_the_run(trained: Path) -> None:
    data = load_dataset(trained / "data")
    run = open_run(trained / "tuned")
    assert trained_on(run) == {data.name: data.digest}
    assert changed_datasets(run, {data.name: data.digest}) == []
    assert changed_datasets(run, {"renamed": data.digest}) == []
    (trained / "tuned" / "datasets.json").rename(trained / "aside.json")
    assert trained_on(run) == {data.name: data.digest}  # of its result, as earlier versions kept none
    assert "was trained on: its digest is 1234" in changed_datasets(run, {data.name: "1234"})[0]
    (trained / "aside.json").rename(trained / "tuned" / "datasets.json")


def test_results_on_changed_data_stand_beside_and_every_output_says_so(
    edited: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = edited / "tuned"
    own = {path: path.read_bytes() for path in (run / "eval").rglob("*.json*")}
    changed = load_dataset(edited / "data").digest
    said = f"is not the one that {run} was trained on: its digest is {changed[:12]}"
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    output = capsys.readouterr()
    assert said in json.loads(output.out)["data_line"]
    assert said in output.err
    assert main(["eval", str(run)]) == 0
    assert said in capsys.readouterr().out
    assert {path: path.read_bytes() for path in own} == own
    beside = run / "eval" / f"data-{changed[:8]}" / "validation.json"
    assert json.loads(beside.read_text())["dataset_digest"] == changed

    page, text = tmp_path / "c.html", tmp_path / "c.md"
    assert main(["compare", str(run), "last_item", "--json", "--html", str(page), "--markdown", str(text)]) == 0
    output = capsys.readouterr()
    assert any(said in remark for remark in json.loads(output.out)["remarks"])
    assert said in page.read_text()
    assert said in text.read_text()
    assert main(["recommend", str(run), "--user", "u1", "--json"]) in (0, 2)  # so little trained, it may write nothing
    output = capsys.readouterr()
    assert said in output.err
    assert not output.out or said in json.loads(output.out)["warning"]
    assert main(["export", str(run), "--output", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert load_dataset(edited / "before").digest[:16] in card
    assert changed[:16] not in card


def test_no_phase_goes_on_with_changed_data(edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not after the warm start alone, nor where only measuring is left."""
    run = tmp_path / "run"
    for gone in (["eval"], ["checkpoints/checkpoint_final", "checkpoints/checkpoint_step_1"]):
        shutil.copytree(edited / "tuned", run)
        for name in gone:
            shutil.rmtree(run / name)
        before = sorted(run.rglob("*"))
        assert main(["train", "grpo", "--resume", str(run)]) == 1
        assert "was trained on: its digest is" in capsys.readouterr().err
        assert sorted(run.rglob("*")) == before
        shutil.rmtree(run)


def test_what_it_is_trained_on_from_now_on(tmp_path: Path) -> None:
    keep_datasets(tmp_path, {"a": "1"})
    keep_datasets(tmp_path, {"a": "1"})
    keep_datasets(tmp_path, {"a": "2"})
    assert json.loads((tmp_path / "datasets.json").read_text()) == {"datasets": {"a": "2"}, "before": [{"a": "1"}]}
    (tmp_path / "datasets.json").write_text('{"datasets": {"a"')
    with pytest.raises(RunError, match=r"datasets\.json: cannot be read"):
        keep_datasets(tmp_path, {"a": "3"})
