"""What several commands share: option declarations, and texts of the command line made into values.

Decides: how ``--reward``, ``--seeds`` and ``--titles`` are written, and the examples' form at the end of each help.
"""

from __future__ import annotations

from typing import Annotated

import typer

from rl4rec_cli.errors import ConfigError

Recipes = Annotated[
    list[str] | None,
    typer.Option("-r", "--recipe", metavar="RECIPE", help="Packaged recipe or YAML file; later ones win. Repeatable."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. trainer.beta=0.04. Repeatable."),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Which of a run's: best, final, start or step_N; default: the last step."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def epilog(*examples: str) -> str:
    """The examples that end a command's help. The backspace keeps Typer from joining the lines."""
    return "\n".join(["\b", "Examples:", *(f"  {example}" for example in examples)])


def parse_rewards(texts: list[str]) -> dict[str, float]:
    """`["ndcg=1", "hit"]` to `{"ndcg": 1.0, "hit": 1.0}`.

    Raises:
        ConfigError: a weight is no number, or a reward is given twice.
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
    """`"0,1,2"` to `(0, 1, 2)`.

    Raises:
        ConfigError: something else than different whole numbers from 0 on.
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


def parse_titles(texts: list[str]) -> list[str]:
    """`["a; b", "c"]` to `["a", "b", "c"]`.

    Raises:
        ConfigError: no title is left.
    """
    titles = [title.strip() for text in texts for title in text.split(";") if title.strip()]
    if texts and not titles:
        raise ConfigError("--titles is empty", hint='e.g. --titles "first item; second item"')
    return titles
