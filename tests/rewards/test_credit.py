"""What a text is paid by its group, against brute force over every item's score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RetrievalSection, RewardSection
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import ConfigError, DataError, RewardError
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.rewards.credit import Groups
from rl4rec_cli.rewards.custom import reward_of_code
from rl4rec_cli.rewards.scorer import Scorer, load_rewards, start_scores

FUSIONS = ["logsumexp", "max", "mean", "rrf"]
DATASET = synthesize(30, 60, 1)
TITLES = [str(item["title"]) for item in DATASET.items]
SECTION = RetrievalSection(backend="in-process", embedder="lsa", lsa_dim=12, device="cpu")


@pytest.fixture(scope="module")
def retriever() -> Any:
    return open_retriever(SECTION, DATASET)


def fused(scores_SN: np.ndarray, kept: np.ndarray, fusion: str) -> np.ndarray:
    if fusion == "rrf":
        ranks_SN = (scores_SN[:, None, kept] >= scores_SN[:, :, None] - 1e-12).sum(2)
        return (1 / (60 + ranks_SN)).sum(0)
    if fusion == "logsumexp":
        return np.log(np.exp(10 * scores_SN).sum(0)) / 10
    return scores_SN.max(0) if fusion == "max" else scores_SN.mean(0)


def value(retriever: Any, texts: list[str], target: int, history: list[int], fusion: str, epsilon: float) -> float:
    """NDCG@10 + 0.5 Hit@10 + shaping of the texts' fused rank, from float64 scores of every item."""
    queries = retriever.text_vectors(list(dict.fromkeys(texts)) or [""]).double().numpy()
    queries = [query for query in queries if query.any()]
    if not queries:
        return 0.0
    items = retriever.vectors_ND.double().numpy()
    kept = np.array([i == target or i not in history for i in range(len(items))])
    scores = fused(np.stack(queries) @ items.T, kept, fusion)
    rank = int((scores[kept] >= scores[target] - 1e-12).sum())
    shaping = epsilon * (1 - np.log(rank) / np.log(len(items)))
    return float((rank <= 10) * (1 / np.log2(1 + rank) + 0.5) + shaping)


