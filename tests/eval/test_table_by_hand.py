"""One row of each kind of the results table, recomputed from the files that `rl4rec eval` leaves.

Nothing of rl4rec ranks or scores here: items, sequences, texts, vectors, weights of networks and weights of hybrids are
read from disk, texts are embedded by plain sentence-transformers, and the rest is a few lines of numpy. SASRec's
network alone is rl4rec's, with the weights that the cache keeps.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from history_runs import ITEMS, WARM, make_retriever, policy_sets
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from rl4rec_cli.cli.main import main
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.eval import sasrec
from rl4rec_cli.eval.sasrec import SasRecSettings, open_sasrec

BRIEF = SasRecSettings(hidden_size=16, max_length=8, batch_positions=512, rounds=2, min_steps=0, validation_users=100)
POLICY, RETRIEVER = "tuned policy", "trained retriever"
Row = Any
"""Scores of all items, float64 `[N]`; None where nothing can be ranked by them."""


class Files:
    """What is on disk: a dataset, a retriever's run, a policy's run, a cache. Scores are those of one history."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items = [json.loads(line) for line in (folder / "shop" / "items.jsonl").read_text().splitlines()]
        lines = (folder / "shop" / "sequential_data.txt").read_text().splitlines()
        self.sequences = {line.split()[0]: [int(item) for item in line.split()[1:]] for line in lines}
        self.retriever = folder / "runs" / "one" / "checkpoints" / "checkpoint_final"
        [self.vectors] = [v for v in load_file(self.retriever / "item_vectors.safetensors").values() if v.ndim == 2]
        self.vectors = self.vectors.astype(np.float64)

    def cosines(self, texts: Sequence[str]) -> Any:
        """`[texts, N]`, of different texts, blank ones left out."""
        texts = [text for text in dict.fromkeys(texts) if text.strip()]
        if not texts:
            return np.zeros((0, len(self.items)))
        model = self._model
        return model.encode_query(texts, show_progress_bar=False).astype(np.float64) @ self.vectors.T

    @cached_property
    def _model(self) -> SentenceTransformer:
        return SentenceTransformer(str(self.retriever), device="cpu")

    def last_item(self, history: list[int]) -> Row:
        return self.vectors @ self.vectors[history[-1]]

    def history_text(self, history: list[int]) -> Row:
        return self.cosines(["\n".join(self.items[item]["title"] for item in history[-2:])])[0]

    def bm25(self, history: list[int]) -> Row:
        documents = [re.findall(r"\w+", item["text"].lower()) for item in self.items]
        mean = sum(map(len, documents)) / len(documents)
        frequency = Counter(word for document in documents for word in set(document))
        scores = np.zeros(len(documents))
        for word in documents[history[-1]]:
            idf = math.log(1 + (len(documents) - frequency[word] + 0.5) / (frequency[word] + 0.5))
            counts = np.array([document.count(word) for document in documents])
            lengths = np.array([len(document) for document in documents])
            scores += idf * counts / (counts + 1.5 * (0.25 + 0.75 * lengths / mean))
        return scores

    def transitions(self, history: list[int]) -> Row:
        counts, after = np.zeros(len(self.items)), np.zeros(len(self.items))
        for sequence in self.sequences.values():
            part = sequence[:-2]
            np.add.at(counts, part, 1)
            for one, other in pairwise(part):
                after[other] += one == history[-1]
        return after + 0.5 * counts / (counts.max() + 1)

    def history_query(self, history: list[int]) -> Row:
        network = {name: value.astype(np.float64) for name, value in self._network.items()}
        recency, recent = network["recency"], self.vectors[history[::-1]]
        weights = np.exp(recency - recency[0])[: len(recent)]
        mean = weights @ recent[: len(weights)] / weights.sum()
        scale = 0.3 * math.sqrt(len(mean))
        query = scale * mean + network["last.weight"] @ (scale * recent[0]) + network["last.bias"]
        return self.vectors @ (query / np.linalg.norm(query))

    @cached_property
    def _network(self) -> dict[str, Any]:
        return load_file(self.retriever / "retriever.safetensors")

    def sasrec(self, history: list[int]) -> Row:
        model = self._sasrec
        return model.items_ND.double().numpy() @ model.queries([history])[0].double().numpy()

    @cached_property
    def _sasrec(self) -> Any:
        assert len(list((self.folder / "cache").glob("sasrec_*.safetensors"))) == 1, "it is read, not trained"
        return open_sasrec(load_dataset(self.folder / "shop"), cache_dir=self.folder / "cache", settings=BRIEF)

    def policy(self, texts: str | list[str]) -> Row:
        cosines = self.cosines([texts] if isinstance(texts, str) else texts)
        return np.log(np.exp(10 * cosines).sum(0)) / 10 if len(cosines) else None


def joined(weight: float, own: Row, theirs: Row) -> Row:
    parts = [(w, part) for w, part in ((weight, own), (1 - weight, theirs)) if w and part is not None and part.std()]
    return sum(w * part / part.std() for w, part in parts) if parts else None


