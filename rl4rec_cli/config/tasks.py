"""The table of tasks: what a policy is trained for, that is where its prompts come from and how its texts are rewarded.

Decides: their names, where each is opened, and what others ask of one. Nobody else compares their names.
Hides: nothing. It imports nothing heavy, because the command line reads it for its help.
"""

from __future__ import annotations

from dataclasses import dataclass

from rl4rec_cli.config.plugins import Registry
from rl4rec_cli.config.registries import PAIR_REWARDS, REWARDS


@dataclass(frozen=True)
class Task:
    summary: str
    """Its data, in a few words."""
    module: str
    """Module in `commands` that opens its data, checks its settings, and measures its policies."""
    rewards: Registry
    default_reward: str
    """Where no layer of the configuration names one."""
    quick_test: str
    """The recipe of `--quick-test`."""
    settings: tuple[str, ...]
    """Keys that no other task reads."""
    model: str
    """What its policies are, in a sentence of a model card."""
    tag: str
    """Of a model card."""
    unit: str = "users"
    """What is measured."""
    recipe: str | None = None
    """Its recipe where the command names none; None: the one for the machine."""
    metric: str | None = None
    """What held-out prompts are compared by; None: as `eval.ks` says."""
    has_catalogue: bool = True
    """Whether completions are ranked in a catalogue."""
    taught: tuple[str, ...] = ("next",)
    """What supervised fine-tuning can teach."""
    has_pairs: bool = False
    """Whether its prompts come with a better and a worse text."""
    names_models: bool = False
    """Whether a reward may be a model: OWNER/NAME or a folder."""


DEFAULT_TASK = "recommendation"
TASKS: dict[str, Task] = {
    "recommendation": Task(
        "catalogues, and what users chose from them",
        module="catalogue",
        rewards=REWARDS,
        default_reward="ndcg",
        quick_test="quick-test",
        settings=(
            *(f"data.{key}" for key in ("sequential_file", "prompt_file", "train_targets", "fit", "train_users")),
            *(
                f"reward.{key}"
                for key in ("k", "mixed_ndcg", "mixed_hit", "rank_shaping", "fuse", "fuse_weight", "credit")
            ),
            *(f"trainer.{key}" for key in ("screen_rank", "screen_solved", "screen_by")),
            *("prompt.template", "prompt.item_template", "prompt.templates", "prompt.item_templates"),
            *("generation.texts_per_user", "retrieval.file", "eval.fuse"),
        ),
        model="A language model that reads what a user has chosen so far and writes a short text describing what the "
        "user wants next; the text is embedded and ranked against the catalogue.",
        tag="recommender-system",
        taught=("next", "last"),
    ),
    "preference": Task(
        "prompts, each with a better and a worse answer",
        module="pairs",
        rewards=PAIR_REWARDS,
        default_reward="accuracy",
        quick_test="preference-quick-test",
        settings=("data.pairs", "reward.accuracy", "reward.length", "reward.custom", "eval.judge"),
        model="A language model that was tuned to answer prompts as a reward asks for.",
        tag="preference-tuning",
        unit="prompts",
        recipe="preference",
        metric="reward",
        has_catalogue=False,
        taught=("next", "both"),
        has_pairs=True,
        names_models=True,
    ),
}
