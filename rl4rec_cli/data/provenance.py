"""Which data a run was trained on, whether they are still the same, and whether they hold what is to be measured.

Decides: that a run keeps the digest of each dataset (`datasets.json`) before it trains, and the message about data that
changed since. Training refuses to go on with changed data; evaluation keeps its results apart. A model that was fitted
on the very targets (`data.fit`) is not measured on them, nor by them.
Hides: the file, and where runs of earlier versions have the digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli.errors import DataError, RunError
from rl4rec_cli.files.paths import expand
from rl4rec_cli.files.reading import parse_json, read_bytes
from rl4rec_cli.files.writing import write_json
from rl4rec_cli.runs.folder import DATASETS
from rl4rec_cli.runs.making import run_of

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import DataSection
    from rl4rec_cli.data.dataset import Dataset, Split
    from rl4rec_cli.runs.folder import Run


CHOOSE = "choose for others"
"""What validation targets are for where validation users choose a weight or a prompt, see `check_unseen`."""


def keep_datasets(folder: Path, digests: Mapping[str, str]) -> None:
    """Records the data that a run trains on from now on, and moves the data until now below `before`.

    Args:
        digests: by the datasets' names.

    Raises:
        RunError: the record cannot be written, or the one from before is damaged.
    """
    before = _read(folder)
    if before is not None and before["datasets"] == dict(digests):
        return
    history = [] if before is None else [*before.get("before", []), before["datasets"]]
    write_json(folder / DATASETS, {"datasets": dict(digests), **({"before": history} if history else {})})


def trained_on(run: Run) -> dict[str, str]:
    """Returns the digest of each dataset that a run trains on, by name; empty where an earlier version kept none.

    Raises:
        RunError: the record is damaged.
    """
    record = _read(run.folder)
    if record is not None:
        return dict(record["datasets"])
    digests = {}
    for result in [run.folder / "eval" / "validation.json", *(run.folder / "eval").glob("*/validation.json")]:
        name = result.parent.name
        is_own = name == "eval" if len(run.config.data.paths) < 2 else run.results(name) == result.parent
        try:
            result_content = parse_json(read_bytes(result)) if is_own and result.is_file() else {}
        except (OSError, ValueError):  # a damaged result does not tell the data
            result_content = {}
        if isinstance(result_content, dict) and {"dataset", "dataset_digest"} <= result_content.keys():
            digests[str(result_content["dataset"])] = str(result_content["dataset_digest"])
    return digests


def changed_datasets(run: Run, digests: Mapping[str, str]) -> list[str]:
    """Describes, a sentence each, which current datasets differ from those that a run was trained on.

    Args:
        digests: of the current data, by the datasets' names.
    """
    before = trained_on(run)
    if len(before) == len(digests) == 1:  # a name is no part of the data
        before = dict(zip(digests, before.values(), strict=True))
    return [
        f"dataset {name} is not the one that {run.folder} was trained on: its digest is {digest[:12]}, was "
        f"{before[name][:12]}"
        for name, digest in digests.items()
        if name in before and before[name] != digest
    ]


def is_own_data(run: Run, section: DataSection) -> bool:
    """Returns whether a run was trained on these datasets, however their folders are spelled."""
    run_section = run.config.data
    if not section.paths:
        return not run_section.paths and section.synthetic == run_section.synthetic
    folders, own = ({expand(path).resolve() for path in data.paths} for data in (section, run_section))
    return folders <= own


def check_unseen(dataset: Dataset, split: Split, models: Iterable[str | None], *, use: str = "be measured") -> None:
    """Refuses to measure a split, or to choose by it, where a model was fitted on its targets.

    It looks at the runs that checkpoints lie in, and at what those began with. It does not know what folders elsewhere
    were fitted on.

    Args:
        models: folders or names of policies and embedders; None is left out.
        use: what the targets are for, in the message.

    Raises:
        DataError: a model was fitted on these targets. RunError, ConfigError: a run's files are damaged.
    """
    waiting, folders = [model for model in models if model is not None], set()
    while waiting:
        run = run_of(model := waiting.pop())
        if run is None or run.folder in folders:
            continue
        folders.add(run.folder)
        fitted = replace(dataset, fit=run.config.data.fit)
        is_unseen = fitted.has_test if split == "test" else fitted.has_validation
        if not is_unseen and fitted.digest in trained_on(run).values():
            raise DataError(
                f"dataset {dataset.name}: the {split} targets cannot {use} with {model}, which was fitted on "
                f"them (data.fit={fitted.fit})",
                hint="name what was fitted with data.fit=train",
            )
        waiting += [run.config.policy.model, run.config.retrieval.model]


def changed_data(run: Run, section: DataSection, dataset: Dataset) -> str | None:
    """Returns a message if one of a run's own datasets changed after training, else None.

    Args:
        section: the `data` section that opened the dataset.
    """
    if not is_own_data(run, section):  # the user asks for another dataset
        return None
    return next(iter(changed_datasets(run, {dataset.name: dataset.digest})), None)


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / DATASETS
    if not path.exists():
        return None
    try:
        record = parse_json(read_bytes(path))
        before = record.get("before", [])
        if not all(isinstance(digest, str) for digest in record["datasets"].values()) or not isinstance(before, list):
            raise ValueError("a digest is no text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path}: cannot be read: {error}", hint="put back the file that was there; it says what was trained on"
        ) from error
    return dict(record)
