"""One record of a preference data set, in any of its published forms, as a pair.

Decides: which forms are read, where a prompt ends and an answer begins, and which records are none: a record is used as
it is meant or not at all.
Hides: the forms.

The forms: texts `prompt`, `chosen`, `rejected`; `chosen` and `rejected` as role/content lists, with the prompt in them,
beside them or both; whole dialogues as texts (`\\n\\nHuman: … \\n\\nAssistant: …`); two `summaries` of a post with the
`choice` between them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rl4rec_cli.data.parsing import kind, short, some, text_flaw
from rl4rec_cli.errors import Rl4RecError

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_KNOWN = ("system", "user", "assistant")
_FEW_WORDS = 4
"""An answer may well begin with the words of a prompt that is shorter."""


class RecordError(Rl4RecError):
    """A record is no pair; the message says why."""


class Turn(NamedTuple):
    role: str
    content: str


@dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse answer."""

    prompt: tuple[Turn, ...]
    """Its last turn is the user's."""
    chosen: str
    rejected: str
    is_chat: bool
    """The record holds role/content lists, so that rewards are given such lists."""
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What else the record holds."""

    @property
    def key(self) -> str:
        """Returns the prompt as one text: pairs of equal prompts have equal keys."""
        return "\0".join(part for turn in self.prompt for part in turn)


def read_pair(record: Any) -> Pair:
    """Returns the pair of a record.

    Raises:
        RecordError: it is none.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"must be an object, is {kind(record)}")
    if "summaries" in record and "choice" in record:
        return _whole(*_comparison(record), is_chat=False, record=record)
    for name in ("chosen", "rejected"):
        if record.get(name) is None:
            there = some([short(str(key)) for key in record]) or "nothing"
            raise RecordError(f"`{name}` is missing; there is {there}")
    chosen, rejected, prompt = record["chosen"], record["rejected"], record.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return _whole(*_dialogues(chosen, rejected), is_chat=True, record=record)
        if isinstance(prompt, str):
            _refuse_repeated(prompt, chosen, rejected)
            return _whole([Turn("user", prompt)], chosen, rejected, is_chat=False, record=record)
        return _whole(_turns(prompt, "prompt"), chosen, rejected, is_chat=True, record=record)
    if isinstance(chosen, str) or isinstance(rejected, str):
        text, other = ("chosen", "rejected") if isinstance(chosen, str) else ("rejected", "chosen")
        raise RecordError(f"`{text}` is text and `{other}` is {kind(record[other])}: both must be of one form")
    ours, theirs = _turns(chosen, "chosen"), _turns(rejected, "rejected")
    return _whole(*_conversations(prompt, ours, theirs), is_chat=True, record=record)


def _whole(prompt: Sequence[Turn], chosen: str, rejected: str, *, is_chat: bool, record: Mapping[str, Any]) -> Pair:
    """Returns the pair of these parts, after all that must hold of every form."""
    _check_order(prompt)
    for name, text in (
        *((f"`prompt`, {turn.role}'s turn,", turn.content) for turn in prompt),
        *_named(chosen, rejected),
    ):
        if (flaw := text_flaw(text)) is not None:
            raise RecordError(f"{name} {flaw}")
    chosen, rejected = chosen.strip(), rejected.strip()
    if chosen == rejected:
        raise RecordError("`chosen` and `rejected` are the same")
    columns = {key: value for key, value in record.items() if key not in ("prompt", "chosen", "rejected")}
    return Pair(tuple(prompt), chosen, rejected, is_chat, columns)


def _named(chosen: str, rejected: str) -> tuple[tuple[str, str], ...]:
    return ("`chosen`", chosen), ("`rejected`", rejected)


