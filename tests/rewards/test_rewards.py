"""What a rank is worth, and what a user's own reward may return."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.registries import REWARDS
from rl4rec_cli.config.sections import RetrievalSection, RewardSection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.errors import ConfigError, DataError, RewardError
from rl4rec_cli.eval.metrics import METRICS
from rl4rec_cli.retrieval.retriever import InProcessRetriever, Ranking
from rl4rec_cli.rewards import RLRewardFunction, calculate_ndcg, create_reward_function
from rl4rec_cli.rewards.custom import log_names
from rl4rec_cli.rewards.functions import RankReward, rank_reward, rank_shaping
from rl4rec_cli.rewards.scorer import Scorer


class FixedRanks:
    """A retriever whose ranks are given: texts are written numbers, a blank text says nothing."""

    def __init__(self, num_items: int = 100) -> None:
        self.num_items = num_items
        self.calls = 0

    def target_ranks(self, texts: Any, targets: Any, histories: Any) -> Ranking:
        self.calls += 1
        scorable = np.array([bool(t.strip()) for t in texts], np.bool_)
        ranks = [int(t) if t.strip() else self.num_items for t in texts]
        return Ranking(np.array(ranks, np.int64), scorable)

    def search(self, texts: Any, k: int, exclude: Any = None) -> Any:
        raise NotImplementedError

    def calculate_reward(self, texts: Any) -> Any:
        return np.zeros((len(texts), self.num_items), np.float32)


def score(ranks: list[int | str], num_items: int = 100, **section: Any) -> Any:
    texts = [str(r) for r in ranks]
    return Scorer(FixedRanks(num_items), RewardSection(**section)).score(texts, [0] * len(texts), [[]] * len(texts))


# --- formulas ---


@given(rank=st.integers(1, 10_000), k=st.integers(1, 50), mixed=st.tuples(st.floats(0, 5), st.floats(0, 5)))
def test_formulas(rank: int, k: int, mixed: tuple[float, float]) -> None:
    within = rank <= k
    expected = {
        "ndcg": 1 / math.log2(1 + rank) if within else 0.0,
        "hit": 1.0 if within else 0.0,
        "mrr": 1 / rank if within else 0.0,
    }
    expected["mixed"] = mixed[0] * expected["ndcg"] + mixed[1] * expected["hit"]
    for name, value in expected.items():
        section = RewardSection(k=k, mixed_ndcg=mixed[0], mixed_hit=mixed[1])
        assert rank_reward(name).worth(np.array([rank]), section)[0] == pytest.approx(value, abs=1e-15)


def test_a_thousand_cases_agree_with_trec_eval(scripted: Any) -> None:
    rng = np.random.default_rng(7)
    cases, n, k = 1000, 40, 10
    scores = np.stack([rng.permutation(n) for _ in range(cases)]).astype(np.float32)
    targets = rng.integers(0, n, cases)
    # Item vectors are the unit axes: a text's vector is its scores.
    embedder = scripted({f"t{c}": (scores[c] + 1).tolist() for c in range(cases)}, n)
    retriever = InProcessRetriever(embedder, torch.eye(n), mask_history=False)
    ranks, _ = retriever.target_ranks(list(embedder.vectors), targets.tolist(), [[]] * cases)
    run = {f"q{c}": {f"d{i}": float(scores[c, i]) for i in range(n)} for c in range(cases)}
    qrel = {f"q{c}": {f"d{targets[c]}": 1} for c in range(cases)}
    measured = pytrec_eval.RelevanceEvaluator(qrel, {f"ndcg_cut.{k}", f"success.{k}", "recip_rank"}).evaluate(run)
    for ours, theirs in (("ndcg", f"ndcg_cut_{k}"), ("hit", f"success_{k}"), ("mrr", "recip_rank")):
        reference = np.array([measured[f"q{c}"][theirs] for c in range(cases)])
        values = METRICS[ours].at(ranks, n if ours == "mrr" else k)
        assert np.abs(values - reference).max() <= 1e-12


@given(
    num_items=st.integers(2, 20_000),
    epsilon=st.floats(1e-4, 10),
    name=st.sampled_from([name for name in REWARDS.built_in if isinstance(REWARDS.load(name), RankReward)]),
    k=st.integers(1, 30),
    data=st.data(),
)
def test_shaping_falls_strictly_and_keeps_the_metrics_order(
    num_items: int, epsilon: float, name: str, k: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(1, max(1, num_items - 50)))
    ranks = np.arange(start, min(start + 50, num_items) + 1)
    shaped = rank_shaping(ranks, num_items, epsilon)
    assert (np.diff(shaped) < 0).all()
    assert (shaped >= 0).all()
    assert (shaped <= epsilon).all()
    total = rank_reward(name).worth(ranks, RewardSection(k=k)) + shaped
    assert (np.diff(total) < 0).all()


def test_ends_of_shaping() -> None:
    assert rank_shaping(np.array([1, 1000]), 1000, 0.25).tolist() == [0.25, 0.0]
    assert rank_shaping(np.array([1]), 1, 0.25).tolist() == [0.0]
    assert rank_shaping(np.array([10]), 100, 1.0)[0] == pytest.approx(0.5)


# --- the scorer ---


def test_weights_and_parts() -> None:
    scores = score([1, 3, 11], functions={"ndcg": 2.0, "hit": 0.5, "mrr": 0.0}, k=10)
    assert list(scores.parts) == ["ndcg", "hit", "mrr"]
    assert scores.parts["mrr"].tolist() == [1.0, pytest.approx(1 / 3), 0.0]
    assert scores.rewards.tolist() == pytest.approx([2.5, 2 * 0.5 + 0.5, 0.0])
    assert scores.ranks.tolist() == [1, 3, 11]


def test_shaping_is_added_to_the_reward_and_not_to_the_parts() -> None:
    plain = score([1, 50, 100, ""], functions={"ndcg": 1.0})
    shaped = score([1, 50, 100, ""], functions={"ndcg": 1.0}, rank_shaping=0.1)
    assert shaped.parts["ndcg"].tolist() == plain.parts["ndcg"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert (shaped.rewards - plain.rewards).tolist() == pytest.approx([0.1, 0.1 * (1 - math.log(50, 100)), 0.0, 0.0])


def test_mixed_takes_its_weights() -> None:
    assert score([3], functions={"mixed": 1.0}, mixed_ndcg=0.2, mixed_hit=0.8).rewards[0] == pytest.approx(0.9)


@pytest.mark.parametrize("num_items", [1, 5, 100])
def test_a_blank_text_earns_nothing(num_items: int) -> None:
    names = {"ndcg": 1.0, "hit": 1.0, "mrr": 1.0, "mixed": 1.0}
    scores = score(["", " \n"], num_items, functions=names, k=10, rank_shaping=1.0)
    assert scores.rewards.tolist() == [0.0, 0.0]
    assert all(part.tolist() == [0.0, 0.0] for part in scores.parts.values())


def test_one_ranking_however_many_rewards(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from rl4rec_cli.rewards import RLRewardFunction\n"
        "class Own(RLRewardFunction):\n"
        "    def __call__(self, *args, **kwargs):\n"
        "        return super().__call__(*args, **kwargs)\n"
    )
    names = {"ndcg": 1.0, "hit": 0.0, "mrr": 0.5, "mixed": 0.1, f"{own}:Own": 1.0}
    retriever = FixedRanks()
    scores = Scorer(retriever, RewardSection(functions=names)).score(["1", "20"], [0, 1], [[], []])
    assert retriever.calls == 1
    assert scores.parts[f"{own}:Own"].tolist() == scores.parts["ndcg"].tolist() == [1.0, 0.0]


def test_an_unknown_reward_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match="unknown reward 'ndgc'"):
        score([1], functions={"ndgc": 1.0})


def test_a_constant_embedder_earns_no_more_than_chance(scripted: Any) -> None:
    n = 50
    generator = torch.Generator().manual_seed(0)
    distinct = torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1)
    equal = torch.ones(n, 8) / math.sqrt(8)
    for items in (distinct, equal):
        retriever = InProcessRetriever(scripted({f"t{i}": [1.0] * 8 for i in range(n)}, 8), items)
        section = RewardSection(functions={"ndcg": 1.0, "hit": 1.0})
        scores = Scorer(retriever, section).score([f"t{i}" for i in range(n)], list(range(n)), [[]] * n)
        chance = sum(1 / math.log2(1 + rank) for rank in range(1, 11)) / n
        assert scores.parts["ndcg"].mean() <= chance + 1e-9
        assert scores.parts["hit"].mean() <= 10 / n + 1e-9
    assert scores.ranks.tolist() == [n] * n


# --- a user's own ---


def own_reward(folder: Path, body: str) -> str:
    (folder / "my_rewards.py").write_text(body)
    return str(folder / "my_rewards.py")


def run_own(name: str, texts: list[str] | None = None, *, weight: float = 1.0) -> Any:
    texts = ["1", "7"] if texts is None else texts
    return Scorer(FixedRanks(), RewardSection(functions={name: weight})).score(texts, [4, 5], [[1], [2, 3]])


FUNCTION = """
def reward(generated_texts, target_items, history_items, **kwargs):
    assert kwargs["k"] == 10 and kwargs["ranks"].tolist() == [1, 7] and kwargs["scorable"].all()
    return [len(text) + target + len(history) for text, target, history
            in zip(generated_texts, target_items, history_items)]
