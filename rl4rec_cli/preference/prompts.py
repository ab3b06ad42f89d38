"""Pairs to prompts: what the policy reads.

Decides: by the tokenizer's chat template where there is one and it is to be used; else one turn stands alone, and
several stand under the names of their speakers. A prompt that is too long is left out, not cut: a question without its
end asks something else.
Hides: the chat template and the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.data.dates import day_variables
from rl4rec_cli.data.encoding import TextEncoder
from rl4rec_cli.data.prompts import Prompt
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.files.digests import sha256
from rl4rec_cli.models.turns import end_of_turn
from rl4rec_cli.preference.records import Pair, Turn

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import PromptSection

_SPEAKERS = {"user": "User", "assistant": "Assistant"}


class PairPrompts:
    """Writes prompts for one tokenizer.

    Args:
        section: system text, limit, and whether there is a chat template to use.
        tokenizer: a transformers tokenizer.

    Raises:
        ConfigError: `prompt.chat` needs a chat template, and the tokenizer has none.
    """

    def __init__(self, section: PromptSection, tokenizer: Any) -> None:
        self.section, self._tokenizer = section, tokenizer
        self.chat = section.chat == "always" or (section.chat == "auto" and bool(tokenizer.chat_template))
        if section.chat == "always" and not tokenizer.chat_template:
            raise ConfigError("prompt.chat is always, but this tokenizer has no chat template", hint="set it to auto")
        turn = end_of_turn(tokenizer) if self.chat else None
        self.end_id: int = tokenizer.eos_token_id if turn is None else turn
        """The token that ends a completion of these prompts."""
        self.encoder = TextEncoder(tokenizer)
        self._day = day_variables(section.date)
        self._built: dict[str, Prompt] = {}

    def build(self, pair: Pair) -> Prompt:
        """Returns the prompt of a pair, however long it is. It is kept: a run asks for it several times."""
        if (prompt := self._built.get(pair.key)) is None:
            prompt = self._built[pair.key] = self._written(pair)
        return prompt

    def _written(self, pair: Pair) -> Prompt:
        turns = pair.prompt
        if self.section.system is not None and turns[0].role != "system":
            turns = (Turn("system", self.section.system), *turns)
        guarded = [turn._replace(content=self.encoder.guard(turn.content)) for turn in turns]
        text = self._templated(guarded) if self.chat else _plain(guarded)
        return Prompt(self.encoder.show(text), tuple(self.encoder.prompt_ids(text, is_framed=self.chat)))

    def _templated(self, turns: Sequence[Turn]) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                [turn._asdict() for turn in turns], tokenize=False, add_generation_prompt=True, **self._day
            )
        except Exception as error:  # a template can raise anything, for instance on a system message
            raise ConfigError(
                f"the tokenizer's chat template refused the prompt: {error}", hint="set prompt.chat to never"
            ) from error
        return text

    def fitting(self, pairs: Sequence[Pair], what: str) -> list[Pair]:
        """Returns the pairs whose prompts are within `prompt.max_prompt_length`, and says how many are not.

        Args:
            what: the pairs are, for messages.

        Raises:
            ConfigError: none is.
        """
        limit = self.section.max_prompt_length
        fitting = [pair for pair in pairs if len(self.build(pair).ids) <= limit]
        if pairs and not fitting:
            raise ConfigError(
                f"none of the {len(pairs):,} {what} has at most prompt.max_prompt_length={limit} tokens",
                hint="raise prompt.max_prompt_length",
            )
        if left := len(pairs) - len(fitting):
            console.log(f"{left:,} of {len(pairs):,} {what} are longer than {limit} tokens and left out")
        return fitting

    def digest(self, pairs: Sequence[Pair]) -> str:
        """Returns the identity (hex) of the prompts of pairs."""
        return sha256(*(f"{' '.join(map(str, self.build(pair).ids))}\n".encode() for pair in pairs))


def _plain(turns: Sequence[Turn]) -> str:
    """Writes a prompt for a model without a chat template."""
    spoken = [turn for turn in turns if turn.role in _SPEAKERS]
    if len(spoken) == 1:
        return "\n\n".join(turn.content for turn in turns) + "\n"
    lines = [f"{_SPEAKERS[turn.role]}: {turn.content}" if turn.role in _SPEAKERS else turn.content for turn in turns]
    return "\n\n".join([*lines, f"{_SPEAKERS['assistant']}:"])
