"""Synthetic catalogues and users, for trials and tests without real data.

Decides: what the catalogue is made of and how users choose, so that words pay: a user likes a brand and a category,
and a little a colour and a material, and chooses items by how many of them they have. Writing any of those words
raises the rank of what comes next. Titles also carry, as real ones do, words that tell nothing about the next choice
(the line and the size): a policy gains by leaving them out, and more by reading the taste from the whole history.
Hides: the drawing. Ids are shuffled and users drawn independently, so that neither ids nor their order tell anything.

The vocabulary is small on purpose: a tiny policy learns to read and write it in seconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.errors import ConfigError

BRANDS = ("Veltra", "Nordwen", "Sablio", "Quorin", "Tamsel", "Brixby", "Ovanna", "Pelmore")
COLOURS = ("crimson", "navy", "olive", "ivory")
MATERIALS = ("wool", "leather", "cotton", "linen")
CATEGORIES = ("scarf", "jacket", "backpack", "wallet", "hat", "gloves", "boots", "cushion")
LINES = (
    "Aurora",
    "Basin",
    "Cinder",
    "Drift",
    "Ember",
    "Fjord",
    "Grove",
    "Harbour",
    "Isle",
    "Juniper",
    "Kestrel",
    "Lagoon",
)
SIZES = ("mini", "compact", "slim", "classic", "large", "oversized", "travel", "family")
"""Lines and sizes do not depend on taste: they tell nothing of the next choice."""

MIN_ITEMS = 20
LENGTHS = (5, 15)
"""Shortest and longest sequence; a sequence is at most half of the catalogue."""

# How much more an item appeals for having what the user likes (added to the logarithm of its chance), and how uneven
# popularity is. Set by trial, so that under LSA popularity is weak (NDCG@10 about .05), the last item's title fair
# (.10), its brand and category alone twice that (.20), and the liked brand and category better still (.34).
LIKES_BRAND = 5.0
LIKES_CATEGORY = 4.0
LIKES_COLOUR = 1.0
LIKES_MATERIAL = 1.0
POPULARITY_SPREAD = 0.8


def synthesize(users: int, items: int, seed: int) -> Dataset:
    """Makes a synthetic dataset. The same arguments give the same dataset on every machine with the same numpy.

    Items have the extra fields `brand`, `category`, `colour`, `material`, `line` and `size`. Titles read "Veltra
    crimson wool scarf Aurora slim" and are distinct up to 98,304 items; texts are the titles with a full stop.

    Args:
        users: number of users, at least 1.
        items: number of items, at least 20.
        seed: a whole number from 0.

    Raises:
        ConfigError: a number is out of range.
    """
    for name, value, least in (("users", users, 1), ("items", items, MIN_ITEMS), ("seed", seed, 0)):
        if value < least:
            raise ConfigError(f"synthetic data: {name} is {value}", hint=f"it must be at least {least}")
    rng = np.random.default_rng(seed)
    traits = _draw_traits(rng, items)
    names = tuple(f"u{i + 1}" for i in range(users))
    sequences = _draw_sequences(rng, traits, users)
    catalogue = _write_items(rng, traits)
    return Dataset(
        name=f"synthetic-{users}x{items}-s{seed}",
        items=catalogue,
        users=names,
        sequences=sequences,
        prompts={},
        mask_history=True,
        meta={"source": "rl4rec data synth", "licence": "public domain (made up)", "seed": seed},
    )


def _draw_traits(rng: np.random.Generator, items: int) -> np.ndarray:
    """Draws `[items, 4]` brand, colour, material and category of each item, in random order: the row is the id."""
    sizes = (len(BRANDS), len(COLOURS), len(MATERIALS), len(CATEGORIES))
    combinations = int(np.prod(sizes))
    rounds = -(-items // combinations)
    codes = np.concatenate([rng.permutation(combinations) for _ in range(rounds)])[:items]
    return np.stack(np.unravel_index(rng.permutation(codes), sizes), axis=1)


def _draw_sequences(rng: np.random.Generator, traits: np.ndarray, users: int) -> tuple[tuple[int, ...], ...]:
    """Draws what each user chooses: items without repeats, by taste and popularity, in random order."""
    items = len(traits)
    brand, colour, material, category = traits.T
    popularity = rng.normal(0.0, POPULARITY_SPREAD, size=items)
    shortest, longest = (min(length, items // 2) for length in LENGTHS)
    sequences = []
    for _ in range(users):
        appeal = (
            popularity
            + LIKES_BRAND * (brand == rng.integers(len(BRANDS)))
            + LIKES_CATEGORY * (category == rng.integers(len(CATEGORIES)))
            + LIKES_COLOUR * (colour == rng.integers(len(COLOURS)))
            + LIKES_MATERIAL * (material == rng.integers(len(MATERIALS)))
        )
        length = rng.integers(shortest, longest, endpoint=True)
        # The top of appeal + Gumbel noise is a draw without repeats with chances ∝ exp(appeal). It comes best first,
        # which would make every last item, the target, the least liked: hence the shuffle.
        picks = np.argsort(-(appeal + rng.gumbel(size=items)), kind="stable")[:length]
        sequences.append(tuple(rng.permutation(picks).tolist()))
    return tuple(sequences)


def _write_items(rng: np.random.Generator, traits: np.ndarray) -> tuple[dict[str, Any], ...]:
    """Returns the catalogue's rows, `item_id` = position."""
    endings = len(LINES) * len(SIZES)
    first = rng.integers(endings, size=(len(BRANDS), len(COLOURS), len(MATERIALS), len(CATEGORIES)))
    rows = []
    for item_id, (b, c, m, k) in enumerate(traits.tolist()):
        # Items of the same traits take different endings, so that titles are distinct.
        line, size = divmod(int(first[b, c, m, k]) % endings, len(SIZES))
        first[b, c, m, k] += 1
        words = {
            "brand": BRANDS[b],
            "colour": COLOURS[c],
            "material": MATERIALS[m],
            "category": CATEGORIES[k],
            "line": LINES[line],
            "size": SIZES[size],
        }
        title = " ".join(words.values())
        rows.append({"item_id": item_id, "title": title, "text": f"{title}.", **words})
    return tuple(rows)