"""


def test_a_function_by_path_and_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own_reward(tmp_path, FUNCTION)
    scorer = Scorer(FixedRanks(), RewardSection(functions={f"{path}:reward": 2.0}))
    assert scorer.files == {f"{path}:reward": path}
    assert scorer.score(["1", "7"], [4, 5], [[1], [2, 3]]).rewards.tolist() == [12.0, 16.0]
    monkeypatch.syspath_prepend(tmp_path)
    assert run_own("my_rewards:reward").rewards.tolist() == [6.0, 8.0]


def test_a_module_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_beside_me.py").write_text(FUNCTION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != ""])
    assert run_own("rewards_beside_me:reward").rewards.tolist() == [6.0, 8.0]


CLASS = """
from __future__ import annotations
from dataclasses import dataclass
from rl4rec_cli.rewards import RLRewardFunction

@dataclass
class Bonus:
    size: float

class Diverse(RLRewardFunction):
    def __call__(self, generated_texts, target_items, history_items, **kwargs):
        base = super().__call__(generated_texts, target_items, history_items, **kwargs)
        assert self.get_scores(generated_texts).shape == (2, 100) and self.k == 10
        return [b + Bonus(0.5).size for b in base]

instance = Diverse(None, k=3, reward_type="hit")
instance.get_scores = lambda texts: __import__("numpy").zeros((2, 100))
instance.k = 10

