"""Reinforcement learning step by step, for programs with a loop of their own around it.

Decides: that its steps are those of `rl4rec train`: the same rollouts, rewards and trainer, and the same weights after
as many of them; that what a program draws between two steps changes no step.
Hides: data, retrieval, the policy's loading, TRL.

```python
with RLTrainer(load_config(algorithm="grpo", recipes=["beauty-cpu"], flags={"data.path": "data/beauty"})) as trainer:
    record = trainer.train_step()
    rewards = trainer.compute_rewards(["red nail polish"], trainer.examples[:1])
    trainer.train()
    trainer.save("policy")
```

It has no run folder, no validation and no checkpoints to go on from: `commands/train.py` has them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from rl4rec_cli import console
from rl4rec_cli.data.dates import with_day
from rl4rec_cli.data.opening import open_datasets
from rl4rec_cli.engine.vllm import make_engine
from rl4rec_cli.errors import ConfigError, DataError, RunError
from rl4rec_cli.files.logs import JsonLines
from rl4rec_cli.models.names import TINY
from rl4rec_cli.policy.backend import check_engine, check_one_gpu, prepare_backend
from rl4rec_cli.policy.loading import save_policy
from rl4rec_cli.policy.opening import load_for_training
from rl4rec_cli.policy.sources import with_own_adapter
from rl4rec_cli.retrieval.opening import open_run_retrievers
from rl4rec_cli.rewards.credit import Groups
from rl4rec_cli.rewards.custom import reward_of_code
from rl4rec_cli.rewards.scorer import Scorer, load_rewards
from rl4rec_cli.train.algorithms.opening import open_lesson, open_trainer
from rl4rec_cli.train.arguments import number_of_steps, release
from rl4rec_cli.train.environments import (
    check_datasets,
    count_examples,
    open_environments,
    policy_writer,
    screen_environments,
)
from rl4rec_cli.train.hybrids import check_hybrids, open_hybrids
from rl4rec_cli.train.parts import TrainerParts
from rl4rec_cli.train.snapshot import random_states, random_states_kept, set_random_states
from rl4rec_cli.variables import settings_win

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset, Example
    from rl4rec_cli.policy.loading import Policy
    from rl4rec_cli.train.rec_policy import RecPolicy


class _LastRecord(TrainerCallback):
    """Holds the record of the last step."""

    def __init__(self, describe: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        self._describe = describe
        self.record: dict[str, Any] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        record = self._describe(logs or {})
        if record is not None:
            self.record = {"step": state.global_step, **record}


class RLTrainer:
    """Trains a policy to raise its completions' rewards.

    Args:
        config: everything that `rl4rec train` reads, but for a warm start and what concerns a run's folder.
        dataset: one or several; those of `config.data` by default.
        policy: trains this one, in place, instead of loading the configured one.
        reward: trains on this function or class alone (see `RLRewardFunction`), instead of the configured rewards,
            which are still logged.

    Raises:
        ConfigError: the algorithm is no reinforcement learning, a warm start is configured, or settings do not go
            together. DataError, EmbeddingError, PolicyError, RewardError: see the parts.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset | Sequence[Dataset] | None = None,
        *,
        policy: RecPolicy | None = None,
        reward: Callable[..., Sequence[float]] | type | None = None,
    ) -> None:
        if not config.trainer.learns_from_rewards:
            raise ConfigError(
                f"trainer.algorithm is {config.trainer.algorithm}, which is no reinforcement learning",
                hint='load_config(algorithm="grpo", …)',
            )
        if not config.task.has_catalogue:
            raise ConfigError(
                f"run.task is {config.run.task}, and RLTrainer trains in a catalogue", hint="use `rl4rec train`"
            )
        if len(config.trainer.phases) > 1:
            raise ConfigError(
                "RLTrainer makes no warm start, and trainer.warm_start is set",
                hint="train one by algorithm sft, name its checkpoint as policy.model, and set trainer.warm_start=null",
            )
        self._stack = ExitStack()
        try:
            self._open(config, dataset, policy, reward)
        except BaseException:
            self._stack.close()
            raise

    def _open(
        self,
        config: RunConfig,
        dataset: Dataset | Sequence[Dataset] | None,
        rec_policy: RecPolicy | None,
        own_reward: Callable[..., Sequence[float]] | type | None,
    ) -> None:
        self._stack.enter_context(settings_win())
        scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        datasets = open_datasets(config.data) if dataset is None else _as_list(dataset)
        check_datasets(config, datasets)
        check_engine(config.generation, config.policy)
        check_one_gpu(config.policy.device)
        loaded = load_rewards(config.reward)
        if own_reward is not None:
            name, code = reward_of_code(own_reward)
            loaded[name] = code
            functions = {**dict.fromkeys(config.reward.functions, 0.0), name: 1.0}
            config = config.model_copy(update={"reward": config.reward.model_copy(update={"functions": functions})})
        logging = config.logging.model_copy(update={"steps": 1})
        config = config.model_copy(update={"policy": with_own_adapter(config.policy), "logging": logging})
        prepare_backend(config.policy)
        console.quiet_libraries()
        names = [one.name for one in datasets]
        opened = self._stack.enter_context(open_run_retrievers(config, datasets))
        retrievers = dict(zip(names, opened, strict=True))
        check_hybrids(config, datasets)
        hybrids = open_hybrids(config, datasets, retrievers)
        self._scorers = {
            name: Scorer(
                retriever,
                config.reward,
                dataset=name,
                rewards=loaded,
                hybrid=hybrids.get(name),
                groups=Groups.of(config),
            )
            for name, retriever in retrievers.items()
        }
        policy = rec_policy.policy if rec_policy is not None else self._load_policy(config, datasets, scratch)
        self.policy: Policy = policy
        """The model with its tokenizer. Training changes it in place."""
        self.config: RunConfig = with_day(config, policy.tokenizer)
        """Resolved."""
        environments = open_environments(self.config, datasets, retrievers, self._scorers, policy.tokenizer, hybrids)
        write = policy_writer(policy, self.config)
        self._environments = screen_environments(config.trainer, environments, write=write, folder=scratch)
        self._open_trainer(scratch)

    def _load_policy(self, config: RunConfig, datasets: Sequence[Dataset], scratch: Path) -> Policy:
        policy = load_for_training(config, datasets=datasets)
        policy.engine = make_engine(config, log=scratch / "vllm.log")
        self._stack.callback(policy.close)
        if config.policy.model == TINY:
            # TRL loads the reference policy of full fine-tuning by this name.
            save_policy(policy, scratch / "start")
            policy.model.config._name_or_path = str(scratch / "start")
        return policy

    def _open_trainer(self, scratch: Path) -> None:
        rollouts = JsonLines(scratch / "rollouts.jsonl")
        self._stack.callback(rollouts.close)
        section, config = self.config.trainer, self.config
        lesson = open_lesson(
            section,
            *(config.generation, self.policy, self._environments, rollouts),
            shown=config.logging.rollouts,
        )
        self.steps: int = number_of_steps(section, count_examples(self._environments))
        """Optimiser steps in all."""
        parts = TrainerParts(section, config, self.policy, self.steps, scratch, lesson)
        with random_states_kept():
            self._trainer = open_trainer(parts)
            self._last = _LastRecord(lesson.describe)
            self._trainer.add_callback(self._last)
            self._random_states = random_states()
        self._is_begun = self._is_ended = False

    @property
    def step(self) -> int:
        """Returns the number of optimiser steps made."""
        return int(self._last.record.get("step", 0))

    @property
    def examples(self) -> list[Example]:
        """Returns the training examples of all datasets, in order."""
        return [example for environment in self._environments for example in environment.examples]

    def train_step(self) -> dict[str, Any]:
        """Makes one optimiser step: completions, rewards, an update.

        Returns:
            The step's record, with the names of `training_log.jsonl`: `step`, `loss`, `avg_reward`, `kl` (nats per
            token) and so on; `avg_reward` and its like are of the completions that the step learnt from.

        Raises:
            RunError: all steps are made, an earlier one failed, or the trainer is closed.
            RewardError, EmbeddingError: as in training. The weights stay as they were, and no other step can follow.
        """
        if self._is_ended:
            raise RunError(f"the trainer is closed, or all of its {self.steps:,} steps are made")
        with random_states_kept():
            set_random_states(self._random_states)
            if not self._is_begun:
                self._trainer.begin()
                self._is_begun = True
            self._trainer.make_step()
            if self.step >= self.steps:
                self._end()
            self._random_states = random_states()
        return dict(self._last.record)

    def train(self) -> list[dict[str, Any]]:
        """Makes all steps that remain. Returns their records.

        Raises: as `train_step`.
        """
        return [self.train_step() for _ in range(self.step, self.steps)]

    def compute_rewards(
        self, completions: Sequence[str], examples: Sequence[Example], *, dataset: str | None = None
    ) -> NDArray[float64]:
        """Returns what training would give for these completions.

        Args:
            completions: `[B]` texts; with `reward.credit: marginal` whole groups, each of one example.
            examples: `[B]` examples that they were written for.
            dataset: name of the examples' dataset, if there are several.

        Returns:
            `[B]` weighted sums of the rewards, with shaping, or what the groups lose without each completion.

        Raises:
            RewardError: as `Scorer.score`. DataError: another number of examples than of completions, no such
            dataset, or no whole groups. ConfigError: there are several datasets, and none is named.
        """
        if len(completions) != len(examples):
            raise DataError(f"{len(completions)} completions for {len(examples)} examples")
        if dataset is None and len(self._scorers) > 1:
            raise ConfigError("dataset is not given, and there are several", hint=f"one of {', '.join(self._scorers)}")
        name = dataset if dataset is not None else next(iter(self._scorers))
        if name not in self._scorers:
            raise DataError(f"there is no dataset {name!r}", hint=f"there is {', '.join(self._scorers)}")
        targets, histories = [e.target for e in examples], [e.history for e in examples]
        users = [e.user for e in examples]
        return self._scorers[name].score(list(completions), targets, histories, users).rewards

    def save(self, folder: str | Path) -> Path:
        """Writes the policy as it is: plain `from_pretrained` loads it, and so does `policy.model`.

        Raises:
            PolicyError: the folder cannot be written.
        """
        save_policy(self.policy, Path(folder))
        return Path(folder)

    def close(self) -> None:
        """Ends the engine and whatever else was opened. The policy remains; no step can follow."""
        self._end()
        self._stack.close()

    def __enter__(self) -> RLTrainer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _end(self) -> None:
        if self._is_ended:
            return
        self._is_ended = True
        self._trainer.end()
        release(self._trainer)
        if critic := getattr(self._trainer, "critic", None):
            critic.remove()
        self.policy.model.eval()


def _as_list(dataset: Dataset | Sequence[Dataset]) -> list[Dataset]:
    return list(dataset) if isinstance(dataset, Sequence) else [dataset]
