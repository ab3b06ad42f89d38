"""`rl4rec recommend`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from rl4rec_cli.cli.options import Checkpoint, Json, Sets, epilog, is_piped, piped_lines, read_words
from rl4rec_cli.errors import ConfigError, Rl4RecError

if TYPE_CHECKING:
    from rl4rec_cli.commands.recommend import Recommendation, Recommender


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
    fuse: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Rank by the completion and a sequence model together, `sasrec` or `transitions`, or by it and the "
            "trained retriever's own query, `history`.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Recommend items for one history, or for each of several users.

    The history is a user's, or titles; without either, titles are asked for, or read where standard input is a pipe.
    Answers for several users are JSON lines with --json.
    """
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
    from rl4rec_cli.commands import recommend as command

    if interactive:
        recommender = command.open_recommender(run, dataset=dataset, sets=sets or [], checkpoint=checkpoint, fuse=fuse)
        _ask(recommender, k=k, as_json=as_json)
        return
    is_list = len(users) > 1 or "-" in (user or [])

    def show(answer: Recommendation) -> None:
        _show(answer, as_json=as_json, is_list=is_list)

    command.recommend(
        run,
        users=users,
        titles=history_titles,
        dataset=dataset,
        k=k,
        sets=sets or [],
        checkpoint=checkpoint,
        fuse=fuse,
        go_on=is_list,
        show=show,
    )


def _ask(recommender: Recommender, *, k: int, as_json: bool) -> None:
    """Answers for the titles that the user types, line by line."""
    from rl4rec_cli import console

    console.log("Titles chosen so far, oldest first, separated by semicolons. An empty line ends.")
    for line in _lines():
        try:
            _show(recommender.answer(recommender.read_history([line]), k=k), as_json=as_json, is_list=False)
        except Rl4RecError as error:
            console.log(f"error: {error.message}")


def _lines() -> Iterator[str]:
    while True:
        try:
            line = input(_prompt())
        except EOFError:
            return
        if not line.strip("; \t"):
            return
        yield line


def _prompt() -> str:
    """Returns the prompt for `input`, which prints on standard output: off a terminal only answers belong there."""
    from rl4rec_cli import console

    if console.is_terminal(sys.stdout):
        return "> "
    print("> ", end="", file=sys.stderr, flush=True)
    return ""


def _show(answer: Recommendation, *, as_json: bool, is_list: bool) -> None:
    """Prints one answer; as one of several users', with the user: JSON on one line, tables below a heading."""
    from rl4rec_cli import console

    if as_json and is_list:
        console.result(json.dumps({"user": answer.user, **answer.as_json()}, ensure_ascii=False, allow_nan=False))
        return
    if as_json:
        console.print_json(answer.as_json())
        return
    if is_list:
        console.result(f"# user {console.clean(str(answer.user))}")
    console.table("History", ["item", "title"], [[i.item_id, i.title] for i in answer.history])
    if answer.fusion is None:
        console.result(f"\nCompletion: {console.clean(answer.text)}\n" if answer.text is not None else "")
    else:
        weighed = ", weighed by probability" if answer.log_probs is not None else ""
        console.result(f"\n{len(answer.texts)} completions, ranked as one by {answer.fusion}{weighed}:")
        for place, text in enumerate(answer.texts):
            chance = f" ({math.exp(answer.log_probs[place]):.2%})" if answer.log_probs is not None else ""
            console.result(f"- {console.clean(text)}{chance}")
        console.result("")
    rows = [[i.rank, i.item_id, f"{i.score:.4f}", i.title] for i in answer.items]
    fused = answer.fused
    what = "the completions" if len(answer.texts) > 1 else "the completion" if answer.texts else "the retriever"
    by = f", by {what} ({fused.weight:g}) and {fused.sequence_model} ({1 - fused.weight:g})" if fused else ""
    console.table(f"Recommended{by}", ["rank", "item", "score", "title"], rows)
