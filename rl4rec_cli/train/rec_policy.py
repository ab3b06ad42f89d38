"""A policy for programs that make their own loop: histories to prompts, prompts to texts, rewards to an update.

Decides: that an update is one step of REINFORCE with the batch's mean as baseline, by the formulas that `rl4rec train`
uses (`advantages.py`), on the texts as tokens that were sampled.
Hides: tokens, padding, log-probabilities, the optimiser.

```python
policy = RecPolicy.from_config(config, dataset)
prompts = policy.build_prompts([[3, 17, 4], [8, 2]])
texts = policy.generate(prompts)
policy.update(prompts, texts, rewards=[1.0, 0.0])
```

It stands among the trainers, not the policies, because it learns. `DummyRecPolicy` has the same methods and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rl4rec_cli.data.prompts import Prompt, PromptBuilder
from rl4rec_cli.errors import RewardError
from rl4rec_cli.policy.generation import Sampling, decode_texts, write_ids, writing
from rl4rec_cli.policy.loading import open_policy
from rl4rec_cli.policy.sources import with_own_adapter
from rl4rec_cli.train.advantages import clipped_policy_loss, discounted_returns, token_rewards, whiten

if TYPE_CHECKING:
    from rl4rec_cli.config import RunConfig
    from rl4rec_cli.data.dataset import Dataset
    from rl4rec_cli.policy.loading import Policy


class RecPolicy:
    """A language model that recommends, and learns from rewards.

    Args:
        policy: loaded with `trainable=True`.
        builder: writes prompts.
        sampling: how texts are written.
        learning_rate: of AdamW.
        max_grad_norm: gradient clipping.
        gamma: discount of a reward over the tokens before it.
    """

    def __init__(
        self,
        policy: Policy,
        builder: PromptBuilder,
        sampling: Sampling,
        *,
        learning_rate: float = 1e-5,
        max_grad_norm: float = 1.0,
        gamma: float = 1.0,
    ) -> None:
        self.policy = policy
        self.builder = builder
        self.sampling = sampling
        self._max_grad_norm = max_grad_norm
        self._gamma = gamma
        self._trained = [p for p in policy.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=learning_rate, weight_decay=0.0)
        self._written: dict[tuple[tuple[int, ...], str], list[int]] = {}

    @classmethod
    def from_config(cls, config: RunConfig, dataset: Dataset) -> RecPolicy:
        """The policy that a configuration names, with its prompts, sampling and learning rate.

        Raises:
            PolicyError, ConfigError: as `open_policy` says.
        """
        config = config.model_copy(update={"policy": with_own_adapter(config.policy)})
        policy = open_policy(config, dataset, trainable=True)
        return cls(
            policy,
            PromptBuilder(config.prompt, dataset, policy.tokenizer),
            Sampling.from_section(config.generation),
            learning_rate=config.trainer.learning_rate,
            max_grad_norm=config.trainer.max_grad_norm,
        )

    def build_prompts(self, user_histories: Sequence[Sequence[int]]) -> list[Prompt]:
        """A prompt for each history of item ids, oldest first."""
        return [self.builder.build(None, history) for history in user_histories]

    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """A sampled text for each prompt; its tokens are kept until the next call, for the update.

        Raises:
            PolicyError: the policy's probabilities are not finite.
        """
        self.policy.model.eval()
        with writing(self.policy.model):
            ids, _ = write_ids(self.policy, self.policy.model, [p.ids for p in prompts], self.sampling)
        texts = decode_texts(self.policy.tokenizer, ids)
        self._written = {(p.ids, text): row for p, text, row in zip(prompts, texts, ids, strict=True)}
        return texts

    def compute_loss(self, prompts: Sequence[Prompt], texts: Sequence[str], rewards: Sequence[float]) -> Tensor:
        """The loss of an update, a scalar that can be differentiated: the mean over tokens of −ρA, ρ being 1.

        Args:
            rewards: one finite number per text; advantages are rewards less their mean, over their deviation.

        Raises:
            RewardError: not one finite number per text.
        """
        rewards_B = _as_rewards(rewards, texts, prompts)
        logps_BT, mask_BT = self._log_probabilities(prompts, texts)
        rewards_BT = token_rewards(rewards_B.to(logps_BT), mask_BT)
        advantages_BT = whiten(discounted_returns(rewards_BT, mask_BT, self._gamma), mask_BT)
        losses_BT = clipped_policy_loss(logps_BT, logps_BT.detach(), advantages_BT, mask_BT, low=0.2, high=0.2)
        return losses_BT.sum() / mask_BT.sum()

    def update(self, prompts: Sequence[Prompt], texts: Sequence[str], rewards: Sequence[float]) -> dict[str, float]:
        """One optimiser step towards the texts that earned more.

        Returns:
            `loss`, `grad_norm` before clipping, and `mean_reward`.

        Raises:
            RewardError: not one finite number per text.
        """
        self._optimizer.zero_grad()
        loss = self.compute_loss(prompts, texts, rewards)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self._max_grad_norm)
        self._optimizer.step()
        return {"loss": loss.item(), "grad_norm": norm.item(), "mean_reward": float(np.mean(rewards))}

    def _log_probabilities(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`[B, T]` log-probabilities of the texts' tokens at the sampling temperature, and their mask."""
        rows = [self._tokens(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        before, after = max(len(p.ids) for p in prompts), max(map(len, rows))
        ids_BL = torch.full((len(rows), before + after), self.policy.tokenizer.pad_token_id)
        mask_BL = torch.zeros_like(ids_BL)
        for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            start = before - len(prompt.ids)
            ids_BL[i, start : before + len(row)] = torch.tensor([*prompt.ids, *row])
            mask_BL[i, start : before + len(row)] = 1
        ids_BL, mask_BL = ids_BL.to(self.policy.device), mask_BL.to(self.policy.device)
        logits = self.policy.model(input_ids=ids_BL, attention_mask=mask_BL).logits[:, before - 1 : -1].float()
        logps = torch.log_softmax(logits / (self.sampling.temperature or 1.0), dim=-1)
        return logps.gather(-1, ids_BL[:, before:, None]).squeeze(-1), mask_BL[:, before:]

    def _tokens(self, prompt: Prompt, text: str) -> list[int]:
        """The tokens that were sampled; of a text from elsewhere, its own and the end."""
        if (prompt.ids, text) in self._written:
            return self._written[prompt.ids, text]
        return [*self.builder.encoder.text_ids(text), self.policy.tokenizer.eos_token_id]


class DummyRecPolicy:
    """`RecPolicy` without a model, for tests of what is around it: it draws from a list of texts and learns which pay.

    Args:
        texts: what it can write.
        learning_rate: how far an update moves the texts' log-odds.
        seed: of the draws.
    """

    def __init__(self, texts: Sequence[str], *, learning_rate: float = 1.0, seed: int = 0) -> None:
        self.texts = list(texts)
        self._logits = np.zeros(len(self.texts))
        self._learning_rate = learning_rate
        self._rng = np.random.default_rng(seed)

    @property
    def probabilities(self) -> Any:
        """Of each text."""
        odds = np.exp(self._logits - self._logits.max())
        return odds / odds.sum()

    def build_prompts(self, user_histories: Sequence[Sequence[int]]) -> list[Prompt]:
        """A prompt that lists the item ids."""
        return [Prompt(" ".join(map(str, history)), tuple(history)) for history in user_histories]

    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """A drawn text for each prompt."""
        return [self.texts[i] for i in self._rng.choice(len(self.texts), len(prompts), p=self.probabilities)]

    def compute_loss(self, prompts: Sequence[Prompt], texts: Sequence[str], rewards: Sequence[float]) -> float:
        """−mean(A ln p), A the whitened rewards.

        Raises:
            RewardError: not one finite number per text.
        """
        advantages = self._advantages(prompts, texts, rewards)
        return float(-np.mean(advantages * np.log([self.probabilities[self.texts.index(text)] for text in texts])))

    def update(self, prompts: Sequence[Prompt], texts: Sequence[str], rewards: Sequence[float]) -> dict[str, float]:
        """One step down the gradient of the loss; see `RecPolicy.update`."""
        loss, advantages = self.compute_loss(prompts, texts, rewards), self._advantages(prompts, texts, rewards)
        gradient = advantages.mean() * self.probabilities
        for text, advantage in zip(texts, advantages, strict=True):
            gradient[self.texts.index(text)] -= advantage / len(texts)
        self._logits -= self._learning_rate * gradient
        norm = float(np.linalg.norm(gradient))
        return {"loss": loss, "grad_norm": norm, "mean_reward": float(np.mean(rewards))}

    def _advantages(self, prompts: Sequence[Prompt], texts: Sequence[str], rewards: Sequence[float]) -> Any:
        rewards_B1 = _as_rewards(rewards, texts, prompts)[:, None]
        return whiten(rewards_B1, torch.ones_like(rewards_B1))[:, 0].numpy()


def _as_rewards(rewards: Sequence[float], texts: Sequence[str], prompts: Sequence[Prompt]) -> Tensor:
    values = torch.as_tensor(np.asarray(rewards, np.float64))
    if values.shape != (len(texts),) or len(texts) != len(prompts) or not torch.isfinite(values).all():
        raise RewardError(
            f"an update needs one finite reward per text and one text per prompt; got {len(prompts)} prompts, "
            f"{len(texts)} texts and rewards {list(rewards)[:5]}",
            hint="every reward must be a finite number; decide what a bad text is worth",
        )
    return values
