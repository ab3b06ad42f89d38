"""The best of several prompts for the policy before any training: the result that careful prompting gets for nothing.

Decides: the prompts to try, and that validation users alone choose one, for the test split too.
Hides: trying them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.data.prompts import TemplateTooLongError
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.eval.baseline import Baseline, Subject
from rl4rec_cli.eval.examples import choose_examples
from rl4rec_cli.eval.metrics import headline, means

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.eval.policies import Models
    from rl4rec_cli.eval.scoring import Measured, Task

USERS = 500
"""Validation users who choose a prompt."""
TEMPLATES = (
    "A customer chose these products, oldest first:\n{history}\n"
    "Describe in a few words the product this customer will choose next.",
    "Purchase history:\n{history}\n\nName one product this customer is likely to buy next. Answer with its title only.",
    "{history}\nNext product:",
    "These are the titles of products a customer bought, in order:\n{history}\nThe title of the next one is:",
    "Write a search query that would find the next product for a customer who bought:\n{history}\nQuery:",
    "{history}\n",
)


class ZeroShot(Baseline):
    """The starting policy with the best of several prompts; a model that is no run's with its own best."""

    needs_policy = True
    is_chosen = True

    def measure_before(self, subject: Subject) -> Measured | None:
        """None for a retriever, which reads no prompt."""
        from rl4rec_cli.eval.policies import Models

        if not isinstance(subject.models, Models):
            return None
        return best_zero_shot(subject.models, subject.start or subject.checkpoint, subject.config, subject.task)


zero_shot = ZeroShot()


def best_zero_shot(models: Models, model: str, config: RunConfig, task: Task) -> Measured:
    """Measures the starting policy with the prompt that scores best on some validation users.

    The run's own prompt is among those tried.

    Raises:
        ConfigError: no prompt fits `prompt.max_prompt_length`.
    """
    chooser = replace(task, examples=choose_examples(task.dataset, "validation", USERS))
    config = config.model_copy(update={"prompt": config.prompt.of(task.dataset.name)})
    measured_by = try_templates(models, model, config, chooser, [config.prompt.template, *TEMPLATES])
    value_by_template = {
        template: means(m.ranking, config.eval.ks)[headline(config.eval.ks)] for template, m in measured_by.items()
    }
    best = max(value_by_template, key=value_by_template.__getitem__)
    measurement = models.measure("zero-shot, best prompt", model, config=with_template(config, best), what="zero-shot")
    measurement.notes.update(prompt=best, tried=value_by_template)
    return measurement


def try_templates(
    models: Models, model: str, config: RunConfig, task: Task, templates: Sequence[str]
) -> dict[str, Measured]:
    """Measures a model with each of some prompt templates, without those that are too long (logged).

    Args:
        config: its prompt section is one dataset's own (`PromptSection.of`).
        task: the examples to measure on.

    Raises:
        ConfigError: no template fits `prompt.max_prompt_length`.
    """
    from rl4rec_cli.eval.policies import Models

    sweep = Models(config, task, share=models)
    measured_by: dict[str, Measured] = {}
    for template in dict.fromkeys(templates):
        try:
            measurement = sweep.measure("zero-shot", model, config=with_template(config, template), what="zero-shot")
        except TemplateTooLongError as error:
            console.log(f"Prompt {template!r} left out: {error.message}")
            continue
        measured_by[template] = measurement
        value = means(measurement.ranking, config.eval.ks)[headline(config.eval.ks)]
        console.log(
            f"Prompt {template!r}: {headline(config.eval.ks)} {value:.4f} on {len(task.examples)} validation users"
        )
    if not measured_by:
        raise ConfigError("none of the prompts fits", hint="raise prompt.max_prompt_length")
    return measured_by


def with_template(config: RunConfig, template: str) -> RunConfig:
    """Returns the configuration with another prompt template."""
    return config.model_copy(update={"prompt": config.prompt.model_copy(update={"template": template})})
