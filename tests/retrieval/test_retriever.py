"""Ranks, search and the score matrix by texts, against brute force in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl4rec_cli import console
from rl4rec_cli.errors import DataError, EmbeddingError
from rl4rec_cli.retrieval.retriever import MANY_TEXTS, InProcessRetriever, query_vectors

DIM = 3


@st.composite
def scenes(draw: st.DrawFn) -> dict[str, Any]:
    """A small catalogue with ties and duplicates; texts are names of vectors. Coordinates are exact in float32."""
    coordinate = st.integers(-2, 2)
    vector = st.tuples(*[coordinate] * DIM)
    items = draw(st.lists(vector, min_size=1, max_size=12))
    words = {f"w{i}": draw(st.one_of(vector, st.sampled_from(items))) for i in range(draw(st.integers(1, 4)))}
    n = len(items)
    text = st.sampled_from([*words, "", " \n"])
    ids = st.integers(0, n - 1)
    size = draw(st.integers(1, 6))
    return {
        "items": items,
        "words": words,
        "texts": draw(st.lists(text, min_size=size, max_size=size)),
        "targets": draw(st.lists(ids, min_size=size, max_size=size)),
        "histories": draw(st.lists(st.lists(ids, max_size=6), min_size=size, max_size=size)),
        "mask": draw(st.booleans()),
        "k": draw(st.integers(1, 15)),
    }


def query(scene: dict[str, Any], text: str) -> np.ndarray:
    return np.array(scene["words"].get(text, (0,) * DIM), np.float64)


def open_scene(scene: dict[str, Any], scripted: Any) -> InProcessRetriever:
    items = torch.tensor(scene["items"], dtype=torch.float32)
    return InProcessRetriever(scripted(scene["words"], DIM), items, mask_history=scene["mask"])


def brute_rank(scores: list[float], target: int, masked: set[int]) -> int:
    rivals = [s for i, s in enumerate(scores) if i != target and i not in masked]
    return 1 + sum(s >= scores[target] for s in rivals)


@given(scene=scenes())
def test_target_ranks_are_brute_force(scene: dict[str, Any], scripted: Any) -> None:
    ranking = open_scene(scene, scripted).target_ranks(scene["texts"], scene["targets"], scene["histories"])
    items = np.array(scene["items"], np.float64)
    for b, (text, target, history) in enumerate(zip(scene["texts"], scene["targets"], scene["histories"], strict=True)):
        vector = query(scene, text)
        scorable = bool(vector.any())
        assert ranking.scorable[b] == scorable
        expected = brute_rank((items @ vector).tolist(), target, set(history) if scene["mask"] else set())
        assert ranking.ranks[b] == (expected if scorable else len(items))
    assert ranking.ranks.dtype == np.int64
    assert ranking.scorable.dtype == np.bool_


@given(scene=scenes())
def test_search_and_scores_are_brute_force(scene: dict[str, Any], scripted: Any) -> None:
    retriever = open_scene(scene, scripted)
    items = np.array(scene["items"], np.float64)
    matrix = retriever.calculate_reward(scene["texts"])
    assert matrix.dtype == np.float32
    assert np.array_equal(matrix, np.array([items @ query(scene, t) for t in scene["texts"]], np.float32))
    for exclude in (None, scene["histories"]):
        found = retriever.search(scene["texts"], scene["k"], exclude)
        assert len(found) == len(scene["texts"])
        for b, text in enumerate(scene["texts"]):
            scores = items @ query(scene, text)
            left = [i for i in range(len(items)) if exclude is None or i not in exclude[b]]
            best = sorted(left, key=lambda i: (-scores[i], i))[: scene["k"]]
            assert found[b].items == best
            assert found[b].scores == scores[best].tolist()


def test_the_batch_does_not_matter(scripted: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    items = torch.nn.functional.normalize(torch.randn(500, 32, generator=generator), dim=1)
    words = {f"w{i}": torch.randn(32, generator=generator).tolist() for i in range(40)}
    texts = [*words, *list(words)[:10]]
    targets, histories = list(range(50)), [[i + 1, i + 2] for i in range(50)]
    retriever = InProcessRetriever(scripted(words, 32), items)
    together = retriever.target_ranks(texts, targets, histories).ranks
    alone = [
        int(retriever.target_ranks([t], [x], [h]).ranks[0]) for t, x, h in zip(texts, targets, histories, strict=True)
    ]
    assert together.tolist() == alone
    shuffled = torch.randperm(500, generator=generator)
    place = torch.argsort(shuffled).tolist()
    moved = InProcessRetriever(scripted(words, 32), items[shuffled])
    assert (
        moved.target_ranks(
            texts, [place[t] for t in targets], [[place[i] for i in h] for h in histories]
        ).ranks.tolist()
        == alone
    )


def test_equal_texts_are_embedded_once(scripted: Any) -> None:
    embedder = scripted({"a": [1, 0], "b": [0, 1]}, 2)
    retriever = InProcessRetriever(embedder, torch.eye(2))
    assert retriever.target_ranks(["a", "b", "a", "a"], [0, 0, 1, 0], [[]] * 4).ranks.tolist() == [1, 2, 2, 1]
    assert embedder.calls == [["a", "b"]]


def test_a_target_in_the_history_is_ranked(scripted: Any) -> None:
    retriever = InProcessRetriever(scripted({"a": [1, 0]}, 2), torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]))
    assert retriever.target_ranks(["a"], [1], [[0, 1]]).ranks.tolist() == [1]
    assert retriever.target_ranks(["a"], [1], [[1]]).ranks.tolist() == [2]
    assert retriever.target_ranks(["a"], [2], [[0, 1, 2]]).ranks.tolist() == [1]


def test_one_item(scripted: Any) -> None:
    retriever = InProcessRetriever(scripted({"a": [-1, 0]}, 2), torch.tensor([[1.0, 0.0]]))
    ranking = retriever.target_ranks(["a", ""], [0, 0], [[0], []])
    assert ranking.ranks.tolist() == [1, 1]
    assert ranking.scorable.tolist() == [True, False]
    assert [f.items for f in retriever.search(["a"], 10)] == [[0]]
    assert [f.items for f in retriever.search(["a"], 10, [[0]])] == [[]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_embedding_that_is_not_finite_is_an_error(bad: float, scripted: Any) -> None:
    retriever = InProcessRetriever(scripted({"a": [1, 0], "b": [bad, 0], "n": [bad, bad]}, 2), torch.eye(2))
    for call in (
        lambda t: retriever.target_ranks(t, [0] * len(t), [[]] * len(t)),
        lambda t: retriever.search(t, 1),
        retriever.calculate_reward,
    ):
        with pytest.raises(EmbeddingError, match="text 1 is not finite"):
            call(["a", "b"])
        with pytest.raises(EmbeddingError, match="text 0 is not finite"):
            call(["n"])
    with pytest.raises(EmbeddingError, match="item embedding 1 is not finite"):
        InProcessRetriever(scripted({}, 2), torch.tensor([[1.0, 0.0], [0.0, bad]]))


def test_lengths_shapes_and_ids(scripted: Any) -> None:
    retriever = InProcessRetriever(scripted({"a": [1, 0], "b": [0, 1]}, 2), torch.eye(2))
    for texts, targets, histories in ([["a"], [0, 1], [[]]], [["a"], [0], []], [["a", "b"], [0], [[], []]]):
        with pytest.raises(DataError, match="not one each"):
            retriever.target_ranks(texts, targets, histories)
    for target in (2, -1):
        with pytest.raises(DataError):
            retriever.target_ranks(["a"], [target], [[]])
    for history in ([2], [-1], [0, 99]):
        with pytest.raises(DataError):
            retriever.target_ranks(["a"], [0], [history])
        with pytest.raises(DataError):
            retriever.search(["a"], 1, [history])
    with pytest.raises(DataError, match="k must be at least 1"):
        retriever.search(["a"], 0)
    with pytest.raises(DataError):
        retriever.search(["a", "b"], 1, [[]])
    wrong = InProcessRetriever(scripted({"a": [1, 0, 0]}, 3), torch.eye(2))
    with pytest.raises(EmbeddingError, match=r"\[texts, 2\]"):
        wrong.target_ranks(["a"], [0], [[]])


def test_an_embedder_that_returns_too_few_rows(scripted: Any) -> None:
    class Short(scripted):  # type: ignore[misc]
        def embed(self, texts: Any, **options: Any) -> torch.Tensor:
            return torch.ones(len(texts) - 1, 2)

    retriever = InProcessRetriever(Short({}, 2), torch.eye(2))
    with pytest.raises(EmbeddingError, match=r"scripted returned shape \[1, 2\] for 2 texts"):
        retriever.target_ranks(["a", "b"], [0, 0], [[], []])


def test_nothing_in_nothing_out(scripted: Any) -> None:
    retriever = InProcessRetriever(scripted({}, 2), torch.eye(2))
    ranking = retriever.target_ranks([], [], [])
    assert (len(ranking.ranks), len(ranking.scorable)) == (0, 0)
    assert retriever.search([], 3) == []
    assert retriever.calculate_reward([]).shape == (0, 2)


def test_embedding_very_many_texts_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, int]] = []

    class Counting:
        name = "counting"

        def embed(self, texts: Sequence[str], *, query: bool = False, progress: Any = None) -> torch.Tensor:
            if progress is not None:
                progress(len(texts))
            return torch.ones(len(texts), DIM)

    @contextmanager
    def noted(total: int, description: str) -> Iterator[Callable[[int], None]]:
        yield lambda count: shown.append((description, count / total))

    monkeypatch.setattr(console, "progress", noted)
    few = [f"text {i}" for i in range(MANY_TEXTS - 1)]
    assert query_vectors(Counting(), few * 2).shape == (2 * len(few), DIM)
    assert shown == []
    assert query_vectors(Counting(), [*few, "one more"]).shape == (MANY_TEXTS, DIM)
    assert shown == [(f"Embedding {MANY_TEXTS:,} texts", 1)]
