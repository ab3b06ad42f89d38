"""A training run from configuration to table.

Decides: the order of the steps: data, retrieval, policy, warm start, measurement, reinforcement learning, measurement.
Hides: where each of them comes from.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.commands.run_checks import check, of_seed, with_whole_paths
from rl4rec_cli.data.dataset import joint_digest
from rl4rec_cli.data.dates import day_line, with_day, writes_day
from rl4rec_cli.data.opening import open_datasets
from rl4rec_cli.data.provenance import keep_datasets
from rl4rec_cli.files.logs import JsonLines
from rl4rec_cli.runs.folder import TRAINING_LOG, WARM_START_LOG, Run
from rl4rec_cli.runs.making import create_run, resume_command
from rl4rec_cli.shell import rl4rec
from rl4rec_cli.train.arguments import number_of_steps, resolve_precision
from rl4rec_cli.train.checkpoints import Place, check_data, check_prompts, cut_logs, find_place, keep_recipe
from rl4rec_cli.train.environments import open_environments, policy_writer, screen_environments
from rl4rec_cli.train.examples import number_of_training_examples
from rl4rec_cli.train.trackers import Reports, open_reports
from rl4rec_cli.variables import settings_win

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import PolicySection
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.eval.evaluation import Evaluation
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.retrieval.retriever import VectorRetriever
    from rl4rec_cli.train.environments import Environment


@dataclass(frozen=True)
class _Data:
    """What runs need before any policy. All seeds share it."""

    datasets: list[Dataset]
    audits: dict[str, str]
    retrievers: dict[str, VectorRetriever]

    @property
    def digest(self) -> str:
        return joint_digest(self.datasets)


@dataclass(frozen=True)
class TrainedRun:
    """A finished run and its results on the validation users."""

    run: Run
    evaluations: dict[str, Evaluation]
    """By the datasets' names."""
    datasets: list[Dataset]
    seconds: float


Show = Callable[[TrainedRun], None]
"""Shows what a run reached before it is written, so that a full disk costs nobody what was measured."""


@settings_win()
def train(
    config: RunConfig,
    seeds: Sequence[int] = (),
    *,
    resume: Path | None = None,
    allow_partial: bool = False,
    show: Show = lambda trained: None,
) -> list[TrainedRun]:
    """Trains once per seed, and measures each run. Returns nothing if the run to resume is finished.

    Args:
        seeds: one run for each. Without seeds, one run with the configuration's seed.
        resume: a run folder to resume, with its seed, instead of making one.
        allow_partial: resume with a changed recipe, or without the optimiser's or the random state.
        show: called for each run as soon as it is measured.

    Raises:
        ConfigError: the environment shows that several processes were started.
        Rl4RecError: see the parts. What was trained before an error stays in the run folder.
    """
    from rl4rec_cli.eval import measuring
    from rl4rec_cli.policy.backend import choose_backend
    from rl4rec_cli.policy.sources import with_own_adapter
    from rl4rec_cli.rewards.custom import code_line

    # Everything that can be wrong with the input is found before anything heavy is imported.
    seeds = seeds or (config.run.seed,)
    datasets = open_datasets(config.data)
    config = with_whole_paths(config)
    if resume is None:
        config = config.model_copy(update={"policy": with_own_adapter(config.policy)})
    audits = {}
    for dataset, path in zip(datasets, config.data.paths or (None,), strict=True):
        console.log(f"Dataset {dataset.name}: {len(dataset.users):,} users, {dataset.num_items:,} items")
        audits[dataset.name] = measuring.audit_line(config, dataset, path)
    configs = [of_seed(config, seed, len(seeds)) for seed in seeds]
    for own in configs:
        check(own, datasets, is_new=resume is None)
    if config.policy.lora is not None:
        backend = choose_backend(config.policy)
        console.log(f"Backend {backend.name}, quantization {config.policy.quantization}: {backend.reason}")
    for line in filter(None, map(code_line, config.reward.functions)):
        console.log(line)
    if resume is not None:
        return _resume(configs[0], resume, datasets, audits, show, allow_partial=allow_partial)

    from rl4rec_cli.policy.backend import prepare_backend
    from rl4rec_cli.policy.loading import check_tokenizer

    prepare_backend(config.policy)
    console.quiet_libraries()
    check_tokenizer(config.policy)  # before the minutes that embedding takes
    with _opened(config, datasets, audits) as data:
        return [_train_one(own, data, show) for own in configs]


@contextmanager
def _opened(config: RunConfig, datasets: list[Dataset], audits: dict[str, str]) -> Iterator[_Data]:
    from rl4rec_cli.retrieval.opening import open_run_retrievers

    with open_run_retrievers(config, datasets) as retrievers:
        yield _Data(datasets, audits, {d.name: one for d, one in zip(datasets, retrievers, strict=True)})


