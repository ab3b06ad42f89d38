"""What ends a run before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rl4rec_cli.commands.dry_run import dry_run
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import DataError
from rl4rec_cli.retrieval import opening


@pytest.mark.parametrize("algorithm", ["grpo", "retriever"])
def test_a_baseline_that_cannot_be_measured_ends_the_run_before_items_are_embedded(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("embedded all the same")

    monkeypatch.setattr(opening, "open_run_retrievers", refuse)
    save_dataset(synthesize(users=24, items=20, seed=0), tmp_path / "data")
    sets = ("data.synthetic=null", "trainer.batch_size=4", "eval.users=1", "eval.baselines=[popularity,fusion]")
    flags = {"run.output_dir": str(tmp_path), "run.name": "r", "data.path": str(tmp_path / "data")}
    config = load_config(algorithm=algorithm, recipes=["quick-test"], flags=flags, sets=sets)
    for attempt in (lambda: train(config), lambda: dry_run(config)):
        with pytest.raises(DataError, match=r"SASRec cannot be fused: .* fewer than two \(1 validation user\)"):
            attempt()
    assert not (tmp_path / "r").exists()
    # Nothing is measured where the validation targets are trained on.
    fitted = config.model_copy(update={"data": config.data.model_copy(update={"fit": "train_and_validation"})})
    with pytest.raises(AssertionError, match="embedded all the same"):
        train(fitted)
