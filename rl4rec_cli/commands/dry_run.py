"""What `train … --dry-run` says: the configuration, and where the run would go.

Decides: that the placement is that of `rl4rec plan`; that an unknown placement is no error here; that a dry run
refuses, in the same words, what training refuses before it loads anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.commands import placement
from rl4rec_cli.errors import ConfigError, Rl4RecError

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import PolicySection
    from rl4rec_cli.config.sections import RetrievalSection, RunConfig
    from rl4rec_cli.plan.placement import Placement


@dataclass(frozen=True)
class DryRun:
    """What a run would be."""

    config: RunConfig
    """Resolved."""
    placement: Placement | None
    """None where it is not known."""
    problem: str | None
    """Why the placement is not known."""
    preparation: list[str]
    """What is fitted before training, in a line or none."""

    def lines(self) -> list[str]:
        """Returns what is fitted before, and the placement in a few lines."""
        place = placement.brief(self.placement) if self.placement else [f"placement: not known: {self.problem}"]
        return [*self.preparation, *place]


def dry_run(
    config: RunConfig,
    seeds: Sequence[int] = (),
    *,
    is_new: bool = True,
    show: Callable[[RunConfig], None] = lambda config: None,
) -> DryRun:
    """Resolves the configuration, checks it as training does before it loads anything, and places the run.

    Args:
        seeds: one run for each. Without seeds, one run with the configuration's seed.
        is_new: the command makes a run, and resumes none.
        show: shows the resolved configuration before it is checked.

    Raises:
        DataError: a dataset is not valid.
        ConfigError: a device does not exist, or `reward.fuse` cannot be; see also `run_checks.check_settings`.
        RunError: the run exists already.
    """
    from rl4rec_cli.policy.sources import with_own_adapter

    config = config.model_copy(update={"policy": with_own_adapter(config.policy)})
    show(config)
    _check_data(config, seeds or (config.run.seed,), is_new=is_new)
    check_devices(config.policy, config.retrieval)
    prepared = _preparation(config)
    try:
        return DryRun(config, placement.place(config), None, prepared)
    except Rl4RecError as error:
        return DryRun(config, None, error.message, prepared)


def _preparation(config: RunConfig) -> list[str]:
    if not config.reward.is_fused:  # what follows imports numpy
        return []
    from rl4rec_cli.train.hybrids import preparation

    return preparation(config)


def _check_data(config: RunConfig, seeds: Sequence[int], *, is_new: bool) -> None:
    if not config.data.paths:  # synthetic data have nothing to be wrong with
        return
    from rl4rec_cli.commands.run_checks import check_settings, of_seed
    from rl4rec_cli.commands.trained_run import task_of

    task = task_of(config)
    if not task.is_here(config):
        console.log(f"dataset {config.data.paths[0]}: of the Hub; it is read when the run begins")
        return
    datasets = task.open_data(config)
    for seed in seeds:
        check_settings(of_seed(config, seed, len(seeds)), datasets, is_new=is_new)
    for dataset in datasets:
        console.log(task.sizes(dataset))


def check_devices(policy: PolicySection, retrieval: RetrievalSection) -> None:
    """Checks that the configured GPUs exist, without importing torch.

    Raises:
        ConfigError: one does not.
    """
    from rl4rec_cli.plan.machine import find_machine

    devices = {"policy.device": policy.device, "retrieval.device": retrieval.device}
    cuda_devices = {key: device for key, device in devices.items() if device.startswith("cuda")}
    if not cuda_devices:
        return
    there = len(find_machine().gpus)
    for key, device in cuda_devices.items():
        index = device.partition(":")[2] or "0"
        if index.isdigit() and int(index) >= there:
            count = f"{there} GPU{'s' * (there != 1)}" if there else "no GPU"
            raise ConfigError(f"{key}={device}, but this machine has {count}", hint="use auto or cpu")
