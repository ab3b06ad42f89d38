"""Baselines: by hand, and on real data."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl4rec_cli.config.registries import BASELINES
from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.data.dataset import Dataset, Example, build_examples
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.eval.baseline import ScoreBaseline, measure_baselines, open_baseline
from rl4rec_cli.eval.baselines import bm25_scores
from rl4rec_cli.eval.metrics import means
from rl4rec_cli.eval.scoring import Measured, SparseScores, Task, measure
from rl4rec_cli.retrieval.embedding_files import embedding_path, load_embeddings
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.retriever import InProcessRetriever, Ranking

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


def ranked(name: str, dataset: Dataset, retriever: InProcessRetriever, examples: Sequence[Example]) -> Measured:
    return measure_baseline(name, Task(dataset, retriever, examples))


def measure_baseline(name: str, task: Task) -> Measured:
    [measured] = measure_baselines([open_baseline(name)], task, "test")
    return measured


def ranks(name: str, dataset: Dataset, retriever: InProcessRetriever, examples: Sequence[Example]) -> list[int]:
    return ranked(name, dataset, retriever, examples).ranking.ranks.tolist()


VECTORS = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0], [0.8, 0.6]])


def shop(make_dataset: Make, scripted: type, *, mask_history: bool = True) -> tuple[Dataset, InProcessRetriever]:
    dataset = make_dataset(sequences=SEQUENCES, mask_history=mask_history)
    return dataset, InProcessRetriever(ByTitles(dataset), VECTORS, mask_history=mask_history)


class ByTitles:
    """Embeds lines of titles as the mean of their items' vectors."""

    name = "by titles"

    def __init__(self, dataset: Dataset) -> None:
        self._titles = [str(item["title"]) for item in dataset.items]

    def embed(self, texts: Sequence[str], *, query: bool = False, progress: object = None) -> torch.Tensor:
        return torch.stack([VECTORS[[self._titles.index(line) for line in text.split("\n")]].mean(0) for text in texts])


def test_popularity_by_hand(make_dataset: Make, scripted: type) -> None:
    dataset, retriever = shop(make_dataset, scripted)
    # Test, history masked. User 0: target 4 (0 times), unmasked rivals 5: a tie, against it → 2.
    # User 1: target 3 (0), masked 0 1 5; rivals 2 (2) and 4 (0, tie) → 3.
    # User 2: target 2 (2) stands in its history and is ranked; masked 0 1; rivals 3 4 5 (0) → 1.
    test = build_examples(dataset, "test")
    assert ranks("popularity", dataset, retriever, test) == [2, 3, 1]
    assert ranked("popularity", dataset, retriever, test).ranking.scorable.all()
    # Validation: user 0: target 3 against 4 5 → 3. User 1: target 5 against 2 (2), 3 4 → 4. User 2: target 1 (2)
    # against 3 4 5 → 1, masked 0 2.
    assert ranks("popularity", dataset, retriever, build_examples(dataset, "validation")) == [3, 4, 1]
    repeating, retriever = shop(make_dataset, scripted, mask_history=False)
    # Unmasked: 4 ties with 3 5, after 0 1 2 → 6; 3 likewise; 2 ties with 1, after 0 → 3.
    assert ranks("popularity", repeating, retriever, test) == [6, 6, 3]


def untrained_baselines() -> list[str]:
    """All that score the catalogue, but ceilings and those that rl4rec trains (and that select on validation users)."""
    opened = {name: open_baseline(name) for name in BASELINES.built_in}
    return [n for n, b in opened.items() if isinstance(b, ScoreBaseline) and b.kind == "baseline" and not b.is_seeded]


@pytest.mark.parametrize("name", untrained_baselines())
def test_no_baseline_sees_what_is_to_be_predicted(name: str, make_dataset: Make, scripted: type) -> None:
    dataset, retriever = shop(make_dataset, scripted)
    moved = make_dataset(sequences=[(*row[:-2], 4, 4) for row in SEQUENCES])
    examples = [Example("u0", (5,), 1)]
    assert ranks(name, dataset, retriever, examples) == ranks(name, moved, retriever, examples)
    if name == "popularity":
        assert ranks(name, moved, retriever, examples) == [3]


