"""Synthetic data: the same everywhere, ids that tell nothing, words that pay and words that do not."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
from collections import Counter
from functools import cache

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from rl4rec_cli.data.dataset import Dataset, Example, build_examples
from rl4rec_cli.data.synthetic import BRANDS, CATEGORIES, COLOURS, MATERIALS, synthesize
from rl4rec_cli.errors import ConfigError

# --- sameness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hash_seed", ["0", "1234"])
def test_the_same_seed_gives_the_same_dataset_in_another_process(hash_seed: str) -> None:
    code = "from rl4rec_cli.data.synthetic import synthesize; print(synthesize(50, 60, 7).digest)"
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == synthesize(50, 60, 7).digest


def test_another_seed_gives_another_dataset() -> None:
    assert len({synthesize(50, 60, seed).digest for seed in range(5)}) == 5


# --- shape -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("users", "items"), [(1, 20), (100, 100), (200, 300)])
def test_shape(users: int, items: int) -> None:
    data = synthesize(users, items, 3)
    assert data.name == f"synthetic-{users}x{items}-s3"
    assert (len(data.users), len(set(data.users)), len(data.sequences), data.num_items) == (users, users, users, items)
    assert [row["item_id"] for row in data.items] == list(range(items))
    lengths = {len(sequence) for sequence in data.sequences}
    assert min(lengths) >= 5
    assert max(lengths) <= min(15, items // 2)
    for sequence in data.sequences:
        assert all(type(i) is int for i in sequence)
        assert len(set(sequence)) == len(sequence)
    assert data.mask_history is True
    for row in data.items:
        title = " ".join(row[f] for f in ("brand", "colour", "material", "category", "line", "size"))
        assert (row["title"], row["text"]) == (title, f"{title}.")
    assert len(set(data.texts("title"))) == items


def test_titles_stay_distinct_beyond_all_combinations() -> None:
    data = synthesize(2, 2500, 0)
    assert len(set(data.texts("title"))) == 2500


def test_the_vocabulary_is_small() -> None:
    assert max(len(BRANDS), len(COLOURS) + len(MATERIALS), len(CATEGORIES)) <= 8
    words = {word.strip(".,").lower() for text in synthesize(1, 1024, 0).texts() for word in text.split()}
    assert len(words) <= 60


@pytest.mark.parametrize(
    ("users", "items", "seed", "name"), [(0, 100, 0, "users"), (1, 19, 0, "items"), (1, 20, -1, "seed")]
)
def test_numbers_out_of_range_are_refused(users: int, items: int, seed: int, name: str) -> None:
    with pytest.raises(ConfigError, match=f"synthetic data: {name} is"):
        synthesize(users, items, seed)


# --- ids tell nothing --------------------------------------------------------------------------------------------


def test_neighbouring_ids_are_chosen_together_no_more_than_by_chance() -> None:
    near = total = 0
    for seed in range(3):
        data = synthesize(1000, 300, seed)
        for sequence in data.sequences:
            gaps = np.abs(np.diff(sequence))
            near += int((gaps <= 3).sum())
            total += len(gaps)
    chance = 6 / 300
    assert abs(near / total - chance) < 5 * math.sqrt(chance / total)


def test_ids_follow_neither_traits_nor_popularity_nor_position() -> None:
    correlations = []
    for seed in range(5):
        data = synthesize(1000, 300, seed)
        ids = np.arange(300)
        counts = Counter(i for sequence in data.sequences for i in sequence)
        for values in (
            [BRANDS.index(row["brand"]) for row in data.items],
            [list(CATEGORIES).index(row["category"]) for row in data.items],
            [counts[i] for i in ids],
        ):
            correlations.append(float(np.corrcoef(ids, values)[0, 1]))
        same = np.mean([data.items[i]["brand"] == data.items[i + 1]["brand"] for i in range(299)])
        assert same < 0.25  # chance 1/8
        users = [int(np.mean(sequence)) for sequence in data.sequences]
        correlations.append(float(np.corrcoef(np.arange(1000), users)[0, 1]))
    assert max(map(abs, correlations)) < 0.25
    assert abs(statistics.fmean(correlations)) < 0.06


# --- words pay ---------------------------------------------------------------------------------------------------

FIELDS = ("brand", "colour", "material", "category")


def ndcg_at_10(scores: np.ndarray, examples: list[Example]) -> float:
    """Full ranking, history masked, ties against; a plain copy of the rank rules, free of the code under test."""
    gains = []
    for row, example in zip(scores, examples, strict=True):
        rivals = np.ones(len(row), dtype=bool)
        rivals[[*example.history, example.target]] = False
        rank = 1 + int((row[rivals] >= row[example.target] - 1e-9).sum())
        gains.append(1 / math.log2(1 + rank) if rank <= 10 else 0.0)
    return statistics.fmean(gains)


def liked_words(data: Dataset, example: Example, fields: tuple[str, ...]) -> str:
    """The most frequent value of each field in the history: what anyone can read off a prompt."""
    return " ".join(Counter(data.items[i][f] for i in example.history).most_common(1)[0][0] for f in fields)


@cache
def figures(users: int, items: int, seed: int) -> dict[str, float]:
    data = synthesize(users, items, seed)
    examples = build_examples(data, "test")
    tfidf = TfidfVectorizer(sublinear_tf=True)
    matrix = tfidf.fit_transform(data.texts())
    svd = TruncatedSVD(min(128, matrix.shape[1] - 1, items - 1), random_state=0).fit(matrix)

    def embed(texts: list[str]) -> np.ndarray:
        vectors = svd.transform(tfidf.transform(texts))
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    catalogue = embed(data.texts())

    def of_texts(texts: list[str]) -> float:
        return ndcg_at_10(embed(texts) @ catalogue.T, examples)

    counts = np.bincount([i for s in data.sequences for i in s[:-2]], minlength=items).astype(float)
    rng = np.random.default_rng(99)
    others = rng.permutation(len(examples))
    taste = [liked_words(data, example, FIELDS) for example in examples]
    found = {
        "random": ndcg_at_10(rng.random((users, items)), examples),
        "popularity": ndcg_at_10(np.tile(counts, (users, 1)), examples),
        "last item": of_texts([data.items[example.history[-1]]["text"] for example in examples]),
        "last title": of_texts([data.items[example.history[-1]]["title"] for example in examples]),
        "another user's taste": of_texts([taste[i] for i in others]),
        "taste": of_texts(taste),
    }
    for fields in (("brand",), ("category",), ("brand", "category"), ("line", "size")):
        found["+".join(fields)] = of_texts([liked_words(data, example, fields) for example in examples])
    last = [data.items[example.history[-1]] for example in examples]
    found["last brand and category"] = of_texts([f"{row['brand']} {row['category']}" for row in last])
    return found


def means(users: int, items: int, seeds: int) -> dict[str, float]:
    rows = [figures(users, items, seed) for seed in range(seeds)]
    return {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}


@pytest.mark.parametrize(("users", "items", "seeds"), [(1000, 200, 2), (100, 300, 4), (100, 100, 4)])
def test_taste_read_off_the_history_beats_last_item_and_popularity(users: int, items: int, seeds: int) -> None:
    mean = means(users, items, seeds)
    assert mean["popularity"] < 0.12
    assert 0.05 < mean["last item"] < 0.17
    assert mean["brand+category"] > 2 * max(mean["last item"], mean["last title"])
    assert mean["brand+category"] > 3 * mean["popularity"]


def test_the_right_words_pay_together_most_and_the_others_do_not() -> None:
    mean = means(1000, 200, 2)
    assert mean["brand"] > 1.5 * mean["random"]
    assert mean["category"] > 1.5 * mean["random"]
    assert mean["brand+category"] > 1.3 * max(mean["brand"], mean["category"])
    assert mean["line+size"] < 1.5 * mean["random"]


def test_leaving_out_the_words_that_tell_nothing_pays() -> None:
    """What the quick test's policy, warm-started to copy the last title, can learn first."""
    mean = means(1000, 200, 2)
    assert mean["last brand and category"] > 1.5 * mean["last title"]


def test_only_the_users_own_taste_pays() -> None:
    """The words of another user earn no more than popularity: the gain is personal."""
    mean = means(1000, 200, 2)
    assert mean["another user's taste"] < 0.06
