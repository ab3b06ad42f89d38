"""Texts to the tokens that a policy reads.

Decides: a prompt ends open: it leaves out what a tokenizer appends to a text, such as the end token. The text of an
item is plain text, whatever it contains: the policy reads the name of a control token in a title letter by letter. The
names in a chat template and in `prompt.template` are control tokens.
Hides: special tokens, and how to keep tokenizers from looking for them.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from rl4rec_cli.errors import PolicyError

MARK = "\U000f0000"
"""A character of Unicode's private use. With the letter after it, it stands for the name of a control token in the text
of an item; doubled, it stands for itself."""
_FIRST = 0xF0001
# Not all that steers a model is flagged as special: DeepSeek's turns and Qwen's tool calls are plain additions. Others
# are ordinary text (runs of blanks, Gemma's HTML tags), and stay as they are.
_STEERS = re.compile(r"<[^<>\s]*[|｜_▁][^<>\s]*>|</?think>")


class TextEncoder:
    """Encodes texts for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._opening, self._closing = _added(tokenizer)
        specials = {str(token) for token in tokenizer.all_special_tokens}
        added_tokens = getattr(tokenizer, "added_tokens_decoder", {})
        specials |= {str(t) for t in added_tokens.values() if getattr(t, "special", False) or _STEERS.fullmatch(str(t))}
        self._names = sorted(filter(None, specials), key=lambda name: (-len(name), name))
        self._ids = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in self._names}
        names = "|".join(map(re.escape, self._names))
        self._name = re.compile(names) if names else None
        self._guarded = re.compile(f"{MARK}|{names}" if names else MARK)

    def guard(self, text: str) -> str:
        """Replaces the names of control tokens in a text by marks."""
        return self._guarded.sub(self._mark, text)

    def _mark(self, match: re.Match[str]) -> str:
        name = match[0]
        return MARK + (MARK if name == MARK else chr(_FIRST + self._names.index(name)))

    def show(self, text: str) -> str:
        """Returns a guarded text as the policy reads it."""
        return _MARKED.sub(self._unmark, text) if MARK in text else text

    def _unmark(self, match: re.Match[str]) -> str:
        return MARK if match[1] == MARK else self._names[ord(match[1]) - _FIRST]

    def prompt_ids(self, text: str, *, is_framed: bool) -> list[int]:
        """Returns the tokens of a guarded prompt text, which ends open.

        Args:
            is_framed: a chat template wrote the control tokens; otherwise the tokenizer's opening ones come first.

        Raises:
            PolicyError: the tokenizer still makes a control token of an item's text.
        """
        if MARK not in text:
            ids = list(self._tokenizer(text, add_special_tokens=not is_framed)["input_ids"])
            has_closing = bool(self._closing) and not is_framed and ids[-len(self._closing) :] == self._closing
            return ids[: -len(self._closing)] if has_closing else ids
        ids = [] if is_framed else list(self._opening)
        place = 0
        for name in self._name.finditer(text) if self._name is not None else ():
            ids += [*self.text_ids(self.show(text[place : name.start()])), self._ids[name[0]]]
            place = name.end()
        return [*ids, *self.text_ids(self.show(text[place:]))]

    def text_ids(self, text: str) -> list[int]:
        """Returns the tokens of a text, none of them a control token.

        Raises:
            PolicyError: the tokenizer still makes a control token of it.
        """
        if not text:
            return []
        if self._name is None or self._name.search(text) is None:
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        ids = list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        controls = set(self._ids.values()) - {self._tokenizer.unk_token_id}
        if controls.intersection(ids):  # of a name that the tokenizer does not flag, or cannot split
            cuts = [0, *(name.start() + 1 for name in self._name.finditer(text)), len(text)]
            parts = [text[start:end] for start, end in pairwise(cuts) if start < end]
            ids = [token for part in parts for token in self._tokenizer(part, add_special_tokens=False)["input_ids"]]
        if wrong := controls.intersection(ids):
            name = self._tokenizer.convert_ids_to_tokens(min(wrong))
            raise PolicyError(
                f"the tokenizer reads {name!r} in the text of an item as a control token",
                hint="take such words out of the items' texts (`rl4rec data audit` lists them), or use another model",
            )
        return ids

    def lengths(self, guarded: list[str]) -> list[int]:
        """Returns about how many tokens each of these guarded texts has."""
        if not guarded:
            return []
        texts = [self.show(text) for text in guarded]
        return [len(ids) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]


_MARKED = re.compile(f"{MARK}(.)")


def _added(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Returns the tokens that the tokenizer puts before and after a text."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []
