"""`rl4rec settings`."""

from __future__ import annotations

from typing import Annotated

import typer

from rl4rec_cli.cli.options import Json, epilog


def add_to(app: typer.Typer) -> None:
    app.command(epilog=epilog("rl4rec settings max_new_tokens", "rl4rec settings 'KL penalty' --json"))(settings)


def settings(
    word: Annotated[
        str | None,
        typer.Argument(
            metavar="[WORD]", help="Search keys, meanings and the names of the guides, transformers and TRL."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show settings with type, range, default and meaning. Exit status 2 where none has the word."""
    from dataclasses import asdict

    from rl4rec_cli import console
    from rl4rec_cli.config.settings import all_settings, find_settings

    matches = all_settings() if word is None else find_settings(word)
    if as_json:
        console.print_json([{**asdict(s), "flag": s.flag, "other_names": list(s.names)} for s in matches])
        return
    for setting in matches:
        lines = [setting.key, f"    {setting.meaning}", f"    {setting.facts}"]
        if setting.flag:
            lines.append(f"    flag of `rl4rec train`: {setting.flag}")
        if setting.names:
            lines.append(f"    elsewhere: {', '.join(setting.names)}")
        console.result("\n".join(lines))
    console.log("given by a recipe, or by --set KEY=VALUE")
