"""Probes name the policies they are made for; the verdict says what the statistics allow and no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from rl4rec_cli.config.evaluation import EvalSection
from rl4rec_cli.config.sections import RetrievalSection, RunConfig
from rl4rec_cli.data.dataset import Dataset, Example, build_examples
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import EmbeddingError
from rl4rec_cli.eval import probes
from rl4rec_cli.eval.evaluation import Evaluation
from rl4rec_cli.eval.scoring import Measured, VectorScores, measure
from rl4rec_cli.ranking.ranks import ItemMatrix
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.retriever import InProcessRetriever, Ranking

LSA = RunConfig(retrieval=RetrievalSection(embedder="lsa", device="cpu"))


@pytest.fixture(scope="module")
def shop() -> tuple[Dataset, InProcessRetriever, list[Example]]:
    dataset = synthesize(users=400, items=120, seed=3)
    return dataset, open_retriever(LSA.retrieval, dataset), build_examples(dataset, "validation")


def written(
    name: str, texts: list[str], shop: tuple[Dataset, InProcessRetriever, list[Example]], matrix: Any = None
) -> Measured:
    dataset, retriever, examples = shop
    scored = matrix(texts) if matrix else VectorScores(retriever.text_vectors(texts), retriever.matrix)
    return measure(name, scored, dataset, examples, kind="policy", texts=[[text] for text in texts])


def last_titles(dataset: Dataset, examples: Sequence[Example]) -> list[str]:
    return [str(dataset.items[e.history[-1]]["title"]) for e in examples]


def test_a_policy_that_cheats_the_embedder_is_named(shop: Any) -> None:
    """Texts that mean nothing, which the first embedder happens to place beside the target."""
    dataset, _, examples = shop
    generator = torch.Generator().manual_seed(0)
    items_ND = torch.nn.functional.normalize(torch.randn(dataset.num_items, 16, generator=generator), dim=1)
    codes = {f"zxq{e.target}": items_ND[e.target] for e in examples}

    def fooled(texts: list[str]) -> VectorScores:
        rows = [codes.get(text, items_ND[len(text) % dataset.num_items]) for text in texts]
        return VectorScores(torch.stack(rows), ItemMatrix(items_ND))

    start = written("before RL", last_titles(dataset, examples), shop, fooled)
    cheat = written("tuned policy", [f"zxq{e.target}" for e in examples], shop, fooled)
    found = probes.second_embedder(LSA, dataset, examples, cheat, start, "ndcg@10")
    assert found.passed is False
    evaluation = Evaluation("validation", examples, (10,), methods=[start, cheat], subject="tuned policy")
    assert "BUT" not in evaluation.verdict
    evaluation.probes.append(found)
    said = evaluation.verdict
    assert "above what it started from" in said
    assert "BUT its gain over before RL vanishes when BM25 ranks the same texts" in said


def test_a_gain_that_both_embedders_see_passes(shop: Any) -> None:
    dataset, _, examples = shop
    start = written("before RL", last_titles(dataset, examples), shop)
    ours = written("tuned policy", [str(dataset.items[e.target]["text"]) for e in examples], shop)
    assert probes.second_embedder(LSA, dataset, examples, ours, start, "ndcg@10").passed is True
    # Without a gain there is nothing that could vanish.
    assert probes.second_embedder(LSA, dataset, examples, start, start, "ndcg@10").passed is None


def test_the_second_embedder_must_be_another_one(shop: Any, minilm: str) -> None:
    dataset, _, examples = shop
    ours = written("p", last_titles(dataset, examples), shop)
    for retrieval, second in ((LSA.retrieval, "lsa"), (RetrievalSection(model=minilm, device="cpu"), minilm)):
        config = RunConfig(retrieval=retrieval, eval=EvalSection(second_embedder=second))
        with pytest.raises(EmbeddingError, match="probes nothing"):
            probes.second_embedder(config, dataset, examples, ours, ours, "ndcg@10")


def probe(
    shop: Any, write: Callable[[Dataset, Sequence[Example]], list[str]], *, order: bool
) -> tuple[probes.Probe, Measured]:
    dataset, _, examples = shop
    change, name = (probes.shuffled, probes.SHUFFLED) if order else (probes.exchanged, probes.OTHER)
    ours = written("tuned policy", write(dataset, examples), shop)
    again = written("again", write(dataset, change(examples)), shop)
    return probes.history_probe(name, ours, again, "ndcg@10", examples, is_order=order), ours


@pytest.mark.parametrize("order", [True, False])
def test_a_policy_that_ignores_its_history_is_named(shop: Any, order: bool) -> None:
    dataset, _, examples = shop
    popular = str(dataset.items[np.bincount([e.target for e in examples]).argmax()]["title"])
    found, ours = probe(shop, lambda _, rows: [popular] * len(rows), order=order)
    assert found.passed is False
    evaluation = Evaluation("validation", examples, (10,), methods=[ours], subject="tuned policy", probes=[found])
    assert ("ignores the order of its history" if order else "ignores its history") in evaluation.verdict


def test_a_policy_that_reads_its_history_passes(shop: Any) -> None:
    assert probe(shop, last_titles, order=False)[0].passed is True
    # This data has no order: reading it in vain is neither here nor there.
    assert probe(shop, last_titles, order=True)[0].passed is None


def test_a_policy_that_reads_the_order_passes(make_dataset: Callable[..., Dataset]) -> None:
    words = [f"{a}{b}ix" for a in "bcdfghjklm" for b in "aeiou"]
    chain = make_dataset(words, sequences=[[(start + step) % 50 for step in range(6)] for start in range(50)] * 2)
    shop = (chain, open_retriever(LSA.retrieval, chain), build_examples(chain, "validation"))

    def follow(_: Dataset, rows: Sequence[Example]) -> list[str]:
        return [words[(e.history[-1] + 1) % 50] for e in rows]

    assert probe(shop, follow, order=True)[0].passed is True


def test_a_policy_that_finds_nobody_fails_no_probe(shop: Any) -> None:
    found, _ = probe(shop, lambda _, rows: ["" for _ in rows], order=False)
    assert found.passed is None


def test_changed_histories(shop: Any) -> None:
    _, _, examples = shop
    mixed, other = probes.shuffled(examples), probes.exchanged(examples)
    assert [e.target for e in mixed] == [e.target for e in other] == [e.target for e in examples]
    assert all(sorted(a.history) == sorted(b.history) for a, b in zip(mixed, examples, strict=True))
    assert sum(a.history != b.history for a, b in zip(mixed, examples, strict=True)) > len(examples) / 2
    assert all(a.user != b.user for a, b in zip(other, examples, strict=True))
    assert sorted(e.user for e in other) == sorted(e.user for e in examples), "everyone's history is given once"
    apart = [abs(len(a.history) - len(b.history)) for a, b in zip(other, examples, strict=True)]
    assert sorted(apart)[int(len(apart) * 0.95)] <= 1
    assert probes.exchanged(examples) == other, "the same ones every time"


# --- verdict ---


def method(name: str, ranks: Sequence[int], kind: Any = "baseline") -> Measured:
    ranking = Ranking(np.asarray(ranks, np.int64), np.ones(len(ranks), np.bool_))
    return Measured(name, ranking, None, kind, np.zeros((len(ranks), 0), np.int64))


def evaluation(*methods: Measured, subject: str | None) -> Evaluation:
    users = len(methods[0].ranking.ranks)
    examples = [Example(f"u{i}", (0,), 1) for i in range(users)]
    return Evaluation("test", examples, (10,), methods=list(methods), subject=subject)


def test_the_verdict_compares_with_the_best_baseline_and_the_start() -> None:
    users = np.arange(1000)
    said = evaluation(
        method("popularity", np.where(users % 10 == 0, 1, 50)),
        method("last item", np.where(users % 4 == 0, 1, 50)),
        method("target text", np.ones(1000), "ceiling"),
        method("before RL", np.where(users % 5 == 0, 1, 50), "policy"),
        method("tuned policy", np.where(users % 2 == 0, 1, 50), "policy"),
        subject="tuned policy",
    ).verdict
    assert said.startswith(
        "on 1,000 test users tuned policy reaches ndcg@10 0.5000: above the best baseline, last item"
    )
    assert "(0.2500)" in said
    assert "and above what it started from, before RL (0.2000) (+0.3000" in said
    assert "p <.001" in said
    assert "\n" not in said


def test_the_verdict_claims_nothing_it_cannot_show() -> None:
    users = np.arange(300)
    start, tuned = np.where(users % 30 == 0, 1, 50), np.where(users % 30 == 0, 1, 50)
    tuned[1] = 1
    said = evaluation(method("before RL", start, "policy"), method("t", tuned, "policy"), subject="t").verdict
    assert "no difference shown from what it started from" in said
    lower = evaluation(method("last item", np.ones(300)), method("t", start, "policy"), subject="t").verdict
    assert "below the best baseline, last item (1.0000)" in lower
    none = evaluation(method("popularity", start), method("last item", np.ones(300)), subject=None).verdict
    assert none == "on 300 test users the best baseline is last item (ndcg@10 1.0000); no policy was measured."
    assert "nothing was measured beside it" in evaluation(method("t", start, "policy"), subject="t").verdict


def test_p_values_are_adjusted_over_all_comparisons() -> None:
    rng = np.random.default_rng(0)
    others = [method(f"b{i}", np.where(rng.random(400) < 0.1, 1, 50)) for i in range(6)]
    result = evaluation(*others, method("t", np.where(rng.random(400) < 0.14, 1, 50), "policy"), subject="t")
    found = result.differences
    assert len(found) == 6
    assert all(d["p_holm"] >= d["p_value"] for d in found.values())
    assert min(d["p_holm"] for d in found.values()) == pytest.approx(6 * min(d["p_value"] for d in found.values()))
