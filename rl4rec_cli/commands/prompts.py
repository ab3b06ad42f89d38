"""`rl4rec prompts`: prompts as the model reads them, and the results of other templates.

Decides: what is told of prompts; that templates are compared on validation users only, each with the configured one.
Hides: nothing of how prompts are built. `data/prompts.py` builds them, here as in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec_cli import console
from rl4rec_cli.data.dataset import build_examples
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.data.prompts import Prompt, PromptBuilder
from rl4rec_cli.data.reading import PROMPTS
from rl4rec_cli.errors import ConfigError, DataError
from rl4rec_cli.eval.examples import choose_examples
from rl4rec_cli.shell import setting

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import PolicySection
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.data.dataset import Dataset, Example
    from rl4rec_cli.eval.evaluation import Evaluation

USERS = 1_000
"""Users whose prompts are made, unless more are asked for."""
_LAST = 4
OWN = "own prompt"
ALL = "all"


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt as the model reads it."""

    user: str
    text: str
    """Whole, chat template included."""
    tokens: int
    last_tokens: list[str]
    """Each with its number."""
    history: int
    """Items of the user's history."""
    items: int
    """Those of them that the prompt shows."""
    from_prompts_json: bool
    cut_to_fit: bool


@dataclass(frozen=True)
class PromptPreview:
    """Prompts of many users, and figures of them all."""

    dataset: str
    split: str
    figures: dict[str, Any]
    prompts: list[ShownPrompt]

    def as_json(self) -> dict[str, Any]:
        """Returns what `rl4rec prompts --json` prints."""
        return asdict(self)


def preview_prompts(
    config: RunConfig, *, split: Any = "validation", users: int | None = None, user: str | None = None
) -> PromptPreview:
    """Builds prompts as training and evaluation do: `rl4rec prompts`.

    Args:
        split: whose histories: `train`, `validation` or `test`.
        users: at most so many users, drawn by a fixed seed; `USERS` by default.
        user: this user alone.

    Raises:
        DataError: the user does not exist, or has no example in this split.
    """
    dataset = open_dataset(config.data)
    examples = choose_examples(dataset, split, users or USERS) if user is None else _of_user(dataset, split, user)
    from rl4rec_cli.policy.loading import load_tokenizer_alone

    builder = PromptBuilder(config.prompt, dataset, load_tokenizer_alone(config.policy, dataset))
    prompts = make_prompts(builder, examples)
    figures = {"model": config.policy.model, **_figures(builder, dataset, examples, prompts)}
    shown = [
        ShownPrompt(
            user=example.user,
            text=prompt.text,
            tokens=len(prompt.ids),
            last_tokens=last_tokens(builder, prompt),
            history=len(example.history),
            items=prompt.items,
            from_prompts_json=example.user in dataset.prompts,
            cut_to_fit=prompt.is_cut,
        )
        for example, prompt in zip(examples, prompts, strict=True)
    ]
    return PromptPreview(dataset.name, split, figures, shown)


def _of_user(dataset: Dataset, split: Any, user: str) -> list[Example]:
    dataset.user_index(user)
    matches = [example for example in build_examples(dataset, split) if example.user == user]
    if not matches:
        raise DataError(f"user {user} has no {split} example: the sequence is too short", hint="try --split test")
    return matches


def last_tokens(builder: PromptBuilder, prompt: Prompt) -> list[str]:
    """Returns the last tokens of a prompt, each with its number. The text alone does not show where a token ends."""
    ids = list(prompt.ids[-_LAST:])
    names = builder.tokenizer.convert_ids_to_tokens(ids)
    return [f"{name} ({number})" for name, number in zip(names, ids, strict=True)]


def make_prompts(builder: PromptBuilder, examples: Sequence[Example]) -> list[Prompt]:
    """Builds the prompt of every example, and shows progress on the terminal."""
    prompts = []
    with console.progress(len(examples), "Making prompts") as advance:
        for example in examples:
            prompts.append(builder.build(example.user, example.history))
            advance(1)
    return prompts


def _figures(
    builder: PromptBuilder, dataset: Dataset, examples: Sequence[Example], made: Sequence[Prompt]
) -> dict[str, Any]:
    section = builder.section
    tokens = np.array([len(prompt.ids) for prompt in made])
    by_template = [(e, p) for e, p in zip(examples, made, strict=True) if e.user not in dataset.prompts]
    return {
        "prompts": len(made),
        "tokens": {
            "median": int(np.median(tokens)),
            "p95": int(np.quantile(tokens, 0.95, method="higher")),
            "most": int(tokens.max()),
            "allowed": section.max_prompt_length,
        },
        "chat_template": "yes" if builder.chat else "no",
        "from_prompts_json": len(made) - len(by_template),
        "older_items_left_out": sum(lost_items(builder, e, p) for e, p in by_template),
        "cut_to_fit": sum(prompt.is_cut for prompt in made),
    }


