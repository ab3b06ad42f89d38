"""The best of several prompts for the policy before any training: what a careful user would get for nothing.

Decides: which prompts are tried, and on whom one is chosen: validation users only, also for the test split.
Hides: trying them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.eval.examples import choose_examples
from rl4rec_cli.eval.metrics import means

if TYPE_CHECKING:
    from rl4rec_cli.config import RunConfig
    from rl4rec_cli.eval.evaluate import Models
    from rl4rec_cli.eval.methods import Measured, Task

USERS = 500
"""Validation users a prompt is chosen on."""
TEMPLATES = (
    "A customer chose these products, oldest first:\n{history}\n"
    "Describe in a few words the product this customer will choose next.",
    "Purchase history:\n{history}\n\nName one product this customer is likely to buy next. Answer with its title only.",
    "{history}\nNext product:",
    "These are the titles of products a customer bought, in order:\n{history}\nThe title of the next one is:",
    "Write a search query that would find the next product for a customer who bought:\n{history}\nQuery:",
    "{history}\n",
)


def best_zero_shot(models: Models, model: str, config: RunConfig, task: Task) -> Measured:
    """The starting policy with the prompt that scores best on some validation users; the run's own is among them.

    Raises:
        ConfigError: no prompt fits `prompt.max_prompt_length`.
    """
    from rl4rec_cli.eval.evaluate import Models

    chooser = replace(task, examples=choose_examples(task.dataset, "validation", USERS))
    sweep = Models(config, chooser, share=models)
    metric = f"ndcg@{min(config.eval.ks, key=lambda k: abs(k - 10))}"
    tried: dict[str, float] = {}
    config = config.model_copy(update={"prompt": config.prompt.of(task.dataset.name)})
    for template in dict.fromkeys([config.prompt.template, *TEMPLATES]):
        try:
            measured = sweep.measure("zero-shot", model, config=_with(config, template), what="zero-shot")
        except ConfigError as error:  # longer than this run's prompts may be
            console.log(f"Prompt left out: {error.message}")
            continue
        tried[template] = means(measured.ranking, config.eval.ks)[metric]
        console.log(f"Prompt {template!r}: {metric} {tried[template]:.4f} on {len(chooser.examples)} validation users")
    if not tried:
        raise ConfigError("none of the prompts fits", hint="raise prompt.max_prompt_length")
    best = max(tried, key=tried.__getitem__)
    measured = models.measure("zero-shot, best prompt", model, config=_with(config, best), what="zero-shot")
    measured.notes.update(prompt=best, tried=tried)
    return measured


def _with(config: RunConfig, template: str) -> RunConfig:
    return config.model_copy(update={"prompt": config.prompt.model_copy(update={"template": template})})
