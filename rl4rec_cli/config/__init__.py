"""The configuration of a run: its sections, and how recipes, flags and ``--set`` become one `RunConfig`.

The sections can be imported from here, ``from rl4rec_cli.config import RunConfig, GrpoSection``. Importing the package
alone loads nothing: the command line needs parts of it before pydantic is there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl4rec_cli.config.base import *  # noqa: F403
    from rl4rec_cli.config.evaluation import *  # noqa: F403
    from rl4rec_cli.config.health import *  # noqa: F403
    from rl4rec_cli.config.policy import *  # noqa: F403
    from rl4rec_cli.config.sections import *  # noqa: F403
    from rl4rec_cli.config.trainer import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # `from rl4rec_cli.config import aliases` asks here first; no section has such a name, and pydantic stays out.
    for module in ("sections", "evaluation", "policy", "trainer", "health", "base") if name[:1].isupper() else ():
        names = vars(import_module(f"{__name__}.{module}"))
        if name in names:
            return names[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
