"""A trainer that can go back to its last whole step.

Decides: when a step is whole (weights, optimiser and log line), and when it is saved.
Hides: where transformers' trainer loads and saves. `snapshot.py` decides what of a step is kept.

transformers does not save the completions that TRL still has to learn from, forgets the sums since the last log line,
and begins the data order of a later epoch with that of the first. Here each of these goes on as it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import TrainerCallback

from rl4rec_cli import console, signals
from rl4rec_cli.config.layering import dump_config
from rl4rec_cli.errors import Rl4RecError
from rl4rec_cli.files.folders import torch_save
from rl4rec_cli.plan.phases import Phase, phase_of, phases_of
from rl4rec_cli.runs.environment import environment
from rl4rec_cli.train.checkpoints import (
    ALGORITHM,
    OPTIMIZER,
    PROGRESS,
    RANDOM,
    RECIPE,
    SCALER,
    SCHEDULER,
    TRAINER,
    steps_done,
)
from rl4rec_cli.train.health import check_finite
from rl4rec_cli.train.out_of_memory import OutOfMemory, advise, is_out_of_memory
from rl4rec_cli.train.snapshot import random_states_kept, restore, size, take

if TYPE_CHECKING:
    from rl4rec_cli.runs.folder import Run
    from rl4rec_cli.train.learner import Learner
    from rl4rec_cli.train.snapshot import Snapshot, Stateful
    from rl4rec_cli.train.validation import Measurements
    from rl4rec_cli.train.watch import Watch


class Resumable:
    """Stands before a transformers trainer, which then resumes from our checkpoints and calls `Keeper` at each step.

    A trainer with more state than TRL's `GRPOTrainer` (a critic) overrides the last four methods.
    """

    keeper: Keeper | None = None
    """Set by `Keeper.train`."""
    args: Any
    state: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any

    def get_train_dataloader(self) -> Any:
        loader = cast(Any, super()).get_train_dataloader()
        if self.keeper is not None:
            steps_per_epoch = max(1, -(-len(loader) // self.args.gradient_accumulation_steps))
            _begin_epoch(loader, self.keeper.done // steps_per_epoch)
        return loader

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.keeper is None:
            raise RuntimeError("a checkpoint is loaded by the Keeper, which is not there")
        self.keeper.learner.load(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        optimizer, scheduler = Path(checkpoint) / OPTIMIZER, Path(checkpoint) / SCHEDULER
        step = steps_done(Path(checkpoint))
        if optimizer.is_file():
            self.optimizer.load_state_dict(torch.load(optimizer, map_location="cpu", weights_only=True))
        if scheduler.is_file():
            self.lr_scheduler.load_state_dict(torch.load(scheduler, weights_only=True))
        else:
            for _ in range(step):
                self.lr_scheduler.step()
        self.take_rates_of_this_length(step)

    def take_rates_of_this_length(self, done: int) -> None:
        """Sets the learning rate for this run's length: with more steps, a falling rate is another than before."""
        scheduler, args = self.lr_scheduler, self.args
        before = scheduler.get_last_lr()
        pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        rates = [base * of(scheduler.last_epoch) for base, of in pairs]
        if rates == before:
            return
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates
        console.log(
            f"Learning rate: the checkpoint's schedule had come to {before[0]:.3g} after step {done:,}; "
            f"{args.lr_scheduler_type.value} over {args.max_steps:,} steps goes on at {rates[0]:.3g}. A run of this "
            "length from the start would have come here by other rates"
        )

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        cast(Any, super())._maybe_log_save_evaluate(*args, **options)
        if self.keeper is not None:
            self.keeper.after_step()

    def training_step(self, *args: Any, **options: Any) -> Any:
        loss = cast(Any, super()).training_step(*args, **options)
        check_finite("loss", float(loss), step=self.state.global_step + 1)
        return loss

    def _get_grad_norm(self, *args: Any, **options: Any) -> Any:
        norm = cast(Any, super())._get_grad_norm(*args, **options)
        # With fp16 a gradient that overflows is expected now and then: the scaler leaves that update out.
        if norm is not None and getattr(self.accelerator, "scaler", None) is None:
            check_finite("gradient norm", float(norm), step=self.state.global_step + 1)
        return norm

    def algorithm_state(self) -> dict[str, Any]:
        """Returns what the algorithm's next step depends on beyond what every trainer has; see `Stateful.state`."""
        return {}

    def set_algorithm_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `algorithm_state` returned."""

    def write_beside(self, folder: Path) -> None:
        """Writes the algorithm's own files into a checkpoint's folder."""

    def read_beside(self, folder: Path) -> None:
        """Reads what `write_beside` wrote."""


def _begin_epoch(loader: Any, epoch: int) -> None:
    """Sets a loader to the data order of an epoch. Its sampler counts the epochs that it has started."""
    from accelerate.data_loader import get_sampler
    from trl.trainer.utils import RepeatSampler

    sampler = get_sampler(loader)
    if isinstance(sampler, RepeatSampler):
        for _ in range(epoch):
            torch.randperm(sampler.num_samples, generator=sampler.generator)
    elif hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)


class Keeper(TrainerCallback):
    """Keeps the last whole step of a phase. Saves it every `logging.save_steps` steps and when the training ends early.

    Args:
        learner: what is trained.
        phase: name of the phase, as `sft` or `grpo`.
        is_warm_start: its checkpoints are `checkpoint_warm_N`.
        resume: the checkpoint to go on from.
        parts: what else the next steps depend on, by name.
        validation: measures the policy at regular steps; the best becomes `checkpoint_best`.
        watch: the health rules.
    """

    def __init__(
        self,
        run: Run,
        learner: Learner,
        *,
        phase: str,
        is_warm_start: bool = False,
        resume: Path | None = None,
        parts: Mapping[str, Stateful] | None = None,
        validation: Measurements | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._run = run
        self.learner = learner
        self._phase = phase
        self._is_warm_start = is_warm_start
        self._validation = validation
        self._watch = watch
        stateful = {**(parts or {}), "validation": validation, "health": watch}
        self._parts: dict[str, Stateful] = {name: part for name, part in stateful.items() if part is not None}
        self._trainer: Any = None
        self._resume = resume
        self._snapshot: Snapshot | None = None
        self._is_torn = False
        self._written: int | None = None
        self._cannot_write = False
        self.done = steps_done(resume)

    def train(self, trainer: Any) -> None:
        """Trains to the end, from the checkpoint if there is one.

        Args:
            trainer: a transformers `Trainer` that is `Resumable`.

        Raises:
            BaseException: whatever ended the training early (a reward, a signal, no more memory). The keeper first
                saves the last whole step.
        """
        is_resumable = isinstance(trainer, Resumable)
        if not is_resumable:
            raise TypeError(f"{type(trainer).__name__} has no Resumable before it: see train/algorithms/bases.py")
        self._trainer, trainer.keeper = trainer, self
        if self._resume is not None and self.done >= trainer.args.max_steps:
            self.learner.load(self._resume)
            return  # transformers would make one more step
        trainer.add_callback(self)
        with self._on_failure():
            trainer.train(resume_from_checkpoint=None if self._resume is None else str(self._resume))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._resume is not None:
            restore(self._trainer, self._parts, self._resume, done=self.done)
            self._written = state.global_step
            self._validate(state.global_step)  # where the run ended while it was measured

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        signals.hold()
        self._is_torn = True

    def after_step(self) -> None:
        """Keeps a step that is whole: weights, optimiser and log line."""
        step = self._trainer.state.global_step
        if not self._is_torn:
            return
        if self._watch is not None:
            self._watch.tell()
        self._snapshot = take(self._trainer, self._parts)
        self._is_torn = False
        signals.let_go()
        self._validate(step)
        if self._watch is not None:
            self._watch.stop()
        if step >= self._trainer.state.max_steps or self._trainer.control.should_training_stop:
            self._save_end(self._snapshot)
        elif step % self._run.config.logging.save_steps == 0:
            self._save(self._snapshot)

    def _save_end(self, snapshot: Snapshot) -> None:
        """Saves what a longer run would go on from. The result does not need it, so a failure is only logged."""
        if self._is_warm_start:
            return
        try:
            self._save(snapshot)
        except Rl4RecError as error:
            signals.let_go()
            console.log(f"The run cannot be prolonged from its end: {error.message}")

    def _validate(self, step: int) -> None:
        validation = self._validation
        last = step if self._trainer.control.should_training_stop else self._trainer.state.max_steps
        if validation is None or not validation.is_due(step, last):
            return
        with random_states_kept():  # measuring changes no later draw
            if validation.measure(self._phase, step):
                self.learner.write(self._run.best, validation.describe)
        if self._watch is not None:
            self._watch.see_validation(step, validation.metric, validation.values[-1][1])
            self._watch.tell()
        patience = self._run.config.trainer.stops_after
        if patience is not None and validation.since_best >= patience:
            console.log(f"Training ends here: {patience} measurements of validation users without a better one")
            self._trainer.control.should_training_stop = True
        if self._snapshot is not None:
            self._snapshot.algorithm["parts"].update({name: part.state() for name, part in self._parts.items()})

    def _save(self, snapshot: Snapshot) -> Path:
        """Saves a step, then deletes the oldest checkpoints beyond the limit."""
        run, trainer = self._run, self._trainer
        folder = run.warm(snapshot.step) if self._is_warm_start else run.step(snapshot.step)
        optimizer = trainer.optimizer.state_dict()

        def more(temporary: Path) -> None:
            torch_save(optimizer, temporary / OPTIMIZER)
            torch_save(trainer.lr_scheduler.state_dict(), temporary / SCHEDULER)
            torch_save(snapshot.random, temporary / RANDOM)
            torch_save(snapshot.algorithm, temporary / ALGORITHM)
            trainer.write_beside(temporary)
            if getattr(trainer.accelerator, "scaler", None) is not None:
                torch_save(trainer.accelerator.scaler.state_dict(), temporary / SCALER)
            snapshot.trainer.save_to_json(str(temporary / TRAINER))
            (temporary / RECIPE).write_text(dump_config(run.config), encoding="utf-8")
            versions = environment()["versions"]
            progress = {"phase": self._phase, "step": snapshot.step, "dataset": run.digest, "versions": versions}
            (temporary / PROGRESS).write_text(json.dumps(progress, indent=1) + "\n", encoding="utf-8")

        signals.hold()
        try:
            self.learner.write(folder, more, size=size(optimizer) + size(snapshot.algorithm))
            self._written = snapshot.step
            folders = run.warm_steps() if self._is_warm_start else run.steps()
            # Only what is older: of a later one (of a copied folder, say) nobody knows whether it is whole.
            older = folders[: folders.index(folder) + 1]
            for old in older[: -run.config.logging.save_total_limit]:
                shutil.rmtree(old)
        except Rl4RecError:
            self._cannot_write = True
            raise
        signals.let_go()
        return folder

    @contextmanager
    def _on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            signals.hold()  # a second one does not wait
            is_full = is_out_of_memory(error)
            if is_full:  # what the failed step holds is in the way of saving the one before
                clear_frames(error.__traceback__)
                self._trainer.model.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
            try:
                self._keep_last()
            except Rl4RecError as save_error:  # the error that ended the training matters more
                console.log(f"Step {self._snapshot.step if self._snapshot else 0} is lost: {save_error.message}")
            if is_full:
                raise self._out_of_memory(error) from error
            if isinstance(error, Rl4RecError):
                error.exit_code = 1  # whatever it is, the command line was right: there were steps
            raise

    def _out_of_memory(self, error: BaseException) -> OutOfMemory:
        step, is_measuring = self._trainer.state.global_step, Phase.MEASURING in phases_of(error)
        # Validation users are measured after a step; everything else belongs to the one that is not done.
        when = f"in the validation after step {step:,}" if is_measuring else f"at step {step + 1:,}"
        return advise(
            error,
            self._run.config,
            self.learner,
            when=f"{when} of {self._phase}",
            phase=phase_of(error, otherwise=Phase.UPDATING if self._is_torn else Phase.LEARNING),
            is_warm_start=self._is_warm_start,
            is_first=step == 0,
        )

    def _keep_last(self) -> None:
        snapshot = self._snapshot
        if self._is_torn or self._cannot_write or snapshot is None or snapshot.step == self._written:
            if self._written:
                console.log(f"Stopped: the policy of step {self._written} is in {self._folder(self._written)}")
            return
        console.log(f"Stopped: the policy of step {snapshot.step} is in {self._save(snapshot)}")

    def _folder(self, step: int) -> Path:
        return self._run.warm(step) if self._is_warm_start else self._run.step(step)
