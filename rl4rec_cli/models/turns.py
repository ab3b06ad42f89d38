"""What ends a turn of a chat model.

Decides: the token that a chat template writes after an answer ends it, whatever the tokenizer's files call their end.
Hides: how to ask a chat template.

Both differ in many files: Gemma's end of turn is not its end of sequence, and converters take one for the other.
"""

from __future__ import annotations

import re
from typing import Any

_ANSWER = "rl4rec answer"
_TURNS = ({"role": "user", "content": "rl4rec question"}, {"role": "assistant", "content": _ANSWER})


def end_of_turn(tokenizer: Any) -> int | None:
    """Returns the id of the token that the chat template writes after an answer.

    It is None without a chat template, and of one that refuses answers or writes no single token after them.
    """
    if not tokenizer.chat_template:
        return None
    try:
        text = tokenizer.apply_chat_template(list(_TURNS), tokenize=False)
    except Exception:  # a template can raise anything; the prompts of a model do without answers
        return None
    after = text.rpartition(_ANSWER)[2].lstrip()
    names = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    names |= {str(token) for token in tokenizer.all_special_tokens}
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    end = re.match("|".join(map(re.escape, longest_first)), after) if longest_first else None
    return int(tokenizer.convert_tokens_to_ids(end[0])) if end is not None and end[0].strip() else None
