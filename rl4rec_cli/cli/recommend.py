"""`rl4rec recommend`."""

from __future__ import annotations

from typing import Annotated

import typer

from rl4rec_cli.cli.options import Checkpoint, Json, Sets, epilog, is_piped, piped_lines, read_words
from rl4rec_cli.errors import ConfigError


def add_to(app: typer.Typer) -> None:
    app.command(
        short_help="Recommend items for users or titles.",
        epilog=epilog(
            'rl4rec recommend runs/my-run --titles "shampoo; hair mask" -k 5',
            "cut -f1 users.tsv | rl4rec recommend runs/my-run --user - --json",
        ),
    )(recommend)


def recommend(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder or checkpoint.")],
    user: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="A user of the dataset; - reads standard input, one a line. Repeatable."),
    ] = None,
    titles: Annotated[
        list[str] | None,
        typer.Option(
            metavar='"A; B"',
            help="Titles chosen so far, oldest first; - reads standard input, one a line. Repeatable. "
            "What is a title as a whole is not split.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of the run's datasets, where it has several.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, metavar="K", help="Items to show.")] = 10,
    checkpoint: Checkpoint = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Recommend items for one history, or for each of several users.

    The history is a user's, or titles; without either, titles are asked for, or read where standard input is a pipe.
    Answers for several users are JSON lines with --json.
    """
    import sys

    from rl4rec_cli.console import is_terminal

    if user and titles:
        raise ConfigError("give --user or --titles, not both")
    interactive = not user and not titles and is_terminal(sys.stdin)
    history_titles = read_words("--titles", titles or [])
    users = read_words("--user", user or [])
    if not user and not titles and not interactive:
        history_titles = piped_lines() if is_piped() else []
        if not history_titles:
            raise ConfigError(
                "nothing to recommend for: give --user or --titles",
                hint="on a terminal, titles are asked for without them; from a pipe they are read, one a line",
            )
    from rl4rec_cli.commands.recommend import recommend as answer

    answer(
        run,
        users=users,
        is_list=len(users) > 1 or "-" in (user or []),
        titles=history_titles,
        dataset=dataset,
        checkpoint=checkpoint,
        k=k,
        sets=sets or [],
        as_json=as_json,
        interactive=interactive,
    )
