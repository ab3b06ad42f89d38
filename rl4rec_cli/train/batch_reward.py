"""What every reward function keeps of the completions that it was given, whatever the task.

Decides: that a logged step reports the rewards of all its completions, those of each dataset apart, and again the last
batch's if a step learns from it once more.
Hides: that TRL calls a reward function several times in a step, and logs later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.files.logs import JsonLines


class BatchReward:
    """The one reward function that TRL calls. A subclass scores in its `__call__`, and hands over what it found.

    Args:
        datasets: names of the run's datasets.
        rollouts: gets completions.
        shown: how many completions of a step.
    """

    def __init__(self, datasets: Sequence[str], tokenizer: Any, rollouts: JsonLines, *, shown: int) -> None:
        self._names = list(datasets)
        self._tokenizer = tokenizer
        self._rollouts = rollouts
        self._shown = shown
        self.seconds = 0.0
        self._rewards: list[float] = []
        self._datasets: list[str] = []
        self._is_reported = False
        self._last: list[tuple[str, str]] = []

    def last(self) -> list[tuple[str, str]]:
        """Returns two of the last completions, each with what it came to in words, such as its rank."""
        return self._last

    def rewards(self) -> NDArray[np.float64]:
        """Returns the rewards since the last call, or the last batch's again if a step learns from it once more."""
        self._is_reported = True
        return np.asarray(self._rewards)

    def by_dataset(self) -> dict[str, float]:
        """Returns the mean of these rewards for each of their datasets; empty where there is only one dataset."""
        if len(self._names) == 1:
            return {}
        of = np.asarray(self._datasets)
        return {name: float(np.asarray(self._rewards)[of == name].mean()) for name in self._names if name in of}

    def state(self) -> dict[str, Any]:
        """Returns what a later step reports, for a checkpoint."""
        return {
            "rewards": list(self._rewards),
            "datasets": list(self._datasets),
            "is_reported": self._is_reported,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._rewards, self._is_reported = list(state["rewards"]), bool(state["is_reported"])
        self._datasets = list(state.get("datasets", ()))  # older checkpoints have one dataset

    def _keep(self, rewards: Sequence[float], datasets: Sequence[str], last: list[tuple[str, str]]) -> None:
        """Takes in a batch's rewards."""
        if self._is_reported:
            self._rewards, self._datasets, self._is_reported = [], [], False
        self._rewards.extend(rewards)
        self._datasets.extend(datasets)
        self._last = last
