"""Turns texts into rewards, by the one ranking that training and evaluation share.

Decides: that a batch is ranked once, however many rewards there are, and each text in its own dataset's catalogue; how
rewards are weighted and shaped, and which rewards are invalid.
Hides: the retriever and the reward functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rl4rec_cli.config.base import LARGEST_REWARD
from rl4rec_cli.errors import ConfigError, DataError, RewardError
from rl4rec_cli.retrieval.retriever import submit_ranks
from rl4rec_cli.rewards.custom import TextReward, load_reward, where_raised
from rl4rec_cli.rewards.functions import RankReward, rank_shaping

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.config.sections import RewardSection
    from rl4rec_cli.retrieval.retriever import Ranking, Retriever

_WAY_OUT = f"beyond ±{LARGEST_REWARD:g} sums and squares of rewards do not fit in float32: scale it down"


@dataclass(frozen=True)
class Scores:
    """Rewards of a batch of B texts."""

    ranks: NDArray[np.int64]
    """`[B]` rank of the target."""
    rewards: NDArray[np.float64]
    """`[B]` weighted sum plus shaping, which training maximises."""
    parts: dict[str, NDArray[np.float64]]
    """`[B]` values of every reward function by name, those of weight 0 too, without shaping."""


class HybridRanks(Protocol):
    """Ranks texts of training examples together with a sequence model (`eval/training_hybrid.py`)."""

    def text_ranks(
        self,
        texts: Sequence[str],
        users: Sequence[str],
        targets: Sequence[int],
        histories: Sequence[Sequence[int]],
    ) -> Ranking: ...


class Scorer:
    """Ranks texts in one catalogue and turns the ranks into rewards.

    Args:
        retriever: ranks texts.
        section: names and weights of rewards.
        dataset: name of the catalogue's dataset, for rewards that read texts.
        rewards: the section's rewards, if they are loaded already.
        hybrid: ranks instead of the retriever alone, as `reward.fuse` says.

    Raises: as `load_reward`, and
        RewardError: a reward's class cannot be instantiated. ConfigError: `reward.fuse` is set, and there is no hybrid.
    """

    def __init__(
        self,
        retriever: Retriever,
        section: RewardSection,
        *,
        dataset: str = "",
        rewards: Mapping[str, RankReward | TextReward] | None = None,
        hybrid: HybridRanks | None = None,
    ) -> None:
        if section.is_fused and hybrid is None:
            raise ConfigError(
                f"reward.fuse={section.fuse}: this scorer ranks by texts alone",
                hint="`rl4rec train` and RLTrainer fit the sequence model; leave out reward.fuse here",
            )
        self.retriever, self._hybrid = retriever, hybrid
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

    def score(
        self,
        texts: Sequence[str],
        targets: Sequence[int],
        histories: Sequence[Sequence[int]],
        users: Sequence[str] | None = None,
    ) -> Scores:
        """Returns the rewards of a batch.

        Args:
            users: `[B]` names; with a hybrid the half that a user is in decides which model scores.

        Raises:
            RewardError: a reward that reads texts raised, or returned something other than one finite number per text.
            DataError: there is a hybrid, and no users.
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

        So the requests of several batches overlap. A hybrid ranks in this process, in the second half.

        Raises (the second half): as `score`.
        """
        ranking: Callable[[], Ranking]
        if self._hybrid is None:
            ranking = submit_ranks(self.retriever, texts, targets, histories)
        elif users is None:
            raise DataError("reward.fuse: completions are scored without the names of their users")
        else:
            ranking = partial(self._hybrid.text_ranks, texts, users, targets, histories)
        return lambda: self._finish(texts, targets, histories, ranking())

    def _finish(
        self, texts: Sequence[str], targets: Sequence[int], histories: Sequence[Sequence[int]], ranking: Ranking
    ) -> Scores:
        ranks, scorable = ranking
        parts: dict[str, NDArray[np.float64]] = {}
        for name in self.section.functions:
            if name in self._by_text:
                parts[name] = self._read_texts(name, texts, targets, histories, ranks, scorable)
            else:
                values = self._by_rank[name].worth(ranks, self.section)
                parts[name] = np.where(scorable, values, 0.0)
        rewards = np.zeros(len(texts), np.float64)
        for name, weight in self.section.functions.items():
            rewards += weight * parts[name]
        if self.section.rank_shaping > 0:
            shaping = rank_shaping(ranks, self.retriever.num_items, self.section.rank_shaping)
            rewards += np.where(scorable, shaping, 0.0)
        if len(too_large := np.flatnonzero(np.abs(rewards) > LARGEST_REWARD)):
            row = int(too_large[0])
            contributions = {name: weight * parts[name][row] for name, weight in self.section.functions.items()}
            name = max(contributions, key=lambda name: abs(contributions[name]))
            raise RewardError(
                f"the weighted sum of rewards is {rewards[row]:g} for {_example(texts, targets, row)}, of which reward "
                f"{name!r} is {contributions[name]:g} (weight {self.section.functions[name]:g})",
                hint=_WAY_OUT,
            )
        return Scores(ranks, rewards, parts)

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
        where = f"({_definition(self._by_text[name], file)})"
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
    retrievers: Mapping[str, Retriever], section: RewardSection, hybrids: Mapping[str, HybridRanks] | None = None
) -> dict[str, Scorer]:
    """Returns a scorer for each dataset. Imports a reward's module once for all of them.

    Args:
        hybrids: by the datasets' names, as the retrievers.

    Raises: as `Scorer`.
    """
    rewards, by_name = load_rewards(section), hybrids or {}
    return {
        name: Scorer(retriever, section, dataset=name, rewards=rewards, hybrid=by_name.get(name))
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
        ranks, rewards = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.float64)
        parts: dict[str, NDArray[np.float64]] = {}
        for rows, finish_own in pending:
            scores = finish_own()
            ranks[rows], rewards[rows] = scores.ranks, scores.rewards
            for name, values in scores.parts.items():
                parts.setdefault(name, np.zeros(len(texts), np.float64))[rows] = values
        return Scores(ranks, rewards, parts)

    return finish


def _definition(function: Any, file: str) -> str:
    """Returns `file:line` of a reward's code."""
    function = function if inspect.isroutine(function) else type(function).__call__
    code = getattr(inspect.unwrap(function), "__code__", None)
    return file if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def _example(texts: Sequence[str], targets: Sequence[int], row: int) -> str:
    return f"completion {row}: {texts[row][:80]!r} (target item {targets[row]})"


def as_number(value: Any) -> float | None:
    """Returns a reward function's value for a text as a float, or None if it is no number."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several numbers
        return None
