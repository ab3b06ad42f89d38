"""One contract for every backend: in this process, and Ray services of one actor, shards, replicas, other storages.

Expected values come from in-process retrieval, which `test_retriever.py` holds against brute force.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.errors import DataError
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.retriever import InProcessRetriever
from rl4rec_cli.retrieval.service.requests import ServiceClient

pytestmark = pytest.mark.ray
BACKENDS: dict[str, dict[str, Any]] = {
    "in-process": {},
    "one actor": {"name": "One"},
    "three shards": {"name": "Three", "shards": 3},
    "two replicas": {"name": "Two", "replicas": 2},
    "one actor, int8": {"name": "OneInt8", "storage": "int8"},
    "two shards, fp16": {"name": "TwoFp16", "shards": 2, "storage": "fp16"},
}


@pytest.fixture(scope="module")
def expected(catalogue: tuple[Path, Dataset]) -> InProcessRetriever:
    section = RetrievalSection(backend="in-process", embedder="lsa", lsa_dim=24, device="cpu")
    retriever = open_retriever(section, catalogue[1])
    assert isinstance(retriever, InProcessRetriever)
    return retriever


@pytest.fixture(scope="module", params=BACKENDS, ids=str)
def retriever(
    request: pytest.FixtureRequest, start: Callable[..., Any], catalogue: tuple[Path, Dataset], expected: Any
) -> Any:
    options = dict(BACKENDS[request.param])
    if not options:
        return expected
    name, settings = options.pop("name"), {key: options.pop(key) for key in ("storage",) if key in options}
    section, _ = start(name, [catalogue[0]], service=options, **settings)
    return open_retriever(section, catalogue[1])


@pytest.fixture(scope="module")
def batch(catalogue: tuple[Path, Dataset]) -> tuple[list[str], list[int], list[list[int]]]:
    """Texts (of items, of words, blank, unknown words), targets and histories."""
    dataset, random = catalogue[1], np.random.default_rng(6)
    titles = [str(item["title"]) for item in dataset.items]
    texts = [titles[i] for i in random.integers(0, len(titles), 60)]
    texts += [" ".join(random.choice(" ".join(titles).split(), 3)) for _ in range(30)]
    texts += ["", " \n", "nothing known here", texts[0], texts[0]]
    targets = random.integers(0, len(titles), len(texts)).tolist()
    histories = [random.integers(0, len(titles), random.integers(0, 9)).tolist() for _ in texts]
    histories[1] = [targets[1], *histories[1]]
    return texts, targets, histories


def test_ranks_are_those_of_in_process(retriever: Any, expected: Any, batch: Any) -> None:
    ranks, scorable = retriever.target_ranks(*batch)
    wanted = expected.target_ranks(*batch)
    assert ranks.tolist() == wanted.ranks.tolist()
    assert scorable.tolist() == wanted.scorable.tolist()
    assert (ranks.dtype, scorable.dtype) == (np.int64, np.bool_)
    assert len(set(ranks.tolist())) > 40  # the batch says something
    assert not scorable[[90, 91, 92]].any()


def test_each_item_as_the_target_of_one_text(retriever: Any, expected: Any, batch: Any) -> None:
    """Ties among duplicates fall on both sides of every border between shards."""
    n = retriever.num_items
    text = batch[0][0]
    every = ([text] * n, list(range(n)), [[]] * n)
    ranks = retriever.target_ranks(*every).ranks
    assert ranks.tolist() == expected.target_ranks(*every).ranks.tolist()
    assert len(set(ranks.tolist())) < n  # there are ties


@pytest.mark.parametrize("k", [1, 7, 150, 400])
def test_search_finds_the_same_items_with_the_same_scores(retriever: Any, expected: Any, batch: Any, k: int) -> None:
    texts, _, histories = batch
    assert retriever.search(texts, k) == expected.search(texts, k)
    assert retriever.search(texts, k, histories) == expected.search(texts, k, histories)


def test_the_score_matrix(retriever: Any, expected: Any, batch: Any) -> None:
    matrix, wanted = retriever.calculate_reward(batch[0]), expected.calculate_reward(batch[0])
    assert matrix.dtype == np.float32
    # Float32 products, whose last bit depends on the width of the block multiplied.
    np.testing.assert_allclose(matrix, wanted, rtol=0, atol=3e-7)


def test_vectors_and_what_is_made_of_them(retriever: Any, expected: Any, batch: Any) -> None:
    texts, targets, histories = batch
    queries = expected.text_vectors(texts)
    assert torch.equal(retriever.text_vectors(texts), queries)
    assert torch.equal(retriever.item_vectors([3, 0, 300, 3]), expected.item_vectors([3, 0, 300, 3]))
    assert torch.equal(retriever.vectors_ND, expected.vectors_ND)
    ranked = retriever.vector_ranks(queries, targets, histories).ranks
    assert ranked.tolist() == expected.target_ranks(*batch).ranks.tolist()
    assert retriever.digest == expected.digest


@pytest.mark.parametrize("fusion", ["logsumexp", "max", "mean", "rrf"])
def test_several_texts_of_a_user_rank_as_in_process(retriever: Any, expected: Any, batch: Any, fusion: Any) -> None:
    texts, targets, histories = batch
    users = [texts[i : i + 3] for i in range(0, len(texts), 3)]
    own = targets[: len(users)], histories[: len(users)]
    weights = [[-1.0 * i for i in range(len(some))] for some in users]
    for given in (None, weights):
        ranking, wanted = (one.fused_ranks(users, *own, fusion, given) for one in (retriever, expected))
        assert ranking.ranks.tolist() == wanted.ranks.tolist()
        assert ranking.scorable.tolist() == wanted.scorable.tolist()
        assert retriever.fused_search(users, 7, own[1], fusion, given) == expected.fused_search(
            users, 7, own[1], fusion, given
        )
    assert not ranking.scorable[users.index(["", " \n", "nothing known here"])]
    for ranking, wanted in zip(*(one.group_ranks(users, *own, fusion) for one in (retriever, expected)), strict=True):
        assert ranking.ranks.tolist() == wanted.ranks.tolist()
        assert ranking.scorable.tolist() == wanted.scorable.tolist()


def test_nothing_in_nothing_out(retriever: Any) -> None:
    ranking = retriever.target_ranks([], [], [])
    assert (len(ranking.ranks), len(ranking.scorable)) == (0, 0)
    assert retriever.search([], 3) == []
    assert retriever.calculate_reward([]).shape == (0, retriever.num_items)


def test_wrong_requests_are_errors(retriever: Any) -> None:
    n = retriever.num_items
    with pytest.raises(DataError, match="not one each"):
        retriever.target_ranks(["a"], [0, 1], [[]])
    for target, history in ((n, []), (-1, []), (0, [n]), (0, [-1])):
        with pytest.raises(DataError, match="outside the catalogue"):
            retriever.target_ranks(["a"], [target], [history])
    with pytest.raises(DataError, match="outside the catalogue"):
        retriever.search(["a"], 1, [[n]])
    with pytest.raises(DataError, match="k must be at least 1"):
        retriever.search(["a"], 0)
    with pytest.raises(DataError, match="lists of"):
        retriever.search(["a", "b"], 1, [[]])


def test_a_shard_that_dies_is_started_again(
    cluster: Any, start: Any, catalogue: Any, expected: Any, batch: Any
) -> None:
    ray, (section, (service,)) = cluster[0], start("Three", [catalogue[0]], service={"shards": 3})
    shards = ray.get(service.shards.remote())
    assert [shard["items"]["shop"] for shard in shards] == [100, 100, 101]
    os.kill(shards[1]["pid"], signal.SIGKILL)
    retriever = open_retriever(section, catalogue[1])
    assert retriever.target_ranks(*batch).ranks.tolist() == expected.target_ranks(*batch).ranks.tolist()
    after = ray.get(service.shards.remote())
    assert [a["pid"] == b["pid"] for a, b in zip(after, shards, strict=True)] == [True, False, True]


@pytest.fixture(scope="module")
def own(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of retrieval by a model, whose vectors stay in a file."""
    emb_dir = tmp_path_factory.mktemp("emb")
    return {"embedder": "sentence-transformers", "model": minilm, "device": "cpu", "emb_dir": str(emb_dir)}


