"""`rl4rec compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from rl4rec_cli.cli.options import Checkpoint, Fuse, Json, Recipes, Sets, epilog


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=epilog(
            "rl4rec compare runs/a runs/b --html compare.html",
            "rl4rec compare runs/a-s0,runs/a-s1,runs/a-s2 runs/b-s0,runs/b-s1,runs/b-s2 bm25 --split test",
        )
    )(compare)


def compare(
    systems: Annotated[
        list[str],
        typer.Argument(
            metavar="A B …", help="Runs, checkpoints, models or baselines; A1,A2,A3 are seeds of one method."
        ),
    ],
    split: Annotated[str | None, typer.Option(metavar="NAME", help="`validation` or `test`.")] = None,
    users: Annotated[int | None, typer.Option(min=1, metavar="N", help="Measure this many users only.")] = None,
    fuse: Fuse = None,
    checkpoint: Checkpoint = None,
    recipe: Recipes = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Dataset folder, or name of one of the runs'; default: the first run's."),
    ] = None,
    sets: Sets = None,
    as_json: Json = False,
    markdown: Annotated[str | None, typer.Option(metavar="FILE", help="Write it as Markdown, too.")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write a page with plots, too.")] = None,
) -> None:
    """Compare runs, models and baselines on the same users.

    Every run is measured with its own prompt, generation and policy settings, a model with the first run's; retrieval
    must be the same for all. Baselines go by name: popularity, last_item, bm25, sasrec, fusion …
    """
    import sys

    from rl4rec_cli import console
    from rl4rec_cli.commands import compare as command
    from rl4rec_cli.eval.comparison import Comparison
    from rl4rec_cli.eval.resolve import Overrides

    def show(comparison: Comparison) -> None:
        from rl4rec_cli.cli.results import print_comparison

        if as_json:
            console.print_json(comparison.report)
        else:
            print_comparison(comparison.report)

    overrides = Overrides(
        split=split,
        users=users,
        fuse=fuse,
        recipes=recipe or [],
        sets=sets or [],
        dataset=dataset,
        checkpoint=checkpoint,
    )
    command_words = ["rl4rec", *sys.argv[1:]]
    command.compare(systems, overrides, markdown=markdown, html=html, command=command_words, show=show)
