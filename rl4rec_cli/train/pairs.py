"""Pairs of a prompt and the text that supervision teaches after it, as tokens.

Decides: which text a policy is taught: the next item's, or that of the history's last item. The warm start learns it,
and so does the supervised part of a mixed loss (`trainer.sft_weight`).
Hides: tokenisation of the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rl4rec_cli.data.prompts import PromptBuilder, item_renderer

if TYPE_CHECKING:
    from rl4rec_cli.config.trainer import SftSection
    from rl4rec_cli.data.dataset import Dataset, Example

LEFT_OUT = -100
"""Label of tokens that are not taught."""


def build_pairs(
    section: SftSection,
    dataset: Dataset,
    examples: Sequence[Example],
    builder: PromptBuilder,
    *,
    max_completion_length: int,
) -> list[dict[str, list[int]]]:
    """Returns `input_ids` and `labels` of each example; prompt tokens have the label `LEFT_OUT`.

    The text ends with the token that ends a completion, even where `max_completion_length` cuts it.
    """
    texts = item_renderer(section.target_template, dataset, setting="target_template")
    rows = []
    for example in examples:
        prompt = builder.build(example.user, example.history)
        text = texts[example.target if section.target == "next" else example.history[-1]]
        # After a chat template or a line break the text starts as it is; after a word it needs its blank.
        if not builder.chat and not prompt.text[-1:].isspace():
            text = " " + text
        ids = builder.encoder.text_ids(text)[: max_completion_length - 1]
        ids = [*ids, builder.end_id]
        rows.append({"input_ids": [*prompt.ids, *ids], "labels": [LEFT_OUT] * len(prompt.ids) + ids})
    return rows
