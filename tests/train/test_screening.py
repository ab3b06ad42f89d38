"""Which examples reinforcement learning sees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rl4rec_cli.config_trainer import GrpoSection
from rl4rec_cli.data.dataset import Dataset, Example
from rl4rec_cli.retrieval.retriever import InProcessRetriever
from rl4rec_cli.train import screening
from rl4rec_cli.train.screening import screen_examples

VECTORS = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
EXAMPLES = [Example("a", (0,), 1), Example("a", (0, 1), 4), Example("b", (3,), 1), Example("c", (3, 0), 2)]


@pytest.fixture
def retriever(scripted: type, make_dataset: Callable[..., Dataset]) -> InProcessRetriever:
    return InProcessRetriever(scripted({}, 2), VECTORS)


def test_targets_near_the_last_item_are_kept(
    retriever: InProcessRetriever, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(screening, "_PART", 3)
    # By the last item: 1 after 0 is first; 4 after 1 is last of the three unmasked; 1 after 3 is second behind 2;
    # 2 after 0, with 3 masked, is second behind 1.
    assert screen_examples(GrpoSection(screen_rank=1), retriever, EXAMPLES) == EXAMPLES[:1]
    assert screen_examples(GrpoSection(screen_rank=2), retriever, EXAMPLES) == [EXAMPLES[i] for i in (0, 2, 3)]
    assert "Screened: 3 of 4 training examples" in capsys.readouterr().err
    assert screen_examples(GrpoSection(screen_rank=3), retriever, EXAMPLES) == EXAMPLES


def test_without_a_rank_all_are_kept(retriever: InProcessRetriever, capsys: pytest.CaptureFixture[str]) -> None:
    assert screen_examples(GrpoSection(), retriever, EXAMPLES) == EXAMPLES
    assert capsys.readouterr().err == ""
