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
    from dataclasses import asdict

    from rl4rec_cli import console
    from rl4rec_cli.commands import doctor as command

    checks = command.doctor(paths or [])
    is_usable = all(check.state != "broken" for check in checks)
    if as_json:
        console.print_json({"ok": is_usable, "checks": [asdict(check) for check in checks]})
    else:
        console.table("", ["what", "state", "found"], [(c.name, c.state, c.found) for c in checks])
        for check in checks:
            if check.hint and check.state != "broken":
                console.log(f"{check.name}: {check.hint}")
    command.complain(checks)
    if not as_json:
        console.log("Everything that is required is there.")
