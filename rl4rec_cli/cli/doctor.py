"""`rl4rec doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from rl4rec_cli.cli.options import Json, epilog


def add_to(app: typer.Typer) -> None:
    app.command(
        short_help="Say whether all is there that is needed.",
        epilog=epilog("rl4rec doctor", "rl4rec doctor data/beauty models/base-7b"),
    )(doctor)


def doctor(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH]…", help="Datasets, models or files to look at, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether all is there: versions, extras, GPUs, the Hub. Exit status 1 where something required is not."""
    from rl4rec_cli.commands.doctor import doctor as examine

    examine(paths or [], as_json=as_json)