@pytest.fixture(scope="module")
def plain(own: dict[str, Any], catalogue: tuple[Path, Dataset]) -> Any:
    """Such a retriever in this process."""
    return open_retriever(RetrievalSection.model_validate({**own, "backend": "in-process"}), catalogue[1])


@pytest.mark.parametrize("shards", [1, 2])
def test_a_service_reads_a_mapped_file(
    shards: int, start: Callable[..., Any], catalogue: tuple[Path, Dataset], own: dict[str, Any], plain: Any
) -> None:
    folder, dataset = catalogue
    held = {"storage": "int8", "memory_map": "on"}
    section, actors = start(f"Mapped{shards}", [folder], service={"shards": shards}, **own, **held)
    served = open_retriever(section, dataset)
    texts = [str(item["title"]) for item in dataset.items[:40]]
    batch = (texts, list(range(100, 140)), [[1, 2]] * 40)
    assert served.target_ranks(*batch).ranks.tolist() == plain.target_ranks(*batch).ranks.tolist()
    assert served.search(texts, 5) == plain.search(texts, 5)
    health = ServiceClient(section).ask("health")
    assert health["item_vectors"] == {dataset.name: "int8 beside the mapped file"}
    # Whoever asks for another storage gets the same ranks: a service's own is no reason to refuse it.
    open_retriever(section.model_copy(update={"storage": "fp32", "memory_map": "off"}), dataset)
    assert len(actors) == 1
