"""How a run reports its steps.

Decides: what a logged step holds and how it reads on the terminal.
Hides: transformers' callback protocol.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from rl4rec_cli import console

if TYPE_CHECKING:
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.train.live import TrainingView
    from rl4rec_cli.train.watch import Watch


class StepLog(TrainerCallback):
    """Writes `training_log.jsonl`, or `warm_start_log.jsonl`, and the console's lines.

    Args:
        log: gets the records.
        describe: turns a trainer's logs into a record, or None if there is nothing to log.
        phase: name of the phase, as `sft` or `grpo`.
        batches_per_epoch: optimiser steps of an epoch.
        watch: the health rules, which see every record.
        view: replaces the line for each record on a terminal.
        best: names the best step on validation users and its folder; empty where none was measured.
    """

    def __init__(
        self,
        log: JsonLines,
        describe: Callable[[dict[str, Any]], dict[str, Any] | None],
        *,
        phase: str,
        batches_per_epoch: int,
        watch: Watch | None = None,
        view: TrainingView | None = None,
        best: Callable[[], str] = str,
    ) -> None:
        self._log = log
        self._describe = describe
        self._phase = phase
        self._watch = watch
        self._view = view
        self._best = best
        self._logged = 0
        """The last step that a record covers: a record is the mean of the steps since the one before."""
        self._batches = max(1, batches_per_epoch)
        self._started = time.perf_counter()
        self._epoch_records: list[tuple[dict[str, Any], int]] = []
        self._epoch = 1

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.perf_counter()
        self._logged = state.global_step
        resumption = f", going on after step {state.global_step:,}" if state.global_step else ""
        console.log(f"{self._phase.upper()}: {state.max_steps:,} steps, {self._batches:,} an epoch{resumption}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        values = self._describe(logs or {})
        if values is None:
            return
        epoch, batch = divmod(state.global_step - 1, self._batches)
        record = {
            "phase": self._phase,
            "step": state.global_step,
            "epoch": epoch + 1,
            "batch": batch + 1,
            "seconds": round(time.perf_counter() - self._started, 3),
            **values,
        }
        if record["epoch"] != self._epoch:
            self._summarise()
            self._epoch = record["epoch"]
        self._epoch_records.append((record, max(1, state.global_step - self._logged)))
        self._logged = state.global_step
        self._log.write(record)
        if self._watch is not None:
            self._watch.see(record)
        if self._view is not None:
            self._view.show(record)
            return
        reward = ""
        if "avg_reward" in record:
            reward = f" | Reward: {record['avg_reward']:.4f} ± {record['std_reward']:.4f}"
        console.log(
            f"Step {record['step']:6d} | Epoch {record['epoch']} Batch {record['batch']:4d}"
            f"{reward} | Loss: {record['loss']:.4f}"
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._view is not None:
            self._view.advance(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._summarise()

    def _summarise(self) -> None:
        records, self._epoch_records = self._epoch_records, []
        if not records:
            return
        last = records[-1][0]
        steps = sum(count for _, count in records)
        line = f"Epoch {self._epoch} ({self._phase}) | {steps:,} steps, to step {last['step']:,}"
        line += f" | mean loss {_mean([(r['loss'], count) for r, count in records]):.4f}"
        rewards = [(r["avg_reward"], count) for r, count in records if "avg_reward" in r]
        if rewards:
            line += f" | mean reward {_mean(rewards):.4f}, first {rewards[0][0]:.4f}, last {rewards[-1][0]:.4f}"
        best = self._best()
        console.log(f"{line}{f' | {best}' if best else ''} | {last['seconds']:.0f} s")


def _mean(values: list[tuple[float, int]]) -> float:
    """Returns the mean over steps of (value, steps) pairs, where each value is itself a mean over that many steps."""
    return sum(value * count for value, count in values) / sum(count for _, count in values)
