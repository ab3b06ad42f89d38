"""The `trainer` section: one class for each algorithm.

Decides: every setting of an algorithm, its default, its range, and which settings go together; its answers to the
questions of `trainer_base.py`.
Hides: how an algorithm's settings become sequences, completions and optimiser steps.

Inside, the names are those of transformers and TRL; PPO's are those of TRL's former `PPOConfig`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rl4rec_cli.config.algorithms import ALGORITHMS
from rl4rec_cli.config.base import Fraction, NonNegative, PositiveFloat, PositiveInt
from rl4rec_cli.config.retriever import RetrieverSection
from rl4rec_cli.config.trainer_base import TrainerSection

__all__ = ["RetrieverSection"]

DEFAULT_BETA = 0.04
"""Weight of the KL penalty where a reference policy is asked for and no weight is given: that of arXiv:2402.03300."""


class SftSection(TrainerSection):
    """Supervised fine-tuning: the warm start."""

    algorithm: Literal["sft"] = "sft"
    batch_size: PositiveInt = 16
    """Examples per micro-batch."""
    learning_rate: NonNegative = 1e-4
    """Peak learning rate."""
    target: Literal["next", "last", "both"] = "next"
    """What the policy learns to generate: the item chosen next, or the last item of the history (a copy that RL then
    improves). Of preference data: the chosen answer (`next`), or chosen and rejected alike (`both`, which RL then
    improves)."""
    target_template: str = "{title}"
    """Form of the target item; any field of `items.jsonl` but `item_id`."""

    @property
    def texts_per_example(self) -> int:
        """Texts that it teaches after a prompt."""
        return 2 if self.target == "both" else 1


class WarmSection(TrainerSection):
    """What every algorithm has that can begin with a warm start."""

    warm_start: SftSection | None = None
    """Supervised fine-tuning before it."""

    @property
    def phases(self) -> tuple[TrainerSection, ...]:
        return (self,) if self.warm_start is None else (self.warm_start, self)

    def without_warm_start(self) -> WarmSection:
        return self.model_copy(update={"warm_start": None})


class DpoSection(WarmSection):
    """Direct preference optimisation (arXiv:2305.18290) by TRL's `DPOTrainer`: pairs of answers, and no rewards."""

    compares_answers: ClassVar[bool] = True
    start_name: ClassVar[str] = "before DPO"

    algorithm: Literal["dpo"] = "dpo"
    batch_size: PositiveInt = 4
    """Pairs per micro-batch."""
    gradient_accumulation_steps: PositiveInt = 4
    """Micro-batches per optimiser step."""
    learning_rate: NonNegative = 5e-7
    """Peak learning rate."""
    num_train_epochs: PositiveFloat = 1.0
    """Passes over the training examples, unless `max_steps` comes first."""
    beta: PositiveFloat = 0.1
    """How much a pair weighs against staying near the policy that training starts from; smaller moves farther."""
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """Of the margin between chosen and rejected."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of pairs that are assumed to be the wrong way round."""

    @property
    def holds_reference(self) -> bool:
        return True

    @property
    def micro_batch(self) -> int:
        return 2 * self.batch_size