def lost_items(builder: PromptBuilder, example: Example, prompt: Prompt) -> bool:
    """Returns whether the prompt leaves out items, for its length, that `prompt.max_history` would show."""
    return prompt.items < min(len(example.history), builder.section.max_history)


@dataclass(frozen=True)
class TemplateSweep:
    """What a model reaches with each of several templates, on the same validation users."""

    evaluation: Evaluation
    """A method for each template, by its name."""
    templates: dict[str, str]
    """By name; `OWN` is the configured one."""
    differences: Mapping[str, Mapping[str, Any]]
    """Each other template's, paired, from the configured one."""
    model: str
    own_key: str
    """The setting below `prompt` that holds the configured template."""

    @property
    def best(self) -> str:
        """The name of the template with the highest headline metric; the users chose it, so it is a little too good."""
        methods = self.evaluation.as_json()["methods"]
        return max(self.templates, key=lambda name: methods[name][self.evaluation.headline])

    @property
    def best_setting(self) -> str | None:
        """The best template as `KEY=VALUE`, or None if it is the configured one."""
        return None if self.best == OWN else setting(f"prompt.{self.own_key}", self.templates[self.best])

    def as_json(self) -> dict[str, Any]:
        """Returns what `rl4rec prompts --template … --json` prints."""
        return {
            "dataset": self.evaluation.about["dataset"],
            "model": self.model,
            "users": len(self.evaluation.examples),
            "templates": self.templates,
            "metric": self.evaluation.headline,
            "methods": self.evaluation.as_json()["methods"],
            "differences": self.differences,
        }


def sweep_templates(
    config: RunConfig, templates: Sequence[str], *, split: str = "validation", users: int | None = None
) -> TemplateSweep:
    """Measures a model with several templates on the same validation users, each against the configured one.

    Args:
        templates: the templates to try. `all` stands for the built-in ones.
        split: validation, and no other.
        users: measure at most so many, drawn by a fixed seed.

    Raises:
        ConfigError: a template has no {history} or does not fit; the split is not validation; the model is untrained.
    """
    if split != "validation":
        raise ConfigError(
            f"--template with --split {split}: a prompt is chosen on validation users; the test split would be spent"
        )
    if bad := [template for template in templates if template != ALL and "{history}" not in template]:
        raise ConfigError(f"--template {bad[0]!r}: must contain {{history}}", hint="`all` tries the built-in ones")
    check_model(config.policy, "--template")
    dataset = open_dataset(config.data)
    if dataset.prompts:
        raise ConfigError(
            f"dataset {dataset.name} has {config.data.prompt_file or PROMPTS}, whose texts no template changes",
            hint="leave --prompt-file out" if config.data.prompt_file is not None else "move it away meanwhile",
        )
    own_key = "templates." + dataset.name if dataset.name in config.prompt.templates else "template"
    config = config.model_copy(update={"prompt": config.prompt.of(dataset.name)})

    from rl4rec_cli.eval.evaluation import Evaluation, compare_all
    from rl4rec_cli.eval.measuring import open_task
    from rl4rec_cli.eval.policies import Models
    from rl4rec_cli.eval.sweep import TEMPLATES, try_templates
    from rl4rec_cli.eval.sweep import USERS as CHOSEN_ON
    from rl4rec_cli.policy.backend import check_engine, prepare_backend
    from rl4rec_cli.retrieval.opening import FIRST_WAIT, open_retriever

    examples = choose_examples(dataset, "validation", users or CHOSEN_ON)
    check_engine(config.generation, config.policy)
    prepare_backend(config.policy)
    retriever = open_retriever(config.retrieval, dataset, config.data.paths, first_wait=FIRST_WAIT)
    task = open_task(config.eval, dataset, retriever, examples)
    models = Models(config, task)
    try:
        candidates = [one for template in templates for one in (TEMPLATES if template == ALL else [template])]
        results = try_templates(models, config.policy.model, config, task, [config.prompt.template, *candidates])
    finally:
        models.close()
    evaluation = Evaluation("validation", examples, config.eval.ks, about={"dataset": dataset.name})
    names: dict[str, str] = {}
    for template, result in results.items():
        name = OWN if template == config.prompt.template else f"prompt {len(names) + (OWN not in names)}"
        names[name] = template
        evaluation.methods.append(replace(result, name=name))
    others = [name for name in names if name != OWN and OWN in names]
    differences = compare_all({name: evaluation.difference(name, OWN) for name in others})
    return TemplateSweep(evaluation, names, differences, config.policy.model, own_key)


def check_model(section: PolicySection, what: str) -> None:
    """Refuses a model that has learned nothing.

    Raises:
        ConfigError: the model is `tiny`, which has random weights.
    """
    from rl4rec_cli.policy.backend import TINY

    if section.model == TINY:
        raise ConfigError(
            f"{what} needs a model that can write, and the tiny policy has learned nothing yet",
            hint="name a run or a model with --model",
        )
