"""Turns texts into rewards, by the one ranking that training and evaluation share.

Decides: that a batch is ranked once, however many rewards there are, and each text in its own dataset's catalogue; how
rewards are weighted and shaped, also where a group pays (`credit`), and which rewards are invalid.
Hides: the retriever and the reward functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rl4rec_cli.config.base import LARGEST_REWARD
from rl4rec_cli.errors import ConfigError, DataError, RewardError
from rl4rec_cli.retrieval.retriever import Ranking, submit_ranks
from rl4rec_cli.rewards.credit import Groups, GroupScores
from rl4rec_cli.rewards.custom import TextReward, as_number, definition, load_reward, where_raised
from rl4rec_cli.rewards.functions import RankReward, rank_shaping

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.config.sections import RewardSection
    from rl4rec_cli.ranking.fusing import Fusion
    from rl4rec_cli.retrieval.retriever import Retriever
    from rl4rec_cli.retrieval.several_texts import GroupRanks

_WAY_OUT = f"beyond ±{LARGEST_REWARD:g} sums and squares of rewards do not fit in float32: scale it down"


@dataclass(frozen=True)
class Scores:
    """Rewards of a batch of B texts."""

    ranks: NDArray[np.int64]
    """`[B]` rank of the target by the text alone."""
    rewards: NDArray[np.float64]
    """`[B]` what training maximises: the weighted sum plus shaping, or what the group loses without the text."""
    parts: dict[str, NDArray[np.float64]]
    """`[B]` values of every reward function for the text alone by name, those of weight 0 too, without shaping."""
    groups: GroupScores | None = None
    """Where groups pay."""


class HybridRanks(Protocol):
    """Ranks texts of training examples together with a sequence model (`eval/training_hybrid.py`)."""

    def text_ranks(
        self,
        texts: Sequence[str],
        users: Sequence[str],
        targets: Sequence[int],
        histories: Sequence[Sequence[int]],
    ) -> Ranking: ...

    def group_ranks(
        self,
        texts_of_groups: Sequence[Sequence[str]],
        users: Sequence[str],
        targets: Sequence[int],
        histories: Sequence[Sequence[int]],
        fusion: Fusion,
    ) -> GroupRanks: ...


class Scorer:
    """Ranks texts in one catalogue and turns the ranks into rewards.

    Args:
        retriever: ranks texts.
        section: names and weights of rewards.
        dataset: name of the catalogue's dataset, for rewards that read texts.
        rewards: the section's rewards, if they are loaded already.
        hybrid: ranks instead of the retriever alone, as `reward.fuse` says.
        groups: texts stand in groups that pay each what they lose without it; None: each is paid for its own rank.

    Raises: as `load_reward`, and
        RewardError: a reward's class cannot be instantiated.
        ConfigError: `reward.fuse` is set, and there is no hybrid; or groups are to pay, and no reward is of the rank.
    """

    def __init__(
        self,
        retriever: Retriever,
        section: RewardSection,
        *,
        dataset: str = "",
        rewards: Mapping[str, RankReward | TextReward] | None = None,
        hybrid: HybridRanks | None = None,
        groups: Groups | None = None,
    ) -> None:
        if section.is_fused and hybrid is None:
            raise ConfigError(
                f"reward.fuse={section.fuse}: this scorer ranks by texts alone",
                hint="`rl4rec train` and RLTrainer fit the sequence model; leave out reward.fuse here",
            )
        self.retriever, self._hybrid = retriever, hybrid
        self.groups = groups
        self.section = section
        self.dataset = dataset
        self._by_rank: dict[str, RankReward] = {}
        self._by_text: dict[str, Callable[..., Sequence[float]]] = {}
        self.files: dict[str, str] = {}
        for name, reward in (load_rewards(section) if rewards is None else rewards).items():
            if isinstance(reward, RankReward):
                self._by_rank[name] = reward
            else:
                self._by_text[name], self.files[name] = reward.bind(retriever, section.k), reward.file
        if groups is not None and section.rank_shaping == 0 and not any(section.functions[n] for n in self._by_rank):
            raise ConfigError(
                "reward.credit=marginal pays for ranks, and every reward that is not only logged reads completions",
                hint="add a reward of the rank (--reward ndcg=1) or reward.rank_shaping, or leave reward.credit out",
            )

    def score(
        self,
        texts: Sequence[str],
        targets: Sequence[int],
        histories: Sequence[Sequence[int]],
        users: Sequence[str] | None = None,
    ) -> Scores:
        """Returns the rewards of a batch.

        Args:
            texts: `[B]`; where groups pay, those of a group stand together.
            targets: `[B]` item ids.
            histories: `[B]` item ids already chosen.
            users: `[B]` names; with a hybrid the half that a user is in decides which model scores.

        Raises:
            RewardError: a reward that reads texts raised, or returned something other than one finite number per text.
            DataError: there is a hybrid, and no users; or groups pay, and the texts do not stand in whole groups, each
                of one example.
        """
        return self.start(texts, targets, histories, users)()

    def start(
        self,
        texts: Sequence[str],
        targets: Sequence[int],
        histories: Sequence[Sequence[int]],
        users: Sequence[str] | None = None,
    ) -> Callable[[], Scores]:
        """Starts `score` and returns a function that finishes it. A retrieval service ranks in between.

        So the requests of several batches overlap. A hybrid ranks in this process, in the second half, and so do
        groups.

        Raises (the second half): as `score`.
        """
        if self._hybrid is not None and users is None:
            raise DataError("reward.fuse: completions are scored without the names of their users")
        if self.groups is not None:
            return partial(self._finish_groups, texts, targets, histories, users or (), self.groups)
        ranking: Callable[[], Ranking]
        if self._hybrid is None:
            ranking = submit_ranks(self.retriever, texts, targets, histories)
        else:
            ranking = partial(self._hybrid.text_ranks, texts, users or (), targets, histories)
        return lambda: self._finish(texts, targets, histories, ranking())

    def _finish(
        self, texts: Sequence[str], targets: Sequence[int], histories: Sequence[Sequence[int]], ranking: Ranking
    ) -> Scores:
        ranks, scorable = ranking
        parts = {
            name: self._read_texts(name, texts, targets, histories, ranks, scorable)
            if name in self._by_text
            else self._of_ranks(name, ranking)
            for name in self.section.functions
        }
        rewards = self._sum(parts, ranking)
        self._check_size(rewards, parts, texts, targets)
        return Scores(ranks, rewards, parts)

    def _finish_groups(
        self,
        texts: Sequence[str],
        targets: Sequence[int],
        histories: Sequence[Sequence[int]],
        users: Sequence[str],
        groups: Groups,
    ) -> Scores:
        """Pays each text what its group loses without it (see `credit`)."""
        of_groups = groups.split(texts)
        examples = groups.of_each(targets, "target"), groups.of_each(histories, "history")
        if self._hybrid is not None:
            ranked = self._hybrid.group_ranks(of_groups, groups.of_each(users, "user"), *examples, groups.fusion)
        else:
            ranked = self.retriever.group_ranks(of_groups, *examples, groups.fusion)
        own, together, without = ranked
        scores = self._finish(texts, targets, histories, own)
        whole = Ranking(np.repeat(together.ranks, groups.size), np.repeat(together.scorable, groups.size))
        whole_parts = {name: self._of_ranks(name, whole) for name in self._by_rank}
        rest_parts = {name: self._of_ranks(name, without) for name in self._by_rank}
        values, rest = self._sum(whole_parts, whole), self._sum(rest_parts, without)
        rewards = values - rest
        for name in self._by_text:
            rewards += self.section.functions[name] * scores.parts[name]
        gains = {name: whole_parts[name] - rest_parts[name] for name in self._by_rank}
        self._check_size(rewards, {**scores.parts, **gains}, texts, targets)
        return Scores(
            own.ranks,
            rewards,
            scores.parts,
            GroupScores(scores.rewards, whole.ranks, without.ranks, values, whole_parts),
        )

    def _of_ranks(self, name: str, ranking: Ranking) -> NDArray[np.float64]:
        values = self._by_rank[name].worth(ranking.ranks, self.section)
        return np.where(ranking.scorable, values, 0.0)

    def _sum(self, parts: Mapping[str, NDArray[np.float64]], ranking: Ranking) -> NDArray[np.float64]:
        """Weighs these parts and adds the shaping."""
        rewards = np.zeros(len(ranking.ranks), np.float64)
        for name, weight in self.section.functions.items():
            if name in parts:
                rewards += weight * parts[name]
        if self.section.rank_shaping > 0:
            shaping = rank_shaping(ranking.ranks, self.retriever.num_items, self.section.rank_shaping)
            rewards += np.where(ranking.scorable, shaping, 0.0)
        return rewards

    def _check_size(
        self,
        rewards: NDArray[np.float64],
        parts: Mapping[str, NDArray[np.float64]],
        texts: Sequence[str],
        targets: Sequence[int],
    ) -> None:
        if len(too_large := np.flatnonzero(np.abs(rewards) > LARGEST_REWARD)):
            row = int(too_large[0])
            contributions = {name: weight * parts[name][row] for name, weight in self.section.functions.items()}
            name = max(contributions, key=lambda name: abs(contributions[name]))
            raise RewardError(
                f"the weighted sum of rewards is {rewards[row]:g} for {_example(texts, targets, row)}, of which reward "
                f"{name!r} is {contributions[name]:g} (weight {self.section.functions[name]:g})",
                hint=_WAY_OUT,
            )

    def _read_texts(
        self,
        name: str,
        texts: Sequence[str],
        targets: Sequence[int],
        histories: Sequence[Sequence[int]],
        ranks: NDArray[np.int64],
        scorable: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        file = self.files[name]

        try:
            # Copies: a user's function may change its arguments, and other rewards read them.
            values: Any = self._by_text[name](
                list(texts),
                list(targets),
                [list(history) for history in histories],
                ranks=ranks.copy(),
                scorable=scorable.copy(),
                k=self.section.k,
                dataset=self.dataset,
            )
        except (Exception, SystemExit) as error:
            batch = f"{len(texts)} completions, the first {_example(texts, targets, 0)}" if len(texts) else "none"
            raise RewardError(
                f"reward {name!r} raised {type(error).__name__}: {error}{where_raised(error, file)}, given {batch}",
                hint="mend the reward function; --debug shows the whole traceback",
            ) from error
        where = f"({definition(self._by_text[name], file)})"
        try:
            count = -1 if isinstance(values, (str, bytes, Mapping, Set)) else len(values)
        except TypeError:
            count = -1
        if count < 0:
            kind = type(values).__name__
            raise RewardError(f"reward {name!r} returned {kind}, expected a list of {len(texts)} numbers {where}")
        if count != len(texts):
            raise RewardError(f"reward {name!r} returned {count} values for {len(texts)} completions {where}")
        numbers = [as_number(value) for value in values]
        for i, (value, number) in enumerate(zip(values, numbers, strict=True)):
            if number is None or not np.isfinite(number):
                raise RewardError(
                    f"reward {name!r} returned {value!r} for {_example(texts, targets, i)} {where}",
                    hint="every reward must be a finite number; decide in the function what a bad completion is worth",
                )
            if abs(number) > LARGEST_REWARD:
                raise RewardError(
                    f"reward {name!r} returned {value!r} for {_example(texts, targets, i)} {where}", hint=_WAY_OUT
                )
        return np.asarray(numbers, np.float64)


def open_scorers(
    retrievers: Mapping[str, Retriever],
    section: RewardSection,
    hybrids: Mapping[str, HybridRanks] | None = None,
    groups: Groups | None = None,
) -> dict[str, Scorer]:
    """Returns a scorer for each dataset. Imports a reward's module once for all of them.

    Args:
        hybrids: by the datasets' names, as the retrievers.
        groups: as `Scorer`.

    Raises: as `Scorer`.
    """
    rewards, by_name = load_rewards(section), hybrids or {}
    return {
        name: Scorer(retriever, section, dataset=name, rewards=rewards, hybrid=by_name.get(name), groups=groups)
        for name, retriever in retrievers.items()
    }


def load_rewards(section: RewardSection) -> dict[str, RankReward | TextReward]:
    """Loads the rewards of a configuration, by name.

    Raises: as `load_reward`.
    """
    return {name: load_reward(name) for name in section.functions}


def start_scores(
    scorers: Mapping[str, Scorer],
    texts: Sequence[str],
    targets: Sequence[int],
    histories: Sequence[Sequence[int]],
    datasets: Sequence[str],
    users: Sequence[str],
) -> Callable[[], Scores]:
    """Does what `Scorer.start` does for a batch of several datasets: ranks each text once, in its own catalogue.

    With a retrieval service it sends all datasets' requests before it waits for the first answer.

    Args:
        datasets: `[B]` names.
        users: `[B]` names, each of a user of its dataset.
    """
    pending = []
    for name, scorer in scorers.items():
        rows = [row for row, dataset in enumerate(datasets) if dataset == name]
        if rows:
            own: list[Any] = [[values[row] for row in rows] for values in (texts, targets, histories, users)]
            pending.append((rows, scorer.start(*own)))

    def finish() -> Scores:
        return _joined([(rows, finish_own()) for rows, finish_own in pending], len(texts))

    return finish


def _joined(parts_of_batch: Sequence[tuple[list[int], Scores]], count: int) -> Scores:
    """Returns the scores of parts of a batch, each with its rows, as those of the whole."""

    def whole(column: Callable[[Any], NDArray[Any]], dtype: type = np.float64) -> NDArray[Any]:
        values: NDArray[Any] = np.zeros(count, dtype)
        for rows, scores in parts_of_batch:
            values[rows] = column(scores)
        return values

    def each(names: Iterable[str], parts: Callable[[Any], Mapping[str, NDArray[np.float64]]]) -> dict[str, Any]:
        def part(name: str) -> Callable[[Any], NDArray[np.float64]]:
            return lambda scores: parts(scores)[name]

        return {name: whole(part(name)) for name in names}

    if not parts_of_batch:
        return Scores(np.zeros(0, np.int64), np.zeros(0), {})
    first = parts_of_batch[0][1]
    groups = None
    if first.groups is not None:
        groups = GroupScores(
            whole(lambda scores: scores.groups.own_rewards),
            whole(lambda scores: scores.groups.ranks, np.int64),
            whole(lambda scores: scores.groups.ranks_without, np.int64),
            whole(lambda scores: scores.groups.rewards),
            each(first.groups.parts, lambda scores: scores.groups.parts),
        )
    return Scores(
        whole(lambda scores: scores.ranks, np.int64),
        whole(lambda scores: scores.rewards),
        each(first.parts, lambda scores: scores.parts),
        groups,
    )


def _example(texts: Sequence[str], targets: Sequence[int], row: int) -> str:
    return f"completion {row}: {texts[row][:80]!r} (target item {targets[row]})"
