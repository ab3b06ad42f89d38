"""Probes: would the result stand if one thing were different?

Decides: what is varied, which difference answers the question, and when a probe fails.
Hides: the second embedder, the exchanged histories.

- `second embedder`: another embedder ranks the very same texts. Asks whether the gain over the starting policy is
  still there. A policy that learned what one embedder likes rather than what the user wants fails.
- `shuffled history`: the policy reads the same history in another order. Asks what that costs it. One whose ranks
  stay the same fails: it ignores the order, or the whole history. One that reads it in vain does not.
- `another user's history`: the policy reads the history of somebody else, whose length is alike; ranks and masks stay
  the user's own. Asks what that costs it. A policy that writes what sells to everybody loses nothing, and fails.

A probe fails only where there is something to fail at: the second embedder where the first shows a gain, the other
two where the policy scores above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec_cli.config.registries import BASELINES, EMBEDDERS
from rl4rec_cli.errors import EmbeddingError
from rl4rec_cli.eval.baseline import ScoreBaseline, open_baseline
from rl4rec_cli.eval.metrics import per_user
from rl4rec_cli.eval.scoring import Measured, Scored, SparseScores, measure
from rl4rec_cli.eval.statistics import Difference, paired_difference, reads

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import GenerationSection
    from rl4rec_cli.config.sections import RetrievalSection, RunConfig
    from rl4rec_cli.data.dataset import Dataset, Example

SEED = 40_010
SAME = 0.95
"""From this share of unchanged ranks on, a policy ignores the order of its history."""
AUTO, WORDS, FITTED = "auto", "bm25", "lsa"
"""Values of `eval.second_embedder`: choose; a baseline that ranks by words; and the embedder that is chosen where it is
another one: it needs no download."""
SECOND, SHUFFLED, OTHER = "second embedder", "shuffled history", "another user's history"


@dataclass(frozen=True)
class Probe:
    """One probe's answer.

    Attributes:
        measures: the measured difference, in words.
        passed: None if there is nothing to fail at.
        finding: the part of the verdict that reports a failure.
    """

    name: str
    measures: str
    difference: Difference
    passed: bool | None
    finding: str

    def as_json(self) -> dict[str, Any]:
        fields = {"name": self.name, "measures": self.measures, "passed": self.passed, "finding": self.finding}
        return {**fields, "difference": self.difference._asdict()}


def second_embedder(
    config: RunConfig, dataset: Dataset, examples: Sequence[Example], ours: Measured, start: Measured, metric: str
) -> Probe:
    """Tests whether `ours` also gains over `start` if another embedder ranks the same texts.

    Raises:
        EmbeddingError: the second embedder is the first, or cannot be opened.
    """
    name, score_texts = _second(config, dataset)
    k = int(metric.partition("@")[2])

    def values(method: Measured) -> np.ndarray:
        again = measure(method.name, score_texts(method), dataset, examples)
        return per_user(again.ranking, (k,))[metric]

    first = paired_difference(*(per_user(m.ranking, (k,))[metric] for m in (ours, start)))
    second = paired_difference(values(ours), values(start))
    has_gain = reads(first, first.p_value) == "higher"
    stands = reads(second, second.p_value) == "higher"
    return Probe(
        f"{SECOND}: {name}",
        f"{ours.name} minus {start.name}, ranked by {name}",
        second,
        stands if has_gain else None,
        f"its gain over {start.name} vanishes when {name} ranks the same texts "
        f"({second.mean:+.4f} [{second.low:+.4f}, {second.high:+.4f}] instead of {first.mean:+.4f})",
    )


def _second(config: RunConfig, dataset: Dataset) -> tuple[str, Callable[[Measured], Scored]]:
    from rl4rec_cli.eval.policies import score_completions
    from rl4rec_cli.retrieval.embedder import find_embedder
    from rl4rec_cli.retrieval.opening import open_retriever

    first, name = config.retrieval, config.eval.second_embedder
    ranks_already = find_embedder(first).identity
    if name == AUTO:
        name = WORDS if find_embedder(embedded_by(FITTED, first)).identity == ranks_already else FITTED
    if name in BASELINES.built_in:
        baseline = open_baseline(name)
        if isinstance(baseline, ScoreBaseline) and (score_texts := baseline.score_texts) is not None:
            return baseline.label, lambda method: _by_words(method, score_texts, dataset, config.generation)
    second = embedded_by(name, first)
    if find_embedder(second).identity == ranks_already:
        raise EmbeddingError(
            f"eval.second_embedder={name} is what ranks already, so it probes nothing",
            hint="name another sentence-transformers model, lsa or bm25",
        )
    retriever = open_retriever(second, dataset)
    return name, lambda method: score_completions(method.texts or [], method.log_probs, config.generation, retriever)


def _by_words(
    method: Measured,
    score_texts: Callable[[Sequence[str], Sequence[str]], SparseScores],
    dataset: Dataset,
    section: GenerationSection,
) -> Scored:
    from rl4rec_cli.eval.fused_words import FusedWords
    from rl4rec_cli.retrieval.several_texts import different_texts

    users = different_texts(method.texts or [], method.log_probs)
    scores = score_texts(dataset.texts(), users.texts)
    return scores if section.texts_per_user == 1 else FusedWords(scores, users, section.fusion)


def embedded_by(name: str, section: RetrievalSection) -> RetrievalSection:
    """Returns the same retrieval in this process, by an embedder of this name or a sentence-transformers model."""
    from rl4rec_cli.retrieval.embedder import find_embedder

    fields = type(section).model_fields
    is_embedder = name in EMBEDDERS.names()
    settings = {"embedder": name} if is_embedder else {"embedder": fields["embedder"].default, "model": name}
    second = section.model_copy(update={**settings, "backend": "in-process", "file": None, "query_prompt": ""})
    has_type = section.dtype in find_embedder(second).dtypes
    return second if has_type else second.model_copy(update={"dtype": fields["dtype"].default})


def history_probe(
    name: str, ours: Measured, again: Measured, metric: str, examples: Sequence[Example], *, is_order: bool
) -> Probe:
    """Measures what it costs the policy to read another history than the user's.

    Args:
        again: the same policy with `shuffled` or `exchanged` histories of the examples.
        is_order: the histories are shuffled, not exchanged. If all have one item there is nothing to shuffle.
    """
    has_order = any(len(e.history) > 1 for e in examples)
    k = int(metric.partition("@")[2])
    values, other_values = (per_user(m.ranking, (k,))[metric] for m in (ours, again))
    cost = paired_difference(values, other_values)
    numbers = f"{cost.mean:+.4f} [{cost.low:+.4f}, {cost.high:+.4f}]"
    has_passed: bool | None = reads(cost, cost.p_value) == "higher"
    finding = f"it ignores its history: with {name} it scores no less ({numbers})"
    if is_order and not has_passed:
        same = float((ours.ranking.ranks == again.ranking.ranks).mean())
        finding = f"it ignores the order of its history: shuffled, {same:.0%} of its ranks stay the same ({numbers})"
        # Reading the order and gaining nothing by it is no fault: not all data have one.
        has_passed = None if same < SAME or not has_order else False
    if not values.any():
        has_passed = None
    return Probe(name, f"{ours.name} minus the same with {name}", cost, has_passed, finding)


def shuffled(examples: Sequence[Example]) -> list[Example]:
    """Returns the same examples, each with its history in a random order."""
    generator = np.random.default_rng(SEED)
    shuffled_examples = []
    for example in examples:
        order = generator.permutation(len(example.history))
        shuffled_examples.append(replace(example, history=tuple(example.history[i] for i in order)))
    return shuffled_examples


def exchanged(examples: Sequence[Example]) -> list[Example]:
    """Returns the same targets, each with the history of another user whose history is about as long."""
    generator = np.random.default_rng(SEED)
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].history), generator.random()))
    exchanged_examples = list(examples)
    for place, row in enumerate(order):
        giver = examples[order[(place + 1) % len(order)]]
        exchanged_examples[row] = replace(examples[row], user=giver.user, history=giver.history)
    return exchanged_examples
