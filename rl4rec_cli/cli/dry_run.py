"""What ``--dry-run`` prints: the configuration on standard output, where things would run on standard error.

Decides: that the placement is that of ``rl4rec plan``, and that one which cannot be found out is no error here.
"""

from __future__ import annotations

from rl4rec_cli import console
from rl4rec_cli.cli import placement
from rl4rec_cli.config import RunConfig
from rl4rec_cli.errors import Rl4RecError
from rl4rec_cli.layering import dump_config


def show(config: RunConfig, seeds: tuple[int, ...]) -> None:
    from rl4rec_cli.policy.sources import with_own_adapter

    config = config.model_copy(update={"policy": with_own_adapter(config.policy)})
    console.result(dump_config(config))
    try:
        lines = placement.brief(placement.place(config))
    except Rl4RecError as error:
        lines = [f"placement: not known: {error.message}"]
    for line in lines:
        console.log(line)
    console.log(f"seeds: {', '.join(map(str, seeds))}")
    if config.data.path is None and config.data.synthetic is None:
        console.log("dataset: none yet; give --dataset PATH, or --quick-test for synthetic data")