def next_commands(run: Run, datasets: Sequence[Dataset]) -> str:
    """Returns the commands that the user may want next."""
    one = ("--dataset", datasets[0].name) if len(datasets) > 1 else ()
    measure = rl4rec("eval", run.folder, *one, "--split", "test")
    recommend = rl4rec("recommend", run.folder, *one, "--user", datasets[0].users[0])
    return f"Next: {measure}    or: {recommend}"


def _resume(
    config: RunConfig, folder: Path, datasets: list[Dataset], audits: dict[str, str], show: Show, *, allow_partial: bool
) -> list[TrainedRun]:
    phases = [phase.algorithm for phase in config.trainer.phases]
    run = Run(folder, config, digest=joint_digest(datasets))
    with run.locked():
        most = number_of_steps(
            config.trainer, sum(number_of_training_examples(config.data, one, seed=config.run.seed) for one in datasets)
        )
        place = find_place(run, phases, allow_partial=allow_partial, most=most)
        check_data(run, _digests(datasets), allow_partial=allow_partial)
        is_measured = all((run.results(name) / "validation.json").is_file() for name in audits)
        if place.phase == len(phases) and is_measured:
            console.log(f"Run {folder} is finished: there is nothing to go on with")
            console.log(next_commands(run, datasets))
            return []
        from rl4rec_cli.policy.backend import prepare_backend

        prepare_backend(config.policy)
        keep_datasets(run.folder, _digests(datasets))
        keep_recipe(run)
        console.quiet_libraries()
        with _opened(config, datasets, audits) as data:
            return [_train_one(config, data, show, run, place, allow_partial=allow_partial)]


def _digests(datasets: Sequence[Dataset]) -> dict[str, str]:
    return {dataset.name: dataset.digest for dataset in datasets}


def _train_one(
    config: RunConfig,
    data: _Data,
    show: Show,
    run: Run | None = None,
    place: Place | None = None,
    *,
    allow_partial: bool = False,
) -> TrainedRun:
    """Trains and measures. A resumed run starts at `place`, and is locked already."""
    from rl4rec_cli.engine.vllm import make_engine
    from rl4rec_cli.eval import measuring
    from rl4rec_cli.eval.baseline import open_baselines
    from rl4rec_cli.policy.opening import load_for_training
    from rl4rec_cli.rewards.scorer import open_scorers
    from rl4rec_cli.train.outcome import Outcome

    start_time = time.perf_counter()
    scorers = open_scorers(data.retrievers, config.reward)
    policy = load_for_training(config, _start_section(config.policy, config.trainer, run, place), data.datasets)
    if run is None:
        config = with_day(config, policy.tokenizer)
    else:
        run.config = config = with_day(config, policy.tokenizer, started=run.day)
    environments = open_environments(config, data.datasets, data.retrievers, scorers, policy.tokenizer)
    prompts = "+".join(one.builder.digest(one.examples) for one in environments)
    if run is not None:
        check_prompts(run, prompts, allow_partial=allow_partial)
    if writes_day(policy.tokenizer, chat=config.prompt.chat):
        console.log(day_line(str(config.prompt.date)))
    for phase in config.trainer.phases:
        resolve_precision(phase, str(policy.device))
    outcome = Outcome(config, environments, data.audits)
    with ExitStack() as stack:
        if run is None:
            run = create_run(
                config,
                dataset="+".join(data.retrievers),
                digest=data.digest,
                datasets=_digests(data.datasets),
                prompts=prompts,
            )
            stack.enter_context(run.locked())
        policy.engine = make_engine(config, log=run.folder / "vllm.log")
        stack.callback(policy.close)
        stack.enter_context(_telling_how_to_go_on(run, policy))
        reports = stack.enter_context(open_reports(run, done=_done(config.trainer, place)))
        console.log(f"Run {run.folder} (seed {config.run.seed}, {_size(policy.model)} on {policy.device})")
        outcome.measure_baselines()

        def measure_start() -> None:
            if any(baseline.is_start for baseline in open_baselines(config.eval.baselines)):
                outcome.measure(config.trainer.start_name, policy)

        _learn(run, place or Place(0), policy, environments, reports, measure_start)
        outcome.measure(measuring.TUNED, policy)
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
def _telling_how_to_go_on(run: Run, policy: Policy) -> Iterator[None]:
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
                error, run.config, policy, when="", phase=phase_of(error, otherwise=Phase.LEARNING)
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
    environments: Sequence[Environment],
    reports: Reports,
    measure_start: Callable[[], None],
) -> None:
    """Runs all phases, from `place` on, until `checkpoint_final` exists."""
    from rl4rec_cli.policy.loading import load_weights, save_policy
    from rl4rec_cli.train.phase import train_phase
    from rl4rec_cli.train.prolonging import write_final
    from rl4rec_cli.train.validation import Validation

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
                    *(phases[0], run, policy, environments, warm_log, rollouts),
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
            load_weights(policy.model, run.final)
            return
        resume = place.checkpoint if place.phase == last else None
        validation = Validation(run, policy, environments, report=reports.validation)
        learnable = screen_environments(
            config.trainer, environments, write=policy_writer(policy, config), folder=run.folder
        )
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
