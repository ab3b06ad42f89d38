"""`rl4rec recommend`."""

from __future__ import annotations

from typing import Annotated

import typer

from rl4rec_cli.cli.options import Checkpoint, Json, Sets, epilog, parse_titles
from rl4rec_cli.errors import ConfigError


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=epilog(
            "rl4rec recommend runs/my-run --user 42", 'rl4rec recommend runs/my-run --titles "shampoo; hair mask" -k 5'
        )
    )(recommend)


def recommend(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder or checkpoint.")],
    user: Annotated[str | None, typer.Option(metavar="ID", help="A user of the dataset.")] = None,
    titles: Annotated[
        list[str] | None, typer.Option(metavar='"A; B"', help="Titles chosen so far, oldest first. Repeatable.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of the run's datasets, where it has several.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, metavar="K", help="Items to show.")] = 10,
    checkpoint: Checkpoint = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Recommend items for one history.

    The history is a user's, or titles; without either, titles are asked for.
    """
    import sys

    from rl4rec_cli.console import is_terminal

    if user is not None and titles:
        raise ConfigError("give --user or --titles, not both")
    interactive = user is None and not titles
    if interactive and not is_terminal(sys.stdin):
        raise ConfigError(
            "nothing to recommend for: give --user or --titles", hint="on a terminal, titles are asked for without them"
        )
    history = parse_titles(titles or [])
    from rl4rec_cli.eval.recommend import recommend as answer

    answer(
        run,
        user=user,
        titles=history,
        dataset=dataset,
        checkpoint=checkpoint,
        k=k,
        sets=sets or [],
        as_json=as_json,
        interactive=interactive,
    )
