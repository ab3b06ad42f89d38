"""The task `preference`: prompts that come with a better and a worse answer.

Decides: what is checked of pairs and of settings before anything is loaded.
Hides: prompts, rewards and held-out pairs, from the one who trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.preference.data import PairsDataset, open_pairs
from rl4rec_cli.preference.sources import is_published
from rl4rec_cli.shell import rl4rec

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.preference.environment import PairEnvironment
    from rl4rec_cli.preference.evaluation import HeldOut
    from rl4rec_cli.preference.judge import Judge
    from rl4rec_cli.preference.scoring import PairScorer
    from rl4rec_cli.runs.folder import Run


def is_here(config: RunConfig) -> bool:
    """Returns whether the data are on this machine, or are to be: what is no name of the Hub."""
    return not any(is_published(path) for path in config.data.paths)


def open_data(config: RunConfig) -> list[PairsDataset]:
    """Opens the pairs.

    Raises:
        ConfigError, DataError: see `open_pairs`.
    """
    return [open_pairs(config.data)]


def sizes(dataset: PairsDataset) -> str:
    """Returns how many pairs there are, in a line."""
    return f"dataset {dataset.name}: {len(dataset.train):,} pairs to train on, {len(dataset.held_out):,} held out"


def describe(config: RunConfig, datasets: Sequence[PairsDataset]) -> dict[str, str]:
    """Logs how many pairs there are."""
    for data in datasets:
        line = sizes(data)
        console.log(line[:1].upper() + line[1:])
    return {}


def check(config: RunConfig, datasets: Sequence[PairsDataset]) -> None:
    """Raises what is wrong with the embedder, where a reward reads vectors.

    Raises:
        EmbeddingError: its files cannot be used.
    """
    from rl4rec_cli.preference.scoring import needs_embedder
    from rl4rec_cli.retrieval.embedder import find_embedder

    if needs_embedder(config.reward):
        find_embedder(config.retrieval).check()


def number_of_examples(config: RunConfig, datasets: Sequence[PairsDataset]) -> int:
    """Counts the training pairs."""
    return sum(len(data.train) for data in datasets)


def announce(config: RunConfig) -> None:
    """Logs whose code and which models give rewards."""
    from rl4rec_cli.preference.scoring import code_line

    for line in filter(None, map(code_line, config.reward.functions)):
        console.log(line)


@contextmanager
def opened(config: RunConfig, datasets: list[PairsDataset], about: dict[str, str]) -> Iterator[PairRunData]:
    """Opens the rewards, which all seeds share."""
    from rl4rec_cli.preference.judge import open_judge
    from rl4rec_cli.preference.scoring import PairScorer, needs_embedder
    from rl4rec_cli.retrieval.embedder import open_embedder

    (data,) = datasets
    judge = open_judge(config, data) if config.eval.probes and data.has_validation else None
    embedder = open_embedder(config.retrieval, data) if needs_embedder(config.reward) else None
    yield PairRunData(data, PairScorer(config.reward, embedder, device=config.retrieval.device), judge)


def next_commands(run: Run, datasets: Sequence[PairsDataset]) -> str:
    """Returns the commands that the user may want next."""
    return f"Next: {rl4rec('report', run.folder)}    or: {rl4rec('export', run.folder, '--to', 'merged')}"


@dataclass(frozen=True)
class PairRunData:
    """Pairs, what scores completions, and what judges them."""

    data: PairsDataset
    scorer: PairScorer
    judge: Judge | None

    @property
    def datasets(self) -> list[PairsDataset]:
        return [self.data]

    @property
    def digest(self) -> str:
        return self.data.digest

    @property
    def digests(self) -> dict[str, str]:
        """By the data set's name."""
        return {self.data.name: self.data.digest}

    def start(self, config: RunConfig) -> Callable[[RunConfig, Any], PairCourse]:
        """Returns what makes the course of a run. Everything that scores is open already."""
        return lambda config, tokenizer: PairCourse(config, tokenizer, self)


class PairCourse:
    """What a policy learns from and is measured on: pairs whose prompts fit."""

    measures_start = True

    def __init__(self, config: RunConfig, tokenizer: Any, run_data: PairRunData) -> None:
        from rl4rec_cli.preference.environment import PairEnvironment
        from rl4rec_cli.preference.evaluation import PairOutcome
        from rl4rec_cli.preference.prompts import PairPrompts

        builder, data = PairPrompts(config.prompt, tokenizer), run_data.data
        train = builder.fitting(data.train, "prompts to train on")
        self._held_out = builder.fitting(data.held_out, "held-out prompts")
        self._environment: PairEnvironment = PairEnvironment(data.name, train, builder, run_data.scorer)
        self.outcome = PairOutcome(config, self._environment, data, self._held_out, run_data.judge)

    @property
    def environments(self) -> list[PairEnvironment]:
        return [self._environment]

    @property
    def prompts(self) -> str:
        """Returns the identity of the training prompts."""
        return self._environment.builder.digest(self._environment.examples)

    def keep(self, run: Run, *, allow_partial: bool) -> None:
        """Keeps nothing: rewards are fitted on the data alone."""

    def learnable(self, policy: Policy, run: Run) -> list[PairEnvironment]:
        """Returns all pairs."""
        return self.environments

    def validation(self, policy: Policy, run: Run, report: Callable[[Mapping[str, Any]], None]) -> HeldOut:
        """Returns what measures the policy on held-out prompts."""
        from rl4rec_cli.preference.evaluation import HeldOut

        return HeldOut(run, policy, self._environment, self._held_out, report=report)
