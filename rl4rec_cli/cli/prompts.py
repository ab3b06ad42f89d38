"""`rl4rec prompts`."""

from __future__ import annotations

from typing import Annotated

import typer

from rl4rec_cli.cli.options import Json, PromptFile, Recipes, SequentialFile, Sets, epilog
from rl4rec_cli.errors import ConfigError


def add_to(app: typer.Typer) -> None:
    app.command(
        short_help="Show prompts, measure templates, write summaries.",
        epilog=epilog(
            "rl4rec prompts data/beauty -r beauty-grpo --model qwen2.5-0.5b --template all",
            "rl4rec prompts data/beauty --model gemma-3-1b --summaries data/beauty/prompts.json",
        ),
    )(prompts)


def prompts(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Dataset folder.")],
    model: Annotated[
        str | None, typer.Option(metavar="RUN_OR_MODEL", help="Who reads or writes; default: the recipe's model.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose histories; `validation`, for --summaries `train`.")
    ] = None,
    users: Annotated[int | None, typer.Option(min=1, metavar="N", help="So many users, drawn by a fixed seed.")] = None,
    user: Annotated[str | None, typer.Option(metavar="ID", help="Show this user's prompt.")] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Measure the model with this template, which has {history}, beside its own; `all`: built-in ones. "
            "With --summaries: what is asked, with {history}, or the prompt made of the answer, with {summary}. "
            "Repeatable.",
        ),
    ] = None,
    summaries: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Let the model write what each user likes, as prompts, into FILE."),
    ] = None,
    recipe: Recipes = None,
    sequential_file: SequentialFile = None,
    prompt_file: PromptFile = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Show prompts as the model reads them, measure templates, or let a model write summaries of users' tastes."""
    if user is not None and (template or users is not None or summaries is not None):
        raise ConfigError("--user shows one prompt: leave out --users, --template and --summaries")
    from rl4rec_cli.eval.resolve import Overrides, resolve_target

    overrides = Overrides(
        recipes=recipe or [],
        sets=sets or [],
        dataset=dataset,
        sequential_file=sequential_file,
        prompt_file=prompt_file,
    )
    _, checkpoint, config = resolve_target(model, overrides)
    if checkpoint is not None:
        config = config.model_copy(update={"policy": config.policy.model_copy(update={"model": checkpoint})})
    if summaries is not None:
        from rl4rec_cli.commands.summaries import write_summaries

        write_summaries(
            config, summaries, split=split or "train", users=users, templates=template or [], as_json=as_json
        )
        return
    from rl4rec_cli.commands.prompts import show_prompts, sweep_templates

    if template:
        sweep_templates(config, split=split or "validation", users=users, templates=template, as_json=as_json)
        return
    show_prompts(config, split=split or "validation", users=users, user=user, as_json=as_json)
