"""Files of reward settings, `--reward-config FILE`.

Decides: that such a file is a part of the `reward` section, `{"length": {"optimal_length": 150}}`; that the rewards it
names are those of the run, each with weight 1, unless flags name others.
Hides: reading the file.
"""

from __future__ import annotations

from typing import Any

from rl4rec_cli.config import schema
from rl4rec_cli.config.layers import Layer, Tree
from rl4rec_cli.config.recipes import read_recipe
from rl4rec_cli.config.sections import RewardSection
from rl4rec_cli.errors import ConfigError


def read_reward_file(file: str, tree: Tree) -> list[Layer]:
    """Returns the file's layer. Adds to the tree's problems what is wrong with it, and then returns none."""
    source = f"--reward-config {file}"
    try:
        values: dict[str, Any] = read_recipe(file if "/" in file else f"./{file}")
    except ConfigError as error:
        tree.problems.append(error.message.replace("recipe ", "reward file ", 1))
        return []
    known = [name for name, field in RewardSection.model_fields.items() if schema.models_of(field.annotation)]
    for name in values:
        if name not in known:
            match = schema.closest(name, known)
            suggestion = f"did you mean `{match}`?" if match else f"there are {', '.join(known)}"
            tree.problems.append(f"{name}: unknown reward; {suggestion} ({source})")
    if not values:
        tree.problems.append(f"names no reward; there are {', '.join(known)} ({source})")
    if any(name not in known for name in values) or not values:
        return []
    return [Layer(source, {"reward": {"functions": dict.fromkeys(values, 1.0), **values}})]
