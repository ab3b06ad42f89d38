"""rl4rec's baselines, measured on the same examples, masks and tie rule as the policy.

Decides: what each baseline knows (the training part and the example's history, nothing later; a ceiling knows the
target and is labelled as one).
Hides: how each computes its scores. torch is imported only when a baseline is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rl4rec_cli import console
from rl4rec_cli.data.words import LEAST_SHARED, share_with_common_words, words
from rl4rec_cli.eval.baseline import Baseline, Subject, scores
from rl4rec_cli.eval.scoring import Measured, Scored, SparseScores, Task, VectorScores

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from rl4rec_cli.data.dataset import Dataset, Example

DECAY = 0.5
"""Weight of a history item relative to the one after it, in `decayed_mean` and `transitions_2`."""
BM25_ITEMS = 1
"""Most recent history items whose texts are BM25's query."""
HISTORY_TITLES = 2
"""Most recent history items whose titles are the text of `history_text`: of 2, 3, 5 and 10 the best on Amazon Beauty's
validation users."""


def training_counts(dataset: Dataset) -> NDArray[np.int64]:
    """Counts how often each item is in the training part of all users, `[num_items]`."""
    items = [item for part in dataset.training_parts for item in part]
    return np.bincount(np.asarray(items, np.int64), minlength=dataset.num_items)


@scores(reads_vectors=False, in_brief=True)
def popularity(task: Task) -> Scored:
    """Items by how often they are in the training part of all users."""
    nothing: tuple[NDArray[np.int64], NDArray[np.float64]] = (np.zeros(0, np.int64), np.zeros(0))
    counts_N = training_counts(task.dataset).astype(np.float64)
    return SparseScores(len(task.examples), counts_N, lambda _: nothing)


@scores(in_brief=True)
def last_item(task: Task) -> Scored:
    """Items most like the last one of the history."""
    return _like(task, task.retriever.item_vectors([e.history[-1] for e in task.examples]))


@scores(is_kept=False)  # a key of the item vectors does not know how queries are embedded
def history_text(task: Task) -> Scored:
    """Items most like one text: the titles of the last items of the history, oldest first, a line each."""
    titles = [str(item["title"]) for item in task.dataset.items]
    texts = ["\n".join(titles[item] for item in e.history[-HISTORY_TITLES:]) for e in task.examples]
    return _like(task, task.retriever.text_vectors(texts))


@scores(in_brief=True)
def history_mean(task: Task) -> Scored:
    """Items most like the mean of the history's vectors."""
    return _like(task, _weighted(task, 1.0))


@scores()
def decayed_mean(task: Task) -> Scored:
    """Items most like the history's vectors, each step back weighing half."""
    return _like(task, _weighted(task, DECAY))


