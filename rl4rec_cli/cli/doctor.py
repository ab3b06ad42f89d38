"""`rl4rec doctor`."""

from __future__ import annotations

import typer

from rl4rec_cli.cli.options import Json, epilog


def add_to(app: typer.Typer) -> None:
    app.command(epilog=epilog("rl4rec doctor", "rl4rec doctor --json"))(doctor)


def doctor(as_json: Json = False) -> None:
    """Say whether all is there: versions, extras, GPUs, the Hub. Exit status 1 where something required is not."""
    from rl4rec_cli.doctor import doctor as examine

    examine(as_json=as_json)
