"""What the project promises first: the quick test learns, over three seeds, and not without a learning rate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rl4rec_cli.eval.statistics import paired_difference
from rl4rec_cli.rewards.functions import ndcg

COMMAND = [sys.executable, "-m", "rl4rec_cli.cli.main", "train", "grpo", "--quick-test"]


def train(*args: str, cwd: Path) -> str:
    done = subprocess.run([*COMMAND, *args], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr  # no health rule takes this for a run that goes wrong
    return done.stdout


@pytest.mark.slow
def test_the_tuned_policy_is_better_over_three_seeds(tmp_path: Path) -> None:
    """Each one's gain differs between processors, whose rounding does: their mean is what is promised."""
    gains = []
    stdout = train("--seeds", "0,1,2", "--set", "run.name=q", cwd=tmp_path)
    for seed in range(3):
        folder = tmp_path / "runs" / f"q-s{seed}" / "eval"
        result = json.loads((folder / "validation.json").read_text())
        assert result["methods"].keys() >= {"popularity", "last item", "before RL", "tuned policy"}
        # Not the command's own word for it: from the ranks of every user.
        users = [json.loads(line) for line in (folder / "validation_users.jsonl").read_text().splitlines()]
        assert len(users) == result["users"] == 1000
        tuned, before = (
            ndcg(np.array([user["ranks"][name] for user in users]), 10) for name in ("tuned policy", "before RL")
        )
        assert tuned.mean() == pytest.approx(result["methods"]["tuned policy"]["ndcg@10"], abs=1e-9)
        difference = result["differences"]["before RL"]
        assert difference["mean"] == pytest.approx((tuned - before).mean(), abs=1e-9)
        assert difference["mean"] > 0, (seed, difference)
        gains.append(tuned - before)
    of_users = np.mean(gains, axis=0)
    over_users = paired_difference(of_users, np.zeros_like(of_users), seed=1)
    assert over_users.low > 0, over_users
    *rows, over_seeds = stdout.splitlines()[-4:]
    assert [line.split()[0] for line in rows] == ["0", "1", "2"]
    assert over_seeds.startswith(f"Gain over 3 seeds: {of_users.mean():+.4f} [")
    low = float(over_seeds.partition("; [")[2].partition(",")[0])
    assert low == pytest.approx(over_users.low, abs=0.002)


@pytest.mark.slow
def test_no_gain_without_a_learning_rate(tmp_path: Path) -> None:
    sets = ("--set", "trainer.learning_rate=0", "--set", "trainer.max_steps=8", "--set", "run.name=q")
    stdout = train("--seeds", "0", *sets, cwd=tmp_path)
    result = json.loads((tmp_path / "runs" / "q" / "eval" / "validation.json").read_text())
    assert result["methods"]["tuned policy"] == result["methods"]["before RL"]
    assert result["methods"]["tuned policy"]["ndcg@10"] > 0.05  # the warm start did learn: 0 = 0 would say nothing
    difference = result["differences"]["before RL"]
    assert {key: difference[key] for key in ("mean", "low", "high", "p_value")} == {
        "mean": 0.0,
        "low": 0.0,
        "high": 0.0,
        "p_value": 1.0,
    }
    assert difference["reads"] == "no difference shown"
    assert "no difference shown" in stdout
