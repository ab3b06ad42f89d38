"""Rewards of the rank by a completion and the trained retriever's own history query (`reward.fuse=history`)."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from history_runs import ITEMS, make_retriever, policy_sets

from rl4rec_cli.commands.dry_run import dry_run
from rl4rec_cli.commands.train import next_commands, train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.data.dataset import Dataset, build_examples
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.eval.history_hybrid import HistoryFusion, open_history_fusion
from rl4rec_cli.eval.training_hybrid import halves_of_users, without_half
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.trained_opening import open_trained
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.train import half_retrievers
from rl4rec_cli.train.half_retrievers import open_half_retriever

Made = tuple[Run, Dataset, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, minilm: str) -> Made:
    """A trained retriever's run, its dataset, and a folder."""
    folder = tmp_path_factory.mktemp("history")
    return make_retriever(folder, minilm), load_dataset(folder / "shop"), folder


def configured(made: Made, folder: Path, *sets: str) -> RunConfig:
    run, _, data = made
    own = ("reward.fuse=history", f"run.output_dir={folder}", f"eval.cache_dir={folder / 'cache'}")
    return load_config(algorithm="grpo", recipes=["quick-test"], sets=[*policy_sets(run, data), *own, *sets])


def fusion(made: Made) -> HistoryFusion:
    run, dataset, _ = made
    section = run.config.retrieval.model_copy(update={"model": str(run.final)})
    return open_history_fusion(section, dataset, "reward.fuse")


def test_every_reward_of_a_run_is_that_of_the_fused_rank(made: Made, tmp_path: Path) -> None:
    run, dataset, _ = made
    config = configured(made, tmp_path, "reward.rank_shaping=0", "reward.functions={mrr: 1}")
    assert (
        dry_run(config).lines()[0].startswith("before training: fits the trained retriever (retrieval.model) on each")
    )
    [trained] = train(config)
    about = json.loads((trained.run.folder / "hybrids.json").read_text())[dataset.name]
    weight = about["weight"]
    # The files of the halves, whose networks are put together by hand.
    encoder = open_retriever(run.config.retrieval, dataset)
    models = []
    for half in (0, 1):
        [file] = (tmp_path / "cache").glob(f"retriever_{without_half(dataset, half).name}_*")
        models.append(open_trained(run.config, without_half(dataset, half), encoder, file))
    retriever = open_retriever(trained.run.config.retrieval, dataset)
    halves = dict(zip(dataset.users, halves_of_users(dataset).tolist(), strict=True))
    examples = {example.user: example for example in build_examples(dataset, "train")}
    rollouts = [json.loads(line) for line in (trained.run.folder / "rollouts.jsonl").read_text().splitlines()]
    assert len(rollouts) == 2 * 4 * 4
    assert len({halves[rollout["user"]] for rollout in rollouts}) == 2
    for rollout in rollouts:
        example, model = examples[rollout["user"]], models[halves[rollout["user"]]]
        own = retriever.text_vectors([rollout["text"]])[0].double().numpy()
        ours = retriever.vectors_ND.double().numpy() @ own
        theirs = model.items().double().numpy() @ model.queries([example.history])[0].double().numpy()
        fused = weight * ours / ours.std() + (1 - weight) * theirs / theirs.std()
        rivals = [i for i in range(ITEMS) if i != example.target and i not in example.history]
        rank = 1 + sum(fused[i] >= fused[example.target] - 1e-9 for i in rivals)
        assert rollout["rank"] == (rank if own.any() else ITEMS)
        assert rollout["reward"] == pytest.approx(1 / rank if own.any() and rank <= 10 else 0.0)
    result = json.loads((trained.run.folder / "eval" / "validation.json").read_text())
    assert set(result["methods"]) == {"history query", "tuned policy", "tuned policy + history query"}
    assert "--fuse history" in next_commands(trained.run, [dataset])


def half_scores(made: Made, dataset: Dataset, half: int, cache: Path | None) -> Any:
    whole = fusion(made)
    example = [replace(build_examples(dataset, "train")[0], history=(3, 5))]
    scored = open_half_retriever(whole, made[1], without_half(dataset, half), cache)(example)
    return scored.queries_BD.numpy(), scored.items.vectors_ND.numpy()


