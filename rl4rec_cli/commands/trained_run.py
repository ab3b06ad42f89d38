"""What training runs are given and what they return, whatever they train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rl4rec_cli.data.dataset import joint_digest

if TYPE_CHECKING:
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.eval.evaluation import Evaluation
    from rl4rec_cli.retrieval.retriever import VectorRetriever
    from rl4rec_cli.runs.folder import Run


@dataclass(frozen=True)
class RunData:
    """What runs need before any policy. All seeds share it."""

    datasets: list[Dataset]
    audits: dict[str, str]
    retrievers: dict[str, VectorRetriever]

    @property
    def digest(self) -> str:
        return joint_digest(self.datasets)

    @property
    def digests(self) -> dict[str, str]:
        """By the datasets' names."""
        return {dataset.name: dataset.digest for dataset in self.datasets}


@dataclass(frozen=True)
class TrainedRun:
    """A finished run and its results on the validation users."""

    run: Run
    evaluations: dict[str, Evaluation]
    """By the datasets' names."""
    datasets: list[Dataset]
    seconds: float


Show = Callable[[TrainedRun], None]
"""Shows what a run reached before it is written, so that a full disk costs nobody what was measured."""
