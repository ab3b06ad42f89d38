"""Which examples reinforcement learning sees."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rl4rec_cli.config.trainer import GrpoSection
from rl4rec_cli.data.dataset import Dataset, Example
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.retrieval.retriever import InProcessRetriever
from rl4rec_cli.train import screening
from rl4rec_cli.train.screening import screen_examples

VECTORS = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
EXAMPLES = [Example("a", (0,), 1), Example("a", (0, 1), 4), Example("b", (3,), 1), Example("c", (3, 0), 2)]


def screen(retriever: InProcessRetriever, folder: Path, texts: dict[str, str] | None = None, **section: Any) -> Any:
    def write(examples: Sequence[Example]) -> list[str]:
        assert texts is not None, "the policy was asked"
        return [texts[example.user] for example in examples]

    return screen_examples(GrpoSection(**section), retriever, EXAMPLES, write=write, kept_in=folder / "screened.json")


@pytest.fixture
def retriever(scripted: type, make_dataset: Callable[..., Dataset]) -> InProcessRetriever:
    return InProcessRetriever(scripted({}, 2), VECTORS)


def test_targets_near_the_last_item_are_kept(
    retriever: InProcessRetriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(screening, "_PART", 3)
    # By the last item: 1 after 0 is first; 4 after 1 is last of the three unmasked; 1 after 3 is second behind 2;
    # 2 after 0, with 3 masked, is second behind 1.
    assert screen(retriever, tmp_path, screen_rank=1) == EXAMPLES[:1]
    assert screen(retriever, tmp_path, screen_rank=2) == [EXAMPLES[i] for i in (0, 2, 3)]
    assert "Screened: 3 of 4 training examples" in capsys.readouterr().err
    assert screen(retriever, tmp_path, screen_rank=3) == EXAMPLES
    assert screen(retriever, tmp_path, screen_solved=1) == EXAMPLES[1:]
    assert screen(retriever, tmp_path, screen_solved=1, screen_rank=2) == EXAMPLES[2:]
    with pytest.raises(ConfigError, match="0 of 4 training examples have their target at rank 4 to 5 by the last item"):
        screen(retriever, tmp_path, screen_solved=3)
    assert list(tmp_path.iterdir()) == []


def test_by_what_the_starting_policy_writes_and_only_once(
    scripted: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(screening, "_PART", 3)
    retriever = InProcessRetriever(scripted({"up": [0.0, 1.0], "right": [1.0, 0.0]}, 2), VECTORS)
    texts = {"a": "up", "b": "right", "c": ""}
    # 1 after 0, by "up": behind 3 and 2; 4 after 0 and 1: last of three; 1 after 3, by "right": behind 0; a text that
    # says nothing: last of five.
    by = {"texts": texts, "screen_by": "policy"}
    assert screen(retriever, tmp_path, **by, screen_solved=2, screen_rank=4) == EXAMPLES[:2]
    assert "2 of 4 training examples have their target at rank 3 to 4 by what the starting policy writes" in (
        capsys.readouterr().err
    )
    assert json.loads((tmp_path / "screened.json").read_text())["ranks"] == [3, 3, 2, 5]
    del by["texts"]
    assert screen(retriever, tmp_path, **by, screen_rank=2) == EXAMPLES[2:3]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"screen_rank": 5, "screen_solved": 5}, "screen_solved 5 leaves nothing within screen_rank 5"),
        ({"screen_by": "policy"}, "screen_by has no effect without screen_rank or screen_solved"),
    ],
)
def test_settings_that_leave_nothing_or_do_nothing(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GrpoSection(**section)


def test_without_a_rank_all_are_kept(
    retriever: InProcessRetriever, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert screen(retriever, tmp_path) == EXAMPLES
    assert capsys.readouterr().err == ""
