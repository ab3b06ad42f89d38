"""What happens beside the optimiser: log lines and periodic checkpoints.

Decides: what a logged step holds and how it reads on the terminal.
Hides: transformers' callback protocol.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from rl4rec_cli import console
from rl4rec_cli.errors import Rl4RecError
from rl4rec_cli.policy.loading import save_policy

if TYPE_CHECKING:
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.runs import JsonLines, Run


class StepLog(TrainerCallback):
    """Writes `training_log.jsonl` and the console's lines.

    Args:
        log: where records go.
        describe: turns a trainer's logs into a record; None where there is nothing to log.
        phase: name of the phase, as `sft` or `grpo`.
        batches_per_epoch: optimiser steps of an epoch.
    """

    def __init__(
        self,
        log: JsonLines,
        describe: Callable[[dict[str, Any]], dict[str, Any] | None],
        *,
        phase: str,
        batches_per_epoch: int,
    ) -> None:
        self._log = log
        self._describe = describe
        self._phase = phase
        self._batches = max(1, batches_per_epoch)
        self._started = time.perf_counter()
        self._epoch_records: list[dict[str, Any]] = []
        self._epoch = 1

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.perf_counter()
        console.log(f"{self._phase.upper()}: {state.max_steps:,} steps, {self._batches:,} an epoch")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        described = self._describe(logs or {})
        if described is None:
            return
        epoch, batch = divmod(state.global_step - 1, self._batches)
        record = {
            "phase": self._phase,
            "step": state.global_step,
            "epoch": epoch + 1,
            "batch": batch + 1,
            "seconds": round(time.perf_counter() - self._started, 3),
            **described,
        }
        if record["epoch"] != self._epoch:
            self._summarise()
            self._epoch = record["epoch"]
        self._epoch_records.append(record)
        self._log.write(record)
        reward = ""
        if "avg_reward" in record:
            reward = f" | Reward: {record['avg_reward']:.4f} ± {record['std_reward']:.4f}"
        console.log(
            f"Step {record['step']:6d} | Epoch {record['epoch']} Batch {record['batch']:4d}"
            f"{reward} | Loss: {record['loss']:.4f}"
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._summarise()

    def _summarise(self) -> None:
        records, self._epoch_records = self._epoch_records, []
        if not records:
            return
        losses = [r["loss"] for r in records]
        line = f"Epoch {self._epoch} ({self._phase}) | {len(records)} logged steps | mean loss {_mean(losses):.4f}"
        rewards = [r["avg_reward"] for r in records if "avg_reward" in r]
        if rewards:
            line += f" | mean reward {_mean(rewards):.4f}, first {rewards[0]:.4f}, last {rewards[-1]:.4f}"
        console.log(f"{line} | {records[-1]['seconds']:.0f} s")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


class PeriodicCheckpoints(TrainerCallback):
    """Writes `checkpoint_step_N` every `every` steps and keeps the last `keep`.

    A warm start ends in `checkpoint_start`; what it reached when something ended it early is `checkpoint_warm_N`.
    """

    def __init__(self, run: Run, policy: Policy, *, every: int, keep: int, is_warm_start: bool = False) -> None:
        self._run = run
        self._is_warm_start = is_warm_start
        self._policy = policy
        self._every = every
        self._keep = keep

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._every == 0 and state.global_step < state.max_steps:
            self.save(state.global_step)

    def save(self, step: int) -> None:
        """Write the checkpoint of a step, then drop the oldest beyond the limit."""
        save_policy(self._policy, self._run.step(step))
        for old in self._run.steps()[: -self._keep]:
            shutil.rmtree(old)

    @contextmanager
    def on_failure(self, trainer: Any) -> Iterator[None]:
        """Whatever ends the training early (a reward, a signal, no more memory), its last whole step is kept."""
        try:
            yield
        except BaseException:
            step = trainer.state.global_step
            if step:
                try:
                    if self._is_warm_start:
                        kept, more = self._run.warm(step), ""
                        save_policy(self._policy, kept)
                    else:
                        kept, more = self._run.step(step), " --set trainer.warm_start=null"
                        self.save(step)
                    console.log(f"Stopped: the policy of step {step} is in {kept}")
                    console.log(f"To go on from it: the same command with another run.name and --model {kept}{more}")
                except Rl4RecError as error:  # what ended the training is told first
                    console.log(f"The policy of step {step} is lost: {error.message}")
            raise
