"""`rl4rec data import|synth|stats|audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rl4rec_cli.cli import data_import
from rl4rec_cli.cli.options import Json, Recipes, Sets, epilog

app = typer.Typer(
    help="Import, make and inspect dataset folders.",
    epilog=epilog("rl4rec data import movielens raw/ml-1m data/ml-1m", "rl4rec data stats data/ml-1m"),
    no_args_is_help=True,
    rich_markup_mode=None,
)

data_import.add_to(app)


@app.command(
    epilog=epilog("rl4rec data synth data/toy", "rl4rec data synth data/toy --users 5000 --items 1000 --seed 7")
)
def synth(
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Folder to write.")],
    users: Annotated[int, typer.Option(min=1, metavar="N", help="Users, each one sequence.")] = 1000,
    items: Annotated[int, typer.Option(min=20, metavar="N", help="Catalogue size.")] = 300,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the catalogue and of the users' tastes.")] = 0,
) -> None:
    """Write a synthetic dataset with tastes that a policy can learn."""
    from rl4rec_cli import console
    from rl4rec_cli.data.saving import save_dataset
    from rl4rec_cli.data.synthetic import synthesize
    from rl4rec_cli.shell import rl4rec

    save_dataset(synthesize(users, items, seed), Path(dest))
    console.log(f"wrote {dest}: {users:,} users, {items:,} items")
    console.log(f"next: {rl4rec('data', 'stats', dest)}")


@app.command(epilog=epilog("rl4rec data stats data/beauty", "rl4rec data stats data/beauty --html beauty.html"))
def stats(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Dataset folder.")],
    as_json: Json = False,
    html: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write a page with pictures of lengths, popularity and times, too."),
    ] = None,
) -> None:
    """Check a dataset folder and print its figures."""
    from rl4rec_cli import console
    from rl4rec_cli.data.opening import load_dataset
    from rl4rec_cli.data.stats import dataset_stats
    from rl4rec_cli.files.paths import expand
    from rl4rec_cli.files.writing import check_writable, write_text

    file = expand(html) if html is not None else None
    if file is not None:
        check_writable(file)
    data = load_dataset(dataset)
    values = dataset_stats(data)
    console.figures(values, as_json=as_json)
    if file is not None:
        from rl4rec_cli.report.dataset_page import as_html

        write_text(file, as_html(data, values))
        console.log(f"wrote {file}")


@app.command(
    short_help="Look for what gives targets away in prompts, texts and ids.",
    epilog=epilog("rl4rec data audit data/beauty", "rl4rec data audit data/beauty -r my.yaml --strict"),
)
def audit(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Dataset folder.")],
    recipe: Recipes = None,
    sets: Sets = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if there is a leak; warnings alone do not fail.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Look for what gives targets away: in prompts, texts, ids and sequences.

    A leak makes figures better than they are; a warning bends them, or becomes a leak if ids or fields are shown.
    The recipe's prompt settings, data.train_targets and retrieval.emb_type say what is shown and embedded.
    """
    from rl4rec_cli import console
    from rl4rec_cli.config.layering import load_config

    config = load_config(
        algorithm=None,
        recipes=recipe or [],
        flags={"data.path": dataset},
        sets=sets or [],
        allow_custom_rewards=True,
    )
    from rl4rec_cli.data.audit.audit import audit_as_configured
    from rl4rec_cli.data.opening import open_dataset
    from rl4rec_cli.errors import Rl4RecError

    report = audit_as_configured(open_dataset(config.data), config)
    if as_json:
        console.print_json(report.as_json())
    else:
        console.table("", ["check", "result", "seen"], [(c.name, c.result, c.seen) for c in report.checks])
        for finding in report.findings:
            console.result("\n" + console.clean(str(finding), keep="\n"))
        console.result("\n" + report.summary())
    if strict and report.leaks:
        raise Rl4RecError(f"{dataset}: {report.leaks} leak{'s' * (report.leaks > 1)} found (--strict)")
