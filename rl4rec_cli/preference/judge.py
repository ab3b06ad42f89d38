"""A judge of answers that is not the reward: would the gain stand if somebody else looked?

Decides: who judges. A reward model, if `eval.judge` names one; else a preference model that is fitted here on the
training pairs: a logistic regression on the vectors of an embedder that no reward reads (`eval.second_embedder`). And
what is asked: whether the judge knows chosen from rejected at all, how often the policy's answers win, whether they
only became longer, or repeat their prompts.
Hides: the features of the fitted judge.

A probe fails only where the reward shows a gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rl4rec_cli import console
from rl4rec_cli.data.words import folded, split
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.eval.probes import AUTO, FITTED, Probe, embedded_by
from rl4rec_cli.eval.statistics import paired_difference, reads
from rl4rec_cli.preference.reward_model import RewardModel
from rl4rec_cli.preference.scoring import needs_embedder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.preference.data import PairsDataset
    from rl4rec_cli.preference.measured import PairMeasured
    from rl4rec_cli.preference.records import Pair
    from rl4rec_cli.retrieval.embedder import Embedder

    Values = NDArray[np.float64]

_PAIRS = 5_000
"""Training pairs that a judge is fitted on, at most."""
LONGER = 1.5
"""From so many times the words on, answers count as longer."""
COPIED = 0.1
"""From this share of copied word pairs on, answers count as copied."""


class Judge(Protocol):
    """Says how good an answer is; only differences on the same prompt mean something."""

    name: str

    def __call__(self, texts: Sequence[str], pairs: Sequence[Pair]) -> Values: ...


class FittedJudge:
    """A logistic regression on answers' vectors, alone and times the prompt's, fitted on pairs of answers.

    Args:
        name: of the embedder.
        pairs: to fit it on.
    """

    def __init__(self, name: str, embedder: Embedder, pairs: Sequence[Pair]) -> None:
        from sklearn.linear_model import LogisticRegression

        self.name = f"a preference model on {name}'s vectors, fitted on {len(pairs):,} pairs"
        self._embedder = embedder
        better, worse = ([getattr(pair, side) for pair in pairs] for side in ("chosen", "rejected"))
        margins_BF = self._features(better, pairs) - self._features(worse, pairs)
        both = np.concatenate([margins_BF, -margins_BF])
        labels = np.repeat([1, 0], len(pairs))
        model = LogisticRegression(fit_intercept=False, max_iter=1000).fit(both, labels)
        self._weights_F: Values = model.coef_[0]

    def _features(self, texts: Sequence[str], pairs: Sequence[Pair]) -> Values:
        prompts = ["\n".join(turn.content for turn in pair.prompt) for pair in pairs]
        answers_BD = self._embedder.embed(list(texts)).double().numpy()
        prompts_BD = self._embedder.embed(prompts).double().numpy()
        return np.concatenate([answers_BD, answers_BD * prompts_BD], axis=1)

    def __call__(self, texts: Sequence[str], pairs: Sequence[Pair]) -> Values:
        """Returns a score for each answer."""
        scores: Values = self._features(texts, pairs) @ self._weights_F
        return scores


def open_judge(config: RunConfig, data: PairsDataset) -> Judge | None:
    """Opens the judge of a run; None where there is none, which is said.

    Raises:
        ConfigError: the judge is a reward, or reads the vectors that a reward reads.
        RewardError, EmbeddingError: a model cannot be loaded.
    """
    from rl4rec_cli.retrieval.embedder import find_embedder, open_embedder

    model, name = config.eval.judge, config.eval.second_embedder
    if model is not None:
        if model in config.reward.functions:
            raise ConfigError(f"eval.judge={model} is a reward of the run, so it judges nothing", hint="name another")
        return RewardModel(model, device=config.retrieval.device)
    second = embedded_by(FITTED if name == AUTO else name, config.retrieval)
    first = find_embedder(config.retrieval).identity if needs_embedder(config.reward) else None
    if find_embedder(second).identity == first:
        if name == AUTO:
            console.log(
                f"No judge: rewards read the vectors of {first}; name another: eval.second_embedder or eval.judge"
            )
            return None
        raise ConfigError(
            f"eval.second_embedder={name} is what rewards read already, so it judges nothing", hint="name another"
        )
    return FittedJudge(second.label, open_embedder(second, data), data.train[:_PAIRS])


def judge_probes(judge: Judge, pairs: Sequence[Pair], ours: PairMeasured, start: PairMeasured | None) -> list[Probe]:
    """Returns what the judge says of a policy's answers, beside those of the data and those before training.

    Args:
        start: the policy before training, on the same pairs; None if it was not measured.
    """
    chosen, rejected = (judge([getattr(p, side) for p in pairs], pairs) for side in ("chosen", "rejected"))
    values = judge(ours.texts, pairs)
    half = np.full(len(pairs), 0.5)
    knows = paired_difference(_wins(chosen, rejected), half)
    probes = [
        Probe(
            "judge: chosen against rejected",
            f"share of held-out pairs that the judge orders as the data do, {knows.mean + 0.5:.0%}, minus a half",
            knows,
            reads(knows, knows.p_value) == "higher",
            f"its judge does not know chosen from rejected answers ({knows.mean + 0.5:.0%} of held-out pairs), so that "
            "win rates say nothing",
        )
    ]
    against = paired_difference(_wins(values, chosen), half)
    words = f"win rate {against.mean + 0.5:.0%} minus a half"
    probes.append(Probe("judge: against chosen", words, against, None, ""))
    if start is None:
        return probes
    gain = paired_difference(ours.scores.rewards, start.scores.rewards)
    has_gain = reads(gain, gain.p_value) == "higher"
    won = paired_difference(_wins(values, judge(start.texts, pairs)), half)
    falls = reads(won, won.p_value) == "lower"
    probes.append(
        Probe(
            f"judge: against {start.name}",
            f"win rate {won.mean + 0.5:.0%} minus a half",
            won,
            not falls if has_gain else None,
            f"by the judge its answers lose against {start.name} (win rate {won.mean + 0.5:.0%}), while the reward "
            "rose",
        )
    )
    return [*probes, *_shapes(pairs, ours, start, has_gain=has_gain)]


def _shapes(pairs: Sequence[Pair], ours: PairMeasured, start: PairMeasured, *, has_gain: bool) -> list[Probe]:
    """Asks whether answers only became longer, or repeat their prompts."""
    lengths = [np.array([len(split(text)) for text in one.texts], np.float64) for one in (ours, start)]
    longer = paired_difference(*lengths)
    times = float(lengths[0].mean() / max(1e-9, lengths[1].mean()))
    is_longer = times >= LONGER and reads(longer, longer.p_value) == "higher"
    copies = [np.array([_copied(t, p) for t, p in zip(one.texts, pairs, strict=True)]) for one in (ours, start)]
    copied = paired_difference(*copies)
    is_copied = float(copies[0].mean()) >= COPIED and reads(copied, copied.p_value) == "higher"
    return [
        Probe(
            "length",
            f"words of an answer, minus those of {start.name}",
            longer,
            not is_longer if has_gain else None,
            f"its answers are {times:.1f} times as long as those of {start.name}",
        ),
        Probe(
            "copied from the prompt",
            f"share of an answer's word pairs that stand in its prompt, minus that of {start.name}",
            copied,
            not is_copied if has_gain else None,
            f"its answers copy their prompts ({copies[0].mean():.0%} of their word pairs, before "
            f"{copies[1].mean():.0%})",
        ),
    ]


def _wins(ours: Values, theirs: Values) -> Values:
    return np.where(ours > theirs, 1.0, np.where(ours == theirs, 0.5, 0.0))


def _copied(text: str, pair: Pair) -> float:
    """Returns the share of a text's word pairs that stand in its prompt; 0 for a text without any."""
    own = list(pairwise(split(folded(text))))
    there = {two for turn in pair.prompt for two in pairwise(split(folded(turn.content)))}
    return sum(two in there for two in own) / len(own) if own else 0.0