def _check_order(turns: Sequence[Turn]) -> None:
    """Refuses a prompt other than user, assistant, user, …, user, which a system turn may precede."""
    roles = [turn.role for turn in turns]
    rest = roles[1:] if roles[:1] == ["system"] else roles
    if len(rest) % 2 == 0 or rest != ["user", "assistant"] * (len(rest) // 2) + ["user"]:
        found = ", ".join(roles) or "no turn"
        raise RecordError(f"the prompt's turns must go user, assistant, … and end with user's; there is {found}")


def _refuse_repeated(prompt: str, chosen: str, rejected: str) -> None:
    """Refuses answers that begin with their prompt: a policy would learn to write it once more."""
    words = prompt.strip()
    if len(words.split()) >= _FEW_WORDS and chosen.lstrip().startswith(words) and rejected.lstrip().startswith(words):
        raise RecordError("`chosen` and `rejected` repeat `prompt` at their beginning: leave it out of them")


def _turns(value: Any, name: str) -> list[Turn]:
    """Reads a role/content list."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RecordError(f"`{name}` must be text or a list of turns with role and content, is {kind(value)}")
    turns = []
    for number, turn in enumerate(value, start=1):
        where = f"`{name}`, turn {number}"
        if not isinstance(turn, Mapping):
            raise RecordError(f"{where}: must be an object with role and content, is {kind(turn)}")
        role, content = turn.get("role"), turn.get("content")
        if role not in _KNOWN:
            raise RecordError(f"{where}: the role must be {', '.join(_KNOWN[:-1])} or {_KNOWN[-1]}, is {kind(role)}")
        if not isinstance(content, str):
            raise RecordError(f"{where}: the content must be text, is {kind(content)}")
        turns.append(Turn(role, content))
    return turns


def _conversations(prompt: Any, chosen: list[Turn], rejected: list[Turn]) -> tuple[list[Turn], str, str]:
    """Cuts the prompt off both conversations, once; where it stands beside them only, there is nothing to cut."""
    if prompt is not None and not isinstance(prompt, str):
        beside = _turns(prompt, "prompt")
        starts = [turns[: len(beside)] == beside for turns in (chosen, rejected)]
        if beside and all(starts):
            chosen, rejected = chosen[len(beside) :], rejected[len(beside) :]
        return beside, _answer(chosen, "chosen", beside), _answer(rejected, "rejected", beside)
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    turns = chosen[:shared]
    if isinstance(prompt, str):
        if not turns:
            turns = [Turn("user", prompt)]
        elif not any(turn.content.strip() == prompt.strip() for turn in turns):
            raise RecordError("`prompt` is in none of the turns that `chosen` and `rejected` share")
    elif not turns:
        raise RecordError("there is no `prompt`, and `chosen` and `rejected` share no turn that could be it")
    return turns, _answer(chosen[shared:], "chosen", turns), _answer(rejected[shared:], "rejected", turns)


def _answer(turns: Sequence[Turn], name: str, prompt: Sequence[Turn]) -> str:
    """Returns the one turn that follows the prompt."""
    roles = ", ".join(turn.role for turn in turns)
    if prompt and any(turn == prompt[-1] for turn in turns):
        raise RecordError(f"`{name}` repeats the prompt: its turns after the prompt are {roles}")
    if [turn.role for turn in turns] != ["assistant"]:
        raise RecordError(f"`{name}` must have one turn after the prompt, the assistant's; there is {roles or 'none'}")
    return turns[0].content


def _dialogues(chosen: str, rejected: str) -> tuple[list[Turn], str, str]:
    """Splits two dialogues at the last answer whose beginning both share."""
    for name, text in _named(chosen, rejected):
        if not text.strip():
            raise RecordError(f"{name} is empty")
        if _HUMAN not in f"\n\n{text.lstrip()}":
            raise RecordError(f"there is no `prompt`, and {name} is no dialogue (\\n\\nHuman: … \\n\\nAssistant: …)")
    chosen, rejected = (f"\n\n{text.lstrip()}" for text in (chosen, rejected))
    shared = next((place for place, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    end = (chosen[:shared] if shared is not None else min(chosen, rejected, key=len)).rfind(_ASSISTANT)
    if end < 0:
        raise RecordError("`chosen` and `rejected` part before the first answer")
    start = end + len(_ASSISTANT)
    for name, text in _named(chosen[start:], rejected[start:]):
        if _SPEAKER.search(text):
            raise RecordError(
                f"`chosen` and `rejected` part before the last answer: in {name} there are turns after it"
            )
    before, *rest = _SPEAKER.split(chosen[:end])
    if before.strip():
        raise RecordError(f"the dialogue begins with {short(before.strip())}, not with a speaker")
    turns = [Turn(_ROLES[speaker], text.strip()) for speaker, text in zip(rest[::2], rest[1::2], strict=True)]
    return turns, chosen[start:], rejected[start:]


def _comparison(record: Mapping[str, Any]) -> tuple[list[Turn], str, str]:
    """Reads two summaries of a post, and which of them was chosen."""
    info, summaries, choice = record.get("info"), record["summaries"], record["choice"]
    if not isinstance(info, Mapping):
        raise RecordError(f"`info` must be an object, is {kind(info)}")
    texts = [one.get("text") if isinstance(one, Mapping) else None for one in summaries or ()]
    if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise RecordError("`summaries` must be two objects, each with a text")
    if isinstance(choice, bool) or choice not in (0, 1):
        raise RecordError(f"`choice` must be 0 or 1, is {kind(choice)}")
    lines = [
        f"{name.upper()}: {prefix}{info[name]}"
        for name, prefix in (("subreddit", "r/"), ("title", ""), ("post", ""), ("article", ""))
        if info.get(name)
    ]
    if not lines:
        raise RecordError("`info` has neither a post nor an article")
    return [Turn("user", "\n".join([*lines, "TL;DR:"]))], str(texts[choice]), str(texts[1 - choice])
