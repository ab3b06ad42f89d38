"""`rl4rec recipes list|show|copy`."""

from __future__ import annotations

from typing import Annotated

import typer

from rl4rec_cli.cli.options import epilog

app = typer.Typer(
    help="Show and copy recipe presets.",
    epilog=epilog("rl4rec recipes list", "rl4rec recipes copy beauty-cpu my.yaml"),
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list", epilog=epilog("rl4rec recipes list", "rl4rec recipes list | grep GPU"))
def list_recipes() -> None:
    """List the packaged recipes."""
    from rl4rec_cli import console
    from rl4rec_cli.config.recipes import packaged_recipes

    recipes = packaged_recipes().values()
    rows = [(r.name, r.header.get("purpose", ""), r.header.get("hardware", "")) for r in recipes]
    console.table("", ["recipe", "purpose", "hardware"], rows)


@app.command(epilog=epilog("rl4rec recipes show quick-test", "rl4rec recipes show beauty-grpo | less"))
def show(name: Annotated[str, typer.Argument(metavar="NAME", help="Name, as `recipes list` shows it.")]) -> None:
    """Print a packaged recipe."""
    from rl4rec_cli import console
    from rl4rec_cli.config.recipes import find_recipe

    console.result(find_recipe(name).text)


@app.command(epilog=epilog("rl4rec recipes copy beauty-cpu", "rl4rec recipes copy beauty-cpu my.yaml --force"))
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name, as `recipes list` shows it.")],
    dest: Annotated[str | None, typer.Argument(metavar="DEST", help="File or folder; default: NAME.yaml here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a packaged recipe to a file of your own, to change it."""
    from rl4rec_cli import console
    from rl4rec_cli.config.recipes import copy_recipe
    from rl4rec_cli.shell import rl4rec

    path = copy_recipe(name, dest, force=force)
    console.result(str(path))
    recipe_word = path if path.suffix == ".yaml" or path.is_absolute() else f"./{path}"
    console.log(f"next: {rl4rec('train', 'grpo', '-r', recipe_word, '--dry-run')}")
