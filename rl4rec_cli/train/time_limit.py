"""A training that ends after so many minutes.

Decides: that the minutes of a resumed run are those of all its parts; that a falling learning rate has fallen when they
are over, however many steps fit into them.
Hides: the clock.

The rate follows steps or minutes, whichever is further on. With a limit a step's rate thus depends on the machine, and
a resumed run is not the uninterrupted one to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from rl4rec_cli import console


class TimeLimit(TrainerCallback):
    """Ends a training after the step in which its minutes are over.

    Args:
        minutes: of training, measurements of validation users included.
        clock: returns seconds.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] | None = None) -> None:
        self._minutes, self._clock = minutes, clock or time.monotonic
        self._before, self._start = 0.0, self._clock()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return self._before + self._clock() - self._start

    @property
    def share(self) -> float:
        """The share of the minutes that is over, at most 1."""
        return min(1.0, self.seconds / (60 * self._minutes))

    def set_seconds(self, seconds: float) -> None:
        """Starts from so many seconds of training."""
        self._before, self._start = seconds, self._clock()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._start = self._clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.share == 1.0 and state.global_step < state.max_steps:
            console.log(
                f"Training ends here: its {self._minutes:g} minutes (trainer.max_minutes) are over after step "
                f"{state.global_step:,} of at most {state.max_steps:,}"
            )
            control.should_training_stop = True

    def paced(self, rate: Callable[[int], float], *, steps: int, warmup: int) -> Callable[[int], float]:
        """Returns a schedule, a factor of the rate for each step, that is over with the minutes or with the steps."""

        def paced_rate(step: int) -> float:
            return rate(step if step < warmup else max(step, int(self.share * steps)))

        return paced_rate


class Timed:
    """Stands before a transformers trainer that may have a limit (`time_limit`), between it and `Resumable`."""

    time_limit: TimeLimit | None = None
    args: Any
    lr_scheduler: Any

    def limit_time(self, minutes: float | None) -> None:
        """Sets the limit; None: there is none."""
        if minutes is not None:
            self.time_limit = TimeLimit(minutes)
            self.add_callback(self.time_limit)  # type: ignore[attr-defined]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        scheduler = super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        if (limit := self.time_limit) is not None:
            warmup = self.args.get_warmup_steps(num_training_steps)
            scheduler.lr_lambdas = [
                limit.paced(rate, steps=num_training_steps, warmup=warmup) for rate in scheduler.lr_lambdas
            ]
        return scheduler

    def take_rates_of_this_length(self, done: int) -> None:
        if self.time_limit is None:  # else the next step's rate follows the clock anyway
            super().take_rates_of_this_length(done)  # type: ignore[misc]

    def algorithm_state(self) -> dict[str, Any]:
        limit = self.time_limit
        state: dict[str, Any] = super().algorithm_state()  # type: ignore[misc]
        return state if limit is None else {**state, "seconds": limit.seconds}

    def set_algorithm_state(self, state: Mapping[str, Any]) -> None:
        super().set_algorithm_state(state)  # type: ignore[misc]
        if self.time_limit is not None:
            self.time_limit.set_seconds(float(state.get("seconds", 0.0)))
