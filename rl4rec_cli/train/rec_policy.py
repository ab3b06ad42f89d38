"""A policy for programs with a loop of their own: histories to prompts, prompts to completions, rewards to an update.

Decides: that an update is one step of REINFORCE with the batch's mean as baseline, by the formulas that `rl4rec train`
uses (`advantages.py`), on the sampled tokens of the completions; that an update refuses a batch with a wrong part.
Hides: tokens, padding, log-probabilities, the optimiser.

```python
policy = RecPolicy(model_name="gpt2", device="cuda")
prompts = policy.build_prompts([["red nail polish", "nail polish remover"], ["shaving brush"]])
texts = policy.generate(prompts)
policy.update(prompts, texts, torch.tensor([0.8, 0.6]))
```

It stands among the trainers, not the policies, because it learns. `DummyRecPolicy` has the same methods and no model.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.config.base import LARGEST_REWARD
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.prompts import Prompt, PromptBuilder
from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.errors import ConfigError, DataError, RewardError
from rl4rec_cli.models.names import TINY
from rl4rec_cli.policy.generation import decode_texts, write_ids, writing
from rl4rec_cli.policy.opening import open_policy
from rl4rec_cli.policy.sources import with_own_adapter
from rl4rec_cli.rewards.scorer import as_number
from rl4rec_cli.train.algorithms.advantages import clipped_policy_loss, discounted_returns, token_rewards, whiten

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig

History = Sequence[int] | Sequence[str]
"""What a user has chosen, oldest first: item ids of a dataset, or titles."""
Rewards = Tensor | np.ndarray[Any, Any] | Sequence[float]


class RecPolicy:
    """A language model that recommends, and learns from rewards.

    Args:
        model_name: as `--model`: a short name, a model of the Hub, or a folder.
        device: as `policy.device`: `auto`, `cpu`, `cuda`, `cuda:1` ….
        dataset: gives ids and titles in histories their items; without one, histories hold titles alone.
        learning_rate: of AdamW; None: as configured.
        gamma: discount of a reward over the tokens before it.
        config: everything else, such as the template, the sampling and the adapter; the default is that of
            `rl4rec train reinforce`.

    Raises:
        PolicyError, ConfigError: see `open_policy`.
    """

    def __init__(
        self,
        model_name: str,
        device: str = "auto",
        *,
        dataset: Dataset | None = None,
        learning_rate: float | None = None,
        gamma: float = 1.0,
        config: RunConfig | None = None,
    ) -> None:
        if config is None:
            from rl4rec_cli.config.layering import load_config

            config = load_config(algorithm="reinforce")
        section = config.policy.model_copy(update={"model": model_name, "device": device})
        config = config.model_copy(update={"policy": with_own_adapter(section)})
        trainer = config.trainer
        if dataset is None and model_name == TINY:
            raise ConfigError("the tiny policy is built from a dataset", hint="give dataset=load_dataset(PATH)")
        # Without a dataset: a catalogue of no more than the fields that a title fills.
        self._dataset = dataset or Dataset("titles", ({"title": "", "text": ""},), (), (), {}, True, {})
        self.policy = open_policy(config, self._dataset, trainable=True)
        self.builder = PromptBuilder(config.prompt, self._dataset, self.policy.tokenizer)
        self.sampling = Sampling.from_section(config.generation)
        self._prompt = config.prompt
        self._num_ids = dataset.num_items if dataset is not None else 0
        self._ids = {str(item["title"]): i for i, item in reversed(list(enumerate(self._dataset.items)))}
        self._fields = {field: None for item in self._dataset.items for field in item}
        self._max_grad_norm = trainer.max_grad_norm
        self._gamma = gamma
        self._trained = [p for p in self.policy.model.parameters() if p.requires_grad]
        rate = trainer.learning_rate if learning_rate is None else learning_rate
        self._optimizer = torch.optim.AdamW(self._trained, lr=rate, weight_decay=0.0)
        self._written: dict[tuple[tuple[int, ...], str], list[int]] = {}

    @classmethod
    def from_config(cls, config: RunConfig, dataset: Dataset) -> RecPolicy:
        """Opens the policy that a configuration names, with its prompts, sampling and learning rate.

        Raises:
            PolicyError, ConfigError: see `open_policy`.
        """
        return cls(config.policy.model, config.policy.device, dataset=dataset, config=config)

    def build_prompts(self, user_histories: Sequence[History]) -> list[Prompt]:
        """Builds a prompt for each history of item ids or of titles, oldest first.

        A title in the dataset stands for its item, with all that the template shows of it. Any other title stands for
        an item with no other fields.

        Raises:
            DataError: an id is no item of the dataset, or a history holds neither ids nor titles.
        """
        histories = [self._checked_history(history) for history in user_histories]
        if all(isinstance(item, int) or item in self._ids for history in histories for item in history):
            return [self.builder.build(None, [self._id(item) for item in history]) for history in histories]
        # Only what these histories name: reading a whole catalogue's titles takes as long as generating a batch.
        place = {item: i for i, item in enumerate(dict.fromkeys(item for history in histories for item in history))}
        items = [self._item(item) for item in place]
        builder = PromptBuilder(self._prompt, replace(self._dataset, items=tuple(items)), self.policy.tokenizer)
        return [builder.build(None, [place[item] for item in history]) for history in histories]

    def _item(self, item: int | str) -> Mapping[str, Any]:
        """Returns the dataset's item; for an unknown title, an item whose other fields are empty."""
        if isinstance(item, int) or item in self._ids:
            return self._dataset.items[self._id(item)]
        return {**self._fields, "title": item, "text": item}

    def _id(self, item: int | str) -> int:
        return item if isinstance(item, int) else self._ids[item]

    def _checked_history(self, history: History) -> list[int | str]:
        if isinstance(history, (str, bytes)):
            raise DataError(f"{history!r:.80} is one title, not a history", hint="a history is a list: [title, …]")
        entries: list[int | str] = []
        for item in history:
            if isinstance(item, str):
                entries.append(item)
                continue
            try:
                number = operator.index(item)
            except TypeError as error:
                raise DataError(f"{item!r:.80} in a history is neither an item id nor a title") from error
            if not 0 <= number < self._num_ids:
                raise DataError(
                    f"item {item} of a history is not in the dataset, which has {self._num_ids} items",
                    hint="histories of ids need the dataset they are of: RecPolicy(…, dataset=load_dataset(PATH))",
                )
            entries.append(number)
        return entries

    def generate(self, prompts: Sequence[Prompt | str], *, temperature: float | None = None) -> list[str]:
        """Samples a completion for each prompt. Keeps its tokens until the next call, for the update.

        Args:
            prompts: B prompts from `build_prompts`, or texts. As with `prompts.json`, texts go into the chat template,
                if there is one, and are cut to fit.
            temperature: of the sampling; 0 writes the most likely token each time; None: as configured.

        Returns:
            B texts, without special tokens and outer blanks.

        Raises:
            PolicyError: the policy's probabilities are not finite. DataError: `prompts` holds something else.
        """
        as_prompts = self._as_prompts(prompts)
        if not as_prompts:
            return []
        sampling = self.sampling if temperature is None else replace(self.sampling, temperature=temperature)
        self.policy.model.eval()
        with writing(self.policy.model):
            ids, _ = write_ids(self.policy, self.policy.model, [p.ids for p in as_prompts], sampling)
        texts = decode_texts(self.policy.tokenizer, ids)
        self._written = {(p.ids, text): row for p, text, row in zip(as_prompts, texts, ids, strict=True)}
        return texts

    def compute_loss(self, prompts: Sequence[Prompt | str], texts: Sequence[str], rewards: Rewards) -> Tensor:
        """Returns the loss of an update, a differentiable scalar: the mean over tokens of −ρA, ρ being 1.

        Args:
            rewards: one finite number per completion, as a list, an array or a tensor on any device; advantages are
                rewards less their mean, over their deviation.

        Raises:
            RewardError: not one finite number per completion. DataError: `prompts` holds something else.
        """
        return self._loss(self._as_prompts(prompts), texts, _as_rewards(rewards, texts, prompts))

    def update(self, prompts: Sequence[Prompt | str], texts: Sequence[str], rewards: Rewards) -> dict[str, float]:
        """Makes one optimiser step towards the completions that earned more. An error changes no weight.

        Returns:
            `loss`, `grad_norm` before clipping, and `mean_reward`.

        Raises:
            RewardError: not one finite number per completion. DataError: `prompts` holds something else.
        """
        rewards_B = _as_rewards(rewards, texts, prompts)
        self._optimizer.zero_grad()
        loss = self._loss(self._as_prompts(prompts), texts, rewards_B)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self._max_grad_norm)
        self._optimizer.step()
        return {"loss": loss.item(), "grad_norm": norm.item(), "mean_reward": rewards_B.mean().item()}

    def log_probabilities(
        self, prompts: Sequence[Prompt | str], texts: Sequence[str], *, model: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the log-probability of every token of the completions, and which of them are tokens.

        The tokens are those that the last `generate` sampled for this prompt and text. A text from elsewhere has its
        own tokens and the end token. Probabilities are those at the configured temperature.

        Args:
            prompts: B prompts from `build_prompts`, or texts as `generate` takes them.
            texts: B completions.
            model: another causal language model with the same tokens, such as a frozen reference; None: the policy's.

        Returns:
            `logps_BT`, float32 `[B, T]`, T the tokens of the longest completion; gradients flow through it. `mask_BT`,
            integer `[B, T]`: 1 on tokens, 0 on the padding after them, where `logps_BT` means nothing.

        Raises:
            DataError: `prompts` holds something else, or is empty, or not as many as the texts.
        """
        as_prompts = self._as_prompts(prompts)
        if not len(as_prompts) == len(texts) > 0:
            raise DataError(
                f"log-probabilities need a completion for each prompt; got {len(as_prompts)} prompts and {len(texts)}"
            )
        model = self.policy.model if model is None else model
        rows = [self._tokens(prompt, text) for prompt, text in zip(as_prompts, texts, strict=True)]
        before, after = max(len(p.ids) for p in as_prompts), max(map(len, rows))
        ids_BL = torch.full((len(rows), before + after), self.policy.tokenizer.pad_token_id)
        mask_BL = torch.zeros_like(ids_BL)
        for i, (prompt, row) in enumerate(zip(as_prompts, rows, strict=True)):
            start = before - len(prompt.ids)
            ids_BL[i, start : before + len(row)] = torch.tensor([*prompt.ids, *row])
            mask_BL[i, start : before + len(row)] = 1
        ids_BL, mask_BL = ids_BL.to(self.policy.device), mask_BL.to(self.policy.device)
        logits = model(input_ids=ids_BL, attention_mask=mask_BL).logits[:, before - 1 : -1].float()
        logps = torch.log_softmax(logits / (self.sampling.temperature or 1.0), dim=-1)
        return logps.gather(-1, ids_BL[:, before:, None]).squeeze(-1), mask_BL[:, before:]

    def _as_prompts(self, prompts: Sequence[Prompt | str]) -> list[Prompt]:
        if isinstance(prompts, (str, bytes)) or not all(isinstance(prompt, (Prompt, str)) for prompt in prompts):
            raise DataError("prompts are a list of what build_prompts gives, or of texts")
        return [self.builder.build_written(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]

    def _loss(self, prompts: Sequence[Prompt], texts: Sequence[str], rewards_B: Tensor) -> Tensor:
        logps_BT, mask_BT = self.log_probabilities(prompts, texts)
        rewards_BT = token_rewards(rewards_B.to(logps_BT), mask_BT)
        advantages_BT = whiten(discounted_returns(rewards_BT, mask_BT, self._gamma), mask_BT)
        losses_BT = clipped_policy_loss(logps_BT, logps_BT.detach(), advantages_BT, mask_BT, low=0.2, high=0.2)
        return losses_BT.sum() / mask_BT.sum()

    def _tokens(self, prompt: Prompt, text: str) -> list[int]:
        """Returns the sampled tokens; for a text from elsewhere, its own tokens and the end token."""
        if (prompt.ids, text) in self._written:
            return self._written[prompt.ids, text]
        return [*self.builder.encoder.text_ids(text), self.builder.end_id]


class DummyRecPolicy:
    """`RecPolicy` without a model: it draws from a list of texts and learns which pay.

    It stands in for a policy in your own program (a reward function, a loop, an environment), so that a test of that
    program takes milliseconds and no download. No command uses it.

    Args:
        texts: the completions that it can draw.
        learning_rate: how far an update moves the texts' log-odds.
        seed: of the draws.
        model_name: ignored; accepts what `RecPolicy` does.
        device: likewise.
    """

    def __init__(
        self,
        texts: Sequence[str] = ("a book", "a film", "a game"),
        *,
        learning_rate: float = 1.0,
        seed: int = 0,
        model_name: str = "",
        device: str = "auto",
    ) -> None:
        self.texts = list(texts)
        self.model_name, self.device = model_name, device
        self._logits = np.zeros(len(self.texts))
        self._learning_rate = learning_rate
        self._rng = np.random.default_rng(seed)

    @property
    def probabilities(self) -> Any:
        """The probability of each text."""
        odds = np.exp(self._logits - self._logits.max())
        return odds / odds.sum()

    def build_prompts(self, user_histories: Sequence[History]) -> list[Prompt]:
        """Builds prompts that list the item ids, or the titles."""
        return [
            Prompt(
                " ".join(map(str, history)),
                tuple(i for e in history for i in (e.encode() if isinstance(e, str) else [e])),
            )
            for history in user_histories
        ]

    def generate(self, prompts: Sequence[Prompt | str]) -> list[str]:
        """Draws a text for each prompt."""
        return [self.texts[i] for i in self._rng.choice(len(self.texts), len(prompts), p=self.probabilities)]

    def compute_loss(self, prompts: Sequence[Prompt | str], texts: Sequence[str], rewards: Rewards) -> float:
        """−mean(A ln p), A the whitened rewards.

        Raises:
            RewardError: not one finite number per text. DataError: a text that is not in its list.
        """
        rows, advantages = self._rows(texts), self._advantages(_as_rewards(rewards, texts, prompts))
        return float(-np.mean(advantages * np.log(self.probabilities[rows])))

    def update(self, prompts: Sequence[Prompt | str], texts: Sequence[str], rewards: Rewards) -> dict[str, float]:
        """Makes one step down the gradient of the loss; see `RecPolicy.update`."""
        rewards_B = _as_rewards(rewards, texts, prompts)
        rows, advantages = self._rows(texts), self._advantages(rewards_B)
        loss = self.compute_loss(prompts, texts, rewards)
        gradient = advantages.mean() * self.probabilities
        np.subtract.at(gradient, rows, advantages / len(texts))
        self._logits -= self._learning_rate * gradient
        norm = float(np.linalg.norm(gradient))
        return {"loss": loss, "grad_norm": norm, "mean_reward": rewards_B.mean().item()}

    def _rows(self, texts: Sequence[str]) -> list[int]:
        if unknown := [text for text in texts if text not in self.texts]:
            raise DataError(
                f"{unknown[0]!r:.80} is none of the completions that DummyRecPolicy writes",
                hint="DummyRecPolicy(texts)",
            )
        return [self.texts.index(text) for text in texts]

    def _advantages(self, rewards_B: Tensor) -> Any:
        return whiten(rewards_B[:, None], torch.ones(len(rewards_B), 1, dtype=rewards_B.dtype))[:, 0].numpy()


def _as_rewards(rewards: Rewards, texts: Sequence[str], prompts: Sequence[Prompt | str]) -> Tensor:
    """Returns rewards as float64 `[B]` on the CPU."""
    try:
        values = list(rewards.detach().cpu() if isinstance(rewards, Tensor) else rewards)
    except TypeError:  # one number, or a tensor without dimensions
        values = [rewards]
    numbers = [as_number(value) for value in values]
    if not len(prompts) == len(texts) == len(numbers) > 0:
        raise RewardError(
            f"an update needs one finite reward per completion and one completion per prompt; "
            f"got {len(prompts)} prompts, {len(texts)} completions and {len(numbers)} rewards",
        )
    for row, (value, number) in enumerate(zip(values, numbers, strict=True)):
        if number is None or not abs(number) <= LARGEST_REWARD:
            raise RewardError(
                f"an update needs one finite reward per completion; "
                f"got {value!r} for completion {row}: {texts[row]!r:.80}",
                hint=f"a reward is a number of at most {LARGEST_REWARD:g}; decide what a bad completion is worth",
            )
    return torch.tensor(numbers, dtype=torch.float64)
