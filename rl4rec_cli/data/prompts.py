"""Histories to prompts: the one prompt builder that training, evaluation and `recommend` share.

Decides: what the policy reads, and what is dropped when it is too long (the oldest items first).
Hides: the template, the tokenizer's chat template, and truncation.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl4rec_cli.errors import ConfigError

if TYPE_CHECKING:
    from rl4rec_cli.config import PromptSection
    from rl4rec_cli.data.dataset import Dataset


@dataclass(frozen=True)
class Prompt:
    text: str
    """What the model reads, chat template applied."""
    ids: tuple[int, ...]
    """Its tokens, at most `max_prompt_length`."""


def item_renderer(template: str, dataset: Dataset, *, setting: str) -> list[str]:
    """Every item written by a template such as `{title} by {brand}`; a missing field is written as nothing.

    Args:
        setting: dotted name of the setting, for messages.

    Raises:
        ConfigError: a field no item has, or one that must not be shown (`item_id` follows the sequences in many
            sources and gives the target away).
    """
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ConfigError(f"{setting}: {template!r} is not a template: {error}") from error
    if "item_id" in fields:
        raise ConfigError(f"{setting}: item_id must not be shown to the policy", hint="ids can give the target away")
    if any(not name.isidentifier() for name in fields):
        raise ConfigError(f"{setting}: {template!r}: only plain field names such as {{title}} may be used")
    known = {key for item in dataset.items for key in item}
    unknown = sorted(fields - known)
    if unknown:
        raise ConfigError(
            f"{setting}: no item of {dataset.name} has a field {', '.join(map(repr, unknown))}",
            hint=f"fields: {', '.join(sorted(known - {'item_id'}))}",
        )
    return [template.format_map({f: _written(item.get(f)) for f in fields}) for item in dataset.items]


def _written(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(_written(v) for v in value)
    return str(value)


class PromptBuilder:
    """Builds prompts for one dataset and one tokenizer.

    Args:
        section: template and limits.
        dataset: items to write, and `prompts.json` overrides.
        tokenizer: a transformers tokenizer.

    Raises:
        ConfigError: the template names unknown fields, does not fit, or a chat template is asked for and missing.
    """

    def __init__(self, section: PromptSection, dataset: Dataset, tokenizer: Any) -> None:
        self.section = section
        self.tokenizer = tokenizer
        self.chat = section.chat == "always" or (section.chat == "auto" and bool(tokenizer.chat_template))
        if section.chat == "always" and not tokenizer.chat_template:
            raise ConfigError("prompt.chat is always, but this tokenizer has no chat template", hint="set it to auto")
        if section.system is not None and not self.chat:
            raise ConfigError(
                "prompt.system needs a chat model, and this one is none", hint="put its text in the template"
            )
        self._overrides = dataset.prompts
        self._items = item_renderer(section.item_template, dataset, setting="prompt.item_template")
        self._item_tokens = [len(ids) for ids in tokenizer(self._items, add_special_tokens=False)["input_ids"]]
        self._frame_tokens = len(self._encode(self._fill([])))
        if self._frame_tokens >= section.max_prompt_length:
            raise ConfigError(
                f"prompt.template alone has {self._frame_tokens} tokens, no room for items in "
                f"prompt.max_prompt_length={section.max_prompt_length}",
                hint="shorten the template or raise prompt.max_prompt_length",
            )

    def build(self, user: str | None, history: Sequence[int]) -> Prompt:
        """The prompt for a user's history (item ids, oldest first).

        A user with an entry in `prompts.json` gets that text instead of the template's.
        """
        override = self._overrides.get(user) if user is not None else None
        if override is not None:
            return self._fit_words("", override, "")
        shown = list(history[-self.section.max_history :])
        limit = self.section.max_prompt_length
        # Start from token counts that are almost right, then let the real count decide.
        total, keep = self._frame_tokens, 0
        for item in reversed(shown):
            total += self._item_tokens[item] + 2
            if total > limit + 8 and keep:
                break
            keep += 1
        while keep > 0:
            prompt = self._prompt(self._fill(shown[-keep:]))
            if len(prompt.ids) <= limit:
                return prompt
            keep -= 1
        # Not even the last item fits: it is cut, not dropped.
        before, after = self.section.template.split("{history}", 1)
        return self._fit_words(before, self._items[shown[-1]] if shown else "", after)

    def _fill(self, items: Sequence[int]) -> str:
        ordered = items if self.section.order == "oldest_first" else list(reversed(items))
        return self.section.template.replace("{history}", self.section.separator.join(self._items[i] for i in ordered))

    def _encode(self, text: str) -> list[int]:
        if not self.chat:
            return self.tokenizer(text)["input_ids"]
        messages = [{"role": "system", "content": self.section.system}] if self.section.system is not None else []
        rendered = self.tokenizer.apply_chat_template(
            [*messages, {"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        return self.tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def _prompt(self, text: str) -> Prompt:
        ids = self._encode(text)
        return Prompt(text, tuple(ids))

    def _fit_words(self, before: str, text: str, after: str) -> Prompt:
        """As many words of `text` as fit, found by halving."""
        prompt = self._prompt(before + text + after)
        if len(prompt.ids) <= self.section.max_prompt_length:
            return prompt
        words = text.split()
        low, high = 0, len(words)
        while low < high:
            middle = (low + high + 1) // 2
            prompt = self._prompt(before + " ".join(words[:middle]) + after)
            low, high = (middle, high) if len(prompt.ids) <= self.section.max_prompt_length else (low, middle - 1)
        prompt = self._prompt(before + " ".join(words[:low]) + after)
        if len(prompt.ids) > self.section.max_prompt_length:
            # One word longer than the limit: keep the end, where the model goes on writing.
            return Prompt(prompt.text, prompt.ids[-self.section.max_prompt_length :])
        return prompt