class RlSection(WarmSection):
    """What every algorithm of reinforcement learning has."""

    learns_from_rewards: ClassVar[bool] = True
    start_name: ClassVar[str] = "before RL"

    epsilon: PositiveFloat = 0.2
    """Clipping of the policy ratio."""
    epsilon_high: PositiveFloat | None = None
    """Upper clipping where it differs."""
    beta: NonNegative = 0.0
    """Weight of the KL penalty towards the reference policy."""
    use_ref_model: bool | None = None
    """Hold a frozen reference policy; by default exactly when beta > 0. True alone sets beta to 0.04."""
    mask_truncated_completions: bool = False
    """Leave completions that reach the length limit out of the loss."""
    screen_rank: PositiveInt | None = None
    """Reinforce only on training examples whose target ranks within so many items (see `screen_by`); all when absent.
    Far targets reward all completions of a group alike. The warm start sees all examples."""
    screen_solved: PositiveInt | None = None
    """Leave out training examples whose target ranks within so many items already."""
    screen_by: Literal["last_item", "policy"] = "last_item"
    """What ranks targets for these two: the last item's text, or the most likely completion of the policy that
    reinforcement learning starts from (it generates one for each training example, once)."""
    sft_weight: NonNegative = 0.0
    """Weight of a supervised loss that is added to that of RL, so that RL does not undo supervision: the mean
    cross-entropy per token of the text that the warm start teaches (its `target` and `target_template`; without a warm
    start the next item's title, or the chosen answer) after each prompt of the batch. 0: none."""

    @property
    def taught(self) -> SftSection | None:
        """What says which text the supervised part of the loss teaches; None where the loss has none."""
        if self.sft_weight == 0:
            return None
        return self.warm_start if self.warm_start is not None else SftSection()

    @property
    def ranks_to_learn(self) -> tuple[int, int | None] | None:
        if self.screen_rank is None and self.screen_solved is None:
            return None
        return (self.screen_solved or 0) + 1, self.screen_rank

    @property
    def ranks_by_policy(self) -> bool:
        return self.screen_by == "policy"

    @property
    def holds_reference(self) -> bool:
        return self.beta > 0

    @model_validator(mode="after")
    def _reference(self) -> RlSection:
        if self.use_ref_model is True and "beta" not in self.model_fields_set:
            self._fill_in(beta=DEFAULT_BETA)
        if self.use_ref_model is False and self.beta > 0:
            raise ValueError("beta > 0 needs the reference policy: set use_ref_model true or beta 0")
        if self.use_ref_model is True and self.beta == 0:
            raise ValueError("use_ref_model has no effect with beta 0: set beta above 0")
        return self

    @model_validator(mode="after")
    def _screens(self) -> RlSection:
        if self.screen_rank is not None and self.screen_solved is not None and self.screen_solved >= self.screen_rank:
            raise ValueError(
                f"screen_solved {self.screen_solved} leaves nothing within screen_rank {self.screen_rank}: lower it"
            )
        if self.screen_by == "policy" and self.screen_rank is None and self.screen_solved is None:
            raise ValueError("screen_by has no effect without screen_rank or screen_solved: set one of them")
        return self


class GroupSection(RlSection):
    """What GRPO and RLOO share: several completions per prompt, whose rewards are each other's baseline."""

    batch_size: PositiveInt = 4
    """Prompts per micro-batch. Completions per optimiser step = batch_size × num_generations × accumulation."""
    num_generations: Annotated[int, Field(ge=2)] = 4
    """Completions per prompt (the group)."""
    gradient_accumulation_steps: PositiveInt = 4
    """Micro-batches per optimiser step."""
    num_iterations: PositiveInt = 1
    """Updates from one batch of completions (μ)."""
    zero_variance: Literal["keep", "leave_out", "refill"] = "keep"
    """Groups whose completions all have one reward: learnt from as they are (with beta > 0 they pull towards the
    reference), left out of loss and KL, or replaced by fresh prompts as far as `refill_rounds` goes."""
    refill_rounds: PositiveInt = 2
    """How often fresh prompts are drawn for one batch."""

    @property
    def updates_per_batch(self) -> int:
        return self.num_iterations

    @property
    def texts_per_prompt(self) -> int:
        return self.num_generations

    @property
    def micro_batch(self) -> int:
        return self.batch_size * self.num_generations

    @property
    def taught_at_once(self) -> int:
        return self.batch_size if self.sft_weight > 0 else 0

    @property
    def token_discount(self) -> float:
        """By how much the advantage of each token before a completion's last is less."""
        return 1.0

    @property
    def batch_words(self) -> str:
        return f"{self.batch_size} prompts × {self.num_generations} completions × {self.gradient_accumulation_steps}"


class GrpoSection(GroupSection):
    """Group relative policy optimisation (arXiv:2402.03300) by TRL's `GRPOTrainer`."""

    algorithm: Literal["grpo"] = "grpo"
    gamma: Fraction = 1.0
    """Discount of a completion's advantage over the tokens before its last; 1 = none."""
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "dapo"
    """How token losses are averaged."""

    @property
    def token_discount(self) -> float:
        return self.gamma


class RlooSection(GroupSection):
    """REINFORCE with a leave-one-out baseline (arXiv:2402.14740) by TRL's `RLOOTrainer`.

    The ratio is that of whole completions, and the KL penalty is part of the reward.
    """

    weighs_whole_texts: ClassVar[bool] = True
    normalizations: ClassVar[tuple[str, ...]] = ("auto", "batch", "none")

    algorithm: Literal["rloo"] = "rloo"


