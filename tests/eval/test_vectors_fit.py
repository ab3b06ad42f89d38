"""Several completions of each user whose vectors no memory holds are refused before they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.data.dataset import Dataset, build_examples
from rl4rec_cli.errors import PolicyError
from rl4rec_cli.eval import policies
from rl4rec_cli.plan import machine
from rl4rec_cli.retrieval.retriever import InProcessRetriever


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (3000, "to 17 or fewer, or measure fewer users"),  # 92 % hold 690 numbers: 2 users of 20, 17 times
        (100, "measure fewer users"),
        (7000, None),
    ],
)
def test_what_memory_does_not_hold_is_refused_before_it_is_written(
    free: int,
    words: str | None,
    make_dataset: Callable[..., Dataset],
    scripted: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = make_dataset(sequences=[[0, 1, 2, 3], [3, 2, 1, 0]])
    retriever = InProcessRetriever(scripted({}, 20), torch.eye(20)[: dataset.num_items])
    sets = ["generation.texts_per_user=40", "eval.temperature=1"]
    config, examples = load_config(algorithm="grpo", sets=sets), build_examples(dataset, "test")
    one = load_config(algorithm="grpo", sets=[])
    monkeypatch.setattr(machine, "ram", lambda: (10**9, free))

    def write(*arguments: Any) -> Any:
        raise InterruptedError("written")

    monkeypatch.setattr(policies, "write_texts", write)
    unused: Any = None
    with pytest.raises(PolicyError if words else InterruptedError) as refused:
        policies.measure_policy("policy", unused, config, dataset, retriever, examples)
    if words:
        assert "40: the vectors of so many completions of 2 users" in str(refused.value)
        assert words in str(refused.value.hint)
        assert ("texts_per_user" in str(refused.value.hint)) == ("17" in words)
    with pytest.raises(InterruptedError):  # one of each is always tried
        policies.measure_policy("policy", unused, one, dataset, retriever, examples)