def check(ranks: Sequence[int], rows: Sequence[Row], targets: Sequence[int], histories: Sequence[list[int]]) -> None:
    """Rank = 1 + others that score at least as much; where rounding could decide it may be either."""
    exact = 0
    for rank, scores, target, history in zip(ranks, rows, targets, histories, strict=True):
        if scores is None:
            assert rank == ITEMS
            continue
        rivals = np.delete(scores, sorted({target, *history}))
        near = 1e-5 * np.abs(scores).max()
        low, high = (1 + int((rivals >= scores[target] + side).sum()) for side in (near, -near))
        assert low <= rank <= high
        exact += rank == high
    assert exact >= 0.95 * sum(scores is not None for scores in rows)
    assert len(set(ranks)) > 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, minilm: str) -> Files:
    folder = tmp_path_factory.mktemp("table")
    retriever = make_retriever(folder, minilm)
    own = (f"run.output_dir={folder / 'runs'}", f"eval.cache_dir={folder / 'cache'}", "eval.probes=false")
    train(load_config(algorithm="grpo", recipes=["quick-test"], sets=[*policy_sets(retriever, folder), WARM, *own]))
    return Files(folder)


@pytest.fixture(autouse=True)
def brief_sasrec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sasrec, "open_sasrec", partial(open_sasrec, settings=BRIEF))


def evaluated(files: Files, run: str, *words: str) -> tuple[dict[str, Any], list[dict[str, Any]], list[list[int]]]:
    """Returns the result, the records and the histories that `rl4rec eval` leaves on the test split."""
    folder = files.folder / "runs" / run
    before = set(folder.glob("eval/**/test.json"))
    sets = ("--set", f"eval.cache_dir={files.folder / 'cache'}", "--set", "eval.probes=false")
    assert main(["eval", str(folder), "--split", "test", *sets, *words]) == 0
    [result] = set(folder.glob("eval/**/test.json")) - before
    records = [json.loads(line) for line in (result.parent / "test_users.jsonl").read_text().splitlines()]
    return json.loads(result.read_text()), records, [files.sequences[one["user"]][:-1] for one in records]


def check_rows(
    files: Files, found: tuple[dict[str, Any], list[dict[str, Any]], list[list[int]]], rows: dict[str, list[Row]]
) -> None:
    """Checks the given rows, and every hybrid of two of them, by the weight that the result names."""
    result, records, histories = found
    targets = [files.sequences[one["user"]][-1] for one in records]
    hybrids = {name: [part.strip() for part in name.split(" + ")] for name in result["methods"] if " + " in name}
    for name, (own, theirs) in hybrids.items():
        [weight] = result["notes"][name]["weights"]
        rows[name] = [joined(weight, *both) for both in zip(rows[own], rows[theirs], strict=True)]
    assert set(rows) >= set(result["methods"])
    for name in result["methods"]:
        check([one["ranks"][name] for one in records], rows[name], targets, histories)


def by_history(score: Callable[[list[int]], Row], histories: list[list[int]]) -> list[Row]:
    return [score(history) for history in histories]


EVERY = "last_item,history_text,bm25,transitions,sasrec,fusion,fusion_transitions"


@pytest.mark.parametrize("texts", [1, 3])
def test_baselines_policies_and_their_hybrids(files: Files, texts: int) -> None:
    several = ("--set", f"generation.texts_per_user={texts}", "--set", "eval.temperature=1") if texts > 1 else ()
    found = evaluated(files, "policy", "--fuse", "history", "--baselines", EVERY, *several)
    _, records, histories = found
    assert all(isinstance(one["texts"][POLICY], str if texts == 1 else list) for one in records)
    rows = {
        "last item": by_history(files.last_item, histories),
        "history text": by_history(files.history_text, histories),
        "BM25": by_history(files.bm25, histories),
        "transitions": by_history(files.transitions, histories),
        "SASRec": by_history(files.sasrec, histories),
        "history query": by_history(files.history_query, histories),
        POLICY: [files.policy(one["texts"][POLICY]) for one in records],
    }
    check_rows(files, found, rows)
    assert {"last item + SASRec", f"{POLICY} + SASRec", f"{POLICY} + transitions", f"{POLICY} + history query"} < set(
        rows
    )


def test_a_trained_retriever_and_its_hybrids(files: Files) -> None:
    found = evaluated(files, "one", "--baselines", "sasrec,fusion,fusion_transitions,transitions")
    histories = found[2]
    rows = {
        RETRIEVER: by_history(files.history_query, histories),
        "SASRec": by_history(files.sasrec, histories),
        "transitions": by_history(files.transitions, histories),
        "last item": [encoder_cosines(files, history) for history in histories],
    }
    check_rows(files, found, rows)


def encoder_cosines(files: Files, history: list[int]) -> Row:
    """The frozen encoder's cosines with the last item, from the file of its vectors."""
    [file] = (files.folder / "emb").glob("*.safetensors")
    [vectors] = [value for value in load_file(file).values() if value.ndim == 2]
    return vectors.astype(np.float64) @ vectors[history[-1]].astype(np.float64)
