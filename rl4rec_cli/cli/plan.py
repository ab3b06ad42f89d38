"""`rl4rec plan`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from rl4rec_cli.cli.options import Json, Recipes, Sets, configure, epilog
from rl4rec_cli.config.algorithms import ALGORITHMS, DEFAULT_ALGORITHM

if TYPE_CHECKING:
    from rl4rec_cli.commands.placement import MemoryCheck
    from rl4rec_cli.plan.placement import Placement

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
    if not as_json:
        _show(run_placement)
    checks = placement.check_memory(config) if check else []
    if as_json:
        checked = {"check": [one.as_json() for one in checks]} if check else {}
        console.print_json({**placement.as_json(run_placement), **checked})
    elif check:
        _show_checks(checks)
    placement.complain(config.policy, run_placement)


def _show(placement: Placement) -> None:
    """Prints the whole answer on standard output."""
    from rl4rec_cli import console
    from rl4rec_cli.commands.placement import sentence
    from rl4rec_cli.plan.memory import human
    from rl4rec_cli.shell import set_flags

    phase = placement.estimate.peak
    rows = [(name, human(size)) for name, size in sorted(phase.parts.items(), key=lambda part: -part[1]) if size]
    console.table("", [f"most memory: {phase.name}", "needs"], [*rows, ("all", human(phase.total))])
    console.result(f"{sentence(placement)}\n")
    title = "with way out 1:" if placement.ways_out else ""
    console.table(title, ["what", "choice", "why"], [(c.what, c.value, c.reason) for c in placement.choices])
    for number, way in enumerate(placement.ways_out, 1):
        cost = "\n".join(f"  {cost}" for cost in way.costs)
        console.result(f"\nway out {number}, {human(way.estimate.bytes)}:\n  {set_flags(way.sets)}\n{cost}")
    for note in placement.notes:
        console.log(f"note: {note}")


def _show_checks(checks: Sequence[MemoryCheck]) -> None:
    from rl4rec_cli import console
    from rl4rec_cli.plan.memory import human

    cells = [(c.trainer, c.phase, human(c.predicted_bytes), human(c.measured_bytes), f"{c.ratio:.2f}") for c in checks]
    console.table("", ["trainer", "largest phase", "predicted", "measured", "ratio"], cells)
    console.log("Prompts and completions are as long as they came up; a run may meet longer ones, up to its limits.")
