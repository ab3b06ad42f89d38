"""What a run records of where it was begun: versions, command, time, variables.

Decides: which packages and variables a result depends on besides the configuration.
Hides: where their versions are read.
"""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from rl4rec_cli.variables import recorded_variables

VERSIONS_OF = (
    *("rl4rec", "torch", "transformers", "trl", "peft", "accelerate", "sentence-transformers", "scikit-learn"),
    *("bitsandbytes", "unsloth", "unsloth_zoo"),
)


def environment() -> dict[str, Any]:
    """Returns what a result depends on besides the configuration."""
    versions: dict[str, str | None] = {}
    for name in VERSIONS_OF:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
        **recorded_variables(),
    }
