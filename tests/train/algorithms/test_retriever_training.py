"""What the trained retriever learns from: every position of the training parts, and nothing behind them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from rl4rec_cli.commands import catalogue
from rl4rec_cli.commands import train as command
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.config.trainer import RetrieverSection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.eval.checkpoint import describe_checkpoint
from rl4rec_cli.models.softmax import Candidates
from rl4rec_cli.retrieval.history_model import HistoryModel
from rl4rec_cli.train import resumable
from rl4rec_cli.train.algorithms.retriever import collate, copies_of, no_negatives, open_lesson, retriever_loss
from rl4rec_cli.train.environments import Histories
from rl4rec_cli.train.examples import training_examples

SMALL = (
    *("data.synthetic.users=40", "data.synthetic.items=30", "trainer.batch_size=8", "trainer.num_train_epochs=3"),
    *("trainer.dim=8", "trainer.warmup_steps=2", "eval.baselines=[untrained]", "eval.steps=4", "eval.step_users=20"),
    *("logging.steps=1", "logging.save_steps=1", "trainer.full_softmax_items=10", "trainer.sampled_items=12"),
)


def _config(folder: Path, name: str, *more: str) -> RunConfig:
    sets = [*SMALL, f"run.output_dir={folder}", f"run.name={name}", "eval.cache_dir=null", *more]
    return load_config(algorithm="retriever", recipes=["quick-test"], sets=sets)


def _weights(run: Path, name: str = "checkpoint_final") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / name / "retriever.safetensors")


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=7), min_size=1, max_size=6),
    st.booleans(),
    st.sets(st.integers(0, 9), min_size=1, max_size=10),
)
def test_own_items_and_copies_are_no_negatives(rows: list[list[int]], full: bool, drawn: set[int]) -> None:
    ids = collate(rows)["ids_BT"]
    history, following = ids[:, :-1].clamp(min=0), ids[:, 1:]
    used = following >= 0
    targets = following[used]
    copies = {1: [4, 5], 4: [1, 5], 5: [1, 4]}
    all_ids = sorted(drawn | set(targets.tolist()))
    columns = list(range(10)) if full else all_ids
    candidates = Candidates(
        None if full else torch.tensor(all_ids), torch.tensor([columns.index(t) for t in targets.tolist()]), None
    )
    positions, places = no_negatives(history, used, targets, candidates, 10, copies)

    expected = set()
    position = 0
    for row in rows:
        for place in range(1, len(row)):
            out = {*row[:place], *copies.get(row[place], ())}
            expected |= {(position, columns.index(item)) for item in out if item in columns}
            position += 1
    assert set(zip(positions.tolist(), places.tolist(), strict=True)) == expected
    assert (positions.diff() >= 0).all()


def test_copies_are_items_of_one_text() -> None:
    assert copies_of(["a", "b", "a", "c", "a"]) == {0: [2, 4], 2: [0, 4], 4: [0, 2]}
    assert copies_of(["a", "b"]) == {}


def test_the_loss_is_that_of_every_position_by_itself() -> None:
    torch.manual_seed(0)
    model = HistoryModel(torch.nn.functional.normalize(torch.randn(9, 6), dim=1), dim=4, max_history=3).eval()
    section = RetrieverSection(text_share=0, temperature=0.1)
    rows = [[0, 1, 2, 3], [4, 5], [6, 6, 7]]
    losses = []
    for row in rows:
        for place in range(1, len(row)):
            query = model.queries(model.items(torch.tensor([row[:place]])))[0, -1]
            logits = model.items() @ query / 0.1
            logits[[i for i in set(row[:place]) if i != row[place]]] = -torch.inf
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row[place])))
    loss = retriever_loss(model, collate(rows)["ids_BT"], section, {})
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_a_share_of_the_queries_is_the_last_text_alone() -> None:
    torch.manual_seed(0)
    has_one = torch.ones(9, dtype=torch.bool)
    vectors = torch.nn.functional.normalize(torch.randn(9, 6), dim=1)
    model = HistoryModel(vectors, dim=4, max_history=3, residual_N=has_one).eval()
    assert model.residual is not None
    torch.nn.init.normal_(model.residual.weight)
    row = [3, 1, 8]
    losses = []
    for place in (1, 2):
        query = model.text_queries(model.items(torch.tensor([row[place - 1]]), by_text=True))[0]
        logits = model.items() @ query / 0.07
        logits[row[:place]] = -torch.inf
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row[place])))
    loss = retriever_loss(model, collate([row])["ids_BT"], RetrieverSection(text_share=1), {})
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_sequences_end_before_the_held_out_items(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(sequences=[[0, 1, 2, 3, 4], [5, 4, 3], [1, 0, 2, 5]])
    config = load_config(algorithm="retriever", sets=["data.train_targets=all"])
    examples = training_examples(config.training_data, dataset, seed=0)
    rows = open_lesson(
        RetrieverSection(),
        config.generation,
        None,
        [Histories(dataset, None, examples)],
        None,
        shown=0,  # type: ignore[arg-type]
    ).rows
    assert rows == [(0, 1, 2), (1, 0)]
    short = RetrieverSection(max_sequence=2)
    lesson = open_lesson(short, config.generation, None, [Histories(dataset, None, examples)], None, shown=0)  # type: ignore[arg-type]
    assert lesson.rows == [(1, 2), (1, 0)]


def test_other_held_out_items_change_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the held-out items of every user are exchanged for others. No weight may move by a bit."""
    # Without measuring on the way: validation users choose the best step, and theirs are exchanged, too.
    config = _config(tmp_path, "as-it-is", "eval.steps=null")
    train(config)
    dataset = open_dataset(config.data)
    planted = replace(
        dataset, sequences=tuple((*row[:-2], (row[-2] + 7) % 30, (row[-1] + 11) % 30) for row in dataset.sequences)
    )
    assert planted.digest != dataset.digest
    monkeypatch.setattr(catalogue, "open_datasets", lambda section: [planted])
    train(_config(tmp_path, "planted", "eval.steps=null"))
    first, second = _weights(tmp_path / "as-it-is"), _weights(tmp_path / "planted")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["text.weight"], _weights(tmp_path / "planted", "checkpoint_start")["text.weight"])


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(_config(tmp_path, "whole"))
    broken = tmp_path / "broken"
    real, count = resumable.Keeper.after_step, [0]

    def after_step(self: resumable.Keeper) -> None:
        real(self)
        count[0] += 1
        if count[0] == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resumable.Keeper, "after_step", after_step)
        with pytest.raises(KeyboardInterrupt):
            train(_config(tmp_path, "broken"))
    assert not (broken / "checkpoints" / "checkpoint_final").exists()
    train(_config(tmp_path, "broken"), resume=broken)
    whole = tmp_path / "whole"
    for name in ("checkpoint_final", "checkpoint_best"):
        one, other = _weights(whole, name), _weights(broken, name)
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (whole / "validation_log.jsonl").read_text() == (broken / "validation_log.jsonl").read_text()
    assert train(_config(tmp_path, "broken"), resume=broken) == []


