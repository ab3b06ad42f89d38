"""The `eval` and `logging` sections: what is measured and what is written of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rl4rec_cli.config.base import Fraction, NonNegative, PositiveInt, Section
from rl4rec_cli.config.registries import BASELINES, HYBRIDS


class EvalSection(Section):
    split: Literal["validation", "test"] = "validation"
    """Split that `eval` measures; training itself always measures validation."""
    ks: tuple[PositiveInt, ...] = Field(default=(5, 10, 20), min_length=1)
    """Cut-offs."""
    users: PositiveInt | None = None
    """Measure this many users, drawn by a fixed seed; all when absent."""
    steps: PositiveInt | None = 100
    """Measure validation users every so many steps of training and keep the best as `checkpoint_best`; null: never."""
    step_users: PositiveInt = 200
    """Users of these measurements, drawn by a fixed seed."""
    temperature: NonNegative = 0.0
    """0: the most likely completion."""
    batch_size: PositiveInt = 64
    """Completions generated at once."""
    baselines: tuple[str, ...] = Field(
        default=("popularity", "last_item", "history_mean", "decayed_mean", "bm25", "transitions", "untrained"),
        description=f"What the policy is compared with: {BASELINES.quoted()} or a plug-in's name. `sasrec` is trained "
        "here once (minutes), `fusion` joins it to text retrieval, `fusion_transitions` does so with `transitions`, "
        "`zero_shot` is the starting model with the best of "
        "several prompts, `nearest_history_item` and `target_text` are ceilings.",
    )
    fuse: Literal["none", "sasrec", "transitions", "history"] = "none"
    """`eval` and `compare` also rank by the scores of the policy and of this sequence model together, and by those of
    the last item and the model: the baselines `fusion` and `fusion_transitions`. `history`: the trained retriever that
    `retrieval.model` names, by its own query of the history; without the policy that query ranks alone. `recommend`
    then ranks by the policy and the model. Validation users choose the weight."""
    fuse_weights: dict[str, Fraction] = Field(default={})
    """Weights that are not to be chosen, by the name in tables of what is fused with the sequence model: `{trained
    retriever: 0.6}`. For `data.fit=train_and_validation`, with the weights that `train` chose."""
    cache_dir: str | None = "data_baselines"
    """Folder where measured baselines are kept, by dataset digest; null keeps nothing."""
    probes: bool = True
    """Let `eval` also rank the completions by a second embedder, and shuffle or exchange the histories."""
    second_embedder: str = "auto"
    """What ranks the same completions a second time: `lsa`, `bm25` or a sentence-transformers model. `auto`: `lsa`, or
    `bm25` where `lsa` is the first."""

    judge: str | None = None
    """Reward model (OWNER/NAME or a folder) that judges the answers of preference tuning. When absent a preference
    model is fitted on the training pairs, by vectors of `second_embedder` (`auto`: `lsa`)."""

    @property
    def fuses_retriever(self) -> bool:
        """Whether the trained retriever that embeds ranks along, in a sequence model's place."""
        return self.fuse == "history"

    @property
    def all_baselines(self) -> tuple[str, ...]:
        """The baselines, and the one that `fuse` adds; the trained retriever is none."""
        hybrid = HYBRIDS.get(self.fuse)
        return self.baselines if hybrid is None or hybrid in self.baselines else (*self.baselines, hybrid)


class LoggingSection(Section):
    steps: PositiveInt = 1
    """Log every so many optimiser steps."""
    save_steps: PositiveInt = 500
    """Write a checkpoint every so many optimiser steps."""
    save_total_limit: Annotated[int, Field(ge=1)] = 2
    """Periodic checkpoints kept."""
    rollouts: Annotated[int, Field(ge=0)] = 4
    """Completions per step saved in `rollouts.jsonl`."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Also give the numbers of the log to these; each needs its extra, as `pip install 'rl4rec[wandb]'`."""
    project: str = Field(default="rl4rec", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)
    """Project that `wandb` and `trackio` put the run into."""
