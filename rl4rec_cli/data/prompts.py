"""Histories to prompts: the one prompt builder that training, evaluation and `recommend` share.

Decides: what the policy reads, and what a prompt that is too long drops (the oldest items first).
Hides: the template, the tokenizer's chat template, and truncation.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rl4rec_cli.data.dates import day_variables
from rl4rec_cli.data.encoding import TextEncoder
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.files.digests import sha256
from rl4rec_cli.models.turns import end_of_turn

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import PromptSection
    from rl4rec_cli.data.dataset import Dataset, Example


LONGEST_TOKEN = 32
"""Most characters of a token, as the cutting of texts assumes."""


_DIGESTED = 256
"""Prompts that stand for all: anything besides data and settings that changes them changes every prompt."""


class TemplateTooLongError(ConfigError):
    """A template leaves no room for items."""


@dataclass(frozen=True)
class Prompt:
    text: str
    """What the model reads, with the chat template applied."""
    ids: tuple[int, ...]
    """Its tokens, at most `max_prompt_length`."""
    items: int = 0
    """History items that it shows; 0 for a text of `prompts.json`."""
    is_cut: bool = False
    """Whether an item, or the text of `prompts.json`, was cut to fit."""


def item_renderer(template: str, dataset: Dataset, *, setting: str) -> list[str]:
    """Renders every item by a template such as `{title} by {brand}`; a missing field becomes nothing.

    Args:
        setting: dotted name of the setting, for messages.

    Raises:
        ConfigError: no item has a field, or a field must not be shown (`item_id` follows the sequences in many sources
            and gives the target away).
    """
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ConfigError(f"{setting}: {template!r} is not a template: {error}") from error
    fields = {name for name, _, _ in parts if name is not None}
    if "item_id" in fields:
        raise ConfigError(f"{setting}: item_id must not be shown to the policy", hint="ids can give the target away")
    if any(spec or conversion for _, spec, conversion in parts) or any(not name.isidentifier() for name in fields):
        raise ConfigError(f"{setting}: {template!r}: only plain field names such as {{title}} may be used")
    item_fields = {key for item in dataset.items for key in item}
    unknown = sorted(fields - item_fields)
    if unknown:
        raise ConfigError(
            f"{setting}: no item of {dataset.name} has a field {', '.join(map(repr, unknown))}",
            hint=f"fields: {', '.join(sorted(item_fields - {'item_id'}))}",
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
        ConfigError: the template names unknown fields or does not fit, `prompt.chat` needs a chat template and the
            tokenizer has none, or the chat template leaves out the system or the user's turn.
    """

    def __init__(self, section: PromptSection, dataset: Dataset, tokenizer: Any) -> None:
        self.section = section = section.of(dataset.name)
        self.tokenizer = tokenizer
        self.chat = section.chat == "always" or (section.chat == "auto" and bool(tokenizer.chat_template))
        if section.chat == "always" and not tokenizer.chat_template:
            raise ConfigError("prompt.chat is always, but this tokenizer has no chat template", hint="set it to auto")
        if section.system is not None and not self.chat:
            raise ConfigError(
                "prompt.system needs a chat model, and this one is none", hint="put its text in the template"
            )
        turn = end_of_turn(tokenizer) if self.chat else None
        self.end_id: int = tokenizer.eos_token_id if turn is None else turn
        """The token that ends a completion of these prompts."""
        self._overrides = dataset.prompts
        self._day = day_variables(section.date)
        # No text of more characters than this is read: it would not fit, and would have to be read to know.
        self._most_characters = section.max_prompt_length * LONGEST_TOKEN
        self.encoder = TextEncoder(tokenizer)
        items = item_renderer(section.item_template, dataset, setting="prompt.item_template")
        self._items = [self.encoder.guard(text[: self._most_characters]) for text in items]
        self._item_tokens = self.encoder.lengths(self._items)
        frame = self._prompt(self._framed(""))
        self._check_whole(frame.text)
        self._frame_tokens = len(frame.ids)
        if self._frame_tokens >= section.max_prompt_length:
            raise TemplateTooLongError(
                f"prompt.template alone has {self._frame_tokens} tokens, no room for items in "
                f"prompt.max_prompt_length={section.max_prompt_length}",
                hint="shorten the template or raise prompt.max_prompt_length",
            )

    def build(self, user: str | None, history: Sequence[int]) -> Prompt:
        """Builds the prompt for a user's history (item ids, oldest first).

        A user with an entry in `prompts.json` gets that text instead of the template's.
        """
        override = self._overrides.get(user) if user is not None else None
        if override is not None:
            return self.build_written(override)
        recent = list(history[-self.section.max_history :])
        limit = self.section.max_prompt_length
        # Start from token counts that are almost right, then let the real count decide.
        total, keep = self._frame_tokens, 0
        for item in reversed(recent):
            total += self._item_tokens[item] + 2
            if total > limit + 8 and keep:
                break
            keep += 1
        best = None
        while 0 < keep <= len(recent):
            prompt = self._prompt(self._fill(recent[-keep:]))
            fits = len(prompt.ids) <= limit
            if best is not None and not fits:
                break
            if fits:
                best, keep = replace(prompt, items=keep), keep + 1
            else:
                keep -= 1
        if best is not None:
            return best
        # Not even the last item fits: it is cut, not dropped.
        last = self.encoder.show(self._items[recent[-1]]) if recent else ""
        return replace(self._cut_to_fit(last, self._framed), items=len(recent[-1:]))

    def digest(self, examples: Sequence[Example]) -> str:
        """Returns the identity (hex) of these examples' prompts. Of many examples it samples some, evenly over all."""
        count = min(len(examples), _DIGESTED)
        sample = (examples[place * len(examples) // count] for place in range(count))
        prompts = (self.build(example.user, example.history).ids for example in sample)
        return sha256(*(f"{' '.join(map(str, ids))}\n".encode() for ids in prompts))

    def build_written(self, text: str) -> Prompt:
        """Builds the prompt of a text from `prompts.json`."""
        return self._cut_to_fit(text, lambda text: text)

    def _fill(self, items: Sequence[int]) -> str:
        items_in_order = items if self.section.order == "oldest_first" else list(reversed(items))
        return self._framed(self.section.separator.join(self._items[i] for i in items_in_order))

    def _framed(self, history: str) -> str:
        return self.section.template.replace("{history}", history)

    def _prompt(self, text: str) -> Prompt:
        """Builds the prompt of a text in which the items' texts are guarded."""
        if not self.chat:
            return self._encoded(text)
        messages = [{"role": "system", "content": self.section.system}] if self.section.system is not None else []
        try:
            prompt_text = self.tokenizer.apply_chat_template(
                [*messages, {"role": "user", "content": text}],
                tokenize=False,
                add_generation_prompt=True,
                **self._day,
            )
        except Exception as error:  # a template can raise anything, for instance on a system message
            raise ConfigError(
                f"the tokenizer's chat template refused the prompt: {error}",
                hint="put prompt.system into prompt.template" if messages else "set prompt.chat to never",
            ) from error
        return self._encoded(prompt_text)

    def _check_whole(self, frame: str) -> None:
        """Refuses a chat template that leaves out what it gets: the policy would read other prompts than asked for.

        Args:
            frame: a prompt's text without items.

        Raises:
            ConfigError: the system turn, or words of `prompt.template`, are not in it.
        """
        frame = " ".join(frame.split())
        if " ".join((self.section.system or "").split()) not in frame:
            raise ConfigError(
                "prompt.system is not in the prompts: the tokenizer's chat template leaves out a system turn",
                hint="put its text into prompt.template: --set prompt.system=null --set prompt.template='…{history}…'",
            )
        if any(" ".join(words.split()) not in frame for words in self.section.template.split("{history}")):
            raise ConfigError(
                "prompt.template is not in the prompts: the tokenizer's chat template leaves out the user's turn",
                hint="set prompt.chat to never, or take a model whose template has a user's turn of plain text",
            )

    def _encoded(self, text: str) -> Prompt:
        return Prompt(self.encoder.show(text), tuple(self.encoder.prompt_ids(text, is_framed=self.chat)))

    def _cut_to_fit(self, text: str, frame: Callable[[str], str]) -> Prompt:
        """Fits as many words from the start of `text` as it can, by halving; of a word too long, its first letters."""

        def fill(part: str) -> Prompt:
            return self._prompt(frame(self.encoder.guard(part)))

        whole, limit = text, self.section.max_prompt_length
        text = whole[: self._most_characters]
        prompt = fill(text)
        if len(prompt.ids) <= limit:
            return replace(prompt, is_cut=len(text) < len(whole))
        words = [word.end() for word in re.finditer(r"\S+", text)]
        for ends in (words, range(1, words[0] if words else 1)):
            low, best = 0, None
            high = len(ends)
            while low < high:
                middle = (low + high + 1) // 2
                prompt = fill(text[: ends[middle - 1]])
                if len(prompt.ids) <= limit:
                    low, best = middle, replace(prompt, is_cut=True)
                else:
                    high = middle - 1
            if best is not None:
                return best
        return replace(fill(""), is_cut=True)
