"""The environments of a run: its datasets, each with its own prompt builder, retriever and scorer.

Decides: that the examples of all datasets make one training set, in which each dataset has the share that its examples
have; that a prompt is built from its own dataset, and its completions are ranked in that dataset's catalogue alone.
Hides: that item ids of different catalogues are the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rl4rec_cli import console
from rl4rec_cli.data.prompts import PromptBuilder, item_renderer
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.train.examples import number_of_training_examples, training_examples

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.config.trainer import SftSection
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.data.dataset import Dataset, Example
    from rl4rec_cli.data.encoding import TextEncoder
    from rl4rec_cli.data.prompts import Prompt
    from rl4rec_cli.eval.training_hybrid import TrainingHybrid
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.retrieval.retriever import VectorRetriever
    from rl4rec_cli.rewards.scorer import Scorer
    from rl4rec_cli.train.batch_reward import BatchReward


class Examples(Protocol):
    """What a run learns from, whatever it is."""

    @property
    def name(self) -> str: ...

    @property
    def examples(self) -> Sequence[Any]:
        """The training examples."""


class PolicyData(Examples, Protocol):
    """What a policy learns from: the data of a task."""

    @property
    def builder(self) -> Encoding:
        """How its prompts are written as tokens."""

    def prompts(self) -> Iterator[tuple[Prompt, dict[str, Any]]]:
        """Yields each training example's prompt, and what its rewards read."""

    def taught(self, section: SftSection) -> Iterator[tuple[Prompt, str]]:
        """Yields each training example's prompt, and the text that supervised fine-tuning teaches."""

    def compared(self) -> Iterator[tuple[Prompt, str, str]]:
        """Yields each training example's prompt, a better and a worse text, where its task has such pairs."""

    def open_reward(
        self, environments: Sequence[Any], tokenizer: Any, rollouts: JsonLines, *, shown: int
    ) -> BatchReward:
        """Returns what rewards the completions of these environments, of which this is the first."""


class Encoding(Protocol):
    """How prompts are written as tokens."""

    chat: bool
    """By the tokenizer's chat template."""
    end_id: int
    """The token that ends a completion."""
    encoder: TextEncoder


class TrainingData(Examples, Protocol):
    """A dataset as a run learns from it and is measured on it."""

    @property
    def dataset(self) -> Dataset: ...

    @property
    def retriever(self) -> VectorRetriever: ...

    @property
    def hybrid(self) -> TrainingHybrid | None:
        """What ranks along with the completions, where `reward.fuse` names it."""


@dataclass(frozen=True)
class Histories:
    """What a retriever learns from: a dataset's users, and the encoder's vectors of its items."""

    dataset: Dataset
    retriever: VectorRetriever
    examples: Sequence[Example]
    """One for each user: the training part."""
    hybrid: None = None

    @property
    def name(self) -> str:
        return self.dataset.name


@dataclass(frozen=True)
class Environment:
    """What a run learns from and is measured on: a dataset with its retriever, scorer and prompts."""

    dataset: Dataset
    retriever: VectorRetriever
    scorer: Scorer
    builder: PromptBuilder
    examples: Sequence[Example]
    """The training examples."""
    hybrid: TrainingHybrid | None = None
    """Ranks along with the completions, in rewards, screening and validation."""

    @property
    def name(self) -> str:
        return self.dataset.name

    def prompts(self) -> Iterator[tuple[Prompt, dict[str, Any]]]:
        """Yields each training example's prompt, and user, target and history."""
        for example in self.examples:
            columns = {"user": example.user, "target": example.target, "history": list(example.history)}
            yield self.builder.build(example.user, example.history), columns

    def taught(self, section: SftSection) -> Iterator[tuple[Prompt, str]]:
        """Yields each training example's prompt and the text of the item that is taught."""
        texts = item_renderer(section.target_template, self.dataset, setting="target_template")
        for example in self.examples:
            item = example.target if section.target == "next" else example.history[-1]
            yield self.builder.build(example.user, example.history), texts[item]

    def compared(self) -> Iterator[tuple[Prompt, str, str]]:
        """Raises ConfigError: a catalogue has no pairs of texts."""
        raise ConfigError(f"dataset {self.name} has no pairs of texts to learn from", hint="use sft or grpo")

    def open_reward(
        self, environments: Sequence[Environment], tokenizer: Any, rollouts: JsonLines, *, shown: int
    ) -> BatchReward:
        """Returns what ranks completions, each in the catalogue of its dataset."""
        from rl4rec_cli.train.rollouts import RetrievalReward  # torch

        return RetrievalReward({one.name: one.scorer for one in environments}, tokenizer, rollouts, shown=shown)