def scorer(retriever: Any, groups: Groups | None, **section: Any) -> Scorer:
    own = {"functions": {"ndcg": 1.0, "hit": 0.5, "mrr": 0.0}, "k": 10, "rank_shaping": 0.25, **section}
    return Scorer(retriever, RewardSection(**own), groups=groups)


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from([2, 3, 5]),
    fusion=st.sampled_from(FUSIONS),
    epsilon=st.sampled_from([0.0, 0.25]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_text_is_paid_what_its_group_loses_without_it(
    retriever: Any, size: int, fusion: Any, epsilon: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    texts, targets, histories = [], [], []
    for _ in range(4):
        words = [*rng.choice(TITLES, 4), "", "unheard of"]
        texts += [str(text) for text in rng.choice(words, size)]
        targets += [int(rng.integers(60))] * size
        histories += [list(map(int, rng.integers(0, 60, 5)))] * size
    scores = scorer(retriever, Groups(size, fusion), rank_shaping=epsilon).score(texts, targets, histories)
    alone = scorer(retriever, None, rank_shaping=epsilon).score(texts, targets, histories)
    assert scores.ranks.tolist() == alone.ranks.tolist()
    assert scores.groups is not None
    assert scores.groups.own_rewards.tolist() == alone.rewards.tolist()
    assert {name: values.tolist() for name, values in scores.parts.items()} == {
        name: values.tolist() for name, values in alone.parts.items()
    }
    for row in range(len(texts)):
        first = row - row % size
        own = texts[first : first + size]
        rest = own[: row - first] + own[row - first + 1 :]
        case = targets[row], histories[row], fusion, epsilon
        whole = value(retriever, own, *case)
        assert scores.groups.rewards[row] == pytest.approx(whole, abs=1e-9)
        assert scores.rewards[row] == pytest.approx(whole - value(retriever, rest, *case), abs=1e-9)
        if own.count(texts[row]) > 1 or not texts[row].strip():
            assert scores.rewards[row] == 0


def test_one_of_two_is_paid_for_both_and_the_other_for_nothing(retriever: Any) -> None:
    """The group of two whose second text says nothing is what the first one is alone."""
    texts = [TITLES[8], "", TITLES[8], TITLES[8], "", ""]
    scores = scorer(retriever, Groups(2, "logsumexp"), rank_shaping=0).score(texts, [8] * 6, [[]] * 6)
    assert scores.rewards.tolist() == [1.5, 0, 0, 0, 0, 0]
    assert scores.groups is not None
    assert scores.groups.own_rewards.tolist() == [1.5, 0, 1.5, 1.5, 0, 0]
    assert scores.groups.rewards.tolist() == [1.5, 1.5, 1.5, 1.5, 0, 0]
    assert scores.groups.parts["mrr"].tolist() == [1, 1, 1, 1, 0, 0]
    assert scores.groups.ranks_without.tolist() == [60, 1, 1, 1, 60, 60]


def test_a_text_that_draws_the_target_down_is_paid_less_than_nothing(retriever: Any) -> None:
    texts = [text for other in TITLES for text in (TITLES[8], other)]
    scores = scorer(retriever, Groups(2, "max")).score(texts, [8] * 120, [[]] * 120)
    assert scores.groups is not None
    below = np.flatnonzero(scores.rewards < 0)
    assert len(below)
    assert (scores.groups.ranks > scores.groups.ranks_without)[below].all()


def length(generated_texts: Any, target_items: Any, history_items: Any, *, ranks: Any, **_: Any) -> list[float]:
    return [len(text) + rank / 1000 for text, rank in zip(generated_texts, ranks, strict=True)]


def test_rewards_that_read_texts_are_paid_as_ever(retriever: Any) -> None:
    name, reward = reward_of_code(length)
    section = RewardSection(functions={"ndcg": 1.0, name: 0.01})
    rewards = {**load_rewards(RewardSection()), name: reward}
    texts, targets, histories = [TITLES[8], TITLES[9], TITLES[8], ""], [8] * 4, [[]] * 4
    groups = Groups(4, "max")
    both = Scorer(retriever, section, rewards=rewards, groups=groups).score(texts, targets, histories)
    by_rank = Scorer(retriever, RewardSection(), groups=groups).score(texts, targets, histories)
    own = retriever.target_ranks(texts, targets, histories).ranks
    read = np.asarray(length(texts, targets, histories, ranks=own))
    np.testing.assert_allclose(both.rewards, by_rank.rewards + 0.01 * read, rtol=0, atol=1e-12)
    assert both.parts[name].tolist() == read.tolist()
    assert both.groups is not None
    assert list(both.groups.parts) == ["ndcg"]
    only = RewardSection(functions={"ndcg": 0.0, name: 1.0})
    with pytest.raises(ConfigError, match=r"reward\.credit=marginal pays for ranks"):
        Scorer(retriever, only, rewards=rewards, groups=groups)
    Scorer(retriever, only.model_copy(update={"rank_shaping": 0.1}), rewards=rewards, groups=groups)


def test_a_value_that_is_too_large_is_an_error(retriever: Any) -> None:
    section = RewardSection.model_construct(**{**RewardSection().model_dump(), "functions": {"ndcg": 1e40}})
    with pytest.raises(RewardError, match="of which reward 'ndcg'"):
        Scorer(retriever, section, groups=Groups(2, "max")).score([TITLES[8], ""], [8, 8], [[], []])


def test_groups_of_several_datasets(retriever: Any) -> None:
    other = open_retriever(SECTION, synthesize(30, 40, 2))
    groups = Groups(2, "logsumexp")
    scorers = {"a": scorer(retriever, groups), "b": scorer(other, groups)}
    texts = [TITLES[i] for i in (1, 2, 3, 4, 5, 6)]
    targets, histories = [7, 7, 8, 8, 9, 9], [[1]] * 6
    scores = start_scores(scorers, texts, targets, histories, list("bbaabb"), ["u"] * 6)()
    assert scores.groups is not None
    for name, rows in (("a", [2, 3]), ("b", [0, 1, 4, 5])):
        own = scorers[name].score(*([values[row] for row in rows] for values in (texts, targets, histories)))
        assert own.groups is not None
        assert scores.rewards[rows].tolist() == own.rewards.tolist()
        for mine, theirs in zip(scores.groups[:4], own.groups[:4], strict=True):
            assert mine[rows].tolist() == theirs.tolist()
        for part, values in own.groups.parts.items():
            assert scores.groups.parts[part][rows].tolist() == values.tolist()


def test_groups_that_are_not_whole_are_refused(retriever: Any) -> None:
    pays = scorer(retriever, Groups(2, "max"))
    with pytest.raises(DataError, match="3 completions are no whole groups of 2"):
        pays.score(TITLES[:3], [1, 1, 1], [[]] * 3)
    with pytest.raises(DataError, match="completion 3 has another target than completion 2"):
        pays.score(TITLES[:4], [1, 1, 1, 2], [[]] * 4)
    with pytest.raises(DataError, match="completion 1 has another history than completion 0"):
        pays.score(TITLES[:2], [1, 1], [[], [3]])
    assert len(pays.score([], [], []).rewards) == 0


# --- the setting ---


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_one_completion_per_prompt_is_no_group(algorithm: str) -> None:
    with pytest.raises(ConfigError, match=f"reward.credit: {algorithm} has one completion per prompt"):
        load_config(algorithm=algorithm, sets=["reward.credit=marginal"])


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_groups_are_those_of_the_trainer(algorithm: str) -> None:
    sets = ["reward.credit=marginal", "trainer.num_generations=6", "generation.fusion=max"]
    config = load_config(algorithm=algorithm, sets=sets)
    assert Groups.of(config) == Groups(6, "max")
    assert config.reward.scale_rewards == "none"
    assert Groups.of(load_config(algorithm=algorithm)) is None
    warm = load_config(algorithm="sft", sets=["reward.credit=marginal"])  # a shared recipe
    assert Groups.of(warm) is None
