"""A retriever that asks the retrieval service.

Decides: that the service must serve this very catalogue with this very embedder, for else the rewards would be others
than in this process.
Hides: what is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rl4rec_cli.errors import ConfigError, DataError, ServiceError
from rl4rec_cli.ranking.ranks import ItemMatrix
from rl4rec_cli.retrieval.embedder import find_embedder
from rl4rec_cli.retrieval.retriever import Ranking, rank_vectors
from rl4rec_cli.retrieval.service.requests import Pending, ServiceClient
from rl4rec_cli.retrieval.several_texts import SeveralTexts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.config.sections import RetrievalSection
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.retrieval.retriever import Found


class RayRetriever(SeveralTexts):
    """One catalogue of the service, with what `InProcessRetriever` offers. Open with `open`.

    Baselines and evaluation look at item vectors themselves: `vectors_ND` and `matrix` fetch them once, when they are
    first asked for.
    """

    device = "cpu"

    def __init__(self, client: ServiceClient, name: str, about: dict[str, Any]) -> None:
        self._client, self._name = client, name
        self.num_items: int = about["num_items"]
        self.dim: int = about["dim"]
        self.mask_history: bool = about["mask_history"]
        self.digest: str = about["digest"]
        self._max_texts: int = about["max_texts"]
        self._max_values: int = about["max_values"]

    @classmethod
    def open(
        cls,
        section: RetrievalSection,
        dataset: Dataset | None = None,
        *,
        name: str | None = None,
        folders: Sequence[str] = (),
        first_wait: float | None = None,
    ) -> RayRetriever:
        """The service's retriever of a dataset.

        Args:
            section: where the service is, and what should embed.
            dataset: must be what the service serves; None: whatever it serves as `name`, with whatever embeds there.
            folders: of the datasets, for the command that starts the service.
            first_wait: as `ServiceClient`.

        Raises:
            ServiceError: the service is not found. DataError: it has no such dataset, or another one of that name.
            ConfigError: it embeds otherwise than configured.
        """
        name = name or section.service.dataset or (dataset.name if dataset is not None else "")
        client = ServiceClient(section, folders, first_wait=first_wait)
        served = client.ask("datasets")
        if name not in served:
            raise DataError(
                f"{section.service.name} has no dataset {name!r}; it serves {', '.join(served)}",
                hint="name one of these with retrieval.service.dataset, or serve it too: "
                "rl4rec serve-retrieval --datasets …",
            )
        about = served[name]
        if dataset is not None:
            _check_same(section, dataset, name, about)
        return cls(client, name, about)

    def submit_ranks(
        self, texts: Sequence[str], targets: Sequence[int], histories: Sequence[Sequence[int]]
    ) -> Pending[Ranking]:
        """`target_ranks`, sent and not waited for."""
        if not len(texts) == len(targets) == len(histories):
            raise DataError(f"{len(texts)} texts, {len(targets)} targets and {len(histories)} histories: not one each")

        def check(answer: Any) -> Ranking:
            ranks, scorable = answer
            if ranks.shape != (len(texts),) or scorable.shape != (len(texts),):
                raise ServiceError(f"the service ranked {ranks.shape} for {len(texts)} texts")
            if len(ranks) and not 1 <= ranks.min() <= ranks.max() <= self.num_items:
                raise ServiceError(f"the service gave ranks outside 1 to {self.num_items}")
            return Ranking(ranks.copy(), scorable.copy())

        plain = [[int(item) for item in history] for history in histories]
        arguments = (list(texts), [int(target) for target in targets], plain, self._name)
        return Pending(self._client, "target_ranks", arguments, check)

    def target_ranks(self, texts: Sequence[str], targets: Sequence[int], histories: Sequence[Sequence[int]]) -> Ranking:
        """As `InProcessRetriever.target_ranks`."""
        return self.submit_ranks(texts, targets, histories).result()

    def search(self, texts: Sequence[str], k: int, exclude: Sequence[Sequence[int]] | None = None) -> list[Found]:
        """As `InProcessRetriever.search`."""
        out = None if exclude is None else [[int(item) for item in ids] for ids in exclude]
        return self._client.ask("search", list(texts), k, out, self._name)

    def calculate_reward(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As `InProcessRetriever.calculate_reward`."""
        answer = self._client.ask("calculate_reward", list(texts), self._name)
        return self._shaped(answer, len(texts), self.num_items)

    def text_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """`[len(texts), dim]`, embedded by the service."""
        size = max(1, min(self._max_texts, self._max_values // self.dim))
        parts = [texts[i : i + size] for i in range(0, len(texts), size)] or [texts]
        asked = [self._vectors("text_vectors", list(part), len(part)) for part in parts]
        return torch.cat([pending.result() for pending in asked])

    def item_vectors(self, items: Sequence[int]) -> torch.Tensor:
        """`[len(items), dim]` float32."""
        return self.vectors_ND[list(items)]

    @cached_property
    def vectors_ND(self) -> torch.Tensor:
        """All item vectors `[num_items, dim]`, in this process's memory from here on."""
        size = max(1, self._max_values // self.dim)
        parts = [range(i, min(i + size, self.num_items)) for i in range(0, self.num_items, size)]
        return torch.cat([self._vectors("item_vectors", list(part), len(part)).result() for part in parts])

    @cached_property
    def matrix(self) -> ItemMatrix:
        """The catalogue for the ranking kernel."""
        return ItemMatrix(self.vectors_ND)

    def vector_ranks(
        self, queries_BD: torch.Tensor, targets: Sequence[int], histories: Sequence[Sequence[int]]
    ) -> Ranking:
        """As `InProcessRetriever.vector_ranks`."""
        return rank_vectors(queries_BD, self.matrix, targets, histories if self.mask_history else None)

    def _vectors(self, method: str, values: list[Any], rows: int) -> Pending[torch.Tensor]:
        def check(answer: Any) -> torch.Tensor:
            return torch.from_numpy(self._shaped(answer, rows, self.dim))

        return Pending(self._client, method, (values, self._name), check)

    @staticmethod
    def _shaped(answer: Any, rows: int, columns: int) -> NDArray[np.float32]:
        if not isinstance(answer, np.ndarray) or answer.dtype != np.float32 or answer.shape != (rows, columns):
            raise ServiceError(f"the service answered {getattr(answer, 'shape', type(answer))}, not {rows} × {columns}")
        if not np.isfinite(answer).all():
            raise ServiceError("the service answered numbers that are not finite")
        return np.array(answer)  # what Ray hands over can only be read


def _check_same(section: RetrievalSection, dataset: Dataset, name: str, about: dict[str, Any]) -> None:
    """That the service's catalogue is this one, embedded as configured.

    Raises:
        DataError, ConfigError: what differs.
    """
    service = section.service.name
    wanted = {
        "embedder": find_embedder(section).identity,
        "emb_type": section.emb_type,
        "query_prompt": section.query_prompt,
    }
    for key, value in wanted.items():
        if about[key] != value:
            raise ConfigError(
                f"{service} serves {name} with {key.replace('_', ' ')} {about[key]!r}, this run asks for {value!r}",
                hint="give both the same retrieval settings",
            )
    items_digest = dataset.items_digest(section.emb_type)
    if (about["num_items"], about["items_digest"]) != (dataset.num_items, items_digest):
        raise DataError(
            f"{service} serves another {name}: {about['num_items']:,} items, digest {about['items_digest'][:12]}…; "
            f"this one has {dataset.num_items:,} items, digest {items_digest[:12]}…",
            hint="serve the same dataset folder that is trained on",
        )
    if about["mask_history"] != dataset.mask_history:
        raise DataError(f"{service} serves {name} with mask_history {about['mask_history']}, unlike this dataset")
