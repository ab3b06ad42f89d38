"""`rl4rec report`."""

from __future__ import annotations

from typing import Annotated

import typer

from rl4rec_cli.cli.options import epilog


def add_to(app: typer.Typer) -> None:
    app.command(
        short_help="Write a run as one HTML page.",
        epilog=epilog("rl4rec report runs/my-run", "rl4rec report runs/my-run --out my-run.html"),
    )(report)


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, finished or not.")],
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Where to write it; default: RUN/report.html.")
    ] = None,
) -> None:
    """Write one HTML page of a run: curves, completions, results, checkpoints, settings.

    The page needs no network and no other file. Nothing is measured anew, and nothing in the run is changed.
    """
    from rl4rec_cli import console
    from rl4rec_cli.report.run_page import write_report

    console.result(str(write_report(run, out)))
