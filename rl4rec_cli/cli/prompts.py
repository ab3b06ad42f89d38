"""`rl4rec prompts`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rl4rec_cli.cli.options import Json, PromptFile, Recipes, SequentialFile, Sets, epilog
from rl4rec_cli.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from rl4rec_cli.commands.prompts import PromptPreview, TemplateSweep
    from rl4rec_cli.commands.summaries import Summaries

_SHOWN = 3
"""Prompts that are printed whole."""


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

        written = write_summaries(config, summaries, split=split or "train", users=users, templates=template or [])
        print_summaries(written, as_json=as_json)
        return
    from rl4rec_cli.commands.prompts import preview_prompts, sweep_templates

    if template:
        sweep = sweep_templates(config, template, split=split or "validation", users=users)
        print_sweep(sweep, as_json=as_json)
        return
    preview = preview_prompts(config, split=split or "validation", users=users, user=user)
    print_preview(preview, prompt_file=config.data.prompt_file, has_figures=user is None, as_json=as_json)


def print_preview(preview: PromptPreview, *, prompt_file: str | None, has_figures: bool, as_json: bool) -> None:
    """Prints some prompts whole, and figures of all.

    Args:
        prompt_file: the one that replaces the dataset's `prompts.json`.
    """
    from rl4rec_cli import console
    from rl4rec_cli.data.reading import PROMPTS

    if as_json:
        console.print_json(preview.as_json())
        return
    for prompt in preview.prompts[:_SHOWN]:
        source = (
            f"from {prompt_file or PROMPTS}"
            if prompt.from_prompts_json
            else f"{prompt.items} of {prompt.history} items of the history"
        )
        cut_note = ", cut to fit" if prompt.cut_to_fit else ""
        user = console.clean(prompt.user)
        console.result(f"# {preview.split}, user {user}: {prompt.tokens} tokens, {source}{cut_note}")
        console.result(console.clean(prompt.text, keep="\n\t").removesuffix("\n"))
        console.result(f"# its last tokens: {console.clean(' '.join(prompt.last_tokens))}\n\n")
    if has_figures:
        console.figures(preview.figures)


def print_sweep(sweep: TemplateSweep, *, as_json: bool) -> None:
    """Prints the templates, what the model reaches with each, and the differences from its own."""
    from rl4rec_cli import console

    if as_json:
        console.print_json(sweep.as_json())
        return
    from rl4rec_cli.commands.prompts import OWN
    from rl4rec_cli.eval.tables import difference_table, metric_table
    from rl4rec_cli.shell import set_flags

    evaluation = sweep.evaluation
    for name, template in sweep.templates.items():
        console.result(f"{name}: {template!r}")
    console.result("")
    console.table(
        f"{sweep.model} on {evaluation.about['dataset']}, {len(evaluation.examples):,} validation users",
        *metric_table(evaluation.as_json()["methods"], {}, "prompt"),
    )
    if sweep.differences:
        console.result("")
        columns, rows = difference_table(sweep.differences)
        console.table(f"… minus {OWN}, {evaluation.headline}", ["prompt", *columns[1:]], rows)
    console.result(
        f"\nBest here: {sweep.best}. It was chosen on the users it is measured on, so its figure is a little too good."
    )
    if sweep.best_setting is not None:
        console.log(f"use it: {set_flags([sweep.best_setting])}")


def print_summaries(written: Summaries, *, as_json: bool) -> None:
    """Prints the figures, and logs what the user should know before the texts are used."""
    from rl4rec_cli import console

    if written.warning is not None:
        console.log(f"warning: {written.warning}")
    if as_json:
        findings = [finding.headline for finding in written.findings]
        console.print_json({**written.figures, "findings": findings})
        return
    console.figures(written.figures)
    for finding in written.findings:
        console.log(f"\n{finding}")
    if written.live is not None:
        _say_use(written.file, written.live, has_findings=bool(written.findings))


def _say_use(file: Path, live: Path, *, has_findings: bool) -> None:
    from rl4rec_cli import console
    from rl4rec_cli.shell import command_line

    if file.resolve() == live.resolve():
        console.log("they take the template's place from now on" + (": think about the above" if has_findings else ""))
    else:
        first = "think about the above; then, " if has_findings else ""
        console.log(f"{first}to use them: {command_line('--prompt-file', file)}, or copy it to {live}")
