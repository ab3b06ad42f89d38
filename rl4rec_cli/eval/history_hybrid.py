"""The hybrid of a completion and of the history, both placed by one trained retriever (`retrieval.model`).

Decides: which retriever may be fused with: one that lies in its run, since models of half the users are fitted by that
run's settings, and that was trained on the very dataset.
Hides: the encoder below the retriever, whose item vectors it needs.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rl4rec_cli.data.provenance import trained_on
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.eval.hybrids import Fusion
from rl4rec_cli.eval.scoring import Task
from rl4rec_cli.eval.vector_method import history_scores
from rl4rec_cli.files.paths import expand
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.runs.making import run_of

if TYPE_CHECKING:
    from rl4rec_cli.config.retriever import RetrieverSection
    from rl4rec_cli.config.sections import RetrievalSection
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.retrieval.retriever import VectorRetriever
    from rl4rec_cli.retrieval.trained import TrainedRetriever

_TRAIN_ONE = "`rl4rec train retriever` makes one and prints the settings that name it"


class HistoryFusion(Fusion):
    """The trained retriever's query of the history joined to its query of a text.

    Args:
        run: the retriever's.
        folder: its checkpoint.
        dataset: what it was trained on.
    """

    label = "history query"

    def __init__(self, run: Run, folder: Path, dataset: Dataset) -> None:
        super().__init__("history", lambda task: history_scores(self.trained))
        self.run, self._folder, self._dataset = run, folder, dataset

    @cached_property
    def encoder(self) -> VectorRetriever:
        """The vectors that the retriever was trained over."""
        from rl4rec_cli.plan.retriever import in_process
        from rl4rec_cli.retrieval.opening import open_retriever

        return open_retriever(in_process(self.run.config.retrieval), self._dataset)

    @cached_property
    def trained(self) -> TrainedRetriever:
        from rl4rec_cli.retrieval.trained_opening import open_trained

        return open_trained(self.run.config, self._dataset, self.encoder, self._folder)

    def model_key(self, task: Task) -> dict[str, object]:
        return {"history": self.trained.digest}


def find_retriever(section: RetrievalSection) -> tuple[Run, Path]:
    """Returns the run of the trained retriever that `retrieval.model` names, and the retriever's folder.

    Raises:
        ConfigError: that is no projection in its run. RunError: the run's files are damaged.
    """
    from rl4rec_cli.retrieval.embedder import find_embedder
    from rl4rec_cli.retrieval.trained import FACTS

    folder = expand(find_embedder(section).model or "")
    if not (folder / FACTS).is_file():
        raise ConfigError(f"reward.fuse=history: {section.label} is no trained retriever", hint=_TRAIN_ONE)
    run = run_of(folder)
    if run is None:
        raise ConfigError(
            f"reward.fuse=history: {folder} does not lie in its run, whose settings fit retrievers of half the users",
            hint="name RUN/checkpoints/checkpoint_final",
        )
    if cast("RetrieverSection", run.config.trainer).tunes_encoder:
        raise ConfigError(
            f"reward.fuse=history: {folder} is a tuned encoder: it would be tuned twice more, on half the users each",
            hint="name a projection (rl4rec train retriever --set trainer.kind=projection)",
        )
    return run, folder


def open_history_fusion(section: RetrievalSection, dataset: Dataset) -> HistoryFusion:
    """Returns the fusion with the history query of `retrieval.model`. It loads nothing yet.

    Raises:
        ConfigError: as `find_retriever`, or the retriever is of another dataset.
        RunError: the run's files are damaged.
    """
    run, folder = find_retriever(section)
    if dataset.digest not in (digests := trained_on(run)).values():
        of = ", ".join(f"{name} (digest {digest[:12]})" for name, digest in digests.items()) or "other data"
        raise ConfigError(
            f"reward.fuse=history: {folder} was trained on {of}, not on {dataset.name} (digest {dataset.digest[:12]})",
            hint=f"name a retriever of this dataset; {_TRAIN_ONE}",
        )
    return HistoryFusion(run, folder, dataset)
