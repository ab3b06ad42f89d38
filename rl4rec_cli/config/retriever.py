"""The `trainer` section of a retriever: a projection of a frozen encoder's vectors, or the encoder itself.

Decides: the settings of each kind, their defaults, and that a setting which a kind does not have is an error.
Hides: that the kinds are trained by different trainers: others ask `tunes_encoder` and never look at the kind's name.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from rl4rec_cli.config.base import Fraction, NonNegative, PositiveFloat, PositiveInt, Precision
from rl4rec_cli.config.policy import LoraSection
from rl4rec_cli.config.trainer_base import TrainerSection

_OF_ENCODERS: dict[str, Any] = {
    "batch_size": 64,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "num_train_epochs": 1.0,
    "precision": "auto",
    "temperature": 0.05,
}
"""Defaults of `full` and `lora` where they are not those of a projection."""
_RATES = {"full": 1e-4, "lora": 1e-3}
_PROJECTION_ONLY = {
    "dim": "the vectors are as long as the encoder's",
    "max_history": "prompt.max_history says how many items the query's text names",
    "max_sequence": "every position of the training part is a pair",
    "residual": "an item is what its text says",
    "residual_min_count": "an item is what its text says",
    "residual_dropout": "an item is what its text says",
    "dropout": "the encoder has its own",
    "full_softmax_items": "negatives are the other items of a batch",
    "sampled_items": "negatives are the other items of a batch",
}
"""Settings that `full` and `lora` do not have, and why."""


class RetrieverSection(TrainerSection):
    """The trained retriever: users' histories and items as vectors of one space.

    `kind: projection` leaves the encoder as it is and projects its vectors. It learns from every position of every
    user's training part (history → next item) by a softmax over the catalogue. `full` and `lora` tune the encoder
    itself by sentence-transformers' trainer, from the same positions: the history is a text, and the other items of a
    batch are the negatives (MultipleNegativesRankingLoss).
    """

    trains_policy: ClassVar[bool] = False
    keeps_best: ClassVar[bool] = True
    tuned_name: ClassVar[str] = "trained retriever"
    start_name: ClassVar[str] = "before training"

    algorithm: Literal["retriever"] = "retriever"
    kind: Literal["projection", "full", "lora"] = "projection"
    """What is trained: a projection of the frozen encoder's vectors (minutes on a CPU), all weights of the encoder, or
    a LoRA adapter of it, which is merged into the weights when the run ends."""
    batch_size: PositiveInt = 128
    """Users per micro-batch, each with all positions; `full`, `lora`: pairs (default 64)."""
    learning_rate: NonNegative = 2e-3
    """Peak learning rate; default of `full` 1e-4, of `lora` 1e-3."""
    lr_scheduler_type: Literal["constant", "linear", "cosine", "constant_with_warmup"] = "cosine"
    """Course of the learning rate; default of `full` and `lora` `linear`. With `max_minutes` it falls by the clock,
    where that is ahead of the steps."""
    warmup_steps: Annotated[int, Field(ge=0)] = 30
    """Steps of linear warm-up."""
    weight_decay: NonNegative = 0.01
    """AdamW weight decay; `projection`: of the two maps."""
    max_grad_norm: PositiveFloat = 5.0
    """Gradient clipping; default of `full` and `lora` 1."""
    num_train_epochs: PositiveFloat = 4.0
    """Passes over the users, unless `max_steps` or `max_minutes` comes first; `full`, `lora`: over all positions
    (default 1)."""
    max_minutes: PositiveFloat | None = None
    """Minutes after which training ends, measurements on the way included; null: no limit. The last step is measured
    and the final tables are made after them. A run that is resumed goes on with the minutes that are left."""
    precision: Precision = "fp32"
    """Autocast type of `full` and `lora` (default `auto`: on a GPU bf16, or where it has none fp16; without one fp32).
    The maps of a projection are small: half precision would save nothing."""
    patience: PositiveInt | None = 3
    """Measurements of validation users (`eval.steps`) without a better one after which training ends; null: it never
    ends early. Either way the retriever is that of the best measurement."""
    dim: PositiveInt = 128
    """Dimensions of the common space; fewer where the encoder has fewer (`projection`)."""
    max_history: PositiveInt = 20
    """Most recent items of a history that a query is made of (`projection`; elsewhere `prompt.max_history`)."""
    max_sequence: Annotated[int, Field(ge=2)] = 200
    """Most recent items of a user's training part that are learnt from (`projection`)."""
    residual: bool = True
    """Learn a vector of its own for every item, beside its text's (`projection`)."""
    residual_min_count: Annotated[int, Field(ge=0)] = 3
    """Times that an item must stand in the training part to have one; others are what their text says."""
    residual_dropout: Fraction = 0.3
    """Share of these vectors that is left out of a step, so that the texts learn to do without."""
    text_share: Fraction = 0.1
    """Share of the positions at which the query is the last item's text alone, so that single texts, as a policy writes
    them, are placed as well."""
    dropout: Fraction = 0.2
    """Dropout of the last item in a query (`projection`)."""
    temperature: PositiveFloat = 0.07
    """Divides the cosine of a query and an item; default of `full` and `lora` 0.05."""
    full_softmax_items: PositiveInt = 4096
    """Up to this many items the softmax is over the whole catalogue; above, over a sample (`projection`)."""
    sampled_items: PositiveInt = 2048
    """Items drawn for each step of the sampled softmax, beside all targets of the batch (`projection`)."""
    mini_batch_size: PositiveInt | None = 32
    """Texts that `full` and `lora` embed at once. With a number the loss is sentence-transformers' cached one: memory
    is that of a mini-batch, however many negatives a batch has, and texts of like length share one, so that little is
    padded. It embeds twice, which costs a third more time. null: the plain loss, which holds a whole batch."""
    lora: LoraSection = LoraSection()
    """The adapter of `lora`. `target_modules: auto` are those that PEFT knows for the encoder's architecture."""

    @model_validator(mode="after")
    def _of_its_kind(self) -> RetrieverSection:
        defaults = type(self).model_fields
        if self.kind == "projection":
            if self.precision != "fp32" or self.gradient_checkpointing:
                key = "gradient_checkpointing" if self.gradient_checkpointing else "precision"
                raise ValueError(f"{key} has no effect on a projection, whose two maps are small: leave it out")
            return self
        for name, why in _PROJECTION_ONLY.items():
            if getattr(self, name) != defaults[name].default:
                raise ValueError(f"{name} is a setting of kind projection; with {self.kind} {why}: leave it out")
        if self.gradient_checkpointing == "unsloth":
            raise ValueError("gradient_checkpointing of an encoder is true or false: unsloth is for policies")
        if self.batch_size < 2:
            raise ValueError("a batch of one pair has no negatives and teaches nothing: raise batch_size")
        own = {**_OF_ENCODERS, "learning_rate": _RATES[self.kind]}
        self._fill_in(**{name: value for name, value in own.items() if name not in self.model_fields_set})
        return self

    @property
    def tunes_encoder(self) -> bool:
        """Whether it trains the encoder itself, so that it learns from texts; else maps of its vectors."""
        return self.kind != "projection"

    @property
    def adapter(self) -> LoraSection | None:
        """The adapter that is trained; None: there is none."""
        return self.lora if self.kind == "lora" else None

    @property
    def trains_on(self) -> Literal["last", "all"] | None:
        return "all" if self.tunes_encoder else "last"

    @property
    def stops_after(self) -> int | None:
        return self.patience

    @property
    def may_end_early(self) -> bool:
        return self.patience is not None or self.max_minutes is not None

    @property
    def batch_words(self) -> str:
        return f"{self.batch_size} {'pairs' if self.tunes_encoder else 'users'} × {self.gradient_accumulation_steps}"
