"""Baselines: by hand, and on real data."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from rl4rec_cli.config import RetrievalSection
from rl4rec_cli.data.dataset import Dataset, Example, build_examples, load_dataset
from rl4rec_cli.eval.baselines import baseline_ranking, history_mean, last_item, popularity
from rl4rec_cli.eval.metrics import means
from rl4rec_cli.retrieval.embedding import embedding_path, load_embeddings
from rl4rec_cli.retrieval.retriever import InProcessRetriever, Ranking, open_retriever

ROOT = Path(__file__).parents[2]
Make = Callable[..., Dataset]


# --- baselines by hand ---

SEQUENCES = (
    # training part | validation | test
    (0, 1, 2, 3, 4),
    (0, 1, 0, 5, 3),
    (0, 2, 1, 2),
)
# Training counts: item 0 four times (user 1 twice, user 2 once), 1 twice, 2 twice, 3, 4 and 5 never.
VECTORS = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0], [0.8, 0.6]])


def shop(make_dataset: Make, scripted: type, *, mask_history: bool = True) -> tuple[Dataset, InProcessRetriever]:
    dataset = make_dataset(sequences=SEQUENCES, mask_history=mask_history)
    return dataset, InProcessRetriever(scripted({}, 2), VECTORS, mask_history=mask_history)


def test_popularity_by_hand(make_dataset: Make, scripted: type) -> None:
    dataset, retriever = shop(make_dataset, scripted)
    # Test, history masked. User 0: target 4 (0 times), unmasked rivals 5: a tie, against it → 2.
    # User 1: target 3 (0), masked 0 1 5; rivals 2 (2) and 4 (0, tie) → 3.
    # User 2: target 2 (2) stands in its history and is ranked; masked 0 1; rivals 3 4 5 (0) → 1.
    test = build_examples(dataset, "test")
    assert popularity(dataset, test).ranks.tolist() == [2, 3, 1]
    assert popularity(dataset, test).scorable.all()
    # Validation: user 0: target 3 against 4 5 → 3. User 1: target 5 against 2 (2), 3 4 → 4. User 2: target 1 (2)
    # against 3 4 5 → 1, masked 0 2.
    assert popularity(dataset, build_examples(dataset, "validation")).ranks.tolist() == [3, 4, 1]
    repeating, _ = shop(make_dataset, scripted, mask_history=False)
    # Unmasked: 4 ties with 3 5, after 0 1 2 → 6; 3 likewise; 2 ties with 1, after 0 → 3.
    assert popularity(repeating, test).ranks.tolist() == [6, 6, 3]
    assert baseline_ranking("popularity", dataset, retriever, test).ranks.tolist() == [2, 3, 1]


def test_popularity_does_not_see_what_is_to_be_predicted(make_dataset: Make, scripted: type) -> None:
    dataset, _ = shop(make_dataset, scripted)
    moved = make_dataset(sequences=[(*row[:-2], 4, 4) for row in SEQUENCES])
    examples = [Example("u0", (5,), 1)]
    assert popularity(dataset, examples).ranks.tolist() == popularity(moved, examples).ranks.tolist() == [3]


def test_last_item_by_hand(make_dataset: Make, scripted: type) -> None:
    dataset, retriever = shop(make_dataset, scripted)
    # Test. User 0: last 3 = (0, 1), target 4 scores 0, unmasked 5 scores .6 → 2.
    # User 1: last 5 = (.8, .6), target 3 scores .6; masked 0 1 5; 2 scores .96, 4 scores -.8 → 2.
    # User 2: last 1 = (.8, .6), target 2 scores .96; masked 0 1; 5 scores 1 → 2.
    test = build_examples(dataset, "test")
    assert last_item(retriever, test).ranks.tolist() == [2, 2, 2]
    assert baseline_ranking("last_item", dataset, retriever, test).ranks.tolist() == [2, 2, 2]
    _, unmasked = shop(make_dataset, scripted, mask_history=False)
    # User 0: 4 and 0 score 0 (a tie), 1 2 3 5 more → 6. User 1: 3 scores .6; 0 .8, 1 1, 2 .96, 5 1 → 5.
    # User 2: 2 scores .96; 1 and 5 score 1 → 3.
    assert last_item(unmasked, test).ranks.tolist() == [6, 5, 3]


def test_history_mean_by_hand(make_dataset: Make, scripted: type) -> None:
    _, retriever = shop(make_dataset, scripted, mask_history=False)
    # Mean of 0 and 3 = (.5, .5): 1 2 and 5 score .7, 0 and 3 .5, 4 -.5.
    rows = [Example("u", (0, 3), 2), Example("u", (0, 3), 3), Example("u", (3, 0), 4)]
    assert history_mean(retriever, rows).ranks.tolist() == [3, 5, 6]
    # 0 and 4 cancel out: the mean says nothing, and its target is last.
    ranking = history_mean(retriever, [Example("u", (0, 4), 1)])
    assert ranking.ranks.tolist() == [6]
    assert ranking.scorable.tolist() == [False]
    assert baseline_ranking("history_mean", make_dataset(), retriever, rows).ranks.tolist() == [3, 5, 6]


# --- the figures of Amazon Beauty ---


@pytest.fixture(scope="session")
def beauty() -> Dataset:
    folder = Path(os.environ.get("RL4REC_REALDATA") or ROOT / "data")
    found = next((f for f in (folder, folder / "amazon_beauty") if (f / "items.jsonl").is_file()), None)
    if found is None:
        pytest.skip(f"no Amazon Beauty folder in {folder}: set RL4REC_REALDATA to the folder that holds amazon_beauty/")
    return load_dataset(found)


def figures(ranking: Ranking) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in means(ranking, [10]).values())


@pytest.mark.realdata
def test_popularity_on_amazon_beauty(beauty: Dataset) -> None:
    examples = build_examples(beauty, "test")
    assert len(examples) == 22_363
    assert beauty.num_items == 12_101
    assert figures(popularity(beauty, examples))[:2] == (0.0053, 0.0110)


@pytest.mark.realdata
@pytest.mark.slow
def test_text_baselines_on_amazon_beauty(
    beauty: Dataset, minilm: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Item vectors from `data_emb` of the repository where they fit, else embedded anew (some minutes)."""
    section = RetrievalSection(model=minilm, emb_dir=str(ROOT / "data_emb"), device="cpu")
    path = embedding_path(section, beauty)
    usable = partial(load_embeddings, path, dataset=beauty, emb_type="text", model=minilm)
    if not path.is_file() or not _works(usable):
        section = section.model_copy(update={"emb_dir": str(tmp_path_factory.mktemp("emb"))})
    retriever = open_retriever(section, beauty)
    examples = build_examples(beauty, "test")
    assert figures(last_item(retriever, examples)) == (0.0401, 0.0669, 0.0319)
    assert figures(history_mean(retriever, examples)) == (0.0224, 0.0412, 0.0167)


def _works(load: Callable[[], object]) -> bool:
    from rl4rec_cli.errors import EmbeddingError

    try:
        load()
    except EmbeddingError:
        return False
    return True
