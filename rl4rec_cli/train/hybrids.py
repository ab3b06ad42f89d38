"""The hybrids of a run whose rewards are of fused ranks (`reward.fuse`), one for each dataset.

Decides: that they are fitted before the policy is loaded; that a run goes on with the models and the weights that it
began with, or not at all.
Hides: `hybrids.json` in the run's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from rl4rec_cli.eval.history_hybrid import HistoryFusion, find_retriever, named_fusion
from rl4rec_cli.eval.hybrids import open_fusion
from rl4rec_cli.eval.measuring import open_task
from rl4rec_cli.eval.training_hybrid import TrainingHybrid, check_training_hybrid, open_training_hybrid
from rl4rec_cli.files.reading import read_object
from rl4rec_cli.files.writing import write_json
from rl4rec_cli.train.checkpoints import refuse

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.eval.hybrids import Fusion
    from rl4rec_cli.retrieval.retriever import VectorRetriever
    from rl4rec_cli.runs.folder import Run

_RETRIEVERS = "the trained retriever (retrieval.model) on each half of the users"
HYBRIDS_FILE = "hybrids.json"
REWARD = "reward.fuse"


def is_fused(config: RunConfig) -> bool:
    """Returns whether the run learns from rewards of fused ranks."""
    return config.trainer.learns_from_rewards and config.reward.is_fused


def fuse_flag(config: RunConfig) -> tuple[str, ...]:
    """Returns the option of `eval` that measures a run's hybrid, if it has one."""
    return ("--fuse", config.reward.fuse) if is_fused(config) else ()


def check_hybrids(config: RunConfig, datasets: Sequence[Dataset]) -> None:
    """Checks what `open_hybrids` needs, before anything is loaded.

    Raises:
        DataError: see `check_training_hybrid`.
    """
    for dataset in datasets if is_fused(config) else ():
        check_training_hybrid(config, dataset, _fusion(config, dataset))


def preparation(config: RunConfig) -> list[str]:
    """Says what a run fits before it trains, in a line or none.

    Raises: as `find_retriever`, for which no dataset is needed.
    """
    if not is_fused(config):
        return []
    fusion = open_fusion(config.reward.fuse)
    if fusion is None:
        find_retriever(config.retrieval, REWARD)
    what = f"{fusion.label} on each half of the users and on all" if fusion is not None else _RETRIEVERS
    weight = config.reward.fuse_weight
    cache = config.eval.cache_dir
    unless = f", unless {cache} has the models" if cache else ", and keeps no model (eval.cache_dir)"
    return [f"before training: fits {what}{unless}; weighs completions {weight:g}"]


def open_hybrids(
    config: RunConfig, datasets: Sequence[Dataset], retrievers: Mapping[str, VectorRetriever]
) -> dict[str, TrainingHybrid]:
    """Fits what fused rewards need, or reads it from the cache. Returns the hybrids by dataset, none without fusion.

    Raises: as `open_training_hybrid`.
    """
    if not is_fused(config):
        return {}
    hybrids = {}
    for dataset in datasets:
        task = open_task(config.eval, dataset, retrievers[dataset.name], ())
        fusion, open_half = _fusion(config, dataset), None
        if isinstance(fusion, HistoryFusion):
            from rl4rec_cli.train.half_retrievers import open_half_retriever

            open_half = partial(open_half_retriever, fusion, dataset, cache=task.cache)
        hybrids[dataset.name] = open_training_hybrid(config, task, fusion, open_half)
    return hybrids


def _fusion(config: RunConfig, dataset: Dataset) -> Fusion:
    return cast("Fusion", named_fusion(config.reward.fuse, config.retrieval, dataset, REWARD))


def keep_hybrids(run: Run, hybrids: Mapping[str, TrainingHybrid], *, allow_partial: bool) -> None:
    """Writes which models and weights a run is rewarded by, or compares them with those that it began with.

    Raises:
        RunError: they differ, and `allow_partial` is off; or the file cannot be read or written.
    """
    if not hybrids:
        return
    path, facts = run.folder / HYBRIDS_FILE, {name: hybrid.facts() for name, hybrid in hybrids.items()}
    if path.is_file() and read_object(path) != facts:
        refuse(
            f"{run.folder}: the sequence models of its rewards, or their weight, are not those it was begun with",
            "put the models back into eval.cache_dir",
            allow_partial,
        )
    write_json(path, facts)
