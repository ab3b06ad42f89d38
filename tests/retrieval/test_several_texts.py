"""Several texts of each user, ranked as one: what a retriever makes of texts before the kernel."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from rl4rec_cli.config.policy import GenerationSection
from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import DataError
from rl4rec_cli.eval import fused_texts
from rl4rec_cli.ranking.fused import fused_target_ranks
from rl4rec_cli.ranking.fusing import Fusion
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.retriever import InProcessRetriever
from rl4rec_cli.retrieval.several_texts import different_texts

FUSIONS = list(get_args(Fusion))


@pytest.fixture(scope="module")
def retriever() -> InProcessRetriever:
    section = RetrievalSection(backend="in-process", embedder="lsa", lsa_dim=16, device="cpu")
    opened = open_retriever(section, synthesize(60, 120, 1))
    assert isinstance(opened, InProcessRetriever)
    return opened


@pytest.fixture(scope="module")
def titles() -> list[str]:
    return [str(item["title"]) for item in synthesize(60, 120, 1).items]


def test_the_setting_offers_what_the_kernel_has() -> None:
    assert get_args(GenerationSection.model_fields["fusion"].annotation) == get_args(Fusion)


def test_equal_texts_of_a_user_count_once_and_keep_their_largest_weight() -> None:
    users = different_texts([["a", "b", "a"], ["a"]], [[-1.0, -2.0, -3.0], [-5.0]])
    assert users.texts == ["a", "b", "a"]
    assert users.counts.tolist() == [2, 1]
    assert users.log_weights is not None
    assert users.log_weights.tolist() == [-1.0, -2.0, -5.0]
    assert different_texts([["a"]]).log_weights is None


@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_text_each_is_ranked_as_always(fusion: Any, retriever: Any, titles: list[str]) -> None:
    texts, targets = [*titles[:30], "", "unheard"], list(range(40, 72))
    histories = [[i, i + 1, 45] for i in range(32)]
    wanted = retriever.target_ranks(texts, targets, histories)
    for of_users in ([[text] for text in texts], [[text, text] for text in texts], [[text, ""] for text in texts]):
        ranking = retriever.fused_ranks(of_users, targets, histories, fusion)
        assert ranking.ranks.tolist() == wanted.ranks.tolist()
        assert ranking.scorable.tolist() == wanted.scorable.tolist()
    assert not wanted.scorable[30:].any()
    found = retriever.fused_search([[text] for text in texts[:30]], 5, histories[:30], fusion)
    assert [one.items for one in found] == [one.items for one in retriever.search(texts[:30], 5, histories[:30])]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_several_texts_are_what_the_kernel_makes_of_their_vectors(
    fusion: Any, retriever: Any, titles: list[str]
) -> None:
    import torch

    of_users = [[titles[i], titles[i + 7], titles[i]] for i in range(20)]
    targets, histories, weights = list(range(50, 70)), [[i] for i in range(20)], [[-1.0, -2.0, -1.5]] * 20
    flat = [text for texts in of_users for text in texts[:2]]
    for given, log_weights in ((None, None), (weights, torch.tensor([-1.0, -2.0] * 20))):
        ranking = retriever.fused_ranks(of_users, targets, histories, fusion, given)
        expected = fused_target_ranks(
            retriever.text_vectors(flat),
            [2] * 20,
            retriever.matrix,
            torch.tensor(targets),
            histories,
            fusion=fusion,
            log_weights_Q=log_weights,
        )
        assert ranking.ranks.tolist() == expected.tolist()
        first = retriever.fused_search(of_users, 120, None, fusion, given)
        assert all(len(one.items) == 120 and sorted(one.scores, reverse=True) == one.scores for one in first)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_evaluation_ranks_users_some_at_a_time(
    fusion: Any, retriever: Any, titles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_users = [titles[i : i + 1 + i % 4] for i in range(20)] + [[""]]
    targets, histories = list(range(50, 71)), [[i, 51] for i in range(21)]
    wanted = retriever.fused_ranks(of_users, targets, histories, fusion)
    found = [one.items for one in retriever.fused_search(of_users, 10, histories, fusion)]
    for size in (fused_texts._QUERIES, 7, 1):
        monkeypatch.setattr(fused_texts, "_QUERIES", size)
        scored = fused_texts.FusedTexts(of_users, retriever.text_vectors, retriever.matrix, fusion)
        ranking = scored.ranks(targets, histories)
        assert ranking.ranks.tolist() == wanted.ranks.tolist()
        assert ranking.scorable.tolist() == wanted.scorable.tolist()
        assert scored.top(10, histories).tolist() == found
    nobody = fused_texts.FusedTexts([], lambda texts: retriever.text_vectors(["a"])[:0], retriever.matrix, fusion)
    assert (len(nobody.ranks([], [])[0]), nobody.top(10, []).shape) == (0, (0, 10))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_ranks_of_groups_are_those_of_fewer_texts(fusion: Any, retriever: Any, titles: list[str]) -> None:
    groups = [
        [titles[3], titles[90], titles[3], "", titles[40]],
        [titles[5], titles[5]],
        [titles[5], "", "unheard"],
        ["", "unheard"],
        [titles[7]],
        *([titles[i], titles[i + 9], titles[i + 30]] for i in range(20, 60)),
    ]
    targets = [(17 * i) % 120 for i in range(len(groups))]
    histories = [[i, i + 1, targets[i]] for i in range(len(groups))]
    own, together, without = retriever.group_ranks(groups, targets, histories, fusion)
    lists = []
    for texts, target, history in zip(groups, targets, histories, strict=True):
        lists += [(texts[:i] + texts[i + 1 :] or [""], target, history) for i in range(len(texts))]
    flat = [([text], *rest) for texts, *rest in zip(groups, targets, histories, strict=True) for text in texts]
    for ranking, wanted in (
        (own, retriever.fused_ranks(*zip(*flat, strict=True), fusion)),
        (together, retriever.fused_ranks(groups, targets, histories, fusion)),
        (without, retriever.fused_ranks(*zip(*lists, strict=True), fusion)),
    ):
        assert ranking.ranks.tolist() == wanted.ranks.tolist()
        assert ranking.scorable.tolist() == wanted.scorable.tolist()
    assert without.scorable[5:13].tolist() == [True, True, False, True, True, False, False, False]


def test_a_group_is_embedded_once(retriever: Any, titles: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[str] = []
    embed = retriever.embedder.embed
    monkeypatch.setattr(retriever.embedder, "embed", lambda texts, **how: embedded.extend(texts) or embed(texts, **how))
    retriever.group_ranks([[titles[3], titles[4], titles[3]], [titles[4], titles[5]]], [1, 2], [[], []])
    assert embedded == titles[3:6]


def test_two_titles_find_both(retriever: Any, titles: list[str]) -> None:
    found = retriever.fused_search([[titles[3], titles[90]]], 6, fusion="max")[0]
    best = {retriever.search([titles[i]], 1)[0].items[0] for i in (3, 90)}
    assert best <= set(found.items)


def test_nobody_and_nothing(retriever: Any) -> None:
    ranking = retriever.fused_ranks([], [], [])
    assert (len(ranking.ranks), len(ranking.scorable)) == (0, 0)
    assert retriever.fused_search([], 3) == []
    for users, targets, histories in (([["a"]], [0, 1], [[]]), ([[]], [0], [[]]), (["ab"], [0], [[]])):
        with pytest.raises(DataError):
            retriever.fused_ranks(users, targets, histories)
        with pytest.raises(DataError):
            retriever.group_ranks(users, targets, histories)
    assert [len(part.ranks) for part in retriever.group_ranks([], [], [])] == [0, 0, 0]
    with pytest.raises(DataError, match="weights are not one for each text"):
        retriever.fused_ranks([["a", "b"]], [0], [[]], "mean", [[0.0]])
    assert np.issubdtype(ranking.ranks.dtype, np.integer)
