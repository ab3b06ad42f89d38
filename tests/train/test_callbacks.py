"""What a run says of its epochs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rl4rec_cli.files.logs import JsonLines
from rl4rec_cli.train.callbacks import StepLog


def test_the_mean_of_an_epoch_is_over_its_steps_and_says_where_the_best_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records at steps 1, 4 and 6 of six: each is the mean of the steps since the one before."""
    by_step = [1.0, 2.0, 3.0, 4.0, 5.0, 9.0]
    log = JsonLines(tmp_path / "log.jsonl")
    own = {"std_reward": 0.0}
    said = StepLog(
        log,
        lambda logs: {"loss": logs["loss"], "avg_reward": logs["loss"], **own},
        phase="grpo",
        batches_per_epoch=6,
        best=lambda: "best ndcg@10 0.2000 after step 4, in runs/r/checkpoints/checkpoint_best",
    )
    state = SimpleNamespace(global_step=0, max_steps=6)
    said.on_train_begin(None, state, None)
    before = 0
    for step in (1, 4, 6):
        state.global_step = step
        said.on_log(None, state, None, {"loss": sum(by_step[before:step]) / (step - before)})
        before = step
    said.on_train_end(None, state, None)
    log.close()
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("Epoch 1 (grpo) | 6 steps, to step 6 | mean loss 4.0000 | mean reward 4.0000, first 1.0000")
    assert "| best ndcg@10 0.2000 after step 4, in runs/r/checkpoints/checkpoint_best |" in line
