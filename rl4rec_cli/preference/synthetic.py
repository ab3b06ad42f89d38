"""Made-up pairs, for a quick test without data.

Decides: what they are about, and that the better answer names what was asked for while the worse one declines.
Hides: drawing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rl4rec_cli.preference.records import Pair, Turn

_KINDS = (
    *("soap", "cream", "shampoo", "lotion", "balm", "scrub", "mask", "serum", "oil", "powder"),
    *("perfume", "brush", "comb", "mirror", "candle", "towel", "sponge", "razor", "gel", "tonic"),
)
_SORTS = (
    *("rose", "mint", "cedar", "honey", "lemon", "olive", "vanilla", "almond", "coconut", "lavender"),
    *("green", "blue", "soft", "warm", "fresh", "plain", "light", "dark", "small", "large"),
)
_ASKS = ("Which {item} is good?", "Name a good {item}.", "I need a {item}.")
_BETTER = ("this {item} is good, try it", "try this good {item}", "yes, this {item} is a good one")
_WORSE = ("i do not know", "ask somebody else", "there is nothing to say")


def synthesize_pairs(prompts: int, subjects: int, seed: int) -> Sequence[Pair]:
    """Makes pairs up.

    Args:
        prompts: how many.
        subjects: things that they ask about, at most 400.
        seed: of the draw.
    """
    draw = random.Random(seed)
    items = [f"{sort} {kind}" for sort in _SORTS for kind in _KINDS]
    items = draw.sample(items, min(subjects, len(items)))
    pairs = []
    for _ in range(prompts):
        item = draw.choice(items)
        ask, better, worse = (draw.choice(forms).format(item=item) for forms in (_ASKS, _BETTER, _WORSE))
        pairs.append(Pair((Turn("user", ask),), better, worse, is_chat=False))
    return pairs
