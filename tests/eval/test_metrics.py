"""Metrics: by hand, and next to other people's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytrec_eval
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl4rec_cli.eval.metrics import means, metric_names, per_user
from rl4rec_cli.retrieval.retriever import InProcessRetriever, Ranking

# --- metrics ---


@given(
    users=st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=30),
    ks=st.lists(st.integers(1, 40), min_size=1, max_size=3, unique=True),
)
def test_metrics_are_brute_force(users: list[tuple[int, bool]], ks: list[int]) -> None:
    ranking = Ranking(np.array([r for r, _ in users], np.int64), np.array([s for _, s in users], np.bool_))
    values = per_user(ranking, ks)
    assert list(values) == metric_names(ks)
    for k in ks:
        for row, (rank, scorable) in enumerate(users):
            # The list that is judged: 1 where the target stands.
            shown = [int(scorable and place == rank) for place in range(1, k + 1)]
            assert values[f"ndcg@{k}"][row] == pytest.approx(sum(g / math.log2(p + 2) for p, g in enumerate(shown)))
            assert values[f"hit@{k}"][row] == max(shown)
            assert values[f"mrr@{k}"][row] == pytest.approx(sum(g / (p + 1) for p, g in enumerate(shown)))
    assert means(ranking, ks) == {name: pytest.approx(np.mean(v)) for name, v in values.items()}


# --- metrics next to other people's ---

KS = (1, 5, 10, 20)


@pytest.fixture(scope="module", params=["no ties", "many ties"])
def judged(request: pytest.FixtureRequest) -> tuple[Ranking, list[dict[str, float]], list[str]]:
    """1,000 rankings of 40 items: our ranks, and for each the items as others take them, by score, and the target.

    Items that tie with the target come before it, which is our rule; the others are told so by a score of their own.
    """
    rng = np.random.default_rng(7)
    cases, n = 1000, 40
    if request.param == "no ties":
        scores_CN = np.stack([rng.permutation(n) for _ in range(cases)])
    else:
        scores_CN = rng.integers(0, 8, (cases, n))
    targets_C = rng.integers(0, n, cases)
    # Items are the unit axes: a query's scores are its own coordinates.
    retriever = InProcessRetriever(request.getfixturevalue("scripted")({}, n), torch.eye(n))
    histories = [rng.choice(n, 5, replace=False).tolist() for _ in range(cases)]
    ranking = retriever.vector_ranks(torch.from_numpy(scores_CN + 1).float(), targets_C.tolist(), histories)
    pessimistic_CN = scores_CN.astype(np.float64)
    pessimistic_CN[np.arange(cases), targets_C] -= 0.5
    # Ties among the rest are of no account to one relevant item, but are broken here, so that no reference has to.
    pessimistic_CN += np.arange(n) * 1e-3
    runs = [
        {f"d{i}": float(row[i]) for i in range(n) if i == target or i not in history}
        for row, target, history in zip(pessimistic_CN, targets_C, histories, strict=True)
    ]
    return ranking, runs, [f"d{target}" for target in targets_C]


def test_a_thousand_rankings_agree_with_trec_eval(judged: tuple[Ranking, list[dict[str, float]], list[str]]) -> None:
    ranking, runs, targets = judged
    wanted = {*(f"ndcg_cut.{k}" for k in KS), *(f"success.{k}" for k in KS), "recip_rank"}
    evaluator = pytrec_eval.RelevanceEvaluator({f"q{c}": {target: 1} for c, target in enumerate(targets)}, wanted)
    measured = evaluator.evaluate({f"q{c}": run for c, run in enumerate(runs)})
    theirs = {name: np.array([measured[f"q{c}"][name] for c in range(len(runs))]) for name in measured["q0"]}
    values = per_user(ranking, KS)
    for k in KS:
        assert np.abs(values[f"ndcg@{k}"] - theirs[f"ndcg_cut_{k}"]).max() <= 1e-12
        assert np.abs(values[f"hit@{k}"] - theirs[f"success_{k}"]).max() <= 1e-12
        # trec_eval cuts reciprocal ranks nowhere.
        assert np.abs(values[f"mrr@{k}"] - theirs["recip_rank"] * theirs[f"success_{k}"]).max() <= 1e-12
    assert 0.1 < values["hit@10"].mean() < 0.9


@pytest.mark.slow  # ranx compiles itself the first time it runs, which takes about a minute
def test_a_thousand_rankings_agree_with_ranx(judged: tuple[Ranking, list[dict[str, float]], list[str]]) -> None:
    ranx = pytest.importorskip("ranx", reason="pip install ranx")
    ranking, runs, targets = judged
    # ranx sorts queries by name and returns values in that order.
    names = [f"q{c:04d}" for c in range(len(runs))]
    theirs = ranx.evaluate(
        ranx.Qrels({name: {target: 1} for name, target in zip(names, targets, strict=True)}),
        ranx.Run(dict(zip(names, runs, strict=True))),
        [f"{name}@{k}" for name in ("ndcg", "hit_rate", "mrr") for k in KS],
        return_mean=False,
    )
    for name, values in per_user(ranking, KS).items():
        assert np.abs(values - theirs[name.replace("hit", "hit_rate")]).max() <= 1e-9
