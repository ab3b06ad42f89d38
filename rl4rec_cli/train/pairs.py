"""Texts that are learnt, as tokens: pairs of a prompt and what supervision teaches after it.

Decides: where a text joins its prompt, that it ends with the token that ends a completion, what a limit cuts, and that
prompts are not taught. The warm start learns such pairs, and so do the supervised part of a mixed loss
(`trainer.sft_weight`) and learning from better and worse answers.
Hides: tokenisation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl4rec_cli.data.prompts import Prompt
    from rl4rec_cli.train.environments import Encoding

LEFT_OUT = -100
"""Label of tokens that are not taught."""


def build_pairs(
    taught: Iterable[tuple[Prompt, str]], builder: Encoding, *, max_completion_length: int
) -> list[dict[str, list[int]]]:
    """Returns `input_ids` and `labels` of each prompt and its text; prompt tokens have the label `LEFT_OUT`."""
    rows = []
    for prompt, text in taught:
        ids = text_ids(prompt, text, builder, most=max_completion_length)
        rows.append({"input_ids": [*prompt.ids, *ids], "labels": [LEFT_OUT] * len(prompt.ids) + ids})
    return rows


def text_ids(prompt: Prompt, text: str, builder: Encoding, *, most: int) -> list[int]:
    """Returns the tokens of a text as a completion of a prompt, at most `most` with the one that ends it."""
    # After a chat template or a line break the text starts as it is; after a word it needs its blank.
    if not builder.chat and not prompt.text[-1:].isspace():
        text = " " + text
    return [*builder.encoder.text_ids(text)[: most - 1], builder.end_id]
