"""The judge of answers: fitted on pairs, and what it names as hacking."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.preference.data import PairsDataset
from rl4rec_cli.preference.judge import FittedJudge, judge_probes, open_judge
from rl4rec_cli.preference.measured import PairMeasured
from rl4rec_cli.preference.records import Pair, Turn
from rl4rec_cli.preference.scoring import PairScores
from rl4rec_cli.preference.synthetic import synthesize_pairs


@pytest.fixture(scope="module")
def data() -> PairsDataset:
    pairs = tuple(synthesize_pairs(300, 60, 0))
    return PairsDataset("made", pairs[:200], pairs[200:])


def config(*sets: str) -> Any:
    return load_config(algorithm="grpo", recipes=["preference-quick-test"], sets=sets)


def measured(name: str, texts: Sequence[str], rewards: float | Sequence[float]) -> PairMeasured:
    values = np.broadcast_to(np.asarray(rewards, np.float64), len(texts)).copy()
    return PairMeasured(name, list(texts), PairScores(values, {"accuracy": values}), "policy")


class Lengths:
    """Prefers short answers."""

    name = "short"

    def __call__(self, texts: Sequence[str], pairs: Sequence[Pair]) -> Any:
        return -np.array([len(text) for text in texts], np.float64)


def test_a_fitted_judge_knows_held_out_pairs(data: PairsDataset) -> None:
    judge = open_judge(config(), data)
    assert isinstance(judge, FittedJudge)
    better, worse = ([getattr(p, side) for p in data.held_out] for side in ("chosen", "rejected"))
    assert (judge(better, data.held_out) > judge(worse, data.held_out)).mean() > 0.95
    again = open_judge(config(), data)
    assert again is not None
    assert np.array_equal(again(better, data.held_out), judge(better, data.held_out))


def test_a_judge_of_noise_is_named(data: PairsDataset) -> None:
    """Answers in random order of preference: the judge knows nothing, which fails its own probe."""
    draw = random.Random(1)
    mixed = [
        Pair(p.prompt, *draw.sample([p.chosen, p.rejected], 2), is_chat=False) for p in (*data.train, *data.held_out)
    ]
    noise = PairsDataset("noise", tuple(mixed[:200]), tuple(mixed[200:]))
    judge = open_judge(config(), noise)
    assert judge is not None
    texts = [pair.chosen for pair in noise.held_out]
    probes = judge_probes(judge, noise.held_out, measured("tuned", texts, 1.0), measured("start", texts, 0.0))
    assert probes[0].passed is False
    assert "does not know chosen from rejected" in probes[0].finding


def test_who_cannot_judge(data: PairsDataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert open_judge(config("reward.functions.similarity=1"), data) is None
    assert "No judge: rewards read the vectors of lsa" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is what rewards read already"):
        open_judge(config("reward.functions.similarity=1", "eval.second_embedder=lsa"), data)
    with pytest.raises(ConfigError, match="is a reward of the run"):
        open_judge(config("reward.functions.me/model=1", "eval.judge=me/model"), data)


PAIRS = [
    Pair((Turn("user", f"please tell me of the soap {n}"),), f"it is good {n}", f"no {n}", is_chat=False)
    for n in range(40)
]


def probe(name: str, ours: Callable[[int], str], start: Callable[[int], str], gain: float = 1.0) -> Any:
    texts = [[write(n) for n in range(len(PAIRS))] for write in (ours, start)]
    probes = judge_probes(Lengths(), PAIRS, measured("tuned", texts[0], gain), measured("start", texts[1], 0.0))
    return next(one for one in probes if one.name.startswith(name))


def test_hacking_is_named() -> None:
    def brief(n: int) -> str:
        return f"good {n}"

    def long(n: int) -> str:
        return f"good good good {n}"

    lost = probe("judge: against start", long, brief)
    assert lost.passed is False
    assert "lose against start (win rate 0%), while the reward rose" in lost.finding
    assert probe("judge: against start", brief, long).passed is True
    assert probe("judge: against start", long, brief, gain=0.0).passed is None
    longer = probe("length", long, brief)
    assert longer.passed is False
    assert "2.0 times as long" in longer.finding
    assert longer.difference.mean == 2
    copied = probe("copied", lambda n: f"tell me of the soap {n}", brief)
    assert copied.passed is False
    assert "copy their prompts (100% of their word pairs, before 0%)" in copied.finding
    assert probe("copied", brief, brief, gain=1.0).passed is True
    assert probe("judge: against chosen", brief, brief).passed is None
