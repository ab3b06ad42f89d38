"""Complete and check the configuration of a training run before anything is loaded.

Decides: which paths a run keeps absolute, how the runs of several seeds are named, what ends a run before it begins.
Hides: which module can check each setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli.commands.trained_run import task_of
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.files.paths import expand
from rl4rec_cli.runs.making import check_new, whole_reward
from rl4rec_cli.train.arguments import number_of_steps
from rl4rec_cli.train.trackers import check_trackers

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig


def with_whole_paths(config: RunConfig) -> RunConfig:
    """Makes existing paths absolute, so that the run can be evaluated from another folder."""

    def whole(path: str | None) -> str | None:
        return str(expand(path).resolve()) if path and expand(path).exists() else path

    paths = tuple(str(whole(path)) for path in config.data.paths)
    data = config.data.model_copy(
        update={
            "path": paths if len(paths) > 1 else whole(*paths) if paths else None,
            "sequential_file": whole(config.data.sequential_file),
            "prompt_file": whole(config.data.prompt_file),
        }
    )
    policy = config.policy
    if policy.model != "tiny":
        policy = policy.model_copy(update={"model": whole(policy.model)})
    retrieval = config.retrieval.model_copy(
        update={
            "model": whole(config.retrieval.model),
            "file": whole(config.retrieval.file),
            "emb_dir": str(expand(config.retrieval.emb_dir).resolve()),
        }
    )
    cache = config.eval.cache_dir
    whole_cache = str(expand(cache).resolve()) if cache is not None else None
    evaluation = config.eval.model_copy(update={"cache_dir": whole_cache})
    functions = {whole_reward(name): weight for name, weight in config.reward.functions.items()}
    reward = config.reward.model_copy(update={"functions": functions})
    sections = {"data": data, "policy": policy, "retrieval": retrieval, "reward": reward, "eval": evaluation}
    return config.model_copy(update=sections)


def of_seed(config: RunConfig, seed: int, count: int) -> RunConfig:
    """Returns the configuration of one seed out of `count`. Each has a run folder of its own."""
    name = config.run.name
    own = {"seed": seed, "name": f"{name}-s{seed}" if name is not None and count > 1 else name}
    return config.model_copy(update={"run": config.run.model_copy(update=own)})


def check_settings(config: RunConfig, datasets: Sequence[Any], *, is_new: bool) -> None:
    """Raises the errors that the settings alone show. It imports nothing heavy.

    Raises:
        RunError: the run exists already.
        ConfigError: there are too few examples, a reward file does not exist, or a tracker is not installed or not
            logged in to.
        Rl4RecError: see `check` of the task's module.
    """
    from rl4rec_cli.policy.backend import check_engine, check_one_gpu

    if is_new:
        check_new(config.run)
    task = task_of(config)
    task.check(config, datasets)
    if config.trainer.trains_policy:
        check_engine(config.generation, config.policy)
        check_one_gpu(config.policy.device)
    check_trackers(config.logging.report_to)
    for phase in config.trainer.phases:
        number_of_steps(phase, task.number_of_examples(config, datasets))
    for name in config.reward.functions:
        file = name.rpartition(":")[0]
        if file.endswith(".py") and not Path(file).is_file():
            raise ConfigError(f"reward file {file}: no such file")