def test_the_model_that_scores_a_user_does_not_know_the_target(made: Made) -> None:
    _, dataset, _ = made
    user = 11
    half = int(halves_of_users(dataset)[user])
    row = list(dataset.sequences[user])
    row[-3] = (row[-3] + 1) % ITEMS  # the training target
    changed = replace(dataset, sequences=(*dataset.sequences[:user], tuple(row), *dataset.sequences[user + 1 :]))
    for one, is_same in ((half, True), (1 - half, False)):
        before, after = half_scores(made, dataset, one, None), half_scores(made, changed, one, None)
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)) is is_same


def test_halves_are_fitted_once_and_for_the_share_that_was_best(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, dataset, _ = made
    trained: list[tuple[int, int]] = []
    train_half = half_retrievers._train

    def counted(config: Any, retriever: Any, histories: Any, steps: int, last: int) -> None:
        trained.append((steps, last))
        train_half(config, retriever, histories, steps, last)

    monkeypatch.setattr(half_retrievers, "_train", counted)
    made_steps: list[int] = []
    release = half_retrievers.release
    monkeypatch.setattr(
        half_retrievers, "release", lambda trainer: (made_steps.append(trainer.state.global_step), release(trainer))
    )
    monkeypatch.setattr(half_retrievers, "_best_share", lambda *args: 0.4)
    first = half_scores(made, dataset, 0, tmp_path)
    assert trained == [(30, 12)], "max_steps bounds the half, too"
    assert made_steps == [12]
    again = half_scores(made, dataset, 0, tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(trained) == 1
    [folder] = tmp_path.iterdir()
    weights = folder / "retriever.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x00\x01")
    again = half_scores(made, dataset, 0, tmp_path)
    assert (
        "damaged: the content of its weights does not match its checksum; the retriever is fitted again"
        in capsys.readouterr().err
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(trained) == 2
    monkeypatch.undo()
    best = json.loads((run.best / "validation.json").read_text())["step"]
    assert half_retrievers._best_share(fusion(made), dataset) == best / 30


def test_other_retrievers_are_refused(made: Made, tmp_path: Path) -> None:
    run, _, _ = made
    other = tmp_path / "other"
    save_dataset(synthesize(80, ITEMS, 2), other)
    for command in (train, dry_run):
        with pytest.raises(
            ConfigError, match=r"was trained on synthetic-80x40-s1 \(digest .*\), not on synthetic-80x40-s2"
        ):
            command(configured(made, tmp_path, f"data.path={other}"))
        with pytest.raises(ConfigError, match="is no trained retriever"):
            command(configured(made, tmp_path, f"retrieval.model={run.config.retrieval.model}"))
    moved = tmp_path / "moved" / "retriever"
    shutil.copytree(run.final, moved)
    with pytest.raises(ConfigError, match="does not lie in its run"):
        train(configured(made, tmp_path, f"retrieval.model={moved}"))
    tuned = tmp_path / "tuned"
    shutil.copytree(run.folder, tuned)
    recipe = yaml.safe_load((tuned / "config.yaml").read_text())
    recipe["trainer"] = {"algorithm": "retriever", "kind": "full"}
    (tuned / "config.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigError, match="is a tuned encoder, and only a projection's"):
        train(configured(made, tmp_path, f"retrieval.model={tuned / 'checkpoints' / 'checkpoint_final'}"))
    lsa = load_config(
        algorithm="grpo",
        recipes=["quick-test"],
        sets=["reward.fuse=history", f"data.path={other}", "data.synthetic=null"],
    )
    with pytest.raises(ConfigError, match="lsa is no trained retriever"):
        train(lsa)
    with pytest.raises(
        ConfigError, match="lsa is no trained retriever"
    ):  # synthetic data, which a dry run does not make
        dry_run(load_config(algorithm="grpo", recipes=["quick-test"], sets=["reward.fuse=history"]))
    assert not (tmp_path / "policy").exists()
