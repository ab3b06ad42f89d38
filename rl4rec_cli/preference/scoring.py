"""Completions to rewards: every reward of a run, weighted.

Decides: what each kind of reward is given, that rewards add up by their weights, and that one which is no finite number
stops the run.
Hides: where a reward's code comes from.

A user's function has TRL's contract: `f(prompts, completions, **columns)` returns a number for each completion, or None
where it does not apply. It may be asynchronous.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec_cli.config.base import LARGEST_REWARD
from rl4rec_cli.config.registries import PAIR_REWARDS
from rl4rec_cli.errors import RewardError
from rl4rec_cli.preference.reward_model import RewardModel
from rl4rec_cli.preference.rewards import Nearness, PairReward
from rl4rec_cli.rewards.custom import code_line as custom_code_line
from rl4rec_cli.rewards.custom import is_custom, load_code, where_raised
from rl4rec_cli.rewards.scorer import as_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rl4rec_cli.config.sections import RewardSection
    from rl4rec_cli.preference.records import Pair
    from rl4rec_cli.retrieval.embedder import Embedder

    Values = NDArray[np.float64]
    PartOf = Callable[[Sequence[str], Sequence[Pair], Mapping[str, Any]], Values]

CONTRACT = "(prompts, completions, **columns)"
_WAY_OUT = f"a reward and its weight together must stay within {LARGEST_REWARD:g}"


def is_model(name: str) -> bool:
    """Returns whether a reward's name is that of a reward model: a Hub name or a folder."""
    return "/" in name and not is_custom(name)


def code_line(name: str) -> str | None:
    """Returns a line that says whose code or model gives a reward, or None if it is rl4rec's."""
    if is_model(name):
        return f"Reward {name}: a reward model"
    if is_custom(name):
        return custom_code_line(name)
    plugin = PAIR_REWARDS.plugin(name)
    return f"Reward {name}: running code of {plugin.package}, an installed plug-in" if plugin is not None else None


def needs_embedder(section: RewardSection) -> bool:
    """Returns whether a reward of a configuration reads vectors."""
    return any(_reads_vectors(name) for name in section.functions)


def _reads_vectors(name: str) -> bool:
    if is_model(name) or is_custom(name):
        return False
    code = PAIR_REWARDS.load(name)
    return inspect.isclass(code) and issubclass(code, PairReward) and code.reads_vectors


@dataclass(frozen=True)
class PairScores:
    """The rewards of B completions."""

    rewards: Values
    """`[B]` weighted sums."""
    parts: dict[str, Values]
    """`[B]` of each reward, before its weight; NaN where a function says that it does not apply."""


class PairScorer:
    """Scores completions of prompts.

    Args:
        section: names, weights and settings of rewards.
        embedder: there where a reward reads vectors.
        device: of reward models.

    Raises:
        ConfigError: a reward of this name does not exist. PluginError, RewardError: its code or model cannot be loaded.
    """

    def __init__(self, section: RewardSection, embedder: Embedder | None = None, *, device: str = "auto") -> None:
        self.section = section
        nearness = None if embedder is None else Nearness(embedder)
        self._parts: dict[str, PartOf] = {}
        for name in section.functions:
            self._parts[name] = self._opened(name, nearness, device)

    def _opened(self, name: str, nearness: Nearness | None, device: str) -> PartOf:
        if is_model(name):
            model = RewardModel(name, device=device)
            return lambda texts, pairs, more: model(texts, pairs)
        if is_custom(name):
            code, file = load_code(name)
        else:
            code, file = PAIR_REWARDS.load(name), PAIR_REWARDS.target(name).partition(":")[0]
        if inspect.isclass(code) and issubclass(code, PairReward):
            reward = code(self.section, nearness)
            return lambda texts, pairs, more: reward(texts, pairs)
        if inspect.isclass(code) or not callable(code):
            kind = f"class {code.__name__}" if inspect.isclass(code) else f"a {type(code).__name__}"
            raise RewardError(f"reward {name!r}: is {kind}, not a function {CONTRACT}")
        return lambda texts, pairs, more: _called(name, code, file, texts, pairs, more)

    def score(self, texts: Sequence[str], pairs: Sequence[Pair], **more: Any) -> PairScores:
        """Returns the rewards of completions.

        Args:
            texts: `[B]` completions.
            pairs: `[B]`, the pair of each one's prompt.
            more: what TRL gives a reward function besides, such as `completion_ids` and `log_metric`.

        Raises:
            RewardError: a reward raised, or is not one finite number for each completion.
        """
        parts = {name: part(texts, pairs, more) for name, part in self._parts.items()}
        rewards = np.zeros(len(texts), np.float64)
        for name, weight in self.section.functions.items():
            own = weight * np.nan_to_num(parts[name], nan=0.0, posinf=np.inf, neginf=-np.inf)
            if len(bad := np.flatnonzero(~(np.abs(own) <= LARGEST_REWARD))):
                row = int(bad[0])
                raise RewardError(
                    f"reward {name!r} is {parts[name][row]:g} (weight {weight:g}) for {_example(texts, pairs, row)}",
                    hint=_WAY_OUT,
                )
            rewards += own
        return PairScores(rewards, parts)


