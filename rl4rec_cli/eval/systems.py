"""Turns words of the command line into systems to compare: runs, models and baselines.

Decides: the meaning of a word, its settings, and what all systems must share: the dataset, and everything in
`retrieval` that ranks depend on. A run keeps its own prompt, generation and policy settings; a model has none and takes
those of the first run.
Hides: layering of each run's configuration.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rl4rec_cli.config.registries import BASELINES
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.opening import open_dataset, open_datasets
from rl4rec_cli.errors import ConfigError, DataError, RunError
from rl4rec_cli.eval.baseline import lone_names, open_baseline
from rl4rec_cli.eval.resolve import Overrides, find_run, resolve_target
from rl4rec_cli.retrieval.embedder import find_embedder
from rl4rec_cli.shell import set_flags, setting

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RetrievalSection, RunConfig
    from rl4rec_cli.eval.hybrids import Fusion
    from rl4rec_cli.runs.folder import Run

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SHOWN_SETTINGS = ("prompt", "policy", "generation", "reward", "trainer")
_MISSING = "–"


@dataclass(frozen=True)
class Member:
    """One run, model or baseline to measure.

    Attributes:
        word: its name on the command line.
        name: a short form of it.
        model: folder or Hub name of its model; None for a baseline.
        config: the settings to measure it with.
    """

    word: str
    name: str
    run: Run | None
    model: str | None
    config: RunConfig

    @property
    def writes(self) -> bool:
        """Whether it is a policy, whose model writes completions."""
        return self.model is not None and self.config.trainer.trains_policy

    @property
    def shown_name(self) -> str:
        """The name that `rl4rec eval` gives it, so that one command reads what the other measured."""
        return self.word if self.model is None else self.config.trainer.tuned_name if self.run else self.model

    @property
    def kind(self) -> Literal["run", "model", "baseline"]:
        return "baseline" if self.model is None else "model" if self.run is None else "run"


@dataclass(frozen=True)
class System:
    """One method: one member, or runs that differ in their seed."""

    label: str
    members: tuple[Member, ...]
    without: str | None = None
    """For a run's or a model's hybrid, the label of the same hybrid without it, which it is compared with."""

    @property
    def kind(self) -> str:
        return self.members[0].kind if self.without is None else "hybrid"

    @property
    def runs(self) -> list[Run]:
        return [member.run for member in self.members if member.run is not None]

    @property
    def seeds(self) -> list[int]:
        return [run.config.run.seed for run in self.runs]


def open_systems(words: Sequence[str], overrides: Overrides | None = None) -> tuple[list[System], RunConfig]:
    """Opens the systems, and the configuration that they share: dataset, users, cut-offs, retrieval, cache.

    Raises:
        ConfigError: fewer than two, a word that names nothing, the same one twice, seeds that do not fit.
        RunError: a damaged run, or one without a checkpoint.
    """
    if len(words) < 2:
        raise ConfigError(
            f"compare needs at least two, and {words[0] if words else 'nothing'} is alone",
            hint="e.g. `rl4rec compare runs/a runs/b`, or a baseline: `rl4rec compare runs/a popularity`",
        )
    groups = [_members(word) for word in words]
    kinds = {word: _classify(word) for word in itertools.chain(*groups)}
    overrides = overrides or Overrides()
    if overrides.checkpoint is not None and "run" not in kinds.values():
        raise ConfigError(f"--checkpoint {overrides.checkpoint}: none of them is a run", hint="leave it out")
    first = next((word for word, kind in kinds.items() if kind == "run"), None)
    base_run, _, base = resolve_target(first, replace(overrides, checkpoint=None))
    if base.data.path is None and base.data.synthetic is None:
        raise ConfigError(
            "no dataset to compare on: none of them is a run", hint="give --dataset PATH (and -r for the embedder)"
        )
    members = {}
    for word, kind in kinds.items():
        if kind != "run":
            model = word if kind == "model" else None
            config = base.model_copy(update={"policy": _policy(word, base, base_run)}) if model is not None else base
            name = Path(word).resolve().name if model is not None and Path(word).is_dir() else word
            members[word] = Member(word, name, None, model, config)
            continue
        run, folder, config = resolve_target(word, overrides)
        name = _run_name(word, run, folder, is_named=overrides.checkpoint is not None)
        members[word] = Member(word, name, run, folder, config)
    _check_different([members[word] for word in itertools.chain(*groups)])
    systems = [_system([members[word] for word in group]) for group in groups]
    _check_seeds(systems)
    return [_with_texts(c) for c in _with_own_labels(systems)], base


def _run_name(word: str, run: Run | None, checkpoint: str | None, *, is_named: bool) -> str:
    """Returns the run's name, with the checkpoint's if the command names one."""
    if run is None or checkpoint is None:  # gone since it was looked at
        raise RunError(f"{word}: not a run any more")
    name = run.folder.resolve().name
    is_default = Path(word).resolve() == run.folder.resolve() and not is_named
    return name if is_default else f"{name}/{Path(checkpoint).resolve().name}"


def _members(word: str) -> list[str]:
    """`A1,A2,A3` is three runs of one method, unless there is a folder of this very name."""
    if Path(word).exists():
        return [word]
    members = [member.strip() for member in word.split(",")]
    if not all(members):
        raise ConfigError(
            f"{word!r} names nothing" if len(members) == 1 else f"{word!r}: a name is missing beside a comma"
        )
    return members


def _classify(word: str) -> Literal["run", "model", "baseline"]:
    """Returns the kind of a word. A baseline's name always means the baseline; `./popularity` is the folder."""
    if word in BASELINES.built_in or BASELINES.plugin(word) is not None:
        if open_baseline(word).needs_policy:
            raise ConfigError(
                f"{word}: not a method of its own, as it belongs to a run",
                hint="name what the run started from: its checkpoints/checkpoint_start, or its model",
            )
        return "baseline"
    if find_run(word) is not None:
        return "run"
    path = Path(word)
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise RunError(
                f"{word}: neither a run (no config.yaml) nor a model (no config.json)",
                hint="runs are made by `rl4rec train`",
            )
        return "model"
    is_local = word.startswith((".", "/", "~")) or (len(path.parts) > 1 and path.parent.is_dir())
    baselines = lone_names()
    close = [*difflib.get_close_matches(word, baselines, n=2), *_runs_like(path, is_local=is_local)]
    if close or is_local or not _HUB_NAME.fullmatch(word):
        hint = f"did you mean {' or '.join(close[:3])}?" if close else f"baselines: {', '.join(baselines)}"
        raise RunError(f"{word}: no run, model or baseline of this name", hint=hint)
    return "model"