def open_environments(
    config: RunConfig,
    datasets: Sequence[Dataset],
    retrievers: Mapping[str, VectorRetriever],
    scorers: Mapping[str, Scorer],
    tokenizer: Any,
    hybrids: Mapping[str, TrainingHybrid] | None = None,
) -> list[Environment]:
    """Returns an environment for each dataset.

    Args:
        retrievers: by the datasets' names; so are the scorers and the hybrids, where there are any.
        tokenizer: the policy's.

    Raises:
        ConfigError: the prompt does not fit a dataset.
    """
    return [
        Environment(
            dataset,
            retrievers[dataset.name],
            scorers[dataset.name],
            PromptBuilder(config.prompt, dataset, tokenizer),
            training_examples(config.training_data, dataset, seed=config.run.seed),
            (hybrids or {}).get(dataset.name),
        )
        for dataset in datasets
    ]


def check_datasets(config: RunConfig, datasets: Sequence[Dataset]) -> None:
    """Checks that several datasets go together, and logs the share of each.

    Raises:
        ConfigError: one of several datasets has no training examples, or a prompt template names none of them.
    """
    names = [dataset.name for dataset in datasets]
    for key in ("templates", "item_templates"):
        if unknown := [name for name in getattr(config.prompt, key) if name not in names]:
            raise ConfigError(
                f"prompt.{key}.{unknown[0]}: the run has no dataset of this name", hint=f"it has {', '.join(names)}"
            )
    if len(datasets) == 1:
        return
    data, seed = config.training_data, config.run.seed
    counts = {dataset.name: number_of_training_examples(data, dataset, seed=seed) for dataset in datasets}
    if empty := [name for name, count in counts.items() if not count]:
        raise ConfigError(f"dataset {empty[0]} has no training examples: every user needs at least 4 items")
    total = sum(counts.values())
    shares = ", ".join(f"{name} {count:,} ({count / total:.0%})" for name, count in counts.items())
    console.log(f"Training on {len(datasets)} datasets together, {total:,} examples: {shares}")


def count_examples(environments: Sequence[Examples]) -> int:
    """Counts the training examples of all environments."""
    return sum(len(environment.examples) for environment in environments)


def screen_environments(
    section: TrainerSection,
    environments: Sequence[Environment],
    *,
    write: Callable[[Dataset, Sequence[Example]], list[str]],
    folder: Path,
) -> list[Environment]:
    """Returns each environment with the examples that training sees; see `screening.py`.

    Args:
        write: returns the starting policy's most likely completions for examples of a dataset.
        folder: the run's.
    """
    from rl4rec_cli.train.screening import screen_examples

    environments_to_train = []
    for one in environments:
        name = one.name if len(environments) > 1 else None
        file = folder / ("screened.json" if name is None else f"screened-{name}.json")
        by_policy = partial(write, one.dataset)
        examples = screen_examples(
            section, one.retriever, one.examples, write=by_policy, kept_in=file, name=name, hybrid=one.hybrid
        )
        environments_to_train.append(replace(one, examples=examples))
    return environments_to_train


def policy_writer(policy: Policy, config: RunConfig) -> Callable[[Dataset, Sequence[Example]], list[str]]:
    """Returns a function that writes a policy's most likely completion for each example of a dataset."""
    from rl4rec_cli.eval.policies import write_texts

    likeliest = config.model_copy(
        update={
            "eval": config.eval.model_copy(update={"temperature": 0.0}),
            "generation": config.generation.model_copy(
                update={"texts_per_user": 1, "num_beams": 1, "text_weights": "equal"}
            ),
        }
    )
    return lambda dataset, examples: [
        text for (text,) in write_texts("screening", policy, likeliest, dataset, examples)[0]
    ]
