"""Which checkpoint a run goes on from.

Decides: what makes a checkpoint usable (whole, of this recipe and this dataset, with all that the next step depends
on), what becomes of one that is not, and what is said of each.
Hides: file names, and how recipes are compared.

Beside the policy, which plain `from_pretrained` reads, a periodic checkpoint holds what transformers' own would
(`optimizer.pt`, `scheduler.pt`, `rng_state.pth`, `trainer_state.json`), `algorithm.pt` (texts that are still to be
learnt from, numbers since the last log line), the recipe and `progress.json`. All are read without running code.
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
"""Keys of `trainer` that say how long is trained."""
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
    """Steps of its phase that led to a checkpoint; 0 for None."""
    if checkpoint is None:
        return 0
    return int(read_progress(checkpoint)["step"])


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """Phase, step and dataset of a periodic checkpoint.

    Raises:
        RunError: it is damaged.
    """
    return read_object(checkpoint / PROGRESS, {"phase": str, "step": int, "dataset": str})


def find_place(run: Run, phases: Sequence[str], *, allow_partial: bool, most: int | None = None) -> Place:
    """The newest usable checkpoint of a run that was interrupted or is to be longer, and must not be in use.

    Args:
        run: with the configuration and the dataset it is to be continued with.
        phases: what is trained, in order; the last is the one that periodic checkpoints are named after.
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
        _refuse(f"{newest}: the dataset is not the one it was trained on", "the data changed", allow_partial)
    return Place(phases.index(progress["phase"]), int(progress["step"]), newest)


def check_data(run: Run, digests: Mapping[str, str], *, allow_partial: bool) -> None:
    """Whether a run's data are still those it was begun with, whatever phase it is in.

    Args:
        digests: of what is there, by the datasets' names.

    Raises:
        RunError: they were changed.
    """
    for change in changed_datasets(run, digests):
        _refuse(change, "put the data back that were there, or train a new run with these", allow_partial)


def check_prompts(run: Run, digest: str, *, allow_partial: bool) -> None:
    """Refuse to go on with prompts other than those that a run was begun with.

    Data and recipe are compared before; what is left is the tokenizer, its chat template, and what that takes from
    elsewhere. Runs of older versions do not know.

    Args:
        digest: of the prompts as they are made now.

    Raises:
        RunError: they are others, and `allow_partial` is off.
    """
    first_digest = run.environment().get("prompts")
    if first_digest and first_digest != digest:
        _refuse(
            f"{run.folder}: its prompts are not those it was begun with: the tokenizer or its chat template changed",
            "put the model's files back as they were",
            allow_partial,
        )


def keep_recipe(run: Run) -> None:
    """The run folder says what the run goes on with, where that is not what it was begun with.

    Each checkpoint keeps the recipe that it was made with.

    Raises:
        RunError: it cannot be written.
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
            _refuse(
                f"{folder}: {what} is missing: the run would not go on as it was",
                f"remove {folder} to go on from the checkpoint before",
                allow_partial,
            )
        return folder
    return None


def _listed(folder: Path) -> set[str]:
    return set(read_object(folder / MANIFEST, {"files": dict})["files"])


def _problems(folder: Path) -> list[str]:
    """What a checkpoint lacks, or what differs from what was written; a missing state of the training is no problem."""
    flaws = problems(folder, but=STATE)
    if not flaws and folder.name.startswith(("checkpoint_step", "checkpoint_warm")) and PROGRESS not in _listed(folder):
        flaws = [f"no {PROGRESS}"]
    return flaws


@dataclass(frozen=True)
class CheckpointState:
    """A checkpoint as it lies there.

    Attributes:
        step: of the phase it was written in; None where that is not written down.
        size: bytes.
        problems: why it cannot be loaded; empty where it is whole.
        missing: files without which training can go on only with --allow-partial.
        metrics: what it reached on validation users, where it was kept for that.
        dataset: digest of what it was trained on, where that is written down.
    """

    name: str
    step: int | None
    size: int
    problems: tuple[str, ...]
    missing: tuple[str, ...]
    metrics: Mapping[str, float]
    dataset: str | None


def checkpoint_states(run: Run) -> list[CheckpointState]:
    """Every checkpoint of a run, those put aside as damaged too; every file is read, nothing is changed.

    The start comes first, then steps in order, the best, the final one.
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
        except RunError:  # most have none; of one that is damaged `flaws` says so
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
    """Whether a checkpoint is whole; one that is not is put aside, so that nothing takes it for the newest."""
    flaws = _problems(folder)
    if flaws:
        aside = folder.with_name(folder.name.replace("checkpoint_", "damaged_", 1))
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        console.log(f"{folder} is damaged ({'; '.join(flaws[:3])}): put aside as {aside.name}, going on from before it")
    return not flaws


def _tidy(run: Run) -> None:
    """What a process left that was killed in the middle of writing."""
    for old in run.checkpoints.glob(".checkpoint_*.old"):
        name = old.name[1:].rsplit(".", 2)[0]
        if not (run.checkpoints / name).exists():
            old.rename(run.checkpoints / name)
    for leftover in [*run.checkpoints.glob(".checkpoint_*.old"), *run.checkpoints.glob(".checkpoint_*.tmp")]:
        shutil.rmtree(leftover, ignore_errors=True)


def is_longer(trained: Any, section: TrainerSection) -> bool:
    """Whether a trainer goes on to more steps than that of a recipe, as far as both say."""
    before = trained.get("trainer") if isinstance(trained, Mapping) else None
    before = before if isinstance(before, Mapping) else {}
    pairs = [(getattr(section, name), before.get(name)) for name in LENGTH]
    if not all(isinstance(was, int | float) for _, was in pairs):
        return False
    return all(now >= was for now, was in pairs) and any(now > was for now, was in pairs)


def final_steps(run: Run) -> int | None:
    """Steps of the last phase that led to `checkpoint_final`; None where an earlier version wrote it."""
    path = run.final / PROGRESS
    return steps_done(run.final) if path.is_file() else None


def _check_more(run: Run, most: int | None) -> None:
    """Whether a finished run can be prolonged to what is asked for."""
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
        _refuse(
            f"the recipe is not the one that {path.parent} was trained with: {'; '.join(keys)}",
            "train a new run with it",
            allow_partial,
        )


def _refuse(what: str, instead: str, allow_partial: bool) -> None:
    if not allow_partial:
        raise RunError(what, hint=f"{instead}, or go on all the same with --allow-partial")
    console.log(f"Going on all the same (--allow-partial): {what}")


def changed_keys(before: Any, now: Any, path: str = "") -> list[str]:
    """`key: was, is` of what differs and matters. A key that only one of both has is none of either's version."""
    if isinstance(before, Mapping) and isinstance(now, Mapping) and path != "reward.functions.":
        both = [key for key in now if key in before]
        return [line for key in both for line in changed_keys(before[key], now[key], f"{path}{key}.")]
    key = path.removesuffix(".")
    if before == now or any(key == free or (free.endswith(".") and key.startswith(free)) for free in FREE):
        return []
    return [f"{key} was {json.dumps(before)}, is {json.dumps(now)}"]


def cut_logs(run: Run, phases: Sequence[str], place: Place) -> None:
    """Drop the lines of steps that will be made again, and a last line that a kill cut.

    What a run of an earlier version has of its warm start in `training_log.jsonl` goes where it belongs.

    Raises:
        RunError: they cannot be written.
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
