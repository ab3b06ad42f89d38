"""`rl4rec eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from rl4rec_cli.cli.options import Checkpoint, Json, PromptFile, Recipes, SequentialFile, Sets, epilog


def add_to(app: typer.Typer) -> None:
    app.command(
        "eval",
        epilog=epilog("rl4rec eval runs/my-run --split test", "rl4rec eval --dataset data/beauty -r beauty-cpu --json"),
    )(evaluate)


def evaluate(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN_OR_MODEL]", help="Run, checkpoint or model; without it, the baselines alone."),
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="`validation` or `test`.")] = None,
    users: Annotated[int | None, typer.Option(min=1, metavar="N", help="Measure this many users only.")] = None,
    baselines: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="`default`, `all`, `none`, or names such as bm25,sasrec,fusion.")
    ] = None,
    checkpoint: Checkpoint = None,
    recipe: Recipes = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Dataset folder, or name of one of the run's; default: the run's."),
    ] = None,
    sequential_file: SequentialFile = None,
    prompt_file: PromptFile = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Measure a run or a model beside baselines."""
    from rl4rec_cli.eval.evaluate import evaluate_run

    evaluate_run(
        run,
        split=split,
        users=users,
        baselines=baselines,
        checkpoint=checkpoint,
        sets=sets or [],
        recipes=recipe or [],
        dataset=dataset,
        files={"sequential_file": sequential_file, "prompt_file": prompt_file},
        as_json=as_json,
    )
