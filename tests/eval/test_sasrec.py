"""SASRec: that it learns, that it sees nothing it should not, and that its cache is never silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rl4rec_cli.data.dataset import Dataset, build_examples
from rl4rec_cli.errors import DataError
from rl4rec_cli.eval import sasrec, sasrec_model
from rl4rec_cli.eval import sasrec_training as training
from rl4rec_cli.eval.sasrec import SasRec, SasRecSettings, open_sasrec
from rl4rec_cli.models import softmax
from rl4rec_cli.ranking.ranks import ItemMatrix, target_ranks
from rl4rec_cli.rewards.functions import ndcg

ITEMS = 60
SMALL = SasRecSettings(
    hidden_size=16,
    max_length=8,
    dropout=0.1,
    learning_rate=1e-2,
    batch_positions=512,
    rounds=12,
    min_steps=0,
    validation_users=100,
)
BRIEF = replace(SMALL, rounds=2)
Make = Callable[..., Dataset]
Trained = tuple[SasRec, Path]


def chains(make_dataset: Make, *, last: int = 0) -> Dataset:
    """Every item has one that follows it nine times in ten; all items are about as popular.

    `last` is added to every test target.
    """
    draw = np.random.default_rng(0)
    follower = draw.permutation(ITEMS)
    sequences = []
    for length in draw.integers(4, 14, 300):
        row = [int(draw.integers(ITEMS))]
        while len(row) < length:
            row.append(int(follower[row[-1]] if draw.random() < 0.9 else draw.integers(ITEMS)))
        row[-1] = (row[-1] + last) % ITEMS
        sequences.append(row)
    titles = [f"item {i}" for i in range(ITEMS)]
    return make_dataset(titles, sequences=sequences, mask_history=False, name="chains")


@pytest.fixture(scope="module")
def dataset(make_dataset: Make) -> Dataset:
    return chains(make_dataset)


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("sasrec")
    return open_sasrec(dataset, cache_dir=folder, seed=1, settings=SMALL), folder


@pytest.fixture(scope="module")
def histories(dataset: Dataset) -> list[tuple[int, ...]]:
    return [example.history for example in build_examples(dataset, "test")]


# What it learns


def test_it_learns_what_follows_what(trained: Trained, dataset: Dataset, histories: list[tuple[int, ...]]) -> None:
    model, _ = trained
    examples = build_examples(dataset, "test")
    targets = torch.tensor([example.target for example in examples])
    ranks = target_ranks(model.queries(histories), ItemMatrix(model.items_ND), targets)
    # Nine in ten follow the chain.
    assert ndcg(ranks.numpy(), 10).mean() > 0.7
    counts = np.bincount([item for sequence in dataset.sequences for item in sequence[:-2]], minlength=ITEMS)
    by_count = np.array([int((counts >= counts[target]).sum()) for target in targets])
    assert ndcg(by_count, 10).mean() < 0.2
    assert model.summary["validation_ndcg@10"] > 0.7


def test_a_sampled_softmax_learns_it_too(dataset: Dataset) -> None:
    settings = replace(SMALL, full_softmax_items=10, sampled_items=20, rounds=10)
    assert open_sasrec(dataset, cache_dir=None, settings=settings).summary["validation_ndcg@10"] > 0.6


def test_ranks_are_those_of_its_logits(trained: Trained, dataset: Dataset, histories: list[tuple[int, ...]]) -> None:
    model, _ = trained
    targets = [example.target for example in build_examples(dataset, "test")]
    queries = model.queries(histories)
    ranks = target_ranks(queries, ItemMatrix(model.items_ND), torch.tensor(targets))
    logits = queries.double() @ model.items_ND.double().T
    for row, target in enumerate(targets):
        assert ranks[row] == int((logits[row] >= logits[row, target]).sum())
    # They are the logits of the model itself: its last state times its item embeddings.
    ids = torch.tensor([histories[0][-SMALL.max_length :]])
    with torch.no_grad():
        state = sasrec_model.next_states(model._model, ids, SMALL)[0, -1]
    assert torch.allclose(logits[0].float(), sasrec_model.item_vectors(model._model) @ state, atol=1e-5)


# What it sees


def test_neither_padding_nor_company_changes_a_query(trained: Trained, histories: list[tuple[int, ...]]) -> None:
    model, _ = trained
    together = model.queries(histories)
    assert together.dtype == torch.float32
    assert together.shape == (len(histories), SMALL.hidden_size)
    assert len({len(history) for history in histories}) > 5
    for row in range(0, len(histories), 17):
        assert (model.queries([histories[row]])[0] - together[row]).abs().max() < 1e-5
    backwards = model.queries(histories[::-1])
    assert (backwards.flip(0) - together).abs().max() < 1e-5
    assert model.queries([]).shape == (0, SMALL.hidden_size)


def test_queries_are_made_a_few_at_a_time(
    trained: Trained, histories: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = trained
    whole = model.queries(histories)
    seen = []
    states = sasrec_model.next_states
    monkeypatch.setattr(sasrec_model, "next_states", lambda m, ids, s: seen.append(ids.numel()) or states(m, ids, s))
    monkeypatch.setattr(sasrec_model, "QUERY_POSITIONS", 64)
    assert (model.queries(histories) - whole).abs().max() < 1e-5
    assert max(seen) <= 64
    assert len(seen) > 20


def test_it_reads_the_last_items_and_never_ahead(trained: Trained) -> None:
    model, _ = trained
    long = [*range(20), 3, 5]
    assert torch.equal(model.queries([long]), model.queries([long[-SMALL.max_length :]]))
    assert not torch.allclose(model.queries([long]), model.queries([long[-SMALL.max_length + 1 :]]), atol=1e-3)
    # The state after three items is the same whatever follows.
    with torch.no_grad():
        one = sasrec_model.next_states(model._model, torch.tensor([[4, 8, 15, 16, 23]]), SMALL)[0, :3]
        other = sasrec_model.next_states(model._model, torch.tensor([[4, 8, 15, 42, 7]]), SMALL)[0, :3]
    assert torch.equal(one, other)
    assert (model.queries([[4, 8, 15]])[0] - one[-1]).abs().max() < 1e-5


def test_training_windows_end_before_the_targets(make_dataset: Make) -> None:
    titles = [f"item {i}" for i in range(30)]
    rows = [list(range(30)), [5, 6, 7], [9, 8, 7, 6], list(range(8))]
    dataset = make_dataset(titles, sequences=rows)
    windows = training.training_windows(dataset, 5)
    predicted = sorted(item for window in windows for item in window[1:])
    # Every item of a training part but its first, once.
    assert predicted == sorted([*range(1, 28), 8, *range(1, 6)])
    assert all(2 <= len(window) <= 6 for window in windows)
    assert (22, 23, 24, 25, 26, 27) in windows
    with pytest.raises(DataError, match="nothing to learn from"):
        training.training_windows(make_dataset(titles, sequences=[[1, 2, 3]]), 5)


def test_test_targets_change_nothing(make_dataset: Make, dataset: Dataset, histories: list[tuple[int, ...]]) -> None:
    other = chains(make_dataset, last=1)
    assert other.sequences != dataset.sequences
    one, two = (open_sasrec(d, cache_dir=None, settings=BRIEF) for d in (dataset, other))
    assert torch.equal(one.queries(histories), two.queries(histories))
    assert one.summary["validation_ndcg@10"] == two.summary["validation_ndcg@10"]


# Training


def test_the_best_weights_are_kept(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, seen = iter([0.1, 0.3, 0.2, 0.25, 0.9]), []

    def score(model: SasRec, *_: object) -> float:
        seen.append(model.queries([[1, 2, 3]]))
        return next(scores)

    monkeypatch.setattr(training, "_validation_ndcg", score)
    model = open_sasrec(dataset, cache_dir=None, settings=replace(SMALL, patience=2))
    assert len(seen) == 4
    assert torch.equal(model.queries([[1, 2, 3]]), seen[1])
    assert not torch.equal(seen[1], seen[3])
    summary = {key: model.summary[key] for key in ("rounds", "best_round", "validation_ndcg@10", "stopped")}
    assert summary == {"rounds": 4, "best_round": 2, "validation_ndcg@10": 0.3, "stopped": "no better"}


def test_time_ends_training(dataset: Dataset) -> None:
    model = open_sasrec(dataset, cache_dir=None, settings=replace(SMALL, max_minutes=0))
    assert model.summary["rounds"] == 1
    assert model.summary["stopped"] == "time"


def test_few_data_are_passed_over_several_times_a_round(dataset: Dataset) -> None:
    lengths = np.array([len(window) - 1 for window in training.training_windows(dataset, SMALL.max_length)])
    steps = len(training.epoch_batches(lengths, SMALL.batch_positions, np.random.default_rng(0)))
    model = open_sasrec(dataset, cache_dir=None, settings=replace(SMALL, rounds=2, min_steps=4 * steps))
    assert (model.summary["rounds"], model.summary["epochs"]) == (2, 4)


def test_a_seed_gives_one_model_and_leaves_the_global_one_alone(dataset: Dataset) -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    one = open_sasrec(dataset, cache_dir=None, seed=3, settings=BRIEF)
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(one.items_ND, open_sasrec(dataset, cache_dir=None, seed=3, settings=BRIEF).items_ND)
    assert not torch.equal(one.items_ND, open_sasrec(dataset, cache_dir=None, seed=4, settings=BRIEF).items_ND)


def test_the_batches_of_an_epoch_hold_every_row_once_within_the_limit() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 1000)
    batches = training.epoch_batches(lengths, 200, np.random.default_rng(1))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    assert max(len(rows) * lengths[rows].max() for rows in batches) <= 200
    # Little of it is padding.
    assert sum(len(rows) * lengths[rows].max() for rows in batches) < 1.3 * lengths.sum()


# The loss


def test_the_loss_and_its_gradients_are_those_of_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(23, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    items = torch.randn(40, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(40, (23,), generator=draw)
    wanted = torch.nn.functional.cross_entropy(states @ items.T, targets)
    wanted_grads = torch.autograd.grad(wanted * 3, (states, items))
    monkeypatch.setattr(softmax, "_CPU_LOGITS", 40 * 4)  # four positions at a time
    loss = training.softmax_loss(states, items, targets, SMALL)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    for found, right in zip(torch.autograd.grad(loss * 3, (states, items)), wanted_grads, strict=True):
        assert torch.allclose(found, right, rtol=1e-10, atol=1e-14)


def test_the_sampled_softmax_estimates_the_whole_sum() -> None:
    draw = torch.Generator().manual_seed(0)
    states, items = (torch.randn(n, 5, generator=draw, dtype=torch.float64) for n in (6, 400))
    targets = torch.tensor([3, 3, 9, 200, 399, 0])
    logits = states @ items.T
    sums = logits.exp().sum(1)
    settings = replace(SMALL, full_softmax_items=10, sampled_items=60)
    estimates = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for row in range(6):
            # loss = log(estimated sum) - logit of the target, for one position beside targets it shares the batch with
            losses = [training.softmax_loss(states[[row]], items, targets[[row]], settings) for _ in range(300)]
            estimates.append(torch.stack(losses).add(logits[row, targets[row]]).exp().mean())
        every = replace(settings, sampled_items=20_000)
        exact = training.softmax_loss(states, items, targets, every)
    assert torch.allclose(torch.stack(estimates), sums, rtol=0.1)
    # Where the draws cover the catalogue it is the full softmax.
    assert exact.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-9)


# The cache


def test_what_was_trained_is_read_back(
    trained: Trained, dataset: Dataset, histories: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = trained
    monkeypatch.setattr(sasrec, "train_model", lambda *_: pytest.fail("it trains"))
    again = open_sasrec(dataset, cache_dir=folder, seed=1, settings=SMALL)
    assert torch.equal(again.items_ND, model.items_ND)
    assert torch.equal(again.queries(histories), model.queries(histories))
    assert again.summary == model.summary
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


def test_another_seed_setting_or_dataset_is_another_model(
    trained: Trained, dataset: Dataset, make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = trained
    calls = []
    monkeypatch.setattr(sasrec, "train_model", lambda *given, **more: calls.append(given) or (model._model, {}))
    monkeypatch.setattr(sasrec, "_save", lambda *_: None)
    open_sasrec(dataset, cache_dir=folder, seed=2, settings=SMALL)
    open_sasrec(dataset, cache_dir=folder, seed=1, settings=replace(SMALL, dropout=0.2))
    open_sasrec(chains(make_dataset, last=1), cache_dir=folder, seed=1, settings=SMALL)
    monkeypatch.setattr(sasrec, "FORMAT", "rl4rec-sasrec-0")
    open_sasrec(dataset, cache_dir=folder, seed=1, settings=SMALL)
    assert len(calls) == 4


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 64
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "trained again"),
        (lambda path: path.write_bytes(b""), "trained again"),
        (_flip, "its content does not match its checksum"),
        (lambda path: path.unlink() or path.mkdir(), "trained again"),
        (lambda path: path.write_bytes(path.with_name("foreign").read_bytes()), "made from other data"),
    ],
    ids=["truncated", "empty", "flipped", "folder", "foreign"],
)
def test_a_damaged_file_is_reported_and_made_again(
    damage: Callable[[Path], object], said: str, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = replace(SMALL, rounds=1)
    open_sasrec(dataset, cache_dir=tmp_path, settings=replace(once, dropout=0.3))
    next(tmp_path.glob("*.safetensors")).rename(tmp_path / "foreign")
    model = open_sasrec(dataset, cache_dir=tmp_path, settings=once)
    path = next(tmp_path.glob("*.safetensors"))
    damage(path)
    capsys.readouterr()
    again = open_sasrec(dataset, cache_dir=tmp_path, settings=once)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert str(path) in warnings[0]
    assert said in warnings[0]
    assert torch.equal(again.items_ND, model.items_ND)
    if path.is_file():  # and the next one finds it whole
        open_sasrec(dataset, cache_dir=tmp_path, settings=once)
        assert "warning" not in capsys.readouterr().err
    else:
        assert "cannot keep the trained SASRec" in warnings[1]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_model_that_cannot_be_kept_is_used(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    model = open_sasrec(dataset, cache_dir=tmp_path / "file" / "below", settings=replace(SMALL, rounds=1))
    assert len(model.items_ND) == ITEMS
    assert "cannot keep the trained SASRec" in capsys.readouterr().err


def test_what_cannot_be_done_is_said(trained: Trained) -> None:
    model, _ = trained
    with pytest.raises(DataError, match="history 1 is empty"):
        model.queries([[1], []])
    for item in (-1, ITEMS):
        with pytest.raises(DataError, match=f"history 0 has an item that is not among the {ITEMS} items"):
            model.queries([[1, item]])
