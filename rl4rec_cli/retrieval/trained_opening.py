"""Opens trained retrievers: the module above their kinds.

Decides: which kind a configuration means.
Hides: that they are several.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from rl4rec_cli.retrieval.projection import Projection
from rl4rec_cli.retrieval.tuned_encoder import AdaptedEncoder, TunedEncoder

if TYPE_CHECKING:
    from rl4rec_cli.config.retriever import RetrieverSection
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.retrieval.retriever import VectorRetriever
    from rl4rec_cli.retrieval.trained import TrainedRetriever


def open_trained(
    config: RunConfig, dataset: Dataset, retriever: VectorRetriever, folder: str | Path | None = None
) -> TrainedRetriever:
    """Returns the retriever of a checkpoint, or a new one.

    Args:
        retriever: of the encoder that the run names.

    Raises:
        RunError: the checkpoint is damaged, or of another catalogue or encoder.
        ConfigError, EmbeddingError: the encoder cannot be tuned.
    """
    section = cast("RetrieverSection", config.trainer)
    trained: TrainedRetriever
    if section.tunes_encoder:
        kind = TunedEncoder if section.adapter is None else AdaptedEncoder
        trained = kind(section, config, dataset, device=str(retriever.device))
    else:
        trained = Projection(section, config.retrieval, dataset, retriever)
    if folder is not None:
        trained.load(Path(folder))
    return trained
