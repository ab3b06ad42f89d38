"""Parts of a catalogue say what the whole says, wherever it is cut; no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl4rec_cli.errors import DataError
from rl4rec_cli.retrieval.retriever import InProcessRetriever
from rl4rec_cli.retrieval.service.shards import Shard, ShardedCatalogue, cut


def sharded(vectors_ND: torch.Tensor, borders: Sequence[int], *, mask_history: bool = True) -> ShardedCatalogue:
    shards = [Shard({"shop": vectors_ND[a:b].numpy()}) for a, b in pairwise(borders)]

    def ask(calls: Any) -> list[Any]:
        return [getattr(shards[part], name)(*arguments) for part, name, arguments in calls]

    return ShardedCatalogue("shop", borders, vectors_ND.shape[1], mask_history=mask_history, ask=ask)


@st.composite
def scenes(draw: st.DrawFn) -> dict[str, Any]:
    """Vectors with many ties, cut anywhere."""
    coordinate = st.sampled_from([-1.0, 0.0, 0.1, 1.0, 3.0])
    vector = st.lists(coordinate, min_size=3, max_size=3)
    items = draw(st.lists(vector, min_size=2, max_size=14))
    inner = draw(st.lists(st.integers(1, len(items) - 1), unique=True, max_size=4))
    queries = draw(st.lists(st.one_of(vector, st.sampled_from(items)), min_size=1, max_size=6))
    ids = st.integers(0, len(items) - 1)
    size = len(queries)
    return {
        "items": torch.tensor(items),
        "queries": torch.tensor(queries),
        "borders": [0, *sorted(inner), len(items)],
        "targets": draw(st.lists(ids, min_size=size, max_size=size)),
        "histories": draw(st.lists(st.lists(ids, max_size=6), min_size=size, max_size=size)),
        "mask": draw(st.booleans()),
        "k": draw(st.integers(1, 16)),
    }


@given(scene=scenes())
def test_a_cut_catalogue_is_the_whole(scene: dict[str, Any], scripted: Any) -> None:
    whole = InProcessRetriever(scripted({}, 3), scene["items"], mask_history=scene["mask"])
    parts = sharded(scene["items"], scene["borders"], mask_history=scene["mask"])
    queries = scene["queries"]
    ranks, scorable = parts.vector_ranks(queries, scene["targets"], scene["histories"])
    wanted = whole.vector_ranks(queries, scene["targets"], scene["histories"])
    assert (ranks.tolist(), scorable.tolist()) == (wanted.ranks.tolist(), wanted.scorable.tolist())
    for exclude in (None, scene["histories"]):
        ids, scores = parts.vector_search(queries, scene["k"], exclude)
        wanted_ids, wanted_scores = whole.vector_search(queries, scene["k"], exclude)
        assert ids.tolist() == wanted_ids.tolist()
        assert scores.tolist() == wanted_scores.tolist()
    np.testing.assert_allclose(parts.vector_scores(queries), whole.vector_scores(queries), rtol=1e-6)
    assert torch.equal(parts.item_vectors(scene["targets"]), whole.item_vectors(scene["targets"]))


def test_scores_that_are_equal_in_float32_alone_keep_their_order(scripted: Any) -> None:
    """The second part's item is better by less than float32 shows."""
    low, high = 1.0, 1.0 + 2.0**-23
    items = torch.tensor([[low, 0.0], [0.0, 1.0], [low, 2.0**-30], [low, 0.0]])
    query = torch.tensor([[1.0, high]])
    whole = InProcessRetriever(scripted({}, 2), items)
    ids, scores = sharded(items, [0, 2, 4]).vector_search(query, 4)
    assert ids.tolist() == whole.vector_search(query, 4)[0].tolist() == [[1, 2, 0, 3]]
    assert scores[0, 1] == scores[0, 2]


def test_cut() -> None:
    assert cut(10, 3) == [0, 3, 6, 10]
    assert cut(3, 3) == [0, 1, 2, 3]
    with pytest.raises(DataError, match="cannot be cut into 4 shards"):
        cut(3, 4)
