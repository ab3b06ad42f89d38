"""Rewards of completions against brute force, and rewards of the user's own by TRL's contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl4rec_cli.config.sections import RewardSection
from rl4rec_cli.errors import RewardError
from rl4rec_cli.preference.records import Pair, Turn
from rl4rec_cli.preference.scoring import PairScorer, is_model, needs_embedder

PAIR = Pair((Turn("user", "Which soap?"),), "The rose soap, please", "No idea please", is_chat=False, columns={"n": 7})
CHAT = Pair(PAIR.prompt, PAIR.chosen, PAIR.rejected, is_chat=True, columns={"m": 8})


def section(functions: Mapping[str, float], **settings: Any) -> RewardSection:
    return RewardSection.model_validate({"functions": dict(functions), **settings})


def values(name: str, texts: Sequence[str], pair: Pair = PAIR, embedder: Any = None, **settings: Any) -> list[float]:
    scorer = PairScorer(section({name: 1.0}, **settings), embedder)
    return scorer.score(texts, [pair] * len(texts)).parts[name].tolist()


def test_accuracy_is_the_share_of_the_keywords() -> None:
    keywords = {"correct_keywords": ["Rose", "very mild", "soap"]}
    texts = ["a ROSE soap", "rosewater soaps", "", "very  mild, rose-soap", "very; mild"]
    assert values("accuracy", texts, accuracy=keywords) == [2 / 3, 0, 0, 1, 1 / 3]


def test_accuracy_without_keywords_reads_each_pair() -> None:
    """The words that chosen has and rejected has not: the, rose, soap."""
    assert values("accuracy", ["the rose soap", "no idea please", "soap soap"]) == [1, 0, 1 / 3]
    same = Pair(PAIR.prompt, "yes", "yes no", is_chat=False)
    assert values("accuracy", ["yes"], same) == [0]


@given(st.integers(0, 40), st.integers(1, 20), st.floats(0.1, 3))
def test_length(count: int, best: int, weight: float) -> None:
    (value,) = values("length", ["w " * count], length={"optimal_length": best, "length_weight": weight})
    assert value == pytest.approx(weight * max(0.0, 1 - abs(count - best) / best))


def test_similarity_and_custom(scripted: Callable[..., Any]) -> None:
    vectors = {PAIR.chosen: [1, 0], PAIR.rejected: [0, 1], "good": [0.8, 0.6], "bad": [0.6, 0.8], "even": [0.6, 0.6]}
    embedder = scripted(vectors, 2)
    texts = ["good", "bad", "even", " "]
    assert values("similarity", texts, embedder=embedder) == pytest.approx([0.2, -0.2, 0, 0])
    custom = {"reward_scale": 2.0, "penalty_scale": -3.0}
    assert values("custom", texts, embedder=embedder, custom=custom) == [2, -3, 0, -3]
    both = PairScorer(section({"similarity": 1, "custom": 1}), embedder)
    calls = len(embedder.calls)
    both.score(texts, [PAIR] * 4)
    assert len(embedder.calls) == calls + 1, "the vectors of a batch are computed once"
    assert needs_embedder(section({"custom": 1}))
    assert not needs_embedder(section({"accuracy": 1, "me/model": 1, "x:y": 1}))


FUNCTIONS = """
import asyncio

def seen(prompts, completions, chosen, rejected, n, m, log_metric, **kwargs):
    assert n == [7, None] and m == [None, 8]
    assert prompts == ["Which soap?", [{"role": "user", "content": "Which soap?"}]]
    assert completions == ["a", [{"role": "assistant", "content": "b"}]]
    assert chosen[0] == "The rose soap, please" and rejected[1][0]["content"] == "No idea please"
    log_metric("called", 1.0)
    return [1.5, None]

async def later(completions, **kwargs):
    await asyncio.sleep(0)
    return [2.0] * len(completions)

def short(completions, **kwargs):
    return [1.0]

def nan(completions, **kwargs):
    return [float("nan")] * len(completions)

def text(completions, **kwargs):
    return "12"

def raises(completions, **kwargs):
    raise KeyError("score")

class Thing:
    pass
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my.py"
    path.write_text(FUNCTIONS)
    return path


def test_functions_get_what_trl_gives(file: Path) -> None:
    seen, later = f"{file}:seen", f"{file}:later"
    logged: dict[str, float] = {}
    scorer = PairScorer(section({seen: 2.0, later: 0.5}))
    scores = scorer.score(["a", "b"], [PAIR, CHAT], log_metric=logged.__setitem__)
    assert scores.rewards.tolist() == [4.0, 1.0], "None adds nothing"
    assert scores.parts[seen][0] == 1.5
    assert np.isnan(scores.parts[seen][1])
    assert logged == {"called": 1.0}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("short", "returned 1 values for 2 completions"),
        ("nan", "returned nan for completion 0: 'a' (prompt 'Which soap?')"),
        ("text", "returned str, expected a list of 2 numbers"),
        ("raises", "raised KeyError: 'score' ("),
    ],
)
def test_functions_that_fail_are_named(file: Path, name: str, reason: str) -> None:
    scorer = PairScorer(section({f"{file}:{name}": 1.0}))
    with pytest.raises(RewardError) as error:
        scorer.score(["a", "b"], [PAIR, CHAT])
    assert reason in error.value.message
    assert str(file) in error.value.message


def test_what_is_no_function(file: Path) -> None:
    with pytest.raises(RewardError, match="is class Thing, not a function"):
        PairScorer(section({f"{file}:Thing": 1.0}))
    with pytest.raises(RewardError, match="no attribute 'absent'"):
        PairScorer(section({f"{file}:absent": 1.0}))


def test_rewards_add_up_and_stay_finite(file: Path) -> None:
    scorer = PairScorer(section({"accuracy": 2.0, "length": -1.0}, length={"optimal_length": 3}))
    scores = scorer.score(["the rose soap"], [PAIR])
    assert scores.rewards.tolist() == [1.0]
    big = PairScorer(section({"length": 1e12}, length={"optimal_length": 1, "length_weight": 1e12}))
    with pytest.raises(RewardError, match="is 1e"):
        big.score(["word"], [PAIR])


def test_an_asynchronous_function_runs_inside_a_loop_too(file: Path) -> None:
    """As in a notebook."""

    async def inside() -> list[float]:
        return PairScorer(section({f"{file}:later": 1.0})).score(["a"], [PAIR]).rewards.tolist()

    assert asyncio.run(inside()) == [2.0]


def test_reward_model(tmp_path: Path) -> None:
    """A tiny classifier: one number a text; one with two labels is refused."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<pad>", "<unk>", "which", "soap", "rose"])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")
    for labels in (1, 2):
        config = BertConfig(
            vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            max_position_embeddings=64, num_labels=labels, pad_token_id=0,
        )  # fmt: skip
        folder = tmp_path / str(labels)
        BertForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    name = str(tmp_path / "1")
    assert is_model(name)
    scores = PairScorer(section({name: 1.0}), device="cpu").score(["rose", "rose", "soap soap " * 80], [PAIR] * 3)
    one, same, long = scores.rewards
    assert one == same != long
    alone = PairScorer(section({name: 1.0}), device="cpu").score(["rose"], [PAIR]).rewards
    assert alone.tolist() == pytest.approx([one], abs=1e-5), "padding changes nothing"
    with pytest.raises(RewardError, match="has 2 labels"):
        PairScorer(section({str(tmp_path / "2"): 1.0}), device="cpu")
    with pytest.raises(RewardError, match="neither a folder nor in"):
        PairScorer(section({"nobody/nothing": 1.0}), device="cpu")
