"""The hybrid of a completion and of the history, both placed by one trained retriever (`retrieval.model`).

Decides: which retriever may be fused with: a projection that lies in its run, whose settings it is read by (and models
of half the users fitted by), and that was trained on the very dataset; that without the policy its history query ranks
alone.
Hides: the encoder below the retriever, whose item vectors it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rl4rec_cli.data.provenance import trained_on
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.eval.hybrids import Fusion, open_fusion
from rl4rec_cli.eval.scoring import Measured, Task, measure
from rl4rec_cli.eval.vector_method import history_scores
from rl4rec_cli.files.paths import expand
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.runs.making import run_of

if TYPE_CHECKING:
    from rl4rec_cli.config.retriever import RetrieverSection
    from rl4rec_cli.config.sections import RetrievalSection
    from rl4rec_cli.data.dataset import Dataset, Example, Fit, Split
    from rl4rec_cli.eval.hybrids import ScoreExamples
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
    name = "history_query"

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

    @property
    def own_name(self) -> str:
        return self.label

    def check(
        self,
        dataset: Dataset,
        examples: Sequence[Example],
        split: Split,
        weights: Mapping[str, float] | None = None,
        *,
        method: str | None = None,
    ) -> None:
        """Checks that somebody can choose a weight for a method; alone the history query needs none."""
        if method is not None:
            super().check(dataset, examples, split, weights, method=method)

    def measure(self, task: Task, split: Split) -> Measured:
        """Measures the history query alone."""
        scored = self.open_scores(task)(task.examples)
        return replace(measure(self.own_name, scored, task.dataset, task.examples), is_partner=True)

    def _scores_of_today(self, task: Task) -> tuple[ScoreExamples, Fit]:
        return self.open_scores(task), self.run.config.data.fit


def find_retriever(section: RetrievalSection, setting: str) -> tuple[Run, Path]:
    """Returns the run of the trained retriever that `retrieval.model` names, and the retriever's folder.

    Args:
        setting: what asks for it, `eval.fuse` or `reward.fuse`.

    Raises:
        ConfigError: that is no projection in its run. RunError: the run's files are damaged.
    """
    from rl4rec_cli.retrieval.embedder import find_embedder
    from rl4rec_cli.retrieval.trained import FACTS

    model = find_embedder(section).model
    folder = expand(model or "")
    if model is None or not (folder / FACTS).is_file():
        raise ConfigError(
            f"{setting}=history: {model or section.label} is no trained retriever",
            hint=f"give one as retrieval.model; {_TRAIN_ONE}",
        )
    run = run_of(folder)
    if run is None:
        raise ConfigError(
            f"{setting}=history: {folder} does not lie in its run, whose settings it is read by",
            hint="name RUN/checkpoints/checkpoint_final",
        )
    if cast("RetrieverSection", run.config.trainer).tunes_encoder:
        raise ConfigError(
            f"{setting}=history: {folder} is a tuned encoder, and only a projection's history query can be fused",
            hint="name a projection (rl4rec train retriever --set trainer.kind=projection)",
        )
    return run, folder


def named_fusion(fuse: str, section: RetrievalSection, dataset: Dataset, setting: str) -> Fusion | None:
    """Returns the fusion that a setting names: with a sequence model, or with the history query of `retrieval.model`.

    Args:
        fuse: the setting's value; `none` has no fusion.
        setting: as for `find_retriever`.

    Raises:
        ConfigError, RunError: as `open_history_fusion`.
    """
    fusion = open_fusion(fuse)
    return fusion if fusion is not None or fuse == "none" else open_history_fusion(section, dataset, setting)


def open_history_fusion(section: RetrievalSection, dataset: Dataset, setting: str) -> HistoryFusion:
    """Returns the fusion with the history query of `retrieval.model`. It loads nothing yet.

    Args:
        setting: as for `find_retriever`.

    Raises:
        ConfigError: as `find_retriever`, or the retriever is of another dataset.
        RunError: the run's files are damaged.
    """
    run, folder = find_retriever(section, setting)
    digests, fit = trained_on(run), run.config.data.fit
    if dataset.digest in digests.values():
        return HistoryFusion(run, folder, dataset)
    if replace(dataset, fit=fit).digest in digests.values():
        raise ConfigError(
            f"{setting}=history: {folder} was fitted with data.fit={fit}, and here data.fit={dataset.fit}",
            hint="both must be the same: name a retriever that was fitted so (retrieval.model)",
        )
    of = ", ".join(f"{name} (digest {digest[:12]})" for name, digest in digests.items()) or "other data"
    raise ConfigError(
        f"{setting}=history: {folder} was trained on {of}, not on {dataset.name} (digest {dataset.digest[:12]})",
        hint=f"name a retriever of this dataset; {_TRAIN_ONE}",
    )
