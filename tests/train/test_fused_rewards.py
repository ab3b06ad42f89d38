"""Runs that are rewarded for fused ranks (`reward.fuse`): every reward of a real run is computed again."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl4rec_cli.commands.dry_run import dry_run
from rl4rec_cli.commands.train import next_commands, train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.data.dataset import Dataset, build_examples
from rl4rec_cli.data.opening import open_datasets
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.errors import DataError, RunError
from rl4rec_cli.eval import sasrec
from rl4rec_cli.eval.examples import choose_examples
from rl4rec_cli.eval.fused_scores import fuse
from rl4rec_cli.eval.hybrids import open_fusion
from rl4rec_cli.eval.policies import write_texts
from rl4rec_cli.eval.sasrec import SasRecSettings, open_sasrec
from rl4rec_cli.eval.scoring import Task, VectorScores
from rl4rec_cli.eval.training_hybrid import halves_of_users, without_half
from rl4rec_cli.policy.loading import load_policy
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.rewards.functions import ndcg
from rl4rec_cli.train.hybrids import open_hybrids
from rl4rec_cli.train.rl_trainer import RLTrainer
from rl4rec_cli.train.screening import screen_examples

BRIEF = SasRecSettings(hidden_size=16, max_length=8, batch_positions=512, rounds=2, min_steps=0, validation_users=100)
SMALL = (
    *("data.synthetic.users=80", "data.synthetic.items=30", "data.train_targets=last"),
    *("prompt.max_history=2", "prompt.max_prompt_length=48", "generation.max_completion_length=6"),
    *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=400"),
    *("trainer.batch_size=4", "trainer.max_steps=4", "trainer.learning_rate=0.01", "trainer.warm_start=null"),
    *("eval.users=40", "eval.baselines=[]", "eval.steps=2", "eval.step_users=30"),
    *("logging.steps=1", "logging.rollouts=1000", "run.name=run"),
)
GROUPS = ("trainer.num_generations=4",)
WARM = "trainer.warm_start={batch_size: 8, max_steps: 80, num_train_epochs: 20, learning_rate: 0.01}"
"""An untrained policy writes words that no item has."""


def configured(folder: Path, *sets: str, algorithm: str = "grpo") -> RunConfig:
    return load_config(
        algorithm=algorithm,
        recipes=["quick-test"],
        flags={"run.output_dir": str(folder), "eval.cache_dir": str(folder / "cache")},
        sets=[*SMALL, *sets],
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def brief_sasrec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sasrec, "open_sasrec", partial(open_sasrec, settings=BRIEF))


def check_rewards(config: RunConfig, folder: Path) -> int:
    """Computes every reward of a run again, in float64, from its texts and the models in its cache.

    Returns the number of completions that the embedder can place.
    """
    (dataset,) = open_datasets(config.data)
    retriever = open_retriever(config.retrieval, dataset)
    halves = dict(zip(dataset.users, halves_of_users(dataset).tolist(), strict=True))
    cache = folder.parent / "cache"
    models = [open_sasrec(without_half(dataset, half), cache_dir=cache, settings=BRIEF) for half in (0, 1)]
    weight = json.loads((folder / "hybrids.json").read_text())[dataset.name]["weight"]
    examples = {example.user: example for example in build_examples(dataset, "train")}
    placed = 0
    for rollout in lines(folder / "rollouts.jsonl"):
        example, model = examples[rollout["user"]], models[halves[rollout["user"]]]
        own = retriever.text_vectors([rollout["text"]])[0].double().numpy()
        rank, reward = dataset.num_items, 0.0
        if own.any():
            placed += 1
            ours = retriever.vectors_ND.double().numpy() @ own
            theirs = model.items_ND.double().numpy() @ model.queries([example.history])[0].double().numpy()
            fused = weight * ours / ours.std() + (1 - weight) * theirs / theirs.std()
            rivals = [i for i in range(30) if i != example.target and i not in example.history]
            rank = 1 + sum(fused[i] >= fused[example.target] - 1e-9 for i in rivals)
            shaping = config.reward.rank_shaping * (1 - math.log(rank) / math.log(30))
            reward = float(ndcg(np.array([rank]), config.reward.k)[0]) + shaping
        assert (rollout["target"], rollout["rank"]) == (example.target, rank)
        assert rollout["reward"] == pytest.approx(reward, abs=1e-9)
    return placed


def test_every_reward_of_a_run_is_that_of_the_fused_rank(tmp_path: Path) -> None:
    config = configured(tmp_path, "reward.fuse=sasrec", "reward.fuse_weight=0.6", WARM, *GROUPS)
    [trained] = train(config)
    folder = trained.run.folder
    assert len(lines(folder / "rollouts.jsonl")) == 4 * 4 * 4
    assert check_rewards(config, folder) > 32
    # The measurements of training are those of the hybrid with the model of all training parts.
    (dataset,) = open_datasets(config.data)
    retriever = open_retriever(config.retrieval, dataset)
    examples = choose_examples(dataset, "validation", 30)
    policy = load_policy(config.policy.model_copy(update={"model": str(trained.run.final)}))
    texts = [text for (text,) in write_texts("", policy, trained.run.config, dataset, examples)[0]]
    fusion = open_fusion("sasrec")
    assert fusion is not None
    theirs = fusion.open_scores(Task(dataset, retriever, (), cache=tmp_path / "cache"))(examples)
    fused = fuse(VectorScores(retriever.text_vectors(texts), retriever.matrix), theirs).at(0.6)
    ranks = fused.ranks([e.target for e in examples], [e.history for e in examples]).ranks
    last = lines(folder / "validation_log.jsonl")[-1]
    assert last["ndcg@10"] == pytest.approx(float(ndcg(ranks, 10).mean()))
    assert (last["step"], last["fuse"], last["fuse_weight"]) == (4, "SASRec", [0.6])
    # The table has both hybrids, and the verdict their difference.
    result = json.loads((folder / "eval" / "validation.json").read_text())
    assert set(result["methods"]) == {"last item + SASRec", "tuned policy", "tuned policy + SASRec"}
    assert (result["hybrids"]["ours"], result["hybrids"]["theirs"]) == ("tuned policy + SASRec", "last item + SASRec")
    assert "--fuse sasrec" in next_commands(trained.run, [dataset])


@pytest.mark.parametrize("algorithm", ["rloo", "ppo", "reinforce"])
def test_all_algorithms_are_rewarded_alike(algorithm: str, tmp_path: Path) -> None:
    own = {
        "rloo": GROUPS,
        "ppo": ("trainer.mini_batch_size=4", "trainer.batch_size=8"),
        "reinforce": ("trainer.batch_size=8",),
    }[algorithm]
    config = configured(tmp_path, "reward.fuse=sasrec", "trainer.max_steps=2", WARM, *own, algorithm=algorithm)
    [trained] = train(config)
    assert check_rewards(config, trained.run.folder) > 4


@pytest.mark.parametrize("by", ["policy", "last_item"])
def test_examples_are_screened_by_the_hybrid(by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, "reward.fuse=transitions", "trainer.screen_rank=6", f"trainer.screen_by={by}")
    (dataset,) = open_datasets(config.data)
    retriever = open_retriever(config.retrieval, dataset)
    hybrid = open_hybrids(config, [dataset], {dataset.name: retriever})[dataset.name]
    examples = build_examples(dataset, "train")
    texts = [str(dataset.items[example.history[0]]["text"]) for example in examples]
    screened = screen_examples(
        *(config.trainer, retriever, examples), write=lambda _: texts, kept_in=tmp_path / "ranks.json", hybrid=hybrid
    )
    queries = (
        retriever.text_vectors(texts) if by == "policy" else retriever.item_vectors([e.history[-1] for e in examples])
    )
    ranks = hybrid.vector_ranks(queries, examples).ranks
    assert screened == [example for example, rank in zip(examples, ranks, strict=True) if rank <= 6]
    alone = retriever.vector_ranks(queries, [e.target for e in examples], [e.history for e in examples]).ranks
    assert screened != [example for example, rank in zip(examples, alone, strict=True) if rank <= 6]
    assert "and transitions" in next(line for line in capsys.readouterr().err.splitlines() if "Screened" in line)


def test_a_program_s_loop_is_rewarded_alike(tmp_path: Path) -> None:
    config = configured(tmp_path, "reward.fuse=transitions", "reward.fuse_weight=0.5", *GROUPS)
    with RLTrainer(config) as trainer, RLTrainer(configured(tmp_path, *GROUPS)) as alone:
        examples = trainer.examples[:40]
        texts = [str(open_datasets(config.data)[0].items[example.history[0]]["text"]) for example in examples]
        fused, plain = trainer.compute_rewards(texts, examples), alone.compute_rewards(texts, examples)
        assert (fused != plain).any()
        assert trainer.train_step()["step"] == 1


def test_a_run_goes_on_with_its_models_only(tmp_path: Path) -> None:
    sets = ("reward.fuse=sasrec", "reward.fuse_weight=0.6", "logging.save_steps=1", *GROUPS)
    [trained] = train(configured(tmp_path, *sets))
    folder = trained.run.folder
    shutil.rmtree(folder / "checkpoints" / "checkpoint_final")
    config = load_config(algorithm="grpo", recipes=[str(folder / "config.yaml")])
    facts = json.loads((folder / "hybrids.json").read_text())
    facts["synthetic-80x30-s0"]["models"][1] = "0" * 64
    (folder / "hybrids.json").write_text(json.dumps(facts))
    with pytest.raises(RunError, match="the sequence models of its rewards, or their weight, are not those"):
        train(config, resume=folder)
    train(config, resume=folder, allow_partial=True)
    assert (folder / "checkpoints" / "checkpoint_final").is_dir()


def test_what_is_fitted_first_is_said_before(tmp_path: Path) -> None:
    said = dry_run(configured(tmp_path, "reward.fuse=sasrec", *GROUPS)).lines()[0]
    assert said.startswith("before training: fits SASRec on each half of the users and on all, unless ")
    assert said.endswith("weighs completions 0.5")
    assert not any("before training" in line for line in dry_run(configured(tmp_path, *GROUPS)).lines())
    # Other algorithms have no rewards, and fit nothing.
    supervised = load_config(algorithm="sft", recipes=["quick-test"], sets=["reward.fuse=sasrec"])
    assert not any("before training" in line for line in dry_run(supervised).lines())


def test_too_few_users_are_refused_before_anything_is_made(
    tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    save_dataset(make_dataset(sequences=[[0, 1, 2, 3, 4, 5]] * 6 + [[0, 1, 2]]), tmp_path / "shop")
    sets = ("reward.fuse=transitions", "data.synthetic=null", f"data.path={tmp_path / 'shop'}", "data.train_users=5")
    config = configured(tmp_path / "runs", *sets, "trainer.batch_size=2", "trainer.num_generations=2", "eval.users=1")
    for command in (train, dry_run):
        with pytest.raises(DataError, match="validation users choose the weight, and there are fewer than two"):
            command(config)
    assert not (tmp_path / "runs" / "run").exists()
