"""Tokens and the rows that a model has for them.

Decides: which tokens beyond the embedding do no harm: special ones that no text becomes, and padding, whose place the
end token takes.
"""

from __future__ import annotations

from typing import Any


def extra_tokens(tokenizer: Any, rows: int) -> list[str]:
    """Returns the tokens that a text or a prompt can hold but that have no row in the embedding.

    Reading one of them ends in an index error. Padding is not counted: see `pad_within`.

    Args:
        rows: of the model's embedding.
    """
    if len(tokenizer) <= rows:
        return []
    added = tokenizer.added_tokens_decoder
    template = str(getattr(tokenizer, "chat_template", None) or "")
    specials = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token}
    return [
        token
        for token, number in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
        if number >= rows
        and token != tokenizer.pad_token
        and (token in specials or token in template or not (number in added and added[number].special))
    ]


def pad_within(tokenizer: Any, rows: int) -> None:
    """Pad with the end token where there is no padding token, or one that the embedding has no row for."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token


def describe_extra(tokenizer: Any, rows: int, extra: list[str]) -> str:
    """What does not fit, with both sizes."""
    first = ", ".join(repr(token) for token in extra[:3]) + (", …" if len(extra) > 3 else "")
    return f"its tokenizer has {len(tokenizer):,} tokens, but its embedding has {rows:,} rows: none for {first}"


RESIZE = (
    "give the model rows for them and train them: model.resize_token_embeddings(len(tokenizer)), then save_pretrained; "
    "or take the tokenizer that the model was trained with"
)
