"""Records of preference data: the published forms, in their exact schemas, and what is no pair."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl4rec_cli.preference.records import Pair, RecordError, Turn, read_pair


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation: user, assistant, user, …"""
    roles = ["user", "assistant"] * len(contents)
    first = [{"role": "system", "content": system}] if system is not None else []
    return first + [{"content": text, "role": role} for text, role in zip(contents, roles, strict=False)]


ULTRAFEEDBACK = {
    "prompt": "Which soap smells of roses?",
    "prompt_id": "9a1e",
    "chosen": turns("Which soap smells of roses?", "The rose soap."),
    "rejected": turns("Which soap smells of roses?", "No idea."),
    "messages": turns("Which soap smells of roses?", "The rose soap."),
    "score_chosen": 8.5,
    "score_rejected": 3.0,
}
ARGILLA = {
    "source": "evol_instruct",
    "prompt": "Which soap smells of roses?",
    "chosen": turns("Which soap smells of roses?", "The rose soap."),
    "chosen-rating": 4.75,
    "chosen-model": "gpt-4",
    "rejected": turns("Which soap smells of roses?", "No idea."),
    "rejected-rating": 2.0,
    "rejected-model": "llama",
}
HH = {
    "chosen": "\n\nHuman: Hello\n\nAssistant: Hi. What do you need?\n\nHuman: A soap\n\nAssistant: The rose soap.",
    "rejected": "\n\nHuman: Hello\n\nAssistant: Hi. What do you need?\n\nHuman: A soap\n\nAssistant: The dust.",
}
TLDR = {
    "prompt": "SUBREDDIT: r/soap\nTITLE: Soap\nPOST: I like it.\nTL;DR:",
    "chosen": " Likes soap.",
    "rejected": " Dog.",
}
COMPARISON = {
    "info": {"id": "t3", "post": "I like it.", "title": "Soap", "subreddit": "soap", "site": None, "article": None},
    "summaries": [
        {"text": " Dog.", "policy": "sup", "note": None},
        {"text": " Likes soap.", "policy": "ref", "note": None},
    ],
    "choice": 1,
    "worker": "w",
    "batch": "b",
    "split": "train",
    "extra": {"confidence": 3},
}


def test_published_forms() -> None:
    """Each schema gives prompt, chosen and rejected, with the prompt cut off once."""
    question = (Turn("user", "Which soap smells of roses?"),)
    for record in (ULTRAFEEDBACK, ARGILLA):
        assert read_pair(record) == Pair(question, "The rose soap.", "No idea.", is_chat=True)
    assert read_pair(ULTRAFEEDBACK).columns["score_chosen"] == 8.5
    dialogue = (Turn("user", "Hello"), Turn("assistant", "Hi. What do you need?"), Turn("user", "A soap"))
    assert read_pair(HH) == Pair(dialogue, "The rose soap.", "The dust.", is_chat=True)
    post = (Turn("user", str(TLDR["prompt"])),)
    assert read_pair(TLDR) == Pair(post, "Likes soap.", "Dog.", is_chat=False)
    assert read_pair(COMPARISON) == read_pair(TLDR)
    beside = {"prompt": turns("A?"), "chosen": turns("", "B")[1:], "rejected": turns("", "C")[1:]}
    inside = {"chosen": turns("A?", "B"), "rejected": turns("A?", "C")}
    both = {"prompt": turns("A?"), **inside}
    texts = {"prompt": turns("A?"), "chosen": "B", "rejected": "C"}
    for record in (beside, inside, both, texts):
        assert read_pair(record) == Pair((Turn("user", "A?"),), "B", "C", is_chat=True)


word = st.text(alphabet="abc ?", min_size=1, max_size=4).filter(str.strip)


@given(st.lists(word, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2 == 1), word, word, st.booleans())
def test_prompt_is_cut_once_from_conversations(before: list[str], chosen: str, rejected: str, named: bool) -> None:
    """Whatever the turns say, what is shared before the last answers is the prompt, even where turns repeat."""
    if chosen.strip() == rejected.strip() or {chosen, rejected} & {before[-1]}:
        return
    record: dict[str, Any] = {"chosen": turns(*before, chosen), "rejected": turns(*before, rejected)}
    if named:
        record["prompt"] = turns(*before)
    pair = read_pair(record)
    assert [turn.content for turn in pair.prompt] == before
    assert (pair.chosen, pair.rejected) == (chosen.strip(), rejected.strip())