def test_last_item_by_hand(make_dataset: Make, scripted: type) -> None:
    dataset, retriever = shop(make_dataset, scripted)
    # Test. User 0: last 3 = (0, 1), target 4 scores 0, unmasked 5 scores .6 → 2.
    # User 1: last 5 = (.8, .6), target 3 scores .6; masked 0 1 5; 2 scores .96, 4 scores -.8 → 2.
    # User 2: last 1 = (.8, .6), target 2 scores .96; masked 0 1; 5 scores 1 → 2.
    test = build_examples(dataset, "test")
    assert ranks("last_item", dataset, retriever, test) == [2, 2, 2]
    repeating, unmasked = shop(make_dataset, scripted, mask_history=False)
    # User 0: 4 and 0 score 0 (a tie), 1 2 3 5 more → 6. User 1: 3 scores .6; 0 .8, 1 1, 2 .96, 5 1 → 5.
    # User 2: 2 scores .96; 1 and 5 score 1 → 3.
    assert ranks("last_item", repeating, unmasked, test) == [6, 5, 3]


def test_history_mean_by_hand(make_dataset: Make, scripted: type) -> None:
    dataset, retriever = shop(make_dataset, scripted, mask_history=False)
    # Mean of 0 and 3 = (.5, .5): 1 2 and 5 score .7, 0 and 3 .5, 4 -.5.
    rows = [Example("u", (0, 3), 2), Example("u", (0, 3), 3), Example("u", (3, 0), 4)]
    assert ranks("history_mean", dataset, retriever, rows) == [3, 5, 6]
    # 0 and 4 cancel out: the mean says nothing, and its target is last.
    mean = ranked("history_mean", dataset, retriever, [Example("u", (0, 4), 1)])
    assert mean.ranking.ranks.tolist() == [6]
    assert mean.ranking.scorable.tolist() == [False]
    assert mean.top_BK.tolist() == [[-1] * 6], "what says nothing recommends nothing"


def test_history_text_by_hand(make_dataset: Make, scripted: type) -> None:
    dataset, retriever = shop(make_dataset, scripted, mask_history=False)
    # The titles of the last two items, 0 and 3, have the mean (.5, .5): as for the history's mean.
    rows = [Example("u", (4, 0, 3), 2), Example("u", (1, 0, 3), 3), Example("u", (2, 3, 0), 4)]
    assert ranks("history_text", dataset, retriever, rows) == [3, 5, 6]


def test_decayed_mean_by_hand(make_dataset: Make, scripted: type) -> None:
    dataset, retriever = shop(make_dataset, scripted, mask_history=False)
    # (.5 * item 0 + item 3) / 1.5 = (.33, .67): 2 scores .73, 1 and 5 .67 (ties for each other), 3 .67, 0 .33, 4 -.33.
    rows = [Example("u", (0, 3), 2), Example("u", (0, 3), 0), Example("u", (0, 3), 4)]
    assert ranks("decayed_mean", dataset, retriever, rows) == [1, 5, 6]


def test_transitions_by_hand(make_dataset: Make, scripted: type) -> None:
    dataset, retriever = shop(make_dataset, scripted)
    # Training parts: 0 1 2 · 0 1 0 · 0 2. After 0: 1 twice, 2 once. After 1: 2, 0. Counts: 0 four, 1 two, 2 two.
    rows = [Example("u", (3, 0), 1), Example("u", (3, 0), 2), Example("u", (3, 0), 4), Example("u", (5, 1), 2)]
    # 4 followed nothing and was never chosen: behind 1, 2, and level with 5 (3 and 0 are masked).
    assert ranks("transitions", dataset, retriever, rows) == [1, 2, 4, 2]
    # Two back: after 0 _: 2 once and 0 once at half weight. History (0, 1): 2 scores 1 + .5, 0 is masked.
    assert ranks("transitions_2", dataset, retriever, [Example("u", (0, 1), 2)]) == [1]
    # Nothing follows 4: popularity decides.
    found = ranked("transitions", dataset, retriever, [Example("u", (4,), 1)])
    assert found.ranking.ranks.tolist() == [3], "1 ties with 2, behind 0"
    assert found.top_BK.tolist() == [[0, 1, 2, 3, 5, -1]]