def _runs_like(path: Path, *, is_local: bool) -> list[str]:
    """Returns runs with names like a missing path's; for a bare name, which may be the Hub's, only very close ones."""
    folders = [path.parent] if is_local else [Path(), Path("runs")]
    there = {file.parent.name: str(file.parent) for folder in folders for file in sorted(folder.glob("*/config.yaml"))}
    return [there[name] for name in difflib.get_close_matches(path.name, there, n=2, cutoff=0.6 if is_local else 0.8)]


def _policy(model: str, base: RunConfig, run: Run | None) -> Any:
    """Returns the first run's policy settings for another model, without the revision of the run's own model."""
    own = run is not None and base.policy.revision == run.config.policy.revision and base.policy.model != model
    return base.policy.model_copy(update={"model": model, **({"revision": None} if own else {})})


def _check_different(members: Sequence[Member]) -> None:
    words: dict[str, str] = {}
    for member in members:
        path = Path(member.model or "")
        what = os.path.realpath(path) if member.model is not None and path.is_dir() else member.model or member.word
        if what in words:
            if words[what] == member.word:
                raise ConfigError(f"{member.word} is named twice")
            raise ConfigError(f"{words[what]} and {member.word} are the same")
        words[what] = member.word


def _system(members: Sequence[Member]) -> System:
    if len(members) == 1:
        return System(members[0].name, tuple(members))
    for member in members:
        if member.kind != "run":
            raise ConfigError(
                f"{member.word}: names with commas are several seeds of one method, and this is a {member.kind}",
                hint="separate what is to be compared by spaces",
            )
    by_seed = sorted(members, key=_seed)
    for one, other in itertools.pairwise(by_seed):
        if _seed(one) == _seed(other):
            raise ConfigError(
                f"{one.word} and {other.word} both have seed {_seed(one)}: runs with commas are seeds of one method",
                hint="separate what is to be compared by spaces",
            )
    return System(f"{_common_name([e.name for e in members])} ({len(by_seed)} seeds)", tuple(by_seed))


