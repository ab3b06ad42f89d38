"""BM25 with several texts of a user: ranks and best items against the formulas, item by item."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.data.dataset import build_examples
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.eval import probes
from rl4rec_cli.eval.baselines import bm25_scores
from rl4rec_cli.eval.fused_words import FusedWords
from rl4rec_cli.eval.scoring import Measured, measure
from rl4rec_cli.ranking.fusing import Fusion
from rl4rec_cli.retrieval.several_texts import different_texts

WORDS = ["rose", "mint", "cedar", "honey", "cream", "soap", "oil", "balm", "gel", "salt"]
FUSIONS: list[Fusion] = ["logsumexp", "max", "mean", "rrf"]
ITEMS = 40


def shop(
    seed: int, users: int = 25
) -> tuple[list[str], list[list[str]], list[list[float]], list[int], list[list[int]]]:
    """Items' texts (some equal), users' texts (some equal, blank or unknown), log-probabilities, targets, masks."""
    draw = np.random.default_rng(seed)
    items = [" ".join(draw.choice(WORDS, 3)) for _ in range(ITEMS - 6)]
    items += items[:6]
    texts = [
        [str(draw.choice([" ".join(draw.choice(WORDS, 2)), "rose", "", "unheard of"])) for _ in range(4)]
        for _ in range(users)
    ]
    texts[0], texts[1] = ["", "unheard of", "", ""], ["", "cedar", "", "unheard of"]
    log_p = [[float(-5 * draw.random()) for _ in own] for own in texts]
    targets = draw.integers(ITEMS, size=users).tolist()
    masks = [draw.choice(ITEMS, 5, replace=False).tolist() for _ in range(users)]
    masks[2].append(targets[2])  # the target is ranked all the same
    return items, texts, log_p, targets, masks


def bm25_by_hand(items: list[str], text: str) -> list[float]:
    """Lucene's BM25, k1 1.5 and b 0.75."""
    documents = [item.split() for item in items]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in text.split():
            containing = sum(word in other for other in documents)
            if not containing:
                continue
            idf = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
            count = document.count(word)
            score += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean))
        scores.append(score)
    return scores


def fused_by_hand(rows: list[list[float]], log_p: list[float], fusion: str, counted: list[int]) -> list[float]:
    largest = max(log_p)
    weights = [math.exp(w - largest) for w in log_p]
    fused = []
    for item in range(ITEMS):
        scores = [row[item] for row in rows]
        if fusion == "logsumexp":
            fused.append(math.log(sum(w * math.exp(s) for w, s in zip(weights, scores, strict=True))))
        elif fusion == "max":
            fused.append(max(math.log(w) + s for w, s in zip(weights, scores, strict=True)))
        elif fusion == "mean":
            fused.append(sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights))
        else:
            before = [sum(row[other] >= row[item] - 1e-5 for other in counted) for row in rows]
            fused.append(sum(w / (60 + rank) for w, rank in zip(weights, before, strict=True)))
    return fused


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("is_weighed", [False, True])
def test_ranks_and_best_items_are_those_of_the_formulas(fusion: Fusion, is_weighed: bool) -> None:
    items, texts, log_p, targets, masks = shop(3)
    users = different_texts(texts, log_p if is_weighed else None)
    scored = FusedWords(bm25_scores(items, users.texts), users, fusion)
    ranks, scorable = scored.ranks(targets, masks)
    best = scored.top(ITEMS, masks)
    near = 1e-12 if fusion == "rrf" else 1e-5  # BM25 scores are float32
    for user, own in enumerate(texts):
        largest: dict[str, float] = {}
        for text, logp in zip(own, log_p[user], strict=True):
            largest[text] = max(logp, largest.get(text, logp))
        rows = {text: bm25_by_hand(items, text) for text in largest}
        known = [text for text in largest if any(rows[text])]
        assert scorable[user] == bool(known)
        if not known:
            assert ranks[user] == ITEMS
            assert (best[user] == -1).all()
            continue
        weights = [largest[text] if is_weighed else 0.0 for text in known]
        counted = [i for i in range(ITEMS) if i not in masks[user] or i == targets[user]]
        fused = fused_by_hand([rows[text] for text in known], weights, fusion, counted)
        assert ranks[user] == sum(fused[i] >= fused[targets[user]] - near for i in counted), user
        left = [i for i in range(ITEMS) if i not in masks[user]]
        fused = fused_by_hand([rows[text] for text in known], weights, fusion, left)
        found = best[user][best[user] >= 0].tolist()
        assert sorted(found) == left
        assert all(fused[a] >= fused[b] - near for a, b in pairwise(found))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_text_keeps_its_own_ranks(fusion: Fusion) -> None:
    items, texts, _, targets, masks = shop(4)
    single = [[own[0]] for own in texts]
    users = different_texts(single)
    scores = bm25_scores(items, users.texts)
    fused, alone = FusedWords(scores, users, fusion).ranks(targets, masks), scores.ranks(targets, masks)
    assert fused.ranks.tolist() == alone.ranks.tolist()
    assert fused.scorable.tolist() == alone.scorable.tolist()


def test_the_second_embedder_ranks_several_completions_by_words() -> None:
    dataset = synthesize(users=40, items=30, seed=2)
    examples = build_examples(dataset, "validation")
    titles = [str(item["title"]) for item in dataset.items]
    several = ["generation.texts_per_user=2", "eval.temperature=1", "eval.second_embedder=bm25"]
    config = load_config(algorithm="grpo", recipes=["quick-test"], sets=several)

    def written(name: str, texts: list[list[str]]) -> Measured:
        users = different_texts(texts)
        scored: Any = FusedWords(bm25_scores(dataset.texts(), users.texts), users, "max")
        return measure(name, scored, dataset, examples, kind="policy", texts=texts)

    knows = written("ours", [[titles[e.target], titles[e.history[-1]]] for e in examples])
    copies = written("start", [[titles[e.history[-1]], ""] for e in examples])
    probe = probes.second_embedder(config, dataset, examples, knows, copies, "ndcg@10")
    assert probe.name == "second embedder: BM25"
    assert probe.passed is True