def bm25_scores(items: Sequence[str], queries: Sequence[str]) -> SparseScores:
    """Returns BM25 scores of item texts for query texts. A query without a known word is unscorable.

    If hardly any items share words, BM25 can hardly tell them apart (logged).
    """
    import bm25s

    words_of_items = [words(text) for text in items]
    share = share_with_common_words(words_of_items)
    if share < LEAST_SHARED:
        console.log(f"warning: BM25 knows next to nothing here: {share:.0%} of the items share a word with another")
    index = bm25s.BM25(method="lucene", backend="numpy")
    index.index(words_of_items, show_progress=False)
    vocabulary = index.vocab_dict
    query_words = [[word for word in words(text) if word in vocabulary] for text in queries]

    def extra(row: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        scores_N = index.get_scores(query_words[row]) if query_words[row] else np.zeros(0)
        ids = np.flatnonzero(scores_N)
        return ids, scores_N[ids].astype(np.float64)

    return SparseScores(len(queries), np.zeros(len(items)), extra)


@scores(label="BM25", score_texts=bm25_scores)
def bm25(task: Task) -> Scored:
    """Items whose text shares the rarer words of the last item's text (BM25, Robertson & Zaragoza 2009; bm25s)."""
    texts = task.dataset.texts()
    return bm25_scores(texts, [" ".join(texts[i] for i in e.history[-BM25_ITEMS:]) for e in task.examples])


@scores(reads_vectors=False)
def transitions(task: Task) -> Scored:
    """Items that followed the last item in the training part, by how often; the others by popularity."""
    return open_transitions(task)(task.examples)


@scores(label="transitions (2 items)", reads_vectors=False)
def transitions_2(task: Task) -> Scored:
    """As `transitions`, plus half of how often items were two places after the last item but one."""
    return open_transitions(task, steps=2)(task.examples)


def open_transitions(task: Task, *, steps: int = 1) -> Callable[[Sequence[Example]], SparseScores]:
    """Counts what followed what, and returns a function from any examples to their scores."""
    from scipy.sparse import csr_array

    dataset = task.dataset
    graphs = []
    for gap in range(1, steps + 1):
        pairs = [
            (part[place], part[place + gap]) for part in dataset.training_parts for place in range(len(part) - gap)
        ]
        ends = np.asarray(pairs, np.int64).reshape(-1, 2)
        shape = (dataset.num_items, dataset.num_items)
        graphs.append(csr_array((np.full(len(ends), DECAY ** (gap - 1)), (ends[:, 0], ends[:, 1])), shape=shape))
    counts_N = training_counts(dataset)
    # Below the least weight of one transition: popularity decides only among items that followed equally often.
    tie_N = counts_N * (0.5 * DECAY ** (steps - 1) / (counts_N.max(initial=0) + 1))

    def extra(history: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        rows = [(graph, history[-back]) for back, graph in enumerate(graphs, start=1) if len(history) >= back]
        # Slices of the arrays: an index of scipy's makes a matrix, which costs more than all the rest.
        ends = [(graph, slice(graph.indptr[item], graph.indptr[item + 1])) for graph, item in rows]
        items = np.concatenate([graph.indices[row] for graph, row in ends]).astype(np.int64)
        more = np.concatenate([graph.data[row] for graph, row in ends])
        ids, place = np.unique(items, return_inverse=True)
        return ids, np.bincount(place, more, minlength=len(ids)).astype(np.float64)

    return lambda examples: SparseScores(len(examples), tie_N, lambda row: extra(examples[row].history))


@scores(label="SASRec", reads_vectors=False, is_seeded=True)
def sasrec(task: Task) -> Scored:
    """SASRec with full softmax cross-entropy, which rl4rec trains on the training part; see `sasrec.py`."""
    return open_sasrec_scores(task)(task.examples)


def open_sasrec_scores(task: Task) -> Callable[[Sequence[Example]], VectorScores]:
    """Trains SASRec or reads it from the cache, and returns a function from any examples to their scores."""
    from rl4rec_cli.eval.sasrec import open_sasrec
    from rl4rec_cli.ranking.ranks import ItemMatrix

    model = open_sasrec(task.dataset, cache_dir=task.cache, seed=task.seed)
    items = ItemMatrix(model.items_ND)
    return lambda examples: VectorScores(model.queries([e.history for e in examples]), items, notes=model.summary)


@scores(kind="ceiling")
def nearest_history_item(task: Task) -> Scored:
    """Ceiling: items most like the history item that is nearest the target, which only an oracle can choose."""
    vectors = task.retriever.item_vectors
    nearest = [e.history[int((vectors(e.history) @ vectors([e.target])[0]).argmax())] for e in task.examples]
    return _like(task, vectors(nearest))


@scores(kind="ceiling")
def target_text(task: Task) -> Scored:
    """Ceiling: the target's own text as the query. Below 1 where items share a text."""
    return _like(task, task.retriever.item_vectors([e.target for e in task.examples]))


def _weighted(task: Task, decay: float) -> Tensor:
    import torch

    rows = []
    for example in task.examples:
        weights = decay ** torch.arange(len(example.history) - 1, -1, -1, dtype=torch.float32)
        rows.append(weights.to(task.retriever.device) @ task.retriever.item_vectors(example.history) / weights.sum())
    return torch.stack(rows)


def _like(task: Task, queries_BD: Tensor) -> Scored:
    return VectorScores(queries_BD, task.retriever.matrix)


class Untrained(Baseline):
    """The policy that training starts from."""

    needs_policy = True
    is_start = True

    def measure_before(self, subject: Subject) -> Measured | None:
        """None for a model that is no run's: it is its own start."""
        return None if subject.start is None else subject.models.measure(subject.start_name, subject.start)


untrained = Untrained()