def test_bm25_knows_texts_without_blanks_and_says_where_it_knows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    scored = bm25_scores(["口香糖限量版", "口红限量版", "牙膏大号"], ["口香糖"])
    assert scored.ranks([0], None).ranks.tolist() == [1]
    assert not capsys.readouterr().err
    bm25_scores(["ab", "cd", "ef"], ["ab"])
    assert "BM25 knows next to nothing" in capsys.readouterr().err


def test_bm25_by_hand(make_dataset: Make, scripted: type) -> None:
    texts = ["rose cream", "mint gel", "rose soap", "oil"]
    scored = bm25_scores(texts, ["a rose is a rose", "Mint!", "nothing known"])
    found = scored.ranks([2, 0, 1], None)
    # Rose: 0 and 2 tie. Mint: only 1 scores above 0. The last query says nothing.
    assert found.ranks.tolist() == [2, 4, 4]
    assert found.scorable.tolist() == [True, True, False]


def test_ceilings_know_the_target(make_dataset: Make, scripted: type) -> None:
    dataset, retriever = shop(make_dataset, scripted, mask_history=False)
    rows = [Example("u", (0, 4), 3), Example("u", (4, 1), 5)]
    # 1 and 5 have one vector: the target's own text cannot tell them apart.
    assert ranks("target_text", dataset, retriever, rows) == [1, 2]
    # Of 4 and 1, 1 is nearest to 5.
    assert ranks("nearest_history_item", dataset, retriever, rows)[1] == 2
    assert ranked("target_text", dataset, retriever, rows).kind == "ceiling"


@settings(max_examples=200)
@given(data=st.data())
def test_sparse_scores_are_ranked_as_the_rules_say(data: st.DataObject) -> None:
    count, items = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    cell, ids = st.integers(-2, 2).map(float), st.integers(0, items - 1)
    base = np.array(data.draw(st.lists(cell, min_size=items, max_size=items)))
    extra = [data.draw(st.dictionaries(ids, cell, max_size=4)) for _ in range(count)]
    targets = [data.draw(ids) for _ in range(count)]
    masks = [data.draw(st.lists(ids, max_size=4)) for _ in range(count)] if data.draw(st.booleans()) else None
    k = data.draw(st.integers(1, 12))
    scored = SparseScores(
        count, base, lambda row: (np.array([*extra[row]], np.int64), np.array([*extra[row].values()], np.float64))
    )
    found, top = scored.ranks(targets, masks), scored.top(k, masks)
    for row in range(count):
        scores = base + [extra[row].get(i, 0.0) for i in range(items)]
        masked = set(masks[row]) if masks is not None else set()
        best = sorted((i for i in range(items) if i not in masked), key=lambda i: (-scores[i], i))[:k]
        assert top[row].tolist() == best + [-1] * (min(k, items) - len(best))
        says_something = base.any() or any(extra[row].values())
        assert found.scorable[row] == says_something
        rivals = [i for i in range(items) if i not in masked and i != targets[row]]
        expected = 1 + sum(scores[i] >= scores[targets[row]] for i in rivals)
        assert found.ranks[row] == (expected if says_something else items)


def test_every_baseline_is_measured_and_kept(make_dataset: Make, scripted: type, tmp_path: Path) -> None:
    dataset, retriever = shop(make_dataset, scripted)
    examples = build_examples(dataset, "test")
    task = Task(dataset, retriever, examples, cache=tmp_path)
    for name in BASELINES.built_in:
        baseline = open_baseline(name)
        if not isinstance(baseline, ScoreBaseline) or baseline.is_seeded or not baseline.is_kept:
            continue
        first, again = measure_baseline(name, task), measure_baseline(name, task)
        assert again.notes["cached"] is True
        assert (again.name, again.kind, again.texts) == (baseline.label or name.replace("_", " "), first.kind, None)
        assert again.ranking.ranks.tolist() == first.ranking.ranks.tolist()
        assert again.top_BK.tolist() == first.top_BK.tolist()


