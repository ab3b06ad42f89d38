"""Runs that pay a completion for its own rank, and runs that pay what its group loses without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.errors import DataError
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.train.examples import build_examples
from rl4rec_cli.train.rl_trainer import RLTrainer

SIZE = 4
SETS = (
    *("data.synthetic.users=40", "data.synthetic.items=30", "data.train_targets=last"),
    *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=400"),
    *("trainer.batch_size=4", f"trainer.num_generations={SIZE}", "trainer.gradient_accumulation_steps=2"),
    *("trainer.max_steps=4", "trainer.learning_rate=0.01", "trainer.warm_start.max_steps=25"),
    *("generation.batch_size=6", "generation.fusion=max", "reward.functions={ndcg: 1.0, hit: 0.5}"),
    *("eval.users=6", "eval.baselines=[untrained]", "eval.steps=null", "logging.steps=1", "logging.rollouts=1000"),
)


def recipe(folder: Path, algorithm: str, *sets: str) -> RunConfig:
    return load_config(
        algorithm=algorithm,
        recipes=["quick-test"],
        flags={"run.output_dir": str(folder)},
        sets=[*SETS, *sets],
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def value(rank: int, num_items: int) -> float:
    metric = 1 / np.log2(1 + rank) + 0.5 if rank <= 10 else 0.0
    return metric + 0.2 * (1 - np.log(rank) / np.log(num_items))


@pytest.mark.parametrize(("algorithm", "credit"), [("grpo", "own"), ("grpo", "marginal"), ("rloo", "marginal")])
def test_logged_rewards_are_those_of_the_completions(algorithm: str, credit: str, tmp_path: Path) -> None:
    config = recipe(tmp_path, algorithm, f"reward.credit={credit}")
    run = train(config, (0,))[0].run
    dataset = open_dataset(config.data)
    retriever = open_retriever(config.retrieval, dataset)
    histories = {e.user: e.history for e in build_examples(dataset, "train")}
    records, rollouts = lines(run.folder / "training_log.jsonl"), lines(run.folder / "rollouts.jsonl")
    assert len(records) == 4
    paid_less = 0

    def worth(texts: list[str], target: int, history: Any) -> tuple[int, float]:
        ranking = retriever.fused_ranks([texts or [""]], [target], [history], "max")
        rank = int(ranking.ranks[0])
        return rank, value(rank, dataset.num_items) if ranking.scorable[0] else 0.0

    for record in records:
        step = [line for line in rollouts if line["step"] == record["step"]]
        assert len(step) == 4 * SIZE * 2
        own, fused = [], []
        for first in range(0, len(step), SIZE):
            group = step[first : first + SIZE]
            assert len({line["user"] for line in group}) == 1
            target, history = group[0]["target"], histories[group[0]["user"]]
            texts = [line["text"] for line in group]
            fused.append(worth(texts, target, history))
            for place, line in enumerate(group):
                rank, reward = worth([line["text"]], target, history)
                assert line["rank"] == rank
                own.append(reward)
                if credit == "own":
                    assert line["reward"] == pytest.approx(reward, abs=1e-9)
                    assert "group_rank" not in line
                    continue
                rest_rank, rest = worth(texts[:place] + texts[place + 1 :], target, history)
                assert line["own_reward"] == pytest.approx(reward, abs=1e-9)
                assert (line["group_rank"], line["group_rank_without"]) == (fused[-1][0], rest_rank)
                assert line["reward"] == pytest.approx(fused[-1][1] - rest, abs=1e-9)
                paid_less += line["reward"] < reward - 1e-6
        assert record["avg_reward"] == pytest.approx(np.mean([line["reward"] for line in step]))
        ranks = np.array([line["rank"] for line in step])
        assert record["reward/hit"] == pytest.approx((ranks <= 10).mean())
        group_names = {name for name in record if name.startswith("group") or name == "own_reward"}
        if credit == "own":
            assert group_names == set()
            continue
        assert group_names == {"group_reward", "group_rank", "group/ndcg", "group/hit", "own_reward"}
        assert record["own_reward"] == pytest.approx(np.mean(own))
        assert record["group_reward"] == pytest.approx(np.mean([reward for _, reward in fused]))
        assert record["group_rank"] == pytest.approx(np.mean([rank for rank, _ in fused]))
        assert record["group/hit"] == pytest.approx(np.mean([rank <= 10 for rank, _ in fused]))
    assert credit == "own" or paid_less > 10


def test_a_program_gets_what_training_would_pay(tmp_path: Path) -> None:
    config = recipe(tmp_path, "grpo", "reward.credit=marginal", "trainer.warm_start=null", "reward.rank_shaping=0")
    with RLTrainer(config) as trainer:
        example = trainer.examples[0]
        title = str(open_dataset(config.data).items[example.target]["title"])
        paid = trainer.compute_rewards(["", title, "", ""], [example] * SIZE)
        assert paid.tolist() == [0, 1.5, 0, 0]
        with pytest.raises(DataError, match="no whole groups of 4"):
            trainer.compute_rewards([title], [example])
        record = trainer.train_step()
        assert {"group_rank", "group/ndcg"} <= record.keys()
