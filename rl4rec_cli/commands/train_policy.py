"""One run that trains a policy, from loading it to its table.

Decides: the order of the steps: policy, warm start, measurement, reinforcement learning, measurement.
Hides: where each of them comes from.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.commands.run_checks import check_settings
from rl4rec_cli.commands.trained_run import TrainedRun, task_of
from rl4rec_cli.data.dates import day_line, with_day, writes_day
from rl4rec_cli.files.logs import JsonLines
from rl4rec_cli.runs.folder import TRAINING_LOG, WARM_START_LOG, Run
from rl4rec_cli.runs.making import create_run, resume_command
from rl4rec_cli.train.arguments import resolve_precision
from rl4rec_cli.train.checkpoints import Place, check_prompts, cut_logs
from rl4rec_cli.train.trackers import Reports, open_reports

if TYPE_CHECKING:
    from rl4rec_cli.commands.trained_run import Course, RunData, Show
    from rl4rec_cli.config.policy import PolicySection
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.train.learner import Learner


def check(config: RunConfig, datasets: Sequence[Any], *, is_new: bool) -> None:
    """Raises the errors that would otherwise end the run later, after models are loaded or a warm start is done.

    Raises:
        Rl4RecError: see `run_checks.check_settings`.
        PolicyError: the policy's folder is not a model, or one of its files is not what its name says.
    """
    from rl4rec_cli.policy.backend import check_policy
    from rl4rec_cli.policy.sources import find_source

    check_settings(config, datasets, is_new=is_new)
    checkpointing = next((p.gradient_checkpointing for p in config.trainer.phases if p.gradient_checkpointing), False)
    backend = check_policy(config.policy, trainable=True, gradient_checkpointing=checkpointing)
    if config.policy.model != "tiny":
        find_source(config.policy, backend.name)


def announce(config: RunConfig) -> None:
    """Logs the backend of an adapter, and the code of rewards."""
    from rl4rec_cli.policy.backend import choose_backend

    if config.policy.lora is not None:
        backend = choose_backend(config.policy)
        console.log(f"Backend {backend.name}, quantization {config.policy.quantization}: {backend.reason}")
    task_of(config).announce(config)


def prepare(config: RunConfig, *, is_new: bool) -> None:
    """Imports the backend in its order, and reads a new run's tokenizer: before the minutes that embedding takes."""
    from rl4rec_cli.policy.backend import prepare_backend
    from rl4rec_cli.policy.loading import check_tokenizer

    prepare_backend(config.policy)
    if is_new:
        console.quiet_libraries()
        check_tokenizer(config.policy, config.max_length)


def train_one(
    config: RunConfig,
    data: RunData,
    show: Show,
    run: Run | None = None,
    place: Place | None = None,
    *,
    allow_partial: bool = False,
) -> TrainedRun:
    """Trains and measures. A resumed run starts at `place`, and is locked already."""
    from rl4rec_cli.engine.vllm import make_engine
    from rl4rec_cli.policy.opening import load_for_training

    start_time = time.perf_counter()
    open_course = data.start(config)
    policy = load_for_training(config, _start_section(config.policy, config.trainer, run, place), data.datasets)
    if run is None:
        config = with_day(config, policy.tokenizer)
    else:
        run.config = config = with_day(config, policy.tokenizer, started=run.day)
    course = open_course(config, policy.tokenizer)
    outcome, prompts = course.outcome, course.prompts
    if run is not None:
        check_prompts(run, prompts, allow_partial=allow_partial)
    if writes_day(policy.tokenizer, chat=config.prompt.chat):
        console.log(day_line(str(config.prompt.date)))
    for phase in config.trainer.phases:
        resolve_precision(phase, str(policy.device))
    with ExitStack() as stack:
        if run is None:
            run = create_run(
                config,
                dataset="+".join(dataset.name for dataset in data.datasets),
                digest=data.digest,
                datasets=data.digests,
                prompts=prompts,
            )
            stack.enter_context(run.locked())
        course.keep(run, allow_partial=allow_partial)
        policy.engine = make_engine(config, log=run.folder / "vllm.log")
        stack.callback(policy.close)
        stack.enter_context(telling_how_to_go_on(run, policy))
        reports = stack.enter_context(open_reports(run, done=_done(config.trainer, place)))
        console.log(f"Run {run.folder} (seed {config.run.seed}, {_size(policy.model)} on {policy.device})")
        outcome.measure_baselines()

        def measure_start() -> None:
            if course.measures_start:
                outcome.measure(config.trainer.start_name, policy)

        _learn(run, place or Place(0), policy, course, reports, measure_start)
        outcome.measure(config.trainer.tuned_name, policy)
        outcome.finish(run)
        trained_run = TrainedRun(run, outcome.evaluations, data.datasets, time.perf_counter() - start_time)
        outcome.show_and_save(run, reports, partial(show, trained_run))
    return trained_run


