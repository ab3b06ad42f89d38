"""Errors that a user can act on.

Decides: which kinds of failure exist and which exit status each gives.
Hides: nothing; every error carries its message and, where there is a way out, a hint.
"""

from __future__ import annotations

from collections.abc import Sequence


def first_line(error: object, *, otherwise: str = "") -> str:
    """The first line of what an error, or another program, says.

    Args:
        otherwise: what stands for one that says nothing; by default the name of its class.
    """
    return next(iter(str(error).strip().splitlines()), "") or otherwise or type(error).__name__


class Rl4RecError(Exception):
    """Something went wrong that the user can understand and mend.

    Args:
        message: what is wrong and where.
        hint: how to mend it; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(Rl4RecError):
    """The configuration (recipe, flag or ``--set``) is not valid."""

    exit_code = 2


class DataError(Rl4RecError):
    """A dataset folder or a file in it is not valid.

    Args:
        problems: every problem found, one line each, as ``file:line: reason``.
    """

    exit_code = 2
    SHOWN = 20

    def __init__(self, message: str, *, hint: str | None = None, problems: Sequence[str] = ()) -> None:
        self.problems = list(problems)
        if self.problems:
            lines = [f"  {p}" for p in self.problems[: self.SHOWN]]
            if len(self.problems) > self.SHOWN:
                lines.append(f"  … and {len(self.problems) - self.SHOWN} more")
            message = "\n".join([message, *lines])
        super().__init__(message, hint=hint)


class EmbeddingError(Rl4RecError):
    """An embedding file or an embedder's output is not usable."""

    exit_code = 2


class PluginError(Rl4RecError):
    """A plug-in of an installed package cannot be loaded, or is not what it should be."""


class RewardError(Rl4RecError):
    """A reward function cannot be loaded, raised, or returned something that is no reward."""


class PolicyError(Rl4RecError):
    """A policy cannot be loaded, built or run."""


class HealthError(Rl4RecError):
    """A health rule that was told to stop the run has done so."""


class RunError(Rl4RecError):
    """A run folder is missing, incomplete, or already there."""


class EngineError(Rl4RecError):
    """vLLM does not start, died, or refuses."""


class ServiceError(Rl4RecError):
    """The retrieval service is not there, does not answer, or refuses."""


class ServiceBusy(ServiceError):
    """The retrieval service has as many requests waiting as it takes."""
