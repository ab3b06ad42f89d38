"""A trainer that makes one optimiser step at a time.

Decides: that a step is made by transformers' own loop, over the micro-batches of that step alone, so that it is the
step which `train` would make.
Hides: where that loop begins, ends and takes its batches from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from rl4rec_cli.errors import RunError


@dataclass(frozen=True)
class _Batches:
    """Stands for a loader where the loop of an epoch would start one: goes on with batches that began before."""

    rest: Iterator[Any]

    def __iter__(self) -> Iterator[Any]:
        return self.rest


class Stepwise:
    """Stands before a transformers trainer. `begin`, `make_step` as often as wanted, `end` do what its `train` does."""

    args: Any
    state: Any
    control: Any
    _epoch_arguments: dict[str, Any] | None = None
    """What transformers gives its loop over an epoch; None where `train` runs it itself."""
    _end_arguments: tuple[Any, ...] = ()
    _batches: Iterator[Any]
    """The rest of the epoch."""
    _is_stopped = False
    _is_stepwise = False

    def begin(self) -> None:
        """Does what `train` does before its first step."""
        self._is_stepwise = True
        cast(Any, self).train()

    def make_step(self) -> None:
        """Makes the next optimiser step.

        Raises:
            RunError: an earlier step failed.
            BaseException: what the step raises. The weights stay as they were; no other step can follow.
        """
        if self._epoch_arguments is None or self._is_stopped:
            raise RunError("an earlier step failed: its batch is lost", hint="begin with a new trainer")
        arguments, loader = self._epoch_arguments, self._epoch_arguments["train_dataloader"]
        per_epoch, accumulation = arguments["num_update_steps_per_epoch"], self.args.gradient_accumulation_steps
        epoch, step = divmod(self.state.global_step, per_epoch)
        if step == 0:
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            self._batches = iter(loader)
        is_last = step == per_epoch - 1
        batches = arguments["steps_in_epoch"] - step * accumulation if is_last else accumulation
        self.control.should_training_stop = False
        self._is_stopped = True
        cast(Any, super())._run_epoch(
            **{
                **arguments,
                "epoch": (self.state.global_step + 1) / per_epoch - 1,  # the loop adds the one that it goes through
                "train_dataloader": _Batches(self._batches),
                "steps_in_epoch": batches,
                "num_update_steps_per_epoch": 1,
            }
        )
        self._is_stopped = False

    def end(self) -> None:
        """Does what `train` does after its last step."""
        self._is_stepwise = False
        if self._epoch_arguments is not None:
            cast(Any, super())._finalize_training(*self._end_arguments)

    def _run_epoch(self, *args: Any, **arguments: Any) -> None:
        if not self._is_stepwise:
            cast(Any, super())._run_epoch(*args, **arguments)
            return
        self._epoch_arguments, self.control.should_training_stop = arguments, True

    def _finalize_training(self, *arguments: Any) -> Any:
        if not self._is_stepwise:
            return cast(Any, super())._finalize_training(*arguments)
        self._end_arguments = arguments
        return None