def _common_name(names: Sequence[str]) -> str:
    """Returns "a" for `a-s0` and `a-s1`, and all names if they share no beginning."""
    letters = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False))
    common = "".join(column[0] for column in letters)
    return re.sub(r"([-_.]+(seed|s)?)?[-_.]*$", "", common) or ", ".join(names)


def _seed(member: Member) -> int:
    """Returns the training's seed; `--set run.seed` changes only the sampling of completions."""
    return (member.run.config if member.run is not None else member.config).run.seed


def _check_seeds(systems: Sequence[System]) -> None:
    counts = {len(c.members): c.label for c in systems if len(c.members) > 1}
    if len(counts) > 1:
        raise ConfigError(
            f"{' against '.join(counts.values())}: groups need equally many seeds",
            hint="name as many runs on both sides, the same seeds where there are any",
        )


def _with_own_labels(systems: Sequence[System]) -> list[System]:
    """Replaces equal labels by the whole words."""
    labels = [c.label for c in systems]
    return [replace(c, label=",".join(e.word for e in c.members)) if labels.count(c.label) > 1 else c for c in systems]


def _with_texts(system: System) -> System:
    """Says in a label how many completions of each user are ranked as one, where it is not 1."""
    counts = sorted({e.config.generation.texts_per_user for e in system.members if e.model is not None})
    if counts in ([], [1]):
        return system
    return replace(system, label=f"{system.label} ({' or '.join(map(str, counts))} completions)")


def with_hybrids(systems: Sequence[System], base: RunConfig, fusion: Fusion | None) -> list[System]:
    """Adds what `eval.fuse` asks for: a hybrid of every run and model, and the one without a policy, a baseline."""
    if fusion is None:
        return list(systems)
    added = []
    without = next((c.label for c in systems if c.members[0].word == fusion.name), None)
    if without is None:
        without = fusion.own_name
        added.append(System(without, (Member(fusion.name, fusion.name, None, None, base),)))
    hybrids = [System(fusion.name_with(c.label), c.members, without) for c in systems if c.kind != "baseline"]
    return [*systems, *hybrids, *added]


def shared_dataset(systems: Sequence[System], base: RunConfig) -> tuple[Dataset, list[str]]:
    """Returns the dataset of the comparison, and remarks on runs that were trained on another one.

    Raises:
        ConfigError: a run has another dataset, and the command names none for all.
        DataError: the dataset is not valid.
    """
    ours = open_dataset(base.data)
    remarks = []
    for system in systems:
        for member in system.members:
            if member.run is None:
                continue
            theirs = _other_dataset(member.config, base, ours)
            if theirs is not None:
                raise ConfigError(
                    f"not the same dataset: {ours.name} (digest {ours.digest[:12]}) is compared on, and "
                    f"{member.word} has {theirs.name} (digest {theirs.digest[:12]})",
                    hint="--dataset PATH measures all of them on one dataset",
                )
            try:
                trained_on = _other_dataset(member.run.config, base, ours)
            except (DataError, ConfigError):
                remarks.append(f"{member.name}: the dataset it was trained on is not there to be compared.")
            else:
                if trained_on is not None:
                    where = f"{trained_on.name} (digest {trained_on.digest[:12]})"
                    remarks.append(f"{member.name} was trained on {where}, not on what is measured.")
    return ours, remarks


