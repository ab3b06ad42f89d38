"""`rl4rec plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from rl4rec_cli.cli.options import Json, Recipes, Sets, configure, epilog
from rl4rec_cli.config.algorithms import ALGORITHMS, DEFAULT_ALGORITHM

_NAMES = " or ".join([", ".join([*ALGORITHMS][:-1]), [*ALGORITHMS][-1]])


def add_to(app: typer.Typer) -> None:
    app.command(
        short_help="Say what a run takes and whether it fits.",
        epilog=epilog(
            "rl4rec plan --gpu 24 --model qwen2.5-7b -r beauty-grpo --set policy.quantization=4bit",
            "rl4rec plan -r beauty-cpu --dataset data/beauty --check",
        ),
    )(plan)


def plan(
    recipe: Recipes = None,
    gpu: Annotated[
        list[str] | None, typer.Option(metavar="GB", help="A GPU of so many GB instead of what is here. Repeatable.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="A preset, a folder, `tiny` …")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Dataset folder. Repeat for several together.")
    ] = None,
    algorithm: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"{_NAMES}; {DEFAULT_ALGORITHM} by default.")
    ] = None,
    sets: Sets = None,
    check: Annotated[bool, typer.Option("--check", help="Also make a real step, and measure it.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a run would take, whether it fits, and what would make it fit. Exit status 1 where it does not."""
    from rl4rec_cli import console
    from rl4rec_cli.commands import placement
    from rl4rec_cli.errors import ConfigError

    flags = {"policy.model": model, "data.path": dataset or None}
    config = configure(
        algorithm=None,
        recipes=recipe or [],
        flags={key: value for key, value in flags.items() if value is not None},
        sets=[*(sets or []), *([f"trainer.algorithm={algorithm}"] if algorithm else [])],
        gpus=gpu or [],
        allow_custom_rewards=True,
    )
    if check and gpu:
        raise ConfigError("--check measures on this machine: it cannot be given with --gpu")
    run_placement = placement.place(config, gpu or [])
    answer = placement.as_json(run_placement) if as_json else {}
    if not as_json:
        placement.show(config, run_placement)
    if check:
        answer |= placement.checked(config, as_json=as_json)
    if as_json:
        console.print_json(answer)
    placement.complain(config, run_placement)
