"""`rl4rec eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from rl4rec_cli.cli.options import Checkpoint, Fuse, Json, PromptFile, Recipes, SequentialFile, Sets, epilog


def add_to(app: typer.Typer) -> None:
    app.command(
        "eval",
        epilog=epilog(
            "rl4rec eval runs/my-run --split test --fuse sasrec",
            "rl4rec eval --dataset data/beauty -r beauty-cpu --json",
        ),
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
    fuse: Fuse = None,
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
    from rl4rec_cli import console
    from rl4rec_cli.commands import evaluate as command
    from rl4rec_cli.eval.evaluation import Evaluation
    from rl4rec_cli.eval.resolve import Overrides
    from rl4rec_cli.files.writing import strict

    def show(evaluation: Evaluation) -> None:
        if as_json:
            if "checkpoint_line" in evaluation.about:  # else it stands below the tables
                console.log(evaluation.about["checkpoint_line"])
            console.print_json(strict(evaluation.as_json()))
            return
        from rl4rec_cli.cli.results import print_evaluation

        about = evaluation.about["dataset"], f"{evaluation.split} split", f"{len(evaluation.examples):,} users"
        print_evaluation(evaluation, title=", ".join(about), whole=True)

    overrides = Overrides(
        split=split,
        users=users,
        baselines=baselines,
        fuse=fuse,
        recipes=recipe or [],
        sets=sets or [],
        dataset=dataset,
        checkpoint=checkpoint,
        sequential_file=sequential_file,
        prompt_file=prompt_file,
    )
    evaluation = command.evaluate(run, overrides, show=show)
    if evaluation.kept_in is not None and not as_json:
        console.log(f"per-user records: {evaluation.kept_in / f'{evaluation.split}_users.jsonl'}")
