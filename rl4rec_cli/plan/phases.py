"""What a process does at a moment, as far as memory is concerned.

Decides: which phases there are. `plan/memory.py` estimates most of them, by the same names.
Hides: how an error remembers the phases it ended.

The functions that do the work declare their phase with `during`, as a decorator or around a block. Nothing is recorded
until one fails: an exception carries the phases that it passed through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

_ATTRIBUTE = "rl4rec_phases"


class Phase(StrEnum):
    LOADING = "loading"
    SAVING = "saving"
    WRITING = "writing"
    LEARNING = "learning"
    UPDATING = "updating"
    MEASURING = "validation"
    RANKING = "ranking"

    @property
    def words(self) -> str:
        """What follows "while"."""
        return _WORDS[self]


_WORDS = {
    Phase.LOADING: "loading weights",
    Phase.SAVING: "saving a checkpoint",
    Phase.WRITING: "writing completions",
    Phase.LEARNING: "learning",
    Phase.UPDATING: "updating the weights",
    Phase.MEASURING: "measuring validation users",
    Phase.RANKING: "embedding and ranking completions",
}


@contextmanager
def during(phase: Phase) -> Iterator[None]:
    """Marks an error inside the block with this phase. It also works as a decorator."""
    try:
        yield
    except Exception as error:
        setattr(error, _ATTRIBUTE, (*phases_of(error), phase))
        raise


def phases_of(error: BaseException) -> tuple[Phase, ...]:
    """Returns the phases that an error passed through, innermost first."""
    phases: tuple[Phase, ...] = getattr(error, _ATTRIBUTE, ())
    return phases


def phase_of(error: BaseException, otherwise: Phase) -> Phase:
    """Returns the phase in which an error was raised.

    Ranking and measuring take memory of their own, so they count before any phase inside them; else the innermost does.

    Args:
        otherwise: the answer for an error that passed through no phase.
    """
    phases = phases_of(error)
    return next((phase for phase in (Phase.RANKING, Phase.MEASURING) if phase in phases), (*phases, otherwise)[0])
