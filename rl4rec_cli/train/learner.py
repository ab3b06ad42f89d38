"""What a run trains, whichever it is: a policy (`policy/loading.py`) or a retriever (`retrieval/trained.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path


class Learner(Protocol):
    """What a run trains: a policy or a retriever."""

    model: Any

    @property
    def device(self) -> Any: ...

    def write(self, folder: Path, more: Callable[[Path], None] = ..., *, size: int = 0) -> None:
        """Writes a whole checkpoint, with the files that `more` writes into its argument."""

    def load(self, folder: Path) -> None:
        """Loads the weights of a checkpoint."""