@given(st.lists(word, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2 == 1), word, word)
def test_dialogues_are_split_at_the_last_answer(before: list[str], chosen: str, rejected: str) -> None:
    """A common beginning of the answers belongs to the answers, not to the prompt."""
    if chosen.strip() == rejected.strip():
        return
    names = ["\n\nHuman: ", "\n\nAssistant: "] * len(before)
    start = "".join(name + text for name, text in zip(names, before, strict=False))
    record = {"chosen": f"{start}\n\nAssistant: so {chosen}", "rejected": f"{start}\n\nAssistant: so {rejected}"}
    pair = read_pair(record)
    assert [turn.content for turn in pair.prompt] == [text.strip() for text in before]
    assert (pair.chosen, pair.rejected) == (f"so {chosen}".strip(), f"so {rejected}".strip())


PLAIN = {"prompt": "Which soap smells of roses?", "chosen": "This.", "rejected": "That."}
ONE = turns("A?", "B")
BAD = {
    "no object": (["a"], "must be an object"),
    "no chosen": ({"prompt": "A", "rejected": "B"}, "`chosen` is missing; there is"),
    "null": ({**PLAIN, "rejected": None}, "`rejected` is missing"),
    "number": ({**PLAIN, "chosen": 3}, "`rejected` is text and `chosen` is the number 3"),
    "both numbers": ({**PLAIN, "chosen": 3, "rejected": 4}, "`chosen` must be text or a list of turns"),
    "mixed": ({"prompt": "A?", "chosen": ONE, "rejected": "C"}, "both must be of one form"),
    "empty answer": ({**PLAIN, "chosen": " \n"}, "`chosen` is empty"),
    "empty prompt": ({**PLAIN, "prompt": ""}, "`prompt`, user's turn, is empty"),
    "equal": ({**PLAIN, "chosen": "That. "}, "are the same"),
    "repeated": (
        {**PLAIN, "chosen": "Which soap smells of roses? This.", "rejected": "Which soap smells of roses? That."},
        "repeat `prompt`",
    ),
    "repeated turn": (
        {"prompt": turns("A?"), "chosen": turns("A?") + ONE, "rejected": turns("A?") + turns("A?", "C")},
        "`chosen` repeats the prompt",
    ),
    "role order": (
        {"chosen": [*turns("A?"), *turns("B?", "C")], "rejected": [*turns("A?"), *turns("B?", "D")]},
        "there is user, user",
    ),
    "starts with assistant": (
        {"chosen": [*turns("A", "B", "C")[1:], {"role": "assistant", "content": "x"}],
         "rejected": [*turns("A", "B", "C")[1:], {"role": "assistant", "content": "y"}]},
        "must go user, assistant",
    ),
    "two answers": (
        {"chosen": turns("A?", "B", "C", "D"), "rejected": turns("A?", "X", "C", "D")}, "must have one turn"
    ),
    "unknown role": ({"chosen": [{"role": "tool", "content": "x"}], "rejected": ONE}, "turn 1: the role must be"),
    "no content": ({"chosen": [{"role": "user", "content": None}], "rejected": ONE}, "content must be text, is null"),
    "nothing shared": ({"chosen": turns("", "B")[1:], "rejected": turns("", "C")[1:]}, "share no turn"),
    "another prompt": (
        {"prompt": "Z?", "chosen": turns("A?", "B"), "rejected": turns("A?", "C")}, "in none of the turns"
    ),
    "no dialogue": ({"chosen": "A", "rejected": "B"}, "is no dialogue"),
    "parts early": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
         "rejected": "\n\nHuman: a\n\nAssistant: x\n\nHuman: c\n\nAssistant: e"},
        "part before the last answer",
    ),
    "empty dialogue": ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": ""}, "`rejected` is empty"),
    "choice": ({**COMPARISON, "choice": 2}, "`choice` must be 0 or 1"),
    "one summary": ({**COMPARISON, "summaries": [{"text": "a"}]}, "must be two objects"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_pair(name: str) -> None:
    record, reason = BAD[name]
    with pytest.raises(RecordError) as error:
        read_pair(record)
    assert reason in error.value.message