class NoReward:
    pass

value = 3
"""


def test_a_subclass_and_an_instance(tmp_path: Path) -> None:
    path = own_reward(tmp_path, CLASS)
    ndcg7 = 1 / math.log2(8)
    assert run_own(f"{path}:Diverse").rewards.tolist() == pytest.approx([1.5, ndcg7 + 0.5])
    assert run_own(f"{path}:instance").rewards.tolist() == pytest.approx([1.5, 1.5])


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("nothing", "has no attribute 'nothing'"),
        ("NoReward", "is not an RLRewardFunction"),
        ("value", "value is a int, not a function"),
    ],
)
def test_what_is_no_reward(tmp_path: Path, attribute: str, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        run_own(f"{own_reward(tmp_path, CLASS)}:{attribute}")


def test_files_and_modules_that_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="no such file"):
        run_own(f"{tmp_path}/none.py:reward")
    with pytest.raises(RewardError, match="no_such_module_x") as caught:
        run_own("no_such_module_x:reward")
    assert "path/to/file.py" in str(caught.value.hint)
    path = own_reward(tmp_path, "x = 1\ny = 1 / 0\n")
    with pytest.raises(RewardError, match=re.escape(f"ZeroDivisionError: division by zero ({path}:2)")):
        run_own(f"{path}:reward")
    path = own_reward(tmp_path, "def broken(:\n")
    with pytest.raises(RewardError, match=r"SyntaxError.*my_rewards\.py, line 1"):
        run_own(f"{path}:reward")
    path = own_reward(
        tmp_path,
        "from rl4rec_cli.rewards import RLRewardFunction\n"
        "class R(RLRewardFunction):\n    def __init__(self, *a, **k):\n        raise OSError('no model')\n",
    )
    with pytest.raises(RewardError, match=re.escape(f"raised OSError: no model ({path}:4)")):
        run_own(f"{path}:R")


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("[0.5, float('nan')]", "returned nan for completion 1: '7' (target item 5)"),
        ("[0.5, float('inf')]", "returned inf for completion 1: '7' (target item 5)"),
        ("[None, 1]", "returned None for completion 0: '1' (target item 4)"),
        ("[0.5, '1.0']", "returned '1.0' for completion 1"),
        ("[0.5, 10 ** 400]", "for completion 1"),
        ("[1e308, -1e308]", "returned 1e+308 for completion 0: '1' (target item 4)"),
        ("[0.5, -1e20]", "returned -1e+20 for completion 1: '7' (target item 5)"),
        ("numpy.array([0.5, 1e300])", "for completion 1: '7' (target item 5)"),
        ("[0.5, 1j]", "returned 1j for completion 1"),
        ("[0.5, [1.0, 2.0]]", "for completion 1"),
        ("None", "returned NoneType, expected a list of 2 numbers"),
        ("0.5", "returned float, expected a list of 2 numbers"),
        ("'12'", "returned str, expected a list of 2 numbers"),
        ("{0: 1.0, 1: 2.0}", "returned dict, expected a list of 2 numbers"),
        ("{1.0, 2.0}", "returned set, expected a list of 2 numbers"),
        ("(x for x in [1.0, 2.0])", "returned generator, expected a list of 2 numbers"),
        ("numpy.float64(1)", "returned float64, expected a list of 2 numbers"),
        ("[0.5]", "returned 1 values for 2 completions"),
        ("[]", "returned 0 values for 2 completions"),
        ("[1, 2, 3]", "returned 3 values for 2 completions"),
    ],
)
def test_what_a_reward_must_not_return(tmp_path: Path, expression: str, words: str) -> None:
    path = own_reward(tmp_path, f"import numpy\n\ndef reward(*args, **kwargs):\n    return {expression}\n")
    with pytest.raises(RewardError, match=re.escape(words)) as caught:
        run_own(f"{path}:reward")
    assert f"{path}:reward" in caught.value.message
    assert f"({path}:3)" in caught.value.message


@pytest.mark.parametrize(
    "expression", ["(0.5, 1)", "numpy.array([0.5, 1])", "torch.tensor([0.5, 1.0])", "[numpy.float32(0.5), True]"]
)
def test_what_a_reward_may_return(tmp_path: Path, expression: str) -> None:
    path = own_reward(tmp_path, f"import numpy, torch\ndef reward(*args, **kwargs):\n    return {expression}\n")
    assert run_own(f"{path}:reward").rewards.tolist() == [0.5, 1.0]


def test_a_reward_that_raises_is_named_with_the_users_line(tmp_path: Path) -> None:
    path = own_reward(
        tmp_path,
        "import json\n\ndef inner(text):\n    return json.loads('{' + text)\n\n"
        "def reward(texts, targets, histories, **kwargs):\n    return [inner(t) for t in texts]\n",
    )
    with pytest.raises(RewardError, match="raised JSONDecodeError") as caught:
        run_own(f"{path}:reward")
    assert f"({path}:4)" in caught.value.message  # not the line of the json module
    assert "completion 0: '1' (target item 4)" in caught.value.message
    path = own_reward(
        tmp_path,
        "from rl4rec_cli.errors import DataError\ndef reward(*args, **kwargs):\n    raise DataError('mine')\n",
    )
    with pytest.raises(RewardError, match=re.escape(f"'{path}:reward' raised DataError: mine ({path}:3)")):
        run_own(f"{path}:reward")


def test_a_reward_cannot_change_what_others_get(tmp_path: Path) -> None:
    path = own_reward(
        tmp_path,
        "def reward(texts, targets, histories, **kwargs):\n"
        "    kwargs['ranks'][:] = 1\n    kwargs['scorable'][:] = False\n"
        "    texts.clear(); targets.clear(); histories[0].clear()\n    return [0, 0]\n",
    )
    histories = [[1], [2, 3]]
    section = RewardSection(functions={f"{path}:reward": 1.0, "hit": 1.0}, k=1)
    scores = Scorer(FixedRanks(), section).score(["7", "1"], [4, 5], histories)
    assert scores.parts["hit"].tolist() == [0.0, 1.0]
    assert scores.ranks.tolist() == [7, 1]
    assert histories == [[1], [2, 3]]


def test_rewards_whose_weighted_sum_is_too_large_are_refused(tmp_path: Path) -> None:
    path = own_reward(tmp_path, "def reward(*args, **kwargs):\n    return [1.0, -1e10]\n")
    with pytest.raises(RewardError) as caught:
        run_own(f"{path}:reward", weight=1e6)
    message = caught.value.message
    assert re.search(r"weighted sum of rewards is -1e\+16 for completion 1: '7' \(target item 5\), of", message)
    assert f"'{path}:reward' is -1e+16 (weight 1e+06)" in caught.value.message
    for key in ("functions.ndcg", "rank_shaping", "mixed_ndcg"):
        with pytest.raises(ConfigError, match=rf"reward\.{key}"):
            load_config(algorithm="grpo", sets=[f"reward.{key}=1.0e+300"])


# --- for library users ---


def test_ndcg_of_scores_is_that_of_the_retriever(tmp_path: Path, make_dataset: Callable[..., Dataset]) -> None:
    """Ties, blank texts, histories and a target in its history included."""
    save_dataset(make_dataset(["rose", "rose", "mint", "lime", "salt", "comb"], sequences=[[0, 1, 2]]), tmp_path / "a")
    reward = create_reward_function(str(tmp_path / "a"), k=4, retrieval=RetrievalSection(embedder="lsa"))
    texts = ["rose", "", "rose mint", "comb", "unheard"]
    targets, histories = [0, 1, 2, 5, 3], [[2], [], [0, 1], [5, 5], []]
    scores = reward.get_scores(texts)
    wanted = reward(texts, targets, histories)
    assert wanted[0] == pytest.approx(1 / math.log2(3))  # the other rose ties
    for form in (scores, scores.numpy(), scores.double().tolist()):
        values = calculate_ndcg(form, targets, histories, k=4)
        assert values.tolist() == wanted
    assert (values + 0.1 * torch.ones(5)).shape == (5,)
    scores[torch.arange(5), 4] = -torch.inf
    left_out = calculate_ndcg(scores, targets, histories, k=4).tolist()  # of no target, and a blank text stays one
    assert (left_out[0], left_out[1], left_out[4]) == (wanted[0], 0.0, 0.0)
    assert calculate_ndcg(torch.zeros(0, 6), [], []).shape == (0,)


@pytest.mark.parametrize(
    ("scores", "targets", "histories", "words"),
    [
        ([[0.1, math.nan]], [0], [[]], "scores of text 0 are not finite"),
        ([[0.1, math.inf]], [0], [[]], "scores of text 0 are not finite"),
        ([[-math.inf, 0.5]], [0], [[]], "scores of text 0 are not finite"),
        ([[0.1, 0.2]], [2], [[]], "target item 2 of text 0 is outside the catalogue of 2 items"),
        ([[0.1, 0.2]], [0], [[7]], "outside the catalogue"),
        ([[0.1, 0.2]], [0, 1], [[], []], "for 2 targets and 2 histories"),
        ([0.1, 0.2], [0], [[]], "scores are [texts, items]"),
    ],
)
def test_scores_that_cannot_be_ranked(scores: Any, targets: Any, histories: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        calculate_ndcg(scores, targets, histories)
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_create_reward_function(tmp_path: Path, make_dataset: Callable[..., Dataset]) -> None:
    save_dataset(make_dataset(sequences=[[0, 1, 2, 3]]), tmp_path / "shop")
    reward = create_reward_function(
        str(tmp_path / "shop"), reward_type="mrr", k=2, retrieval=RetrievalSection(embedder="lsa")
    )
    texts = ["mint shower gel", "", "rose hand", "rose hand"]
    assert isinstance(reward, RLRewardFunction)
    assert reward(texts, [1, 1, 0, 3], [[0], [0], [], [0]])[:3] == [1.0, 0.0, 1.0]
    assert reward.get_scores(texts).shape == (4, 6)
    assert reward.get_scores(texts)[0].argmax() == 1
    assert torch.topk(reward.get_scores(texts), 2).indices.shape == (4, 2)
    for wrong, words in (({"reward_type": "best"}, "unknown reward 'best'"), ({"k": 0}, "k must be at least 1")):
        with pytest.raises(ConfigError, match=words):
            create_reward_function("/nonexistent", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "source", ["import sys\nsys.exit(5)\n", "def reward(*args, **kwargs):\n    raise SystemExit(3)\n"]
)
def test_a_reward_that_exits_is_an_error_like_any_other(tmp_path: Path, source: str) -> None:
    path = own_reward(tmp_path, source)
    with pytest.raises(RewardError, match="SystemExit"):
        Scorer(FixedRanks(), RewardSection(functions={f"{path}:reward": 1.0})).score(["1", "7"], [4, 5], [[1], [2]])


def test_rewards_of_files_of_one_name_are_two_in_logs() -> None:
    names = ["ndcg", "/a/my.py:words", "/b/my.py:words", "/a/my.py:other", "module:words"]
    expected = {name: name for name in names} | {"/a/my.py:other": "my.py:other"}
    assert log_names(names) == expected
    assert log_names(["/a/my.py:words"]) == {"/a/my.py:words": "my.py:words"}
