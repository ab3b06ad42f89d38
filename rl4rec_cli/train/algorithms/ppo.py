"""PPO and REINFORCE: one completion per prompt, advantages per token.

Decides: how rewards become advantages (GAE with a critic, or whole returns less the batch's mean), when the policy
is frozen while the critic learns, and what is logged of it.
Hides: TRL. Generation, rewards, the clipped policy loss, the reference policy and logging are `GRPOTrainer`'s, whose
loss takes advantages of shape (B, T) from subclasses; REINFORCE is the same without a critic and with one update.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from rl4rec_cli.config.trainer import PpoSection
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.train.algorithms.advantages import (
    approximate_kl,
    clipped_value_loss,
    discounted_returns,
    explained_variance,
    gae,
    masked_mean,
    token_rewards,
    whiten,
)
from rl4rec_cli.train.algorithms.bases import RlBase
from rl4rec_cli.train.algorithms.critic import Critic, lm_head_inputs
from rl4rec_cli.train.arguments import one_gpu, rl_arguments
from rl4rec_cli.train.reinforcement import open_lesson

if TYPE_CHECKING:
    from rl4rec_cli.config.trainer import ReinforceSection
    from rl4rec_cli.train.parts import TrainerParts

__all__ = ["PpoTrainer", "make_trainer", "open_lesson", "ppo_arguments"]


def ppo_arguments(parts: TrainerParts) -> GRPOConfig:
    """TRL's configuration of our settings."""
    section = cast("PpoSection | ReinforceSection", parts.section)
    micro, epochs = section.batch_size, 1
    if isinstance(section, PpoSection):
        micro, epochs = section.mini_batch_size, section.ppo_epochs
    texts = section.batch_size * section.gradient_accumulation_steps
    arguments = GRPOConfig(
        **rl_arguments(parts),
        per_device_train_batch_size=micro,
        steps_per_generation=texts // micro,
        num_iterations=epochs,
        num_generations=texts,  # its check wants a divisor of the batch above 1; the true number follows
        loss_type="dapo",
        scale_rewards="none",
        entropy_coef=section.entropy_coef,
    )
    arguments.num_generations = 1
    return one_gpu(arguments)


