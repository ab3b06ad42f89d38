"""What several commands share: option declarations, and texts of the command line made into values.

Decides: how ``--reward``, ``--seeds`` and lists on standard input are written, and the form of the examples that end a
help.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from rl4rec_cli.config.algorithms import ALGORITHMS
from rl4rec_cli.config.tasks import DEFAULT_TASK, TASKS, Task
from rl4rec_cli.errors import ConfigError

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig

Recipes = Annotated[
    list[str] | None,
    typer.Option(
        "-r", "--recipe", metavar="RECIPE", help="Packaged recipe, or a YAML or JSON file; later win. Repeatable."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. trainer.beta=0.04. Repeatable."),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Which of a run's: best, final, start or step_N; default: the last step."),
]
Fuse = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Also rank together with a sequence model, `sasrec` (trained here) or `transitions`, or with the trained "
        "retriever's own query, `history`.",
    ),
]
SequentialFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="Users' sequences, if not the folder's sequential_data.txt.")
]
PromptFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="Users' prompts, if not the folder's prompts.json.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Grouped(TyperCommand):
    """A command whose help groups its options by their panels, without the time that importing rich takes."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                last = next(reversed(groups), "Options")  # that of --help
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or last, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def epilog(*examples: str) -> str:
    """Returns the examples that end a command's help. The backspace keeps Typer from joining the lines."""
    return "\n".join(["\b", "Examples:", *(f"  {example}" for example in examples)])


def configure(
    *,
    algorithm: str | None,
    recipes: list[str],
    flags: dict[str, Any],
    sets: list[str],
    gpus: list[str] | None = None,
    allow_custom_rewards: bool = False,
    task: Task | None = None,
    reward_config: str | None = None,
) -> RunConfig:
    """Returns the configuration of a training run. Without a recipe it chooses the one for the machine, and logs it.

    Args:
        gpus: GPUs to plan for instead of this machine's, written as for `--gpu`.
        task: whose recipe is used where none is named; that of the configuration by default.
        reward_config: file with settings of rewards, between recipes and flags.

    Raises:
        ConfigError: see `load_config`.
    """
    from rl4rec_cli import console
    from rl4rec_cli.config.layering import load_config

    choice = None
    own = ALGORITHMS[algorithm].recipe if algorithm is not None else None
    own = own or (task.recipe if task is not None else None)
    if not recipes and own is not None:
        recipes = [own]
        console.log(f"No recipe given: using {own}; another: -r, `rl4rec recipes list`")
    if not recipes:
        from rl4rec_cli.plan.recipe import choose_recipe

        choice = choose_recipe(flags.get("policy.model"), sets, gpus or [])
        recipes = [choice.recipe]
    config = load_config(
        algorithm=algorithm,
        recipes=recipes,
        flags=flags,
        sets=sets,
        allow_custom_rewards=allow_custom_rewards,
        reward_config=reward_config,
    )
    if choice is not None:
        console.log(f"No recipe given: using {choice.recipe} ({choice.reason}); another: -r, `rl4rec recipes list`")
    return config


def find_task(named: str | None, recipes: list[str]) -> Task:
    """Returns the task of a command: the one that it names, else that of the last recipe which names one.

    What is wrong with a recipe, or with the name, is told with all other problems of the configuration.
    """
    if named is None and recipes:
        from rl4rec_cli.config.recipes import read_recipe

        for recipe in recipes:
            with suppress(ConfigError):
                section = read_recipe(recipe).get("run")
                named = section.get("task", named) if isinstance(section, dict) else named
    return TASKS.get(named if isinstance(named, str) else DEFAULT_TASK, TASKS[DEFAULT_TASK])


def parse_rewards(texts: list[str]) -> dict[str, float]:
    """Turns `["ndcg=1", "hit"]` into `{"ndcg": 1.0, "hit": 1.0}`.

    Raises:
        ConfigError: a weight is not a number, or a reward occurs twice.
    """
    rewards: dict[str, float] = {}
    for text in texts:
        name, equals, weight = text.rpartition("=")
        if not equals:
            name, weight = text, "1"
        try:
            value = float(weight)
        except ValueError:
            raise ConfigError(f"--reward {text}: must be NAME or NAME=WEIGHT, and {weight!r} is no number") from None
        if not name:
            raise ConfigError(f"--reward {text}: the name is missing", hint="e.g. --reward ndcg=1 --reward hit=0.5")
        if name in rewards:
            raise ConfigError(f"--reward {name} is given twice")
        rewards[name] = value
    return rewards


def parse_seeds(text: str) -> tuple[int, ...]:
    """Turns `"0,1,2"` into `(0, 1, 2)`.

    Raises:
        ConfigError: the text is not a list of different whole numbers from 0 on.
    """
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds {text!r}: must be whole numbers with commas, such as 0,1,2") from None
    if not all(0 <= seed < 2**31 for seed in seeds):
        raise ConfigError(f"--seeds {text!r}: each must lie between 0 and 2147483647")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text!r}: a seed is given twice")
    return seeds


def read_words(option: str, texts: list[str]) -> list[str]:
    """Returns the values of a repeatable option. `-` stands for the lines of standard input.

    Args:
        option: its name, for messages.

    Raises:
        ConfigError: all values are blank, or standard input is not text.
    """
    words = [word for text in texts for word in (piped_lines() if text.strip() == "-" else [text])]
    words = [word for word in words if word.strip("; \t")]
    if texts and not words:
        raise ConfigError(f"{option} is empty", hint="give at least one; - reads standard input, one a line")
    return words


def piped_lines() -> list[str]:
    """Returns the lines of standard input that are not blank.

    Raises:
        ConfigError: standard input is not UTF-8.
    """
    import sys

    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input: not UTF-8: {error}", hint="iconv -t UTF-8 makes it so") from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def is_piped() -> bool:
    """Returns whether standard input is a pipe or a file."""
    import os
    import stat
    import sys

    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or none
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
