"""Hybrids: who chooses the weight, what is refused before anything is measured, and what the verdict says they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl4rec_cli.config.evaluation import EvalSection
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.data.dataset import Dataset, Example, build_examples
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import DataError
from rl4rec_cli.eval import hybrids
from rl4rec_cli.eval.baseline import measure_baselines, open_baseline
from rl4rec_cli.eval.baselines import open_transitions
from rl4rec_cli.eval.evaluation import Evaluation
from rl4rec_cli.eval.fused_scores import fuse
from rl4rec_cli.eval.fusion import choose_weight, cross_fitted
from rl4rec_cli.eval.hybrids import Fusion, Hybrid, last_item, open_fusion
from rl4rec_cli.eval.scoring import Measured, SparseScores, Task, VectorScores
from rl4rec_cli.eval.statistics import holm
from rl4rec_cli.eval.vector_method import VectorMethod
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.retriever import InProcessRetriever, Ranking
from rl4rec_cli.rewards.functions import ndcg

Make = Callable[..., Dataset]
Shop = tuple[Dataset, InProcessRetriever]


@pytest.fixture(scope="module")
def shop() -> Shop:
    dataset = synthesize(users=200, items=80, seed=3)
    return dataset, open_retriever(RetrievalSection(embedder="lsa", device="cpu"), dataset)


def fusion() -> Fusion:
    opened = open_fusion("transitions")
    assert opened is not None
    return opened


def test_the_setting_names_a_baseline() -> None:
    assert open_fusion("none") is None
    names = {
        name: EvalSection(fuse=name, baselines=("bm25",)).all_baselines for name in ("none", "sasrec", "transitions")
    }  # type: ignore[arg-type]
    assert names == {
        "none": ("bm25",),
        "sasrec": ("bm25", "fusion"),
        "transitions": ("bm25", "fusion_transitions"),
    }
    # A recipe from before has the baseline, and it is not measured twice.
    old = load_config(
        algorithm="grpo", recipes=["quick-test"], sets=["eval.baselines=[fusion,sasrec]", "eval.fuse=sasrec"]
    )
    assert old.eval.all_baselines == ("fusion", "sasrec")


def test_on_the_test_split_validation_users_choose(shop: Shop, tmp_path: Path) -> None:
    dataset, retriever = shop
    task = Task(dataset, retriever, build_examples(dataset, "test"), cache=tmp_path)
    measured = fusion().measure(task, "test")
    assert (measured.name, measured.kind, measured.is_hybrid) == ("last item + transitions", "baseline", True)

    def fused(examples: Sequence[Example]) -> Any:
        sequence = open_baseline("transitions").score(replace(task, examples=examples))  # type: ignore[attr-defined]
        return fuse(last_item(task).scores(examples), sequence)

    validation = build_examples(dataset, "validation")
    weight = choose_weight(fused(validation), [e.target for e in validation], [e.history for e in validation]).weight
    assert measured.notes["weights"] == [weight]
    found = fused(task.examples).at(weight).ranks([e.target for e in task.examples], [e.history for e in task.examples])
    assert measured.ranking.ranks.tolist() == found.ranks.tolist()
    # The targets that are measured have no say: with others the weight stays.
    moved = [replace(example, target=(example.target + 1) % dataset.num_items) for example in task.examples]
    assert fusion().measure(replace(task, examples=moved), "test").notes["weights"] == [weight]


def test_on_the_validation_split_each_half_has_the_others_weight(shop: Shop) -> None:
    dataset, retriever = shop
    task = Task(dataset, retriever, build_examples(dataset, "validation"))
    measured = fusion().measure(task, "validation")
    sequence = open_baseline("transitions").score(task)  # type: ignore[attr-defined]
    fused = fuse(last_item(task).scores(task.examples), sequence)
    found = cross_fitted(fused, [e.target for e in task.examples], [e.history for e in task.examples])
    assert measured.ranking.ranks.tolist() == found.ranking.ranks.tolist()
    assert measured.notes["weights"] == sorted(set(found.weights.tolist()))


def test_what_is_kept_is_read_for_the_same_method_only(shop: Shop, tmp_path: Path) -> None:
    dataset, retriever = shop
    task = Task(dataset, retriever, build_examples(dataset, "test"), cache=tmp_path)
    scored: list[int] = []

    def method(identity: str) -> VectorMethod:
        def scores(examples: Sequence[Example]) -> Any:
            scored.append(len(examples))
            return last_item(task).scores(examples)

        return VectorMethod("mine", "policy", scores, lambda examples: {"identity": identity})

    first = fusion().measure_with(method("a"), task, "test")
    assert scored == [200, 200], "the users who are measured, and those who choose"
    again = fusion().measure_with(method("a"), task, "test")
    assert fusion().choose(method("a"), task) == again.notes["weights"][0]  # type: ignore[index]
    assert scored == [200, 200]
    assert (again.is_hybrid, again.kind, again.name) == (True, "policy", "mine + transitions")
    assert again.ranking.ranks.tolist() == first.ranking.ranks.tolist()
    fusion().measure_with(method("b"), task, "test")
    assert len(scored) == 4
    # Fewer users are measured with the weight that was chosen before.
    fusion().measure_with(method("b"), replace(task, examples=task.examples[:50]), "test")
    assert scored[4:] == [50]


@pytest.mark.parametrize("kind", ["sparse", "vectors"])
def test_the_best_of_one_history_is_that_of_whole_rows(shop: Shop, kind: str) -> None:
    dataset, retriever = shop
    test = build_examples(dataset, "test")
    task = Task(dataset, retriever, test)
    sequence = {"sparse": open_transitions(task), "vectors": last_item(task).scores}[kind]
    own_BD = retriever.text_vectors([str(dataset.items[e.history[0]]["title"]) for e in test])
    hybrid = Hybrid("its label", 0.35, sequence)
    for row, mask in ((3, True), (7, False), (8, True)):
        history = test[row].history
        own = VectorScores(own_BD[row : row + 1], retriever.matrix)
        ids, scores = hybrid.best(own, history, 12, mask=mask)
        parts = [
            retriever.vectors_ND.double().numpy() @ own_BD[row].double().numpy(),
            whole_row(sequence([test[row]]), dataset.num_items),
        ]
        fused = sum(w * part / part.std() for w, part in zip((0.35, 0.65), parts, strict=True))
        left = [i for i in range(dataset.num_items) if not (mask and i in history)]
        assert ids.tolist() == sorted(left, key=lambda i: (-fused[i], i))[:12]
        assert scores == pytest.approx(fused[ids], rel=1e-6)
    everything, _ = hybrid.best(own, history, 500, mask=True)
    assert sorted(everything.tolist()) == left, "fewer than were asked for, where no more are left"


def whole_row(scored: VectorScores | SparseScores, items: int) -> np.ndarray:
    ids_1N, scores_1N = scored.best(items, None)
    row = np.empty(items)
    row[ids_1N[0]] = scores_1N[0]
    return row


def test_who_cannot_choose_is_told_before_anything_is_scored(make_dataset: Make, scripted: type) -> None:
    def refuse(examples: Sequence[Example]) -> Any:
        raise AssertionError("scored all the same")

    mine = VectorMethod("mine", "policy", refuse, lambda examples: {})
    lonely = make_dataset(sequences=[[0, 1, 2, 3]])
    still = make_dataset(sequences=[[0, 1, 2], [3, 4, 5], [1, 2, 3]])
    for dataset, told, hint in (
        (lonely, "validation users choose the weight, and there are fewer than two (1 validation user)", "--fuse"),
        (still, "no training part has two items, so nothing follows anything", "--fuse"),
    ):
        for split in ("validation", "test"):
            task = Task(dataset, InProcessRetriever(scripted({}, 2), np_vectors(6)), build_examples(dataset, split))  # type: ignore[arg-type]
            for attempt in (
                lambda task=task, split=split: fusion().measure_with(mine, task, split),
                lambda task=task, split=split: measure_baselines([open_baseline("fusion_transitions")], task, split),
                lambda task=task, split=split: open_baseline("fusion").check(task.dataset, task.examples, split),
                lambda task=task: fusion().choose(mine, task),
            ):
                with pytest.raises(DataError) as caught:
                    attempt()
                assert told in caught.value.message
                assert hint in (caught.value.hint or "")
    # Nobody who was trained on chooses.
    fitted = replace(make_dataset(sequences=[[0, 1, 2, 3], [1, 2, 3, 4]]), fit="train_and_validation")
    task = Task(fitted, InProcessRetriever(scripted({}, 2), np_vectors(6)), build_examples(fitted, "test"))
    for attempt in (lambda: fusion().measure_with(mine, task, "test"), lambda: fusion().choose(mine, task)):
        with pytest.raises(DataError, match="what is trained has seen their targets") as caught:
            attempt()
        assert "data.fit=train" in (caught.value.hint or "")
    # Weights that are named are taken as they are, those of others are still missing.
    named = replace(task, fuse_weights={"last item": 0.25})
    assert fusion().measure(named, "test").notes["weights"] == [0.25]
    fusion().check(fitted, named.examples, "test", named.fuse_weights)
    with pytest.raises(DataError, match="what is trained has seen their targets"):
        fusion().measure_with(mine, named, "test")
    with pytest.raises(DataError, match="what is trained has seen their targets"):
        fusion().check(fitted, named.examples, "test", {"another": 0.5})
    # One user is measured, but there are others who choose.
    several = make_dataset(sequences=[[0, 1, 2, 3], [1, 2, 3, 4]])
    one = build_examples(several, "test")[:1]
    fusion().check(several, one, "test")
    with pytest.raises(DataError, match=r"measure more users|fewer than two"):
        fusion().check(several, one, "validation")


def np_vectors(items: int) -> Any:
    import torch

    return torch.eye(items)[:, :2]


def made(name: str, kind: Any, ranks: np.ndarray, *, hybrid: bool = False) -> Measured:
    users = len(ranks)
    return Measured(
        name, Ranking(ranks, np.ones(users, bool)), None, kind, np.zeros((users, 10), int), is_hybrid=hybrid
    )


def evaluation(with_it: int) -> Evaluation:
    """`with_it`: the rank that the hybrid with the policy gives every second user, where the one without gives 6."""
    users = np.arange(200)
    examples = [Example(f"u{i}", (0,), 1) for i in users]
    methods = [
        made("last item", "baseline", np.where(users % 3, 9, 2)),
        made("last item + transitions", "baseline", np.where(users % 2, 6, 2), hybrid=True),
        made("last item + SASRec", "baseline", np.full(200, 11), hybrid=True),
        made("tuned policy", "policy", np.where(users % 3, 9, 2)),
        made("tuned policy + transitions", "policy", np.where(users % 2, with_it, 2), hybrid=True),
    ]
    return Evaluation("test", examples, (10,), methods=methods, subject="tuned policy")


@pytest.mark.parametrize(("with_it", "reads"), [(1, "above"), (6, "no difference shown from"), (40, "below")])
def test_the_verdict_says_what_the_policy_adds_to_the_best_hybrid(with_it: int, reads: str) -> None:
    found = evaluation(with_it)
    values = {m.name: ndcg(m.ranking.ranks, 10) for m in found.methods}
    ours, theirs = "tuned policy + transitions", "last item + transitions"
    told = found.hybrids
    assert told is not None
    assert (told["ours"], told["theirs"]) == (ours, theirs), "the best of those without the policy"
    assert told["mean"] == pytest.approx((values[ours] - values[theirs]).mean())
    assert (
        f"; the best hybrid with it, {ours}, reaches {values[ours].mean():.4f}, {reads} the best hybrid without it, "
        f"{theirs} ({values[theirs].mean():.4f}) ({told['mean']:+.4f} ["
    ) in found.verdict
    # One family of tests.
    tests = [*found.differences.values(), told]
    assert len(tests) == 5
    assert [t["p_holm"] for t in tests] == holm([t["p_value"] for t in tests]).tolist()
    assert found.as_json()["hybrids"] == told


def test_without_a_pair_of_hybrids_nothing_is_said() -> None:
    for left_out in ("policy", "baseline"):
        found = evaluation(1)
        found.methods = [m for m in found.methods if not (m.is_hybrid and m.kind == left_out)]
        assert found.hybrids is None
        assert "hybrid" not in found.verdict
        assert "hybrids" not in found.as_json()
    alone = evaluation(1)
    alone.methods, alone.subject = [m for m in alone.methods if m.kind == "baseline"], None
    assert alone.hybrids is None
    assert "no policy was measured" in alone.verdict


def test_the_users_who_choose_are_a_fixed_draw(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hybrids, "CHOOSERS", 30)
    drawn = hybrids.choosers(shop[0])
    assert len(drawn) == 30
    assert drawn == hybrids.choosers(shop[0])
    assert set(drawn) < set(build_examples(shop[0], "validation"))
