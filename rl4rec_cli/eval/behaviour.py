"""Figures of what methods recommend and write, besides the target's rank.

Decides: which figures, and their names.
Hides: counting.

- `coverage`: share of the catalogue that is among somebody's ten best items.
- `novelty`: mean of -log2 p(item) over the ten best, p the item's share of the training part (one more for every item,
  so that an unseen item has one). Zhou et al. 2010, "Solving the apparent diversity-accuracy dilemma of recommender
  systems", with add-one smoothing.
- `popularity_bias`: mean training count of the ten best ÷ mean training count of the targets (1 = as popular as the
  users' choices). Abdollahpouri et al. 2019 compare the same two means by user group.
- `text_words`: mean words of a text. `distinct_texts`: share of texts that differ.
- `copy_rate`: share of a text's words that are in the titles of the user's history, mean over texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rl4rec_cli.data.words import folded, split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.data.dataset import Dataset, Example
    from rl4rec_cli.eval.scoring import Measured


def behaviour(
    method: Measured, dataset: Dataset, examples: Sequence[Example], counts: NDArray[np.int64]
) -> dict[str, float]:
    """Returns the figures of one method by name, those of texts only if it writes texts.

    Args:
        counts: `[num_items]` occurrences in the training part.
    """
    values: dict[str, float] = {}
    if (top_items := method.top_BK[method.top_BK >= 0]).size:
        shares = (counts + 1) / (counts.sum() + len(counts))
        values["coverage"] = len(np.unique(top_items)) / dataset.num_items
        values["novelty"] = float(-np.log2(shares[top_items]).mean())
        target_count = counts[[e.target for e in examples]].mean()
        if target_count > 0:
            values["popularity_bias"] = float(counts[top_items].mean() / target_count)
    if method.texts is not None:
        texts = [text for texts in method.texts for text in texts]
        writers = [example for example, texts in zip(examples, method.texts, strict=True) for _ in texts]
        words = [_words(text) for text in texts]
        values["text_words"] = float(np.mean([len(text) for text in words]))
        values["distinct_texts"] = len(set(texts)) / len(texts)
        titles = [frozenset(_words(str(item["title"]))) for item in dataset.items]
        rates = []
        for text, example in zip(words, writers, strict=True):
            if text:
                history_words = frozenset().union(*(titles[i] for i in example.history))
                rates.append(sum(word in history_words for word in text) / len(text))
        if rates:
            values["copy_rate"] = float(np.mean(rates))
    return values


def _words(text: str) -> list[str]:
    return split(folded(text))


def user_slices(examples: Sequence[Example]) -> Mapping[str, NDArray[np.bool_]]:
    """Divides users into three parts by the length of their history, as evenly as possible: `history 3-4`, …"""
    lengths = np.asarray([len(e.history) for e in examples])
    borders = np.unique(np.quantile(lengths, [1 / 3, 2 / 3], method="inverted_cdf"))
    parts = {}
    for part in range(len(borders) + 1):
        in_part = np.searchsorted(borders, lengths, side="left") == part
        if in_part.any():
            low, high = lengths[in_part].min(), lengths[in_part].max()
            parts[f"history {low}" if low == high else f"history {low}-{high}"] = in_part
    return parts
