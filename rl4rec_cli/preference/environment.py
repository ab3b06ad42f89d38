"""Pairs as a policy learns from them: prompts, taught answers, and rewards of completions.

Decides: what supervised fine-tuning teaches, and what of a step is logged of each reward.
Hides: that TRL passes rows around: a row holds the number of its pair.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec_cli.policy.generation import decode_texts
from rl4rec_cli.rewards.custom import log_names
from rl4rec_cli.train.batch_reward import BatchReward

if TYPE_CHECKING:
    from rl4rec_cli.config.trainer import SftSection
    from rl4rec_cli.data.prompts import Prompt
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.preference.prompts import PairPrompts
    from rl4rec_cli.preference.records import Pair
    from rl4rec_cli.preference.scoring import PairScorer


@dataclass(frozen=True)
class PairEnvironment:
    """What a run learns from: the training pairs of a data set."""

    name: str
    examples: Sequence[Pair]
    builder: PairPrompts
    scorer: PairScorer

    def prompts(self) -> Iterator[tuple[Prompt, dict[str, Any]]]:
        """Yields each pair's prompt, and the pair's number."""
        for number, pair in enumerate(self.examples):
            yield self.builder.build(pair), {"pair": number}

    def taught(self, section: SftSection) -> Iterator[tuple[Prompt, str]]:
        """Yields each pair's prompt and its chosen answer; where `both` are to be taught, then the rejected one."""
        for pair in self.examples:
            prompt = self.builder.build(pair)
            yield prompt, pair.chosen
            if section.target == "both":
                yield prompt, pair.rejected

    def compared(self) -> Iterator[tuple[Prompt, str, str]]:
        """Yields each pair's prompt, its chosen and its rejected answer."""
        for pair in self.examples:
            yield self.builder.build(pair), pair.chosen, pair.rejected

    def open_reward(
        self, environments: Sequence[PairEnvironment], tokenizer: Any, rollouts: JsonLines, *, shown: int
    ) -> BatchReward:
        """Returns what scores the completions."""
        return PairBatchReward(self, tokenizer, rollouts, shown=shown)


class PairBatchReward(BatchReward):
    """Scores completions by the run's rewards.

    Args:
        shown: how many completions of a step go into `rollouts`.
    """

    __name__ = "preference"

    def __init__(self, environment: PairEnvironment, tokenizer: Any, rollouts: JsonLines, *, shown: int) -> None:
        super().__init__([environment.name], tokenizer, rollouts, shown=shown)
        self._environment = environment

    def __call__(
        self,
        *,
        completion_ids: Sequence[Sequence[int]],
        pair: Sequence[int],
        dataset: Sequence[str],
        log_metric: Any,
        trainer_state: Any,
        log_extra: Any = None,
        **_: Any,
    ) -> list[float]:
        start = time.perf_counter()
        texts = decode_texts(self._tokenizer, completion_ids)
        pairs = [self._environment.examples[number] for number in pair]
        scores = self._environment.scorer.score(
            texts,
            pairs,
            completion_ids=[list(ids) for ids in completion_ids],
            trainer_state=trainer_state,
            log_metric=log_metric,
            log_extra=log_extra,
        )
        names = log_names(scores.parts)
        for name, values in scores.parts.items():
            if not np.isnan(values).all():
                log_metric(f"reward/{names[name]}", float(np.nanmean(values)))
        log_metric("distinct_texts", len(set(texts)) / len(texts))
        last = [(texts[row], f"reward {scores.rewards[row]:.4f}") for row in range(min(2, len(texts)))]
        self._keep(scores.rewards.tolist(), dataset, last)
        for row in range(min(self._shown, len(texts))):
            self._rollouts.write(
                {
                    "step": trainer_state.global_step + 1,
                    "prompt": pairs[row].prompt[-1].content,
                    "text": texts[row],
                    "reward": scores.rewards[row],
                    "parts": {names[name]: _number(values[row]) for name, values in scores.parts.items()},
                }
            )
        self.seconds += time.perf_counter() - start
        return scores.rewards.tolist()


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