def test_training_ends_early_with_the_best_measurement(tmp_path: Path) -> None:
    # Without a rate nothing gets better: the first measurement stays the best.
    config = _config(tmp_path, "early", "trainer.learning_rate=0", "trainer.patience=2")
    (run,) = train(config)
    checkpoints = run.run.checkpoints
    assert sorted(path.name for path in checkpoints.glob("checkpoint_step_*"))[-1] == "checkpoint_step_12"
    assert len((run.run.folder / "validation_log.jsonl").read_text().splitlines()) == 3
    assert torch.equal(_weights(run.run.folder)["recency"], _weights(run.run.folder, "checkpoint_best")["recency"])


def test_without_patience_the_best_measurement_is_the_result_too(tmp_path: Path) -> None:
    # A rate that is far too high: later measurements are no better than the first.
    (trained,) = train(_config(tmp_path, "long", "trainer.patience=null", "trainer.learning_rate=5"))
    run = trained.run
    log = [json.loads(line) for line in (run.folder / "validation_log.jsonl").read_text().splitlines()]
    best = max(log, key=lambda record: (record["ndcg@10"], -record["step"]))
    assert best["step"] < log[-1]["step"] == 15
    assert torch.equal(_weights(run.folder)["recency"], _weights(run.folder, "checkpoint_best")["recency"])
    assert describe_checkpoint(run, run.final)["step"] == best["step"]


def test_several_datasets_are_refused(tmp_path: Path) -> None:
    config = _config(tmp_path, "several")
    with pytest.raises(ConfigError, match="one dataset"):
        command.train_retriever.check(config, [open_dataset(config.data)] * 2, is_new=True)


def test_a_dataset_of_few_users_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one step takes 8 examples"):
        train(_config(tmp_path, "few", "data.synthetic.users=5"))
