"""What ``--dry-run`` prints: the configuration on standard output, the placement on standard error.

Decides: that the placement is that of ``rl4rec plan``; that an unknown placement is no error here; that a dry run
refuses, in the same words, what training refuses before it loads anything.
"""

from __future__ import annotations

from rl4rec_cli import console
from rl4rec_cli.commands import placement
from rl4rec_cli.config.layering import dump_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.errors import ConfigError, Rl4RecError


def show(config: RunConfig, seeds: tuple[int, ...], *, is_new: bool) -> None:
    """Prints the configuration and the placement.

    Args:
        is_new: the command makes a run, and resumes none.

    Raises:
        DataError: a dataset is not valid.
        ConfigError: a device does not exist; see also `run_checks.check_settings`.
        RunError: the run exists already.
    """
    from rl4rec_cli.policy.sources import with_own_adapter

    config = config.model_copy(update={"policy": with_own_adapter(config.policy)})
    console.result(dump_config(config))
    _check_data(config, seeds, is_new=is_new)
    check_devices(config)
    try:
        lines = placement.brief(placement.place(config))
    except Rl4RecError as error:
        lines = [f"placement: not known: {error.message}"]
    for line in lines:
        console.log(line)
    console.log(f"seeds: {', '.join(map(str, seeds))}")
    if config.data.path is None and config.data.synthetic is None:
        console.log("dataset: none yet; give --dataset PATH, or --quick-test for synthetic data")


def _check_data(config: RunConfig, seeds: tuple[int, ...], *, is_new: bool) -> None:
    if not config.data.paths:  # synthetic data have nothing to be wrong with
        return
    from rl4rec_cli.commands.run_checks import check_settings, of_seed
    from rl4rec_cli.data.opening import open_datasets

    datasets = open_datasets(config.data)
    for seed in seeds:
        check_settings(of_seed(config, seed, len(seeds)), datasets, is_new=is_new)
    for dataset in datasets:
        console.log(f"dataset {dataset.name}: {len(dataset.users):,} users, {dataset.num_items:,} items")


def check_devices(config: RunConfig) -> None:
    """Checks that the configured GPUs exist, without importing torch.

    Raises:
        ConfigError: one does not.
    """
    from rl4rec_cli.plan.machine import find_machine

    devices = {"policy.device": config.policy.device, "retrieval.device": config.retrieval.device}
    cuda_devices = {key: device for key, device in devices.items() if device.startswith("cuda")}
    if not cuda_devices:
        return
    there = len(find_machine().gpus)
    for key, device in cuda_devices.items():
        index = device.partition(":")[2] or "0"
        if index.isdigit() and int(index) >= there:
            count = f"{there} GPU{'s' * (there != 1)}" if there else "no GPU"
            raise ConfigError(f"{key}={device}, but this machine has {count}", hint="use auto or cpu")
