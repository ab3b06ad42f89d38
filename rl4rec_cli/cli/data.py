"""`rl4rec data synth|stats`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rl4rec_cli.cli.options import Json, epilog

app = typer.Typer(
    help="Make and inspect dataset folders.",
    epilog=epilog("rl4rec data synth data/toy", "rl4rec data stats data/toy"),
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(
    epilog=epilog("rl4rec data synth data/toy", "rl4rec data synth data/toy --users 5000 --items 1000 --seed 7")
)
def synth(
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Folder to write.")],
    users: Annotated[int, typer.Option(min=1, metavar="N", help="Users, each one sequence.")] = 1000,
    items: Annotated[int, typer.Option(min=20, metavar="N", help="Catalogue size.")] = 300,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the catalogue and of the users' tastes.")] = 0,
) -> None:
    """Write a synthetic dataset with tastes that a policy can learn."""
    from rl4rec_cli import console
    from rl4rec_cli.data.dataset import save_dataset
    from rl4rec_cli.data.synthetic import synthesize

    save_dataset(synthesize(users, items, seed), Path(dest))
    console.log(f"wrote {dest}: {users:,} users, {items:,} items")
    console.log(f"next: rl4rec data stats {dest}")


@app.command(epilog=epilog("rl4rec data stats data/beauty", "rl4rec data stats data/beauty --json"))
def stats(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Dataset folder.")],
    as_json: Json = False,
) -> None:
    """Check a dataset folder and print its figures."""
    from rl4rec_cli import console
    from rl4rec_cli.data.dataset import load_dataset
    from rl4rec_cli.data.stats import dataset_stats

    console.figures(dataset_stats(load_dataset(dataset)), as_json=as_json)