def test_what_is_kept_is_read_for_the_same_data_only(
    make_dataset: Make, scripted: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, retriever = shop(make_dataset, scripted)
    test = build_examples(dataset, "test")
    measure_baseline("last_item", Task(dataset, retriever, test, cache=tmp_path))
    others = {
        "other users": Task(dataset, retriever, test[:2], cache=tmp_path),
        "other data": Task(make_dataset(sequences=SEQUENCES[::-1]), retriever, test, cache=tmp_path),
        "other vectors": Task(dataset, InProcessRetriever(scripted({}, 2), -VECTORS), test, cache=tmp_path),
    }
    for what, task in others.items():
        assert "cached" not in measure_baseline("last_item", task).notes, what
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-40])
    again = measure_baseline("last_item", Task(dataset, retriever, test, cache=tmp_path))
    assert "cached" not in again.notes
    assert "cannot be read" in capsys.readouterr().err
    assert measure_baseline("last_item", Task(dataset, retriever, test, cache=tmp_path)).notes["cached"]


def test_what_is_kept_is_not_read_for_changed_code(make_dataset: Make, scripted: type, tmp_path: Path) -> None:
    dataset, retriever = shop(make_dataset, scripted)
    task = Task(dataset, retriever, build_examples(dataset, "test"), cache=tmp_path / "kept")
    code = "from rl4rec_cli.eval.baselines import *\n@scores()\ndef mine(task):\n    return {}.score(task)\n"
    measured = []
    for other in ("popularity", "popularity", "last_item"):
        (tmp_path / "mine.py").write_text(code.format(other))
        spec = importlib.util.spec_from_file_location("mine", tmp_path / "mine.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        measured.append(module.mine.measure(task, "test"))
    assert ["cached" in one.notes for one in measured] == [False, True, False]
    assert measured[2].ranking.ranks.tolist() == ranks("last_item", dataset, retriever, task.examples)
    assert measured[2].ranking.ranks.tolist() != measured[0].ranking.ranks.tolist()


def test_a_blank_text_recommends_nothing(make_dataset: Make, scripted: type) -> None:
    dataset, _ = shop(make_dataset, scripted)
    blank = measure(
        "x",
        SparseScores(1, np.zeros(6), lambda _: (np.zeros(0, np.int64), np.zeros(0))),
        dataset,
        [Example("u", (0,), 1)],
    )
    assert blank.top_BK.tolist() == [[-1] * 6]


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
def test_popularity_on_amazon_beauty(beauty: Dataset, scripted: type) -> None:
    examples = build_examples(beauty, "test")
    assert len(examples) == 22_363
    assert beauty.num_items == 12_101
    nothing = InProcessRetriever(scripted({}, 2), torch.zeros(beauty.num_items, 2))
    found = ranked("popularity", beauty, nothing, examples)
    assert figures(found.ranking)[:2] == (0.0053, 0.0110)


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
    expected = {
        "last_item": (0.0401, 0.0669, 0.0319),
        "history_mean": (0.0224, 0.0412, 0.0167),
        "decayed_mean": (0.0392, 0.0664, 0.0309),
    }
    for name, values in expected.items():
        assert figures(ranked(name, beauty, retriever, examples).ranking) == values


def _works(load: Callable[[], object]) -> bool:
    from rl4rec_cli.errors import EmbeddingError

    try:
        load()
    except EmbeddingError:
        return False
    return True


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_of_the_cache_is_measured_anew(
    make_dataset: Make, scripted: type, tmp_path: Path, data: st.DataObject
) -> None:
    dataset, retriever = shop(make_dataset, scripted)
    task = Task(dataset, retriever, build_examples(dataset, "test"), cache=tmp_path)
    first = measure_baseline("last_item", task)
    [file] = tmp_path.glob("*.npz")
    whole = bytearray(file.read_bytes())
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    file.write_bytes(whole)
    again = measure_baseline("last_item", task)
    assert "cached" not in again.notes
    assert again.ranking.ranks.tolist() == first.ranking.ranks.tolist()
    assert measure_baseline("last_item", task).notes["cached"]