def _called(
    name: str, code: Any, file: str, texts: Sequence[str], pairs: Sequence[Pair], more: Mapping[str, Any]
) -> Values:
    """Calls a user's function."""
    try:
        values: Any = code(**_arguments(texts, pairs, more))
        if inspect.isawaitable(values):
            with ThreadPoolExecutor(1) as pool:  # this thread may have a loop of its own, as a notebook's has
                values = pool.submit(asyncio.run, _awaited(values)).result()
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"reward {name!r} raised {type(error).__name__}: {error}{where_raised(error, file)}, given {len(texts)} "
            f"completions, the first {_example(texts, pairs, 0)}",
            hint=f"it is called as f{CONTRACT}; --debug shows the whole traceback",
        ) from error
    where = f"({file})"
    if isinstance(values, str | bytes | Mapping | Set) or not hasattr(values, "__len__"):
        raise RewardError(
            f"reward {name!r} returned {type(values).__name__}, expected a list of {len(texts)} numbers {where}"
        )
    if len(values) != len(texts):
        raise RewardError(f"reward {name!r} returned {len(values)} values for {len(texts)} completions {where}")
    numbers = np.full(len(texts), np.nan)
    for row, value in enumerate(values):
        if value is None:
            continue
        number = as_number(value)
        if number is None or not np.isfinite(number):
            raise RewardError(
                f"reward {name!r} returned {value!r} for {_example(texts, pairs, row)} {where}",
                hint="every reward must be a finite number, or None where it does not apply",
            )
        numbers[row] = number
    return numbers


async def _awaited(value: Any) -> Any:
    return await value


def _arguments(texts: Sequence[str], pairs: Sequence[Pair], more: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what TRL gives a function: lists, whose texts are role/content lists where the records have these."""
    names = dict.fromkeys(key for pair in pairs for key in pair.columns)
    columns = {key: [pair.columns.get(key) for pair in pairs] for key in names}
    return {
        **columns,
        "prompts": [_prompt(pair) for pair in pairs],
        "completions": [_answer(text, pair) for text, pair in zip(texts, pairs, strict=True)],
        "chosen": [_answer(pair.chosen, pair) for pair in pairs],
        "rejected": [_answer(pair.rejected, pair) for pair in pairs],
        **more,
    }


def _prompt(pair: Pair) -> Any:
    return [turn._asdict() for turn in pair.prompt] if pair.is_chat else pair.prompt[-1].content


def _answer(text: str, pair: Pair) -> Any:
    return [{"role": "assistant", "content": text}] if pair.is_chat else text


def _example(texts: Sequence[str], pairs: Sequence[Pair], row: int) -> str:
    if not texts:
        return "none"
    return f"completion {row}: {texts[row][:80]!r} (prompt {pairs[row].prompt[-1].content[:40]!r})"