class SingleSection(RlSection):
    """What PPO and REINFORCE share: one completion per prompt."""

    normalizations: ClassVar[tuple[str, ...]] = ("auto", "batch", "none")

    batch_size: PositiveInt = 16
    """Prompts per batch. Completions per batch = batch_size × accumulation."""
    num_generations: int = 1
    """Completions per prompt: 1."""
    gamma: Fraction = 1.0
    """Discount of the reward over the tokens before it; 1 = none."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus (mean entropy per token)."""

    @property
    def texts_per_prompt(self) -> int:
        return 1

    @property
    def taught_at_once(self) -> int:
        return self.micro_batch if self.sft_weight > 0 else 0

    @model_validator(mode="after")
    def _one_text(self) -> SingleSection:
        if self.num_generations != 1:
            raise ValueError(
                "num_generations must be 1: this algorithm learns from one completion per prompt; grpo and rloo learn "
                "from several"
            )
        if self.batch_size * self.gradient_accumulation_steps < 2:
            raise ValueError("a batch of one completion is its own mean and teaches nothing: raise batch_size")
        return self


class PpoSection(SingleSection):
    """Proximal policy optimisation (arXiv:1707.06347) with a critic and GAE (arXiv:1506.02438)."""

    has_critic: ClassVar[bool] = True

    algorithm: Literal["ppo"] = "ppo"
    mini_batch_size: PositiveInt = 4
    """Completions per micro-batch of the updates; must divide batch_size."""
    ppo_epochs: PositiveInt = 4
    """Passes over a batch of completions before the policy generates new ones."""
    lam: Fraction = 0.95
    """λ of generalised advantage estimation: 1 = whole returns, 0 = one-step differences of the critic."""
    critic: Literal["head", "adapter"] = "head"
    """What estimates values: a small network on the policy's hidden states, or the same on those of a LoRA adapter of
    the critic's own over the shared base (one more pass through the model; needs policy.lora)."""
    critic_learning_rate: NonNegative = 1e-4
    """Peak learning rate of the critic."""
    critic_trains_policy: bool = False
    """Let the value loss change the policy's weights too (critic `head` only)."""
    vf_coef: NonNegative = 0.5
    """Weight of the value loss."""
    cliprange_value: PositiveFloat | None = 0.2
    """Most that a value may move from its value when the completions were generated; null = no clipping."""
    value_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """First optimiser steps, in which only the critic learns."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the KL penalty (beta) goes: off every token's reward, or on the loss as in GRPO."""
    target_kl: PositiveFloat | None = None
    """Stop changing the policy with a batch of completions once it is this far (nats per token) from the one that
    generated them; the critic learns on."""

    @property
    def updates_per_batch(self) -> int:
        return self.ppo_epochs * (self.batch_size // self.mini_batch_size)

    @property
    def micro_batch(self) -> int:
        return self.mini_batch_size

    @property
    def has_adapter_critic(self) -> bool:
        return self.critic == "adapter"

    @property
    def divisors(self) -> list[int]:
        return [n for n in range(1, self.mini_batch_size + 1) if self.mini_batch_size % n == 0]

    def split(self, parts: int) -> dict[str, int]:
        # As many completions in a batch and in an update.
        return {**super().split(parts), "mini_batch_size": self.mini_batch_size // parts}

    @model_validator(mode="after")
    def _fits(self) -> PpoSection:
        if self.batch_size % self.mini_batch_size:
            raise ValueError(
                f"mini_batch_size {self.mini_batch_size} does not divide batch_size {self.batch_size}: every "
                "completion must be in one mini-batch"
            )
        if self.has_adapter_critic and self.critic_trains_policy:
            raise ValueError("critic_trains_policy needs critic: head; an adapter's hidden states are not the policy's")
        if self.gradient_checkpointing and not self.can_checkpoint:
            raise ValueError(
                "critic: adapter cannot be used with gradient_checkpointing, which would recompute the policy with "
                "the critic's adapter; use critic: head"
            )
        return self


class ReinforceSection(SingleSection):
    """REINFORCE (Williams 1992): no critic, the batch's mean is the baseline, it learns from each completion once."""

    algorithm: Literal["reinforce"] = "reinforce"
    max_steps: PositiveInt = 1000
    """Most optimiser steps."""


def trainer_sections() -> dict[str, type[TrainerSection]]:
    """The section of each algorithm, by its name."""
    return {name: globals()[algorithm.section] for name, algorithm in ALGORITHMS.items()}
