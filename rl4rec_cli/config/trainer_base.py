"""The base of every algorithm's `trainer` section: shared settings, and questions about the algorithm.

Decides: the settings that all trainers share; what other modules may ask about an algorithm. They ask the section and
never compare names.
Hides: which algorithms there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from rl4rec_cli.config.base import NonNegative, PositiveFloat, PositiveInt, Precision, Section


class TrainerSection(Section):
    """What every trainer has; the names are those of `transformers.TrainingArguments`.

    Below the settings stand the questions that others ask of an algorithm. A section overrides the answers that differ.
    """

    if TYPE_CHECKING:  # each section has them, with its own type, default and meaning
        algorithm: str
        batch_size: int

    trains_policy: ClassVar[bool] = True
    """Whether it trains a policy; else a retriever."""
    learns_from_rewards: ClassVar[bool] = False
    """Whether the policy generates completions and learns from their rewards."""
    compares_answers: ClassVar[bool] = False
    """Whether it learns from pairs of a better and a worse text."""
    has_critic: ClassVar[bool] = False
    """Whether a critic is trained beside the policy."""
    weighs_whole_texts: ClassVar[bool] = False
    """Whether a completion has one policy ratio, that of the whole, so that no correction by tokens applies."""
    normalizations: ClassVar[tuple[str, ...]] = ("auto", "group", "batch", "none")
    """Values of `reward.normalize_rewards` that it takes."""
    keeps_best: ClassVar[bool] = False
    """Whether the result is the best measurement of validation users, where there is one; else the last step."""
    tuned_name: ClassVar[str] = "tuned policy"
    """What tables call the result of training."""
    start_name: ClassVar[str] = "before SFT"
    """What tables call the policy that training starts from."""
    like: ClassVar[str | None] = None
    """Algorithm whose block of a recipe (`trainer.grpo: {…}`) counts where the recipe has none for this one."""

    learning_rate: NonNegative = 1e-5
    """Peak learning rate."""
    lr_scheduler_type: Literal["constant", "linear", "cosine", "constant_with_warmup"] = "linear"
    """Course of the learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    weight_decay: NonNegative = 0.0
    """AdamW weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clipping."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches per optimiser step."""
    num_train_epochs: PositiveFloat = 3.0
    """Passes over the training examples, unless `max_steps` comes first."""
    max_steps: PositiveInt = 10_000
    """Most optimiser steps."""
    precision: Precision = "auto"
    """Autocast type; `auto`: on a GPU bf16, or where it has none fp16; without one fp32."""
    gradient_checkpointing: bool | Literal["unsloth"] = False
    """Recompute activations in the backward pass: less memory, more time. `unsloth` keeps some in the computer's memory
    instead (backend unsloth only)."""
    dataloader_num_workers: Annotated[int, Field(ge=0)] = 0
    """Loader processes."""

    @property
    def phases(self) -> tuple[TrainerSection, ...]:
        """The sections that a run trains with, one after the other: the warm start, if there is one, and this one."""
        return (self,)

    def without_warm_start(self) -> TrainerSection:
        """Returns the same training without the warm start."""
        return self

    @property
    def trains_on(self) -> Literal["last", "all"] | None:
        """The training targets that it learns from, whatever `data.train_targets` says; None: those of the setting."""
        return None

    @property
    def stops_after(self) -> int | None:
        """Measurements of validation users without a better one after which training ends; None: never."""
        return None

    @property
    def may_end_early(self) -> bool:
        """Whether training may end before its last step, and be done."""
        return self.stops_after is not None

    @property
    def ranks_to_learn(self) -> tuple[int, int | None] | None:
        """First and last rank of the targets whose examples are learnt from; None: all examples."""
        return None

    @property
    def ranks_by_policy(self) -> bool:
        """Whether these are ranks by what the starting policy writes; else by the last item's text."""
        return False

    @property
    def updates_per_batch(self) -> int:
        """Optimiser steps per batch of examples."""
        return 1

    @property
    def texts_per_prompt(self) -> int:
        """Completions that the policy generates for a prompt."""
        return 0

    @property
    def has_groups(self) -> bool:
        """Whether the completions of a prompt are compared with each other."""
        return self.texts_per_prompt > 1

    @property
    def micro_batch(self) -> int:
        """Sequences in one forward and backward pass."""
        return self.batch_size

    @property
    def taught_at_once(self) -> int:
        """Sequences of a supervised loss in the forward and backward pass of a micro-batch, besides its own."""
        return 0

    @property
    def texts_at_once(self) -> int:
        """Completions that the policy generates at once; 0 if it generates none."""
        return self.batch_size * self.texts_per_prompt * self.gradient_accumulation_steps

    @property
    def holds_reference(self) -> bool:
        """Whether training holds a frozen reference policy."""
        return False

    @property
    def has_adapter_critic(self) -> bool:
        """Whether the critic is an adapter of its own on the policy's model."""
        return False

    @property
    def can_checkpoint(self) -> bool:
        """Whether the algorithm works with gradient checkpointing."""
        return not self.has_adapter_critic

    @property
    def batch_words(self) -> str:
        """The data of one optimiser step in words, for a table."""
        return f"{self.micro_batch} sequences × {self.gradient_accumulation_steps}"

    @property
    def divisors(self) -> list[int]:
        """The numbers of equal parts into which a micro-batch can be cut, 1 first."""
        return [n for n in range(1, self.batch_size + 1) if self.batch_size % n == 0]

    def split(self, parts: int) -> dict[str, int]:
        """Returns the settings for `parts` times as many micro-batches, each smaller by `parts`: a step sees as much.

        Args:
            parts: one of `divisors`.
        """
        return {
            "batch_size": self.batch_size // parts,
            "gradient_accumulation_steps": self.gradient_accumulation_steps * parts,
        }
