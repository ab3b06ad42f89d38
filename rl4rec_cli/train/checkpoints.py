"""Which checkpoint a run goes on from.

Decides: what makes a checkpoint usable (whole, of this recipe and this dataset, with all that the next step depends
on), what happens to one that is not, and how each is described.
Hides: file names, and how recipes are compared.

Beside the policy, which plain `from_pretrained` reads, a periodic checkpoint holds what transformers' own would
(`optimizer.pt`, `scheduler.pt`, `rng_state.pth`, `trainer_state.json`), `algorithm.pt` (completions still to learn
from, numbers since the last log line), the recipe and `progress.json`. All are read without running code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.data.provenance import changed_datasets
from rl4rec_cli.errors import ConfigError, RunError
from rl4rec_cli.files.folders import MANIFEST, problems
from rl4rec_cli.files.logs import read_jsonl
from rl4rec_cli.files.reading import object_flaw, read_object
from rl4rec_cli.files.writing import write_jsonl, write_text
from rl4rec_cli.runs.folder import TRAINING_LOG, WARM_START_LOG
from rl4rec_cli.runs.making import recipe_text, whole_reward
from rl4rec_cli.shell import command_line
from rl4rec_cli.strict_yaml import YamlError, load_yaml

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.config.trainer import TrainerSection
    from rl4rec_cli.runs.folder import Run

RECIPE = "recipe.yaml"
PROGRESS = "progress.json"
TRAINER = "trainer_state.json"
OPTIMIZER = "optimizer.pt"
SCHEDULER = "scheduler.pt"
RANDOM = "rng_state.pth"
SCALER = "scaler.pt"
VALIDATION = "validation.json"
ALGORITHM = "algorithm.pt"
STATE = frozenset({OPTIMIZER, SCHEDULER, RANDOM, SCALER, ALGORITHM})
"""Without these training could go on, but not on the same curve."""
LENGTH = ("max_steps", "num_train_epochs")
"""Keys of `trainer` that set the length of the training."""
FREE = ("run.name", "run.output_dir", "retrieval.storage", "retrieval.memory_map", "eval.", "logging.", "health.")
"""Keys that change nothing of what is learnt."""


@dataclass(frozen=True)
class Place:
    """Where a run stands: everything before `phase` is done, and `step` steps of it are."""

    phase: int
    """Number of the phase to go on with; the number of phases where only measuring is left."""
    step: int = 0
    checkpoint: Path | None = None
    """What `step` steps led to; None at the beginning of a phase."""


def steps_done(checkpoint: Path | None) -> int:
    """Returns how many steps of its phase led to a checkpoint; 0 for None."""
    if checkpoint is None:
        return 0
    return int(read_progress(checkpoint)["step"])


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """Returns phase, step and dataset of a periodic checkpoint.

    Raises:
        RunError: the file is damaged.
    """
    return read_object(checkpoint / PROGRESS, {"phase": str, "step": int, "dataset": str})


def find_place(run: Run, phases: Sequence[str], *, allow_partial: bool, most: int | None = None) -> Place:
    """Finds the newest usable checkpoint of a run that was interrupted or is to be longer. The run must not be in use.

    Args:
        run: with the configuration and the dataset to go on with.
        phases: of the training, in order; periodic checkpoints bear the name of the last one.
        allow_partial: go on with a changed recipe, or without the optimiser's or the random state.
        most: steps that the last phase has with this configuration, at most, where that is known.

    Raises:
        RunError: a changed recipe or dataset, or a state that is missing.
        ConfigError: a longer recipe that gives no more steps.
    """
    _tidy(run)
    last = len(phases) - 1
    is_done = run.final.is_dir() and _is_whole(run.final)
    if is_done:
        final_recipe = run.final / RECIPE
        recipe = final_recipe if final_recipe.is_file() else run.folder / "config.yaml"
        if not is_longer(_read_recipe(recipe), run.config.trainer):
            _check_recipe(recipe, run.config, allow_partial=allow_partial)
            return Place(last + 1)
        _check_more(run, most)
    newest = _newest(run.steps(), allow_partial=allow_partial)
    if is_done and newest is None:
        raise RunError(
            f"{run.folder}: nothing is left to go on from to more steps: no whole checkpoint_step_N",
            hint=f"train a new run from its policy: {command_line('--model', run.final)}",
        )
    if newest is None and last > 0:
        if run.start.is_dir() and _is_whole(run.start):
            _check_recipe(run.folder / "config.yaml", run.config, allow_partial=allow_partial)
            return Place(last)
        newest = _newest(run.warm_steps(), allow_partial=allow_partial)
    if newest is None:
        _check_recipe(run.folder / "config.yaml", run.config, allow_partial=allow_partial)
        return Place(0)
    progress = read_progress(newest)
    if progress["phase"] not in phases:
        raise RunError(
            f"{newest / PROGRESS}: is of {progress['phase']!r}, and this run trains {', '.join(phases)}",
            hint="go on with the algorithm and the warm start that the run was begun with",
        )
    _check_recipe(newest / RECIPE, run.config, allow_partial=allow_partial)
    if progress["dataset"] != run.digest:
        refuse(f"{newest}: the dataset is not the one it was trained on", "the data changed", allow_partial)
    return Place(phases.index(progress["phase"]), int(progress["step"]), newest)


def check_data(run: Run, digests: Mapping[str, str], *, allow_partial: bool) -> None:
    """Checks that a run's data are still those it started with, whatever its phase.

    Args:
        digests: of the current data, by the datasets' names.

    Raises:
        RunError: the data changed.
    """
    for change in changed_datasets(run, digests):
        refuse(change, "put the data back that were there, or train a new run with these", allow_partial)


def check_prompts(run: Run, digest: str, *, allow_partial: bool) -> None:
    """Refuses to go on with prompts other than those that a run started with.

    Data and recipe are compared before. This covers the tokenizer, its chat template, and what the template takes from
    elsewhere. Runs of older versions keep no digest and pass.

    Args:
        digest: of the prompts as they are built now.

    Raises:
        RunError: the prompts differ, and `allow_partial` is off.
    """
    first_digest = run.environment().get("prompts")
    if first_digest and first_digest != digest:
        refuse(
            f"{run.folder}: its prompts are not those it was begun with: the tokenizer or its chat template changed",
            "put the model's files back as they were",
            allow_partial,
        )


def keep_recipe(run: Run) -> None:
    """Writes the current configuration into the run folder, if it is not the one there.

    Each checkpoint keeps the recipe of its own step.

    Raises:
        RunError: the file cannot be written.
    """
    path, text = run.folder / "config.yaml", recipe_text(run.config)
    if path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _newest(folders: Sequence[Path], *, allow_partial: bool) -> Path | None:
    for folder in reversed(folders):
        if not _is_whole(folder):
            continue
        absent_files = sorted(name for name in STATE & _listed(folder) if not (folder / name).is_file())
        if absent_files:
            what = ", ".join(absent_files)
            refuse(
                f"{folder}: {what} is missing: the run would not go on as it was",
                f"remove {folder} to go on from the checkpoint before",
                allow_partial,
            )
        return folder
    return None


def _listed(folder: Path) -> set[str]:
    return set(read_object(folder / MANIFEST, {"files": dict})["files"])


def _problems(folder: Path) -> list[str]:
    """Returns what a checkpoint lacks and which files changed. A missing state of the training is no problem."""
    flaws = problems(folder, but=STATE)
    if not flaws and folder.name.startswith(("checkpoint_step", "checkpoint_warm")) and PROGRESS not in _listed(folder):
        flaws = [f"no {PROGRESS}"]
    return flaws


@dataclass(frozen=True)
class CheckpointState:
    """A checkpoint as it is on disk.

    Attributes:
        step: of its phase; None where no file records it.
        size: bytes.
        problems: why it cannot be loaded; empty where it is whole.
        missing: files without which training can go on only with --allow-partial.
        metrics: its metrics on validation users, where the run kept it for them.
        dataset: digest of its training data, where a file records it.
    """

    name: str
    step: int | None
    size: int
    problems: tuple[str, ...]
    missing: tuple[str, ...]
    metrics: Mapping[str, float]
    dataset: str | None


def checkpoint_states(run: Run) -> list[CheckpointState]:
    """Returns every checkpoint of a run, damaged ones too. Reads every file and changes none.

    The start comes first, then the steps in order, the best, and the final one.
    """
    start, steps = [run.start], [*run.warm_steps(), *run.steps()]
    aside = sorted(run.checkpoints.glob("damaged_*"))
    folders = [path for path in (*start, *steps, run.best, run.final, *aside) if path.is_dir()]
    with console.progress(len(folders), "Checking checkpoints") as advance:
        states = []
        for folder in folders:
            states.append(_state(folder))
            advance(1)
    return states


def _state(folder: Path) -> CheckpointState:
    flaws = _problems(folder)
    absent_files = [] if flaws else sorted(name for name in STATE & _listed(folder) if not (folder / name).is_file())
    facts: dict[str, Any] = {}
    for name in (PROGRESS, VALIDATION):
        try:
            content = read_object(folder / name)
        except RunError:  # most have none; `flaws` lists a damaged one
            continue
        facts |= content
    step = facts.get("step")
    if folder.name.startswith("damaged_"):
        flaws = [f"put aside as damaged ({'; '.join(flaws) or 'whole now'})"]
    return CheckpointState(
        folder.name,
        step if isinstance(step, int) else None,
        sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()),
        tuple(flaws),
        tuple(absent_files),
        {name: value for name, value in facts.items() if "@" in name and isinstance(value, int | float)},
        facts.get("dataset"),
    )


def _is_whole(folder: Path) -> bool:
    """Returns whether a checkpoint is whole. Renames a damaged one, so that nothing takes it for the newest."""
    flaws = _problems(folder)
    if flaws:
        aside = folder.with_name(folder.name.replace("checkpoint_", "damaged_", 1))
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        console.log(f"{folder} is damaged ({'; '.join(flaws[:3])}): put aside as {aside.name}, going on from before it")
    return not flaws


def _tidy(run: Run) -> None:
    """Cleans up after a process that was killed while it wrote a checkpoint."""
    for old in run.checkpoints.glob(".checkpoint_*.old"):
        name = old.name[1:].rsplit(".", 2)[0]
        if not (run.checkpoints / name).exists():
            old.rename(run.checkpoints / name)
    for leftover in [*run.checkpoints.glob(".checkpoint_*.old"), *run.checkpoints.glob(".checkpoint_*.tmp")]:
        shutil.rmtree(leftover, ignore_errors=True)


def is_longer(trained: Any, section: TrainerSection) -> bool:
    """Whether a trainer goes on to more steps than that of a recipe, by the settings that both have."""
    before = trained.get("trainer") if isinstance(trained, Mapping) else None
    before = before if isinstance(before, Mapping) else {}
    pairs = [(getattr(section, name), before.get(name)) for name in LENGTH]
    if not all(isinstance(was, int | float) for _, was in pairs):
        return False
    return all(now >= was for now, was in pairs) and any(now > was for now, was in pairs)


def final_steps(run: Run) -> int | None:
    """Returns how many steps of the last phase led to `checkpoint_final`, or None if an earlier version wrote it."""
    path = run.final / PROGRESS
    return steps_done(run.final) if path.is_file() else None


def _check_more(run: Run, most: int | None) -> None:
    """Checks that a finished run can go on to `most` steps."""
    final_step = final_steps(run)
    if final_step is None:
        raise RunError(
            f"{run.final}: an earlier version wrote it, and nothing says after how many steps",
            hint=f"train a new run from it: {command_line('--model', run.final)}",
        )
    if most is not None and most <= final_step:
        raise ConfigError(
            f"the run has {final_step:,} steps already, and with this configuration it has {most:,}",
            hint="raise trainer.num_train_epochs too: the smaller of both ends a run",
        )


def _read_recipe(path: Path) -> Any:
    try:
        return load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, YamlError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot read it: {error}") from error


def _check_recipe(path: Path, config: RunConfig, *, allow_partial: bool) -> None:
    recipe = _read_recipe(path)
    rewards = recipe.get("reward") if isinstance(recipe, dict) else None
    if isinstance(rewards, dict) and isinstance(rewards.get("functions"), dict):  # older runs kept them as typed
        rewards["functions"] = {whole_reward(str(name)): weight for name, weight in rewards["functions"].items()}
    keys = changed_keys(recipe, config.model_dump(mode="json"))
    if is_longer(recipe, config.trainer):
        keys = [key for key in keys if not key.startswith(tuple(f"trainer.{name} " for name in LENGTH))]
    if keys:
        refuse(
            f"the recipe is not the one that {path.parent} was trained with: {'; '.join(keys)}",
            "train a new run with it",
            allow_partial,
        )


def refuse(what: str, instead: str, allow_partial: bool) -> None:
    """Raises a RunError that says what differs and what to do instead, or logs it with `--allow-partial`."""
    if not allow_partial:
        raise RunError(what, hint=f"{instead}, or go on all the same with --allow-partial")
    console.log(f"Going on all the same (--allow-partial): {what}")


def changed_keys(before: Any, now: Any, path: str = "") -> list[str]:
    """Returns `KEY was X, is Y` for each difference that matters. Skips keys that only one of both recipes has."""
    if isinstance(before, Mapping) and isinstance(now, Mapping) and path != "reward.functions.":
        both = [key for key in now if key in before]
        return [line for key in both for line in changed_keys(before[key], now[key], f"{path}{key}.")]
    key = path.removesuffix(".")
    if before == now or any(key == free or (free.endswith(".") and key.startswith(free)) for free in FREE):
        return []
    return [f"{key} was {json.dumps(before)}, is {json.dumps(now)}"]


def cut_logs(run: Run, phases: Sequence[str], place: Place) -> None:
    """Drops the log lines of steps that the run will make again, and a last line that a kill cut.

    Moves a warm start's lines, which earlier versions wrote into `training_log.jsonl`, to a file of their own.

    Raises:
        RunError: the logs cannot be written.
    """
    is_last = place.phase == len(phases) - 1

    def is_made(record: Mapping[str, Any]) -> bool:
        phase = phases.index(record["phase"])
        return phase < place.phase or (phase == place.phase and record["step"] <= place.step)

    def is_written(record: Mapping[str, Any]) -> bool:  # only the last phase writes texts
        return place.phase == len(phases) or (is_last and record["step"] <= place.step)

    def flaw_of(record: Mapping[str, Any]) -> str:
        flaw = object_flaw(record, {"phase": str, "step": int})
        return flaw or ("" if record["phase"] in phases else f"`phase` {record['phase']!r} is none of {phases}")

    def text_flaw_of(record: Mapping[str, Any]) -> str:
        return object_flaw(record, {"step": int})

    def cut(name: str, flaw: Callable[[Mapping[str, Any]], str], keep: Callable[[Mapping[str, Any]], bool]) -> None:
        path = run.folder / name
        if path.is_file():
            write_jsonl(path, [record for record in read_jsonl(path, flaw) if keep(record)])

    log = run.folder / TRAINING_LOG
    records = read_jsonl(log, flaw_of) if log.is_file() else []
    if of_warm_start := [record for record in records if record["phase"] != phases[-1]]:
        write_jsonl(run.folder / WARM_START_LOG, of_warm_start)
        write_jsonl(log, [record for record in records if record["phase"] == phases[-1]])
    for name in (WARM_START_LOG, TRAINING_LOG, "validation_log.jsonl"):
        cut(name, flaw_of, is_made)
    cut("rollouts.jsonl", text_flaw_of, is_written)