def _start_section(
    policy: PolicySection, trainer: TrainerSection, run: Run | None, place: Place | None
) -> PolicySection:
    """Returns what to load: the one that the last phase started from, if it is known, else the configured one."""
    if run is not None and place is not None and place.phase >= len(trainer.phases) - 1 and run.start.is_dir():
        return policy.model_copy(update={"model": str(run.start)})
    if makes_base(policy):
        whole = {"lora": None, "quantization": "none", "backend": "hf"}
        return policy.model_copy(update=whole)
    return policy


def load_start(config: RunConfig, datasets: Sequence[Dataset]) -> Policy:
    """Loads the policy that a new run starts from."""
    from rl4rec_cli.policy.opening import load_for_training

    return load_for_training(config, _start_section(config.policy, config.trainer, None, None), datasets)


def makes_base(section: PolicySection) -> bool:
    """Returns whether the run builds the policy, warm-starts all its weights, and then puts an adapter on it."""
    return section.model == "tiny" and section.lora is not None


def put_adapter(policy: Policy, run: Run) -> None:
    """Stores a policy that this run built, loads it back as the configuration says, and puts an adapter on it."""
    from rl4rec_cli.policy.loading import save_policy
    from rl4rec_cli.policy.opening import load_for_training

    base = run.base.resolve()
    save_policy(policy, base)
    new = load_for_training(run.config, run.config.policy.model_copy(update={"model": str(base)}))
    policy.model, policy.tokenizer, policy.backend = new.model, new.tokenizer, new.backend


def _done(section: TrainerSection, place: Place | None) -> int:
    """Returns the number of finished steps of the last phase."""
    return place.step if place is not None and place.phase == len(section.phases) - 1 else 0


@contextmanager
def telling_how_to_go_on(run: Run, learner: Learner) -> Iterator[None]:
    """Logs the command that resumes the run, directly before the error.

    Raises:
        OutOfMemory: memory ran out while a policy was measured. The trainers raise their own.
    """
    from rl4rec_cli.plan.phases import Phase, phase_of
    from rl4rec_cli.train.out_of_memory import OutOfMemory, advise, is_out_of_memory

    try:
        yield
    except BaseException as error:
        if is_full := is_out_of_memory(error):
            clear_frames(error.__traceback__)
            failure: BaseException = advise(
                error, run.config, learner, when="", phase=phase_of(error, otherwise=Phase.LEARNING)
            )
        else:
            failure = error
        command = resume_command(run)
        command += f" {failure.flags}" if isinstance(failure, OutOfMemory) and failure.flags else ""
        console.log(f"To go on with it: {command}")
        if is_full:
            raise failure from error
        raise


def _learn(
    run: Run,
    place: Place,
    policy: Policy,
    course: Course,
    reports: Reports,
    measure_start: Callable[[], None],
) -> None:
    """Runs all phases, from `place` on, until `checkpoint_final` exists."""
    from rl4rec_cli.policy.loading import save_policy
    from rl4rec_cli.train.phase import train_phase
    from rl4rec_cli.train.prolonging import write_final

    config = run.config
    phases = config.trainer.phases
    last = len(phases) - 1
    cut_logs(run, [phase.algorithm for phase in phases], place)
    log = JsonLines(run.folder / TRAINING_LOG, also=reports.step)
    rollouts = JsonLines(run.folder / "rollouts.jsonl")
    try:
        if place.phase < last:
            console.log("Warm start: supervised fine-tuning")
            with closing(JsonLines(run.folder / WARM_START_LOG, also=reports.step)) as warm_log:
                train_phase(
                    *(phases[0], run, policy, course.environments, warm_log, rollouts),
                    is_warm_start=True,
                    resume=place.checkpoint,
                )
        if not run.start.is_dir() and makes_base(config.policy):
            put_adapter(policy, run)
        if not run.start.is_dir() and (last > 0 or config.policy.model == "tiny"):
            save_policy(policy, run.start)
            for folder in run.warm_steps():
                shutil.rmtree(folder)
        if run.start.is_dir():
            # TRL loads the reference policy of full fine-tuning by this name: it must be the one training starts from.
            policy.model.config._name_or_path = str(run.start)
        measure_start()
        if place.phase > last:
            policy.load(run.final)
            return
        resume = place.checkpoint if place.phase == last else None
        validation = course.validation(policy, run, reports.validation)
        learnable = course.learnable(policy, run)
        steps, _ = train_phase(
            config.trainer, run, policy, learnable, log, rollouts, resume=resume, validation=validation
        )
        write_final(policy, run, steps=steps)
    finally:
        log.close()
        rollouts.close()


def _size(model: object) -> str:
    parameters = sum(p.numel() for p in model.parameters())  # type: ignore[attr-defined]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)  # type: ignore[attr-defined]
    share = "" if trainable == parameters else f", {trainable / 1e6:.2f} M trained"
    return f"{parameters / 1e6:.2f} M parameters{share}"