class PpoTrainer(RlBase, GRPOTrainer):
    """TRL's trainer with advantages per token, and a critic where the section is PPO's.

    Args:
        section: of the algorithm.
        scale: divide advantages by their deviation over the batch.
        **more: what `RlBase` and `GRPOTrainer` take; `args` as `ppo_arguments` makes them.

    Raises:
        ConfigError: more than one process, or a critic that does not fit the policy.
    """

    def __init__(self, section: PpoSection | ReinforceSection, *, scale: bool, **more: Any) -> None:
        super().__init__(**more)
        if self.accelerator.num_processes > 1:
            raise ConfigError(f"{section.algorithm} trains in one process", hint="use grpo on several GPUs")
        self._section = section
        self._scale = scale
        self._ppo = section if isinstance(section, PpoSection) else None
        self.critic = Critic(self.model, self._ppo.critic, seed=self.args.seed) if self._ppo else None
        self._is_far = False  # from the policy that generated: further than target_kl
        self._scored_B = torch.zeros(0)
        self._passes: list[tuple[Tensor, Tensor | None]] = []  # log-probabilities and hidden states of each pass

    # Texts to advantages

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards = super()._calculate_rewards(*args, **kwargs)
        self._scored_B = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._is_far = False
        self._passes.clear()
        output = super()._generate_and_score_completions(inputs)
        mask_BT, rewards_B = output["completion_mask"], self._scored_B
        # With one update per batch, TRL has no use for the probabilities that the completions were sampled with.
        is_read = "old_per_token_logps" in output
        if not is_read and (self.critic is not None or self._takes_kl_off_rewards):
            output["old_per_token_logps"] = self._read(self.model, output)[0]
        hidden_BTH = self._passes[0 if is_read else -1][1] if self._passes else None
        penalties_BT = None
        if self._takes_kl_off_rewards:
            kl_BT = output["old_per_token_logps"] - output["ref_per_token_logps"]
            penalties_BT = self.beta * kl_BT
            self._note("kl", masked_mean(kl_BT, mask_BT))
        rewards_BT = token_rewards(rewards_B, mask_BT, penalties_BT)
        if self._ppo is None or self.critic is None:
            returns_BT = discounted_returns(rewards_BT, mask_BT, self._section.gamma)
            output["advantages"] = whiten(returns_BT, mask_BT, scale=self._scale)
        else:
            values_BT = self._values(output, hidden_BTH)
            advantages_BT = gae(rewards_BT, values_BT, mask_BT, gamma=self._ppo.gamma, lam=self._ppo.lam)
            returns_BT = advantages_BT + values_BT
            output["values"], output["returns"] = values_BT, returns_BT
            output["advantages"] = whiten(advantages_BT, mask_BT) if self._scale else advantages_BT
            self._note("explained_variance", explained_variance(values_BT, returns_BT, mask_BT))
            self._note("values_mean", masked_mean(values_BT, mask_BT))
        self._note("returns_mean", masked_mean(returns_BT, mask_BT))
        # Of groups of one completion; here the group is the batch.
        self._metrics["train"]["frac_reward_zero_std"][-1] = float((rewards_B == rewards_B[0]).all())
        self._passes.clear()
        return output

    @property
    def _takes_kl_off_rewards(self) -> bool:
        return self._ppo is not None and self._ppo.kl_in == "reward" and self.beta > 0

    @torch.no_grad()
    def _values(self, inputs: Any, hidden_BTH: Tensor | None) -> Tensor:
        """`[B, T]` values before any update on these completions, in micro-batches as TRL's log-probabilities are."""
        rows = inputs["completion_ids"].size(0)
        parts = []
        for start in range(0, rows, self.args.per_device_train_batch_size):
            part = slice(start, start + self.args.per_device_train_batch_size)
            few = {name: inputs[name][part] for name in _SEQUENCES}
            parts.append(self._values_with_graph(few, None if hidden_BTH is None else hidden_BTH[part]))
        return torch.cat(parts)

    def _values_with_graph(self, inputs: Any, hidden_BTH: Tensor | None) -> Tensor:
        critic = cast(Critic, self.critic)
        if critic.has_adapter:
            ids_BL, mask_BL, tokens = _whole(inputs)
            with self.accelerator.autocast():
                hidden_BTH = critic.read(ids_BL, mask_BL, tokens)
        if hidden_BTH is None:
            raise ConfigError(
                "trainer.critic: this model's head is not called in a pass, so its hidden states cannot be read",
                hint="use trainer.critic=adapter with policy.lora",
            )
        return critic.values(hidden_BTH)

    # Passes through the policy

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if self.critic is None:
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        with lm_head_inputs(self.accelerator.unwrap_model(model)) as inputs:
            result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        tokens = result[0].size(1)
        states = [h[:, -tokens - 1 : -1] for h in inputs]
        self._passes.append((result[0].detach(), torch.cat(states) if states else None))
        return result

    def _read(self, model: Any, inputs: Any) -> Any:
        with torch.no_grad():
            return self._get_per_token_logps_and_entropies(
                model, *_whole(inputs), batch_size=self.args.per_device_train_batch_size, compute_entropy=True
            )

    # The loss

    @property
    def learns_policy(self) -> bool:
        """Whether the present update changes the policy: not while the critic warms up, nor once it is too far."""
        return self._ppo is None or not self._policy_frozen

    @property
    def _policy_frozen(self) -> bool:
        return self._is_far or self.state.global_step < cast(PpoSection, self._ppo).value_warmup_steps

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        if self._ppo is None or self.critic is None:
            return super()._compute_loss(model, inputs)
        self._passes.clear()
        mask_BT, old_BT = inputs["completion_mask"], inputs["old_per_token_logps"]
        policy_loss: Tensor | None = None
        if self._policy_frozen:
            _, entropies_BT, _ = self._read(model, inputs)
            self._note("entropy", masked_mean(entropies_BT, mask_BT))
        else:
            policy_loss = self._policy_loss(model, inputs)
        logps_BT, hidden_BTH = self._passes[0]
        far = approximate_kl(logps_BT, old_BT, mask_BT)
        self._note("approximate_kl", far)
        if policy_loss is not None and self._ppo.target_kl is not None and far > self._ppo.target_kl:
            self._is_far, policy_loss = True, None
            for parameter in self._policy_parameters(model):  # what earlier micro-batches of this step gave
                parameter.grad = None
        self._note("stopped_share", float(self._is_far))

        if hidden_BTH is not None and not (self._ppo.critic_trains_policy and policy_loss is not None):
            hidden_BTH = hidden_BTH.detach()
        value_loss = self._value_loss(inputs, hidden_BTH)
        if policy_loss is None:
            # Without a gradient the policy is left alone by the optimiser, momentum and all.
            return value_loss
        return policy_loss + value_loss

    def _policy_loss(self, model: Any, inputs: Any) -> Tensor:
        beta = self.beta
        self.beta = 0.0 if self._takes_kl_off_rewards else beta  # there it has done its work
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        if not self._section.entropy_coef:  # with it TRL logs this itself
            self._note("policy_loss", loss.detach() * self.current_gradient_accumulation_steps)
        return loss

    def _value_loss(self, inputs: Any, hidden_BTH: Tensor | None) -> Tensor:
        section = cast(PpoSection, self._ppo)
        mask_BT = inputs["completion_mask"]
        losses_BT = clipped_value_loss(
            self._values_with_graph(inputs, hidden_BTH),
            inputs["values"],
            inputs["returns"],
            mask_BT,
            clip=section.cliprange_value,
        )
        self._note("value_loss", masked_mean(losses_BT.detach(), mask_BT))
        # As TRL's "dapo": every token of the step counts alike, however the step is split into micro-batches.
        share = self.current_gradient_accumulation_steps / cast(Any, self.args).steps_per_generation
        return section.vf_coef * losses_BT.sum() / (inputs["num_items_in_batch"].clamp(min=1.0) * share)

    def _note(self, name: str, value: Tensor | float) -> None:
        self._metrics["train"][name].append(float(value))

    # The optimiser

    def _policy_parameters(self, model: Any) -> list[Any]:
        own = {id(p) for p in self.critic.named_parameters().values()} if self.critic is not None else set()
        return [p for p in model.parameters() if id(p) not in own]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.critic is None or self.optimizer is not None:
            return super().create_optimizer(model)
        parameters = list(self.critic.named_parameters().values())
        for parameter in parameters:
            parameter.requires_grad_(False)  # an adapter's would be taken for the policy's
        optimizer = super().create_optimizer(model)
        self.critic.unfreeze()
        rate = cast(PpoSection, self._ppo).critic_learning_rate
        optimizer.add_param_group({"params": parameters, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.critic is not None and self._step % self.current_gradient_accumulation_steps == 0:
            self.critic.head.zero_grad()  # the model's own are emptied by transformers
        return super().training_step(*args, **kwargs)

    def _clip_grad_norm(self, model: Any) -> Any:
        if self.critic is None:
            return super()._clip_grad_norm(model)
        # Apart: a critic that is far off must not shorten the policy's steps. The policy first, as with fp16 that
        # is where all gradients are unscaled.
        norm = self.accelerator.clip_grad_norm_(self._policy_parameters(model), self.args.max_grad_norm)
        torch.nn.utils.clip_grad_norm_(self.critic.named_parameters().values(), self.args.max_grad_norm)
        return norm

    # Checkpoints

    def algorithm_state(self) -> dict[str, Any]:
        """What resuming in the middle of a batch of completions needs beyond what every trainer has.

        The critic has its own file; the last group of the optimiser's state holds its moments.
        """
        return {"is_far": self._is_far}

    def set_algorithm_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `algorithm_state` returned."""
        self._is_far = bool(state["is_far"])

    def write_beside(self, folder: Path) -> None:
        """Writes the critic into a checkpoint."""
        if self.critic is not None:
            self.critic.save(folder)

    def read_beside(self, folder: Path) -> None:
        """Reads the critic from a checkpoint.

        Raises:
            PolicyError: the file is missing, damaged, or of another kind or size.
        """
        if self.critic is not None:
            self.critic.load(folder)


_SEQUENCES = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


def _whole(inputs: Any) -> tuple[Tensor, Tensor, int]:
    """Prompt and completion in one: ids, mask, and the completion's width."""
    ids_BL = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask_BL = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    return ids_BL, mask_BL, inputs["completion_ids"].size(1)


def make_trainer(parts: TrainerParts) -> PpoTrainer:
    """The trainer for these parts."""
    return PpoTrainer(
        cast("PpoSection | ReinforceSection", parts.section),
        scale=parts.config.reward.normalize_rewards != "none",
        args=ppo_arguments(parts),
        rollout_func=parts.lesson.rollout,
        **parts.rl,
    )