def _other_dataset(config: RunConfig, base: RunConfig, ours: Dataset) -> Dataset | None:
    """Returns the (first) dataset of a configuration if none of its datasets is `ours`, else None."""
    of_both = [(data.synthetic, data.sequential_file, data.prompt_file) for data in (config.data, base.data)]
    if of_both[0] == of_both[1] and set(base.data.paths) <= set(config.data.paths):
        return None
    theirs = open_datasets(config.data)
    return None if any(one.digest == ours.digest for one in theirs) else theirs[0]


def check_retrieval(systems: Sequence[System], section: RetrievalSection) -> None:
    """Refuses to compare ranks of different embedders, which say nothing about each other.

    Raises:
        ConfigError: a system's ranks would come from other retrieval settings than the first run's.
    """
    ours = _ranking_settings(section)
    first = next((c.members[0].word for c in systems if c.runs), "")
    for member in itertools.chain(*(c.members for c in systems)):
        theirs = _ranking_settings(member.config.retrieval)
        differ = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        if differ:
            differences = ", ".join(
                f"retrieval.{key} {ours.get(key, _MISSING)!s} / {theirs.get(key, _MISSING)!s}" for key in differ
            )
            flags = set_flags(setting(f"retrieval.{key}", ours[key]) for key in differ if key in ours)
            raise ConfigError(
                f"{first} and {member.word} rank by different retrieval settings: {differences}",
                hint=f"choose one for all: `{flags or '-r RECIPE'}`, or a recipe with -r",
            )


def _ranking_settings(section: RetrievalSection) -> dict[str, Any]:
    """Returns the settings that ranks depend on, without those of where vectors are kept and computed."""
    own = find_embedder(section).settings
    return {key: getattr(section, key) for key in ("embedder", *own, "dtype", "query_prompt", "emb_type", "file")}


def differing_settings(systems: Sequence[System]) -> dict[str, dict[str, str]]:
    """Returns the settings that runs do not share, by key and system. A cell has the values of all seeds of a group."""
    runs = [c for c in systems if c.runs]
    leaves = {c.label: [_leaves(e.config) for e in c.members] for c in runs}
    configs = [one for each in leaves.values() for one in each]
    # What only one algorithm has, or only an adapter, is said by the setting that there is one.
    keys = [key for key in (configs[0] if configs else ()) if all(key in one for one in configs)]
    table = {}
    for key in keys:
        cells = {label: ", ".join(dict.fromkeys(one[key] for one in each)) for label, each in leaves.items()}
        is_mixed = key != "run.seed" and any(len({one[key] for one in each}) > 1 for each in leaves.values())
        if len(set(cells.values())) > 1 or is_mixed:
            table[key] = cells
    return table


def mixed_groups(systems: Sequence[System]) -> list[str]:
    """Returns remarks on groups whose runs differ in more than their seed."""
    remarks = []
    for system in systems:
        keys = differing_settings([system])
        if keys:
            remarks.append(f"{system.label}: its runs differ in {', '.join(keys)} too, not in their seed alone.")
    return remarks


def _leaves(config: RunConfig) -> dict[str, str]:
    whole = config.model_dump(mode="json")
    leaves = {"run.seed": str(config.run.seed)}
    for key in ("train_targets", "train_users"):
        leaves |= _flat(whole["data"][key], f"data.{key}")
    for section in _SHOWN_SETTINGS:
        leaves |= _flat(whole[section], section)
    return leaves


def _flat(value: Any, path: str) -> dict[str, str]:
    """`trainer.warm_start` is "set" and has keys below it, or is "null"."""
    if isinstance(value, Mapping):
        below = {key: text for name, part in value.items() for key, text in _flat(part, f"{path}.{name}").items()}
        return {path: "set", **below}
    return {path: "null" if value is None else str(value)}
