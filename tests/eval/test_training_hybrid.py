"""Hybrids in training: exact ranks, models that never saw the user whom they score, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RetrievalSection, RewardSection, RunConfig
from rl4rec_cli.data.dataset import Dataset, Example, build_examples
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import ConfigError, DataError
from rl4rec_cli.eval import sasrec
from rl4rec_cli.eval.baselines import open_transitions
from rl4rec_cli.eval.fused_scores import fuse
from rl4rec_cli.eval.hybrids import Fusion, open_fusion
from rl4rec_cli.eval.policies import score_completions
from rl4rec_cli.eval.sasrec import SasRecSettings
from rl4rec_cli.eval.scoring import Measured, SparseScores, Task, VectorScores, measure
from rl4rec_cli.eval.training_hybrid import (
    TrainingHybrid,
    check_training_hybrid,
    halves_of_users,
    open_training_hybrid,
    without_half,
)
from rl4rec_cli.eval.vector_method import VectorMethod
from rl4rec_cli.ranking.ranks import ItemMatrix
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.retriever import InProcessRetriever
from rl4rec_cli.rewards.credit import Groups
from rl4rec_cli.rewards.scorer import Scorer

Make = Callable[..., Dataset]
BRIEF = SasRecSettings(hidden_size=16, max_length=8, batch_positions=512, rounds=2, min_steps=0, validation_users=100)
ITEMS = 60


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return synthesize(users=120, items=ITEMS, seed=5)


@pytest.fixture(scope="module")
def retriever(dataset: Dataset) -> InProcessRetriever:
    return open_retriever(RetrievalSection(embedder="lsa", device="cpu"), dataset)


@pytest.fixture
def brief_sasrec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sasrec, "open_sasrec", partial(sasrec.open_sasrec, settings=BRIEF))


def fusion(name: str) -> Fusion:
    opened = open_fusion(name)
    assert opened is not None
    return opened


def configured(*sets: str) -> RunConfig:
    return load_config(algorithm="grpo", recipes=["quick-test"], sets=["reward.fuse=transitions", *sets])


def whole_rows(scored: Any, count: int) -> np.ndarray[Any, Any]:
    """Float64 scores `[count, ITEMS]`."""
    if isinstance(scored, SparseScores):
        rows = np.repeat(scored.base_N[None], count, 0)
        for row in range(count):
            ids, more = scored.extra(row)
            rows[row, ids] += more
        return rows
    return scored.queries_BD.double().numpy() @ scored.items.vectors_ND.double().numpy().T


def ranks_by_hand(own: Any, theirs: Any, weight: float, examples: Sequence[Example], *, mask: bool) -> list[int]:
    ranks = []
    for row, example in enumerate(examples):
        fused = weight * own[row] / own[row].std() + (1 - weight) * theirs[row] / theirs[row].std()
        others = [i for i in range(ITEMS) if i != example.target and not (mask and i in example.history)]
        ranks.append(1 + sum(fused[i] >= fused[example.target] - 1e-9 for i in others))
    return ranks


def drawn_vectors(task: Task) -> Callable[[Sequence[Example]], VectorScores]:
    """Another model for every dataset; items 7 and 8 are alike in each."""
    draw = torch.Generator().manual_seed(int(task.dataset.digest[:8], 16))
    items_ND, users_ND = (torch.randn(ITEMS, 6, generator=draw) for _ in range(2))
    items_ND[8] = items_ND[7]
    matrix = ItemMatrix(items_ND)
    return lambda examples: VectorScores(users_ND[[e.history[-1] for e in examples]], matrix)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("open_scores", [open_transitions, drawn_vectors])
def test_ranks_are_those_of_whole_rows(dataset: Dataset, open_scores: Any, mask: bool, scripted: type) -> None:
    dataset = replace(dataset, mask_history=mask)
    examples = build_examples(dataset, "train", train_targets="all")[:150]
    draw = np.random.default_rng(1)
    vectors_ND = torch.from_numpy(draw.normal(size=(ITEMS, 12)).astype(np.float32))
    vectors_ND[8] = vectors_ND[7]  # where the sequence model has them alike, too, they tie
    examples = [replace(e, target=7 + row % 2) if row % 5 == 0 else e for row, e in enumerate(examples)]
    texts = [f"text {row}" for row in range(150)]
    texts[3] = texts[90] = " "
    table = {text: draw.normal(size=12).tolist() for text in texts}
    retriever = InProcessRetriever(scripted(table, 12), vectors_ND, mask_history=mask)
    hybrid = TrainingHybrid(Fusion("transitions", open_scores), Task(dataset, retriever, ()), 0.35)
    columns = [e.user for e in examples], [e.target for e in examples], [list(e.history) for e in examples]
    ranking = hybrid.text_ranks(texts, *columns)
    halves = dict(zip(dataset.users, halves_of_users(dataset), strict=True))
    own = retriever.text_vectors(texts).double().numpy() @ vectors_ND.double().numpy().T
    for half in (0, 1):
        rows = [row for row, e in enumerate(examples) if halves[e.user] == half and texts[row].strip()]
        some = [examples[row] for row in rows]
        assert len(some) > 50
        theirs = whole_rows(open_scores(Task(without_half(dataset, half), retriever, ()))(some), len(some))
        assert ranking.ranks[rows].tolist() == ranks_by_hand(own[rows], theirs, 0.35, some, mask=mask)
    assert np.flatnonzero(~ranking.scorable).tolist() == [3, 90]
    assert ranking.ranks[[3, 90]].tolist() == [ITEMS, ITEMS], "a blank completion is not the sequence model's ranking"
    # A batch of its own, in another order, has the same ranks: what of the catalogue is kept between batches is right.
    back = [[*column[::-1]] for column in (texts, *columns)]
    assert hybrid.text_ranks(*back).ranks.tolist() == ranking.ranks[::-1].tolist()
    # Validation users are scored by the model of all training parts.
    validation = build_examples(dataset, "validation")
    queries = VectorScores(retriever.text_vectors(texts[4:64]), retriever.matrix)
    found = hybrid.join(queries, validation[:60]).ranks(
        [e.target for e in validation[:60]], [e.history for e in validation[:60]] if mask else None
    )
    theirs = whole_rows(open_scores(Task(dataset, retriever, ()))(validation[:60]), 60)
    assert found.ranks.tolist() == ranks_by_hand(own[4:64], theirs, 0.35, validation[:60], mask=mask)


def test_the_halves_are_as_large_and_do_not_know_what_users_chose(dataset: Dataset) -> None:
    halves = halves_of_users(dataset)
    assert np.bincount(halves).tolist() == [60, 60]
    turned = replace(dataset, sequences=tuple(row[::-1] for row in dataset.sequences))
    assert halves_of_users(turned).tolist() == halves.tolist()
    parts = [without_half(dataset, half) for half in (0, 1)]
    assert sorted(parts[0].users + parts[1].users) == sorted(dataset.users)
    for half, part in enumerate(parts):
        assert {halves[dataset.user_index(user)] for user in part.users} == {1 - half}
        assert part.sequences == tuple(dataset.sequences[dataset.user_index(user)] for user in part.users)


def test_the_model_that_scores_a_user_does_not_know_the_target(
    dataset: Dataset, retriever: InProcessRetriever, brief_sasrec: None
) -> None:
    user = 11
    half = int(halves_of_users(dataset)[user])
    row = list(dataset.sequences[user])
    row[-3] = (row[-3] + 1) % ITEMS  # the training target
    changed = replace(dataset, sequences=(*dataset.sequences[:user], tuple(row), *dataset.sequences[user + 1 :]))
    first, second = (
        TrainingHybrid(fusion("sasrec"), Task(one, retriever, ()), 0.5).facts()["models"] for one in (dataset, changed)
    )
    assert first[half] == second[half], "the model that scores this user"  # type: ignore[index]
    assert first[1 - half] != second[1 - half], "the model that was fitted on this user"  # type: ignore[index]
    assert first[2] != second[2]  # type: ignore[index]


def test_models_are_fitted_once(
    dataset: Dataset, retriever: InProcessRetriever, brief_sasrec: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(dataset, retriever, (), cache=tmp_path)
    first = TrainingHybrid(fusion("sasrec"), task, 0.5).facts()
    assert len(list(tmp_path.glob("sasrec_*.safetensors"))) == 3
    monkeypatch.setattr(sasrec, "train_model", lambda *args, **options: pytest.fail("trained again"))
    assert TrainingHybrid(fusion("sasrec"), task, 0.5).facts() == first
    # `eval --fuse` has the same model of all training parts.
    fusion("sasrec").open_scores(task)


def test_the_weight_is_the_setting_and_is_said(
    dataset: Dataset, retriever: InProcessRetriever, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task(dataset, retriever, (), fuse_weights={"last item": 0.9})
    for sets, weight in (((), 0.5), (("reward.fuse_weight=0.25",), 0.25)):
        hybrid = open_training_hybrid(configured(*sets), task, fusion("transitions"))
        assert hybrid.weight == hybrid.facts()["weight"] == weight
        assert f"by the completion ({weight:g}) and transitions ({1 - weight:g}) together" in capsys.readouterr().err
    for weight in ("0", "1.01"):  # without weight no completion changes its reward
        with pytest.raises(ConfigError, match=r"reward\.fuse_weight"):
            configured(f"reward.fuse_weight={weight}")


def test_the_end_table_measures_as_eval_does(dataset: Dataset, retriever: InProcessRetriever) -> None:
    examples = build_examples(dataset, "validation")
    task = Task(dataset, retriever, examples)
    hybrid = TrainingHybrid(fusion("transitions"), Task(dataset, retriever, ()), 0.5)
    texts = [[str(dataset.items[e.history[-1]]["text"])] for e in examples]
    nothing = np.zeros((len(examples), 10), np.int64)
    ranking = retriever.target_ranks([text for (text,) in texts], [e.target for e in examples], [[]] * len(examples))
    one = configured().generation
    measured = hybrid.measure(Measured("tuned policy", ranking, texts, "policy", nothing), examples, one)
    theirs = fusion("transitions").measure(task, "validation")
    assert (measured.name, measured.kind, measured.is_hybrid) == ("tuned policy + transitions", "policy", True)
    assert measured.notes["weights"] == theirs.notes["weights"]
    # The last item's text, embedded as a query, is the last item's vector up to rounding.
    assert np.mean(measured.ranking.ranks == theirs.ranking.ranks) > 0.95


def test_what_cannot_be_fitted_is_refused(make_dataset: Make, dataset: Dataset) -> None:
    def check(one: Dataset) -> None:
        check_training_hybrid(configured(), one, fusion("transitions"))

    with pytest.raises(DataError, match="on each half of the users, and in one of them no training part has two items"):
        check(make_dataset(sequences=[[0, 1, 2, 3, 4]]))
    with pytest.raises(DataError, match="and in one of them"):
        check(make_dataset(sequences=[[0, 1, 2, 3, 4], [0, 1, 2]]))
    check(make_dataset(sequences=[[0, 1, 2, 3, 4], [3, 2, 1, 0]]))
    check(dataset)
    check(replace(dataset, fit="train_and_validation"))


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("open_scores", [open_transitions, drawn_vectors])
@pytest.mark.parametrize("rule", ["logsumexp", "max"])
def test_groups_are_ranked_as_whole_rows(
    dataset: Dataset, open_scores: Any, mask: bool, rule: Any, scripted: type
) -> None:
    """Without each text in turn; equal texts, blank ones, a group with a single text, and one with none."""
    dataset, size, weight = replace(dataset, mask_history=mask), 4, 0.4
    examples = build_examples(dataset, "train", train_targets="all")[:40]
    draw = np.random.default_rng(2)
    vectors_ND = torch.from_numpy(draw.normal(size=(ITEMS, 12)).astype(np.float32))
    vectors_ND = vectors_ND / vectors_ND.norm(dim=1, keepdim=True)
    table = {f"text {row}": (v / np.linalg.norm(v)).tolist() for row, v in enumerate(draw.normal(size=(90, 12)))}
    groups = [[str(text) for text in draw.choice([*table, *[" "] * 30], size)] for _ in examples]
    groups[0], groups[1], groups[2] = ["text 1"] * size, [" "] * size, [" ", "text 2", " ", " "]
    groups[3] = ["text 3", "text 4", "text 3", " "]
    retriever = InProcessRetriever(scripted(table, 12), vectors_ND, mask_history=mask)
    hybrid = TrainingHybrid(Fusion("transitions", open_scores), Task(dataset, retriever, ()), weight)
    columns = [e.user for e in examples], [e.target for e in examples], [list(e.history) for e in examples]
    for _ in range(2):  # the second time with what is kept of the catalogue
        own, together, without = hybrid.group_ranks(groups, *columns, rule)
    alone = hybrid.text_ranks(
        [text for group in groups for text in group],
        *([value for value in column for _ in range(size)] for column in columns),
    )
    assert own.ranks.tolist() == alone.ranks.tolist()
    assert own.scorable.tolist() == alone.scorable.tolist()
    halves = dict(zip(dataset.users, halves_of_users(dataset), strict=True))
    items = retriever.vectors_ND.double().numpy()

    def by_hand(texts: list[str], example: Example) -> tuple[int, bool]:
        queries = [np.float32(table[text]).astype(np.float64) for text in dict.fromkeys(texts) if text.strip()]
        if not queries:
            return ITEMS, False
        scores = np.stack(queries) @ items.T
        fused = np.log(np.exp(10 * scores).sum(0)) / 10 if rule == "logsumexp" else scores.max(0)
        task = Task(without_half(dataset, int(halves[example.user])), retriever, ())
        theirs = whole_rows(open_scores(task)([example]), 1)
        return ranks_by_hand(fused[None], theirs, weight, [example], mask=mask)[0], True

    for row, (group, example) in enumerate(zip(groups, examples, strict=True)):
        assert (together.ranks[row], together.scorable[row]) == by_hand(group, example)
        for place in range(size):
            found = without.ranks[row * size + place], without.scorable[row * size + place]
            assert found == by_hand(group[:place] + group[place + 1 :], example)


def test_groups_are_paid_by_the_hybrid(dataset: Dataset, retriever: InProcessRetriever) -> None:
    hybrid = TrainingHybrid(fusion("transitions"), Task(dataset, retriever, ()), 0.5)
    section = RewardSection(fuse="transitions", credit="marginal", rank_shaping=0.2)
    scorer = Scorer(retriever, section, hybrid=hybrid, groups=Groups(3, "max"))
    examples = build_examples(dataset, "train")[:8]
    titles = [str(item["title"]) for item in dataset.items]
    groups = [[titles[e.target], titles[e.history[-1]], titles[e.history[0]]] for e in examples]
    columns = [e.target for e in examples], [list(e.history) for e in examples], [e.user for e in examples]
    three = [[value for value in column for _ in range(3)] for column in columns]
    texts = [text for group in groups for text in group]
    scores = scorer.score(texts, *three)
    own, together, without = hybrid.group_ranks(groups, columns[2], columns[0], columns[1], "max")
    plain = Scorer(retriever, section, hybrid=hybrid)

    def worth(ranks: Any) -> Any:
        return np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0) + 0.2 * (1 - np.log(ranks) / np.log(ITEMS))

    expected = worth(np.repeat(together.ranks, 3)) - worth(without.ranks)
    np.testing.assert_allclose(scores.rewards, expected, rtol=0, atol=1e-12)
    assert (scores.rewards > 0).any()
    assert scores.ranks.tolist() == own.ranks.tolist() == plain.score(texts, *three).ranks.tolist()
    with pytest.raises(DataError, match="completion 1 has another user than completion 0"):
        scorer.score(texts[:3], three[0][:3], three[1][:3], ["a", "b", "a"])
    with pytest.raises(DataError, match="without the names of their users"):
        scorer.score(texts[:3], three[0][:3], three[1][:3])


@pytest.mark.parametrize("weights", ["equal", "probability"])
def test_several_texts_of_users_are_measured_as_eval_does(
    dataset: Dataset, retriever: InProcessRetriever, weights: str
) -> None:
    sets = ("generation.texts_per_user=3", "eval.temperature=1", f"generation.text_weights={weights}")
    section = configured(*sets).generation
    examples = build_examples(dataset, "validation")
    titles = [str(item["title"]) for item in dataset.items]
    texts = [[titles[item] for item in (*e.history, 0, 1)[:3]] for e in examples]
    log_probs = [[-float(len(text)) for text in some] for some in texts] if weights == "probability" else None
    task = Task(dataset, retriever, ())
    hybrid = TrainingHybrid(fusion("transitions"), task, 0.3)
    own = score_completions(texts, log_probs, section, retriever)
    validation = measure("validation", hybrid.join(own, examples), dataset, examples, kind="policy")
    theirs = fusion("transitions").open_scores(task)(examples)
    columns = [e.target for e in examples], [e.history for e in examples]
    assert validation.ranking.ranks.tolist() == fuse(own, theirs).at(0.3).ranks(*columns).ranks.tolist()
    assert validation.notes["texts_per_user"] == 3
    # The table at the end.
    alone = measure("tuned policy", own, dataset, examples, kind="policy", texts=texts, log_probs=log_probs)
    measured = hybrid.measure(alone, examples, section)
    method = VectorMethod("tuned policy", "policy", lambda examples: own, lambda examples: {})
    expected = fusion("transitions").measure_with(method, replace(task, examples=examples), "validation")
    assert measured.ranking.ranks.tolist() == expected.ranking.ranks.tolist()
    assert (measured.name, measured.notes["texts_per_user"]) == ("tuned policy + transitions", 3)


def test_a_scorer_without_what_it_needs_is_refused(dataset: Dataset, retriever: InProcessRetriever) -> None:
    section = RewardSection(fuse="transitions")
    with pytest.raises(ConfigError, match=r"reward\.fuse=transitions: this scorer ranks by texts alone"):
        Scorer(retriever, section)
    hybrid = TrainingHybrid(fusion("transitions"), Task(dataset, retriever, ()), 0.5)
    scorer = Scorer(retriever, section, hybrid=hybrid)
    with pytest.raises(DataError, match="without the names of their users"):
        scorer.score(["a"], [1], [[0]])
    with pytest.raises(DataError, match="has no user 'nobody'"):
        scorer.score(["a"], [1], [[0]], ["nobody"])


def test_users_who_only_train_are_in_one_half_each() -> None:
    base = synthesize(10, 30, 0)
    dataset = replace(
        base,
        users=base.users[:6],
        sequences=base.sequences[:6],
        training_only_users=base.users[6:],
        training_only=base.sequences[6:],
    )
    halves = dict(zip(dataset.training_users, halves_of_users(dataset).tolist(), strict=True))
    assert sum(halves.values()) == 5
    for half in (0, 1):
        fitted_on = without_half(dataset, half)
        assert set(fitted_on.training_users) == {user for user, own in halves.items() if own != half}
        assert len(fitted_on.training_parts) == 5
