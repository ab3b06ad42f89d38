"""The texts of a dataset as an audit compares them, and what item texts give away.

Decides: what counts as the same text, and which titles are telling (nobody writes them by accident).
Hides: folding (case, white space, punctuation); `words.py` defines what a word is.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from rl4rec_cli.config.sections import PromptSection
from rl4rec_cli.data.audit.findings import Check, Example, Tally, count_of, judge
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.late_fields import COUNTS, why_late
from rl4rec_cli.data.prompts import item_renderer
from rl4rec_cli.data.words import UNPARTED, folded, split

PAIRS = 200_000
"""Most (item, next item) pairs whose texts the audit compares."""
LEAST_ITEMS = 0.005
"""Share of items whose text speaks of other customers from which on it is no figure of speech of a seller."""

_SIGN = re.compile(f"[{UNPARTED}]")
_NUMBER = re.compile(r"(?<![\w.,])\d{1,10}(?!\w|[.,]\d)")
_BRAND = re.compile(r"\bBrand: ([^.|]{2,60})")  # where it stands only in `text`
# Of folded texts, in which an underscore is a letter.
_NAMES_OTHERS = re.compile(
    r" (?:also[ _](?:bought|viewed|buy|view|watched|liked)|bought[ _]together|buy[ _]after[ _]viewing"
    r"|(?:customers|people|users|shoppers|readers|viewers) who (?:bought|viewed|chose|watched|read|liked)) "
)
_HINTS = (" also", "bought", "viewing", " who ")  # one of them is in each of these; much faster to look for
CONTROL_TOKENS = re.compile(
    r"<\|[A-Za-z0-9_▁｜-]{2,40}\|>|</?s>|<(?:eos|bos|pad|unk|mask)>|<(?:start|end)_of_(?:turn|text|image)>"
    r"|\[/?INST\]|<</?SYS>>|\[(?:CLS|SEP|PAD|MASK|UNK|BOS|EOS)\]|<｜[^<>]{2,40}｜>"
)
"""As ChatML, Llama, Gemma, Mistral, BERT and DeepSeek write them."""


def fold(text: str) -> str:
    """Returns lower-case words between single spaces, with one at each end, so that `in` finds whole words only."""
    return f" {' '.join(split(folded(text)))} "


def squeeze(text: str) -> str:
    """Folds case and white space, and nothing else: "C++" is not "C"."""
    return " ".join(text.casefold().split())


def numbers(text: str) -> set[int]:
    """Returns the whole numbers that stand by themselves: not the 5 of 0.5 or of E55."""
    return {int(number) for number in _NUMBER.findall(text)}


def excerpt(text: str, part: str, around: int = 30) -> str:
    """Returns `part` as «part» with its surroundings in `text`, or the start of `text` if `part` is not in it."""
    match = re.search(r"\W*".join(map(re.escape, split(part))), text, re.IGNORECASE) if part else None
    if not match:
        return " ".join(f"{text[:80]}{'…' * (len(text) > 80)}".split())
    return _marked(text, *match.span(), around)


def _marked(text: str, start: int, end: int, around: int = 30) -> str:
    """Returns a stretch of a text as «stretch», with its surroundings."""
    before, after = text[max(0, start - around) : start], text[end : end + around]
    excerpt_text = f"{'…' * (start > around)}{before}«{text[start:end]}»{after}{'…' * (end + around < len(text))}"
    return " ".join(excerpt_text.split())


class Texts:
    """The texts of a dataset, folded once. Lists are in the order of items.

    Args:
        section: template of history items.
        emb_type: field of the items that the embedder reads.

    Raises:
        ConfigError: `section.item_template` does not fit the items.
        DataError: a title or the embedded field is missing.
    """

    def __init__(self, dataset: Dataset, section: PromptSection, emb_type: str) -> None:
        self.dataset, self.section, self.emb_type = dataset, section, emb_type
        self.raw_titles = dataset.texts("title")
        self.raw_rendered = item_renderer(section.item_template, dataset, setting="prompt.item_template")
        self.raw_embedded = dataset.texts(emb_type)
        self.titles = [fold(text) for text in self.raw_titles]
        only_titles = self.raw_rendered == self.raw_titles
        self.rendered = self.titles if only_titles else [fold(text) for text in self.raw_rendered]
        self.embedded = [fold(text) for text in self.raw_embedded]
        self.is_telling = [_is_telling(title) for title in self.titles]
        self.title_words = [frozenset(text.split()) for text in self.titles]
        self.brands = [_brand(item, text) for item, text in zip(dataset.items, self.raw_embedded, strict=True)]
        self.prompts = {user: fold(text) for user, text in dataset.prompts.items()}
        self._words: dict[int, frozenset[str]] = {}

    def words(self, items: Iterable[int]) -> set[str]:
        """Returns the words that prompts and the embedder see of these items."""
        words_of_items: set[str] = set()
        for i in items:
            if i not in self._words:
                self._words[i] = frozenset(f"{self.titles[i]}{self.rendered[i]}{self.embedded[i]}".split())
            words_of_items |= self._words[i]
        return words_of_items


def _is_telling(title: str) -> bool:
    """Returns whether nobody writes this folded title by accident: three words and 12 letters, or two with a number.

    "Hat" and "hand cream" occur in many prompts; "Heat (1995)" does not. A title of Chinese or Japanese signs, each of
    which folds to a word, needs six.
    """
    count, length = title.count(" ") - 1, len(title) - 2
    if not title.isascii() and _SIGN.search(title):
        return count >= 6
    return (count > 2 and length >= 12) or (count == 2 and any(map(str.isdecimal, title)))


def _brand(item: Mapping[str, Any], text: str) -> str:
    value = item.get("brand")
    if not isinstance(value, str):
        match = _BRAND.search(text)
        value = match[1] if match else ""
    return fold(value)


def text_checks(texts: Texts) -> Iterator[Check]:
    """Yields the checks of item texts, in the order to show them."""
    yield _names_others(texts)
    yield _next_title(texts)
    yield _fields(texts)
    yield _control_tokens(texts)


def _names_others(texts: Texts) -> Check:
    items = texts.dataset.items
    parts = zip(texts.titles, texts.rendered, texts.embedded, strict=True)
    hits = []
    for i, text in enumerate(map("|".join, parts)):
        if any(hint in text for hint in _HINTS) and (match := _NAMES_OTHERS.search(text)):
            hits.append((i, match[0]))
    tally = Tally(len(hits), len(items), "items")
    return judge(
        "co-purchases in item texts",
        tally,
        flagged=tally.above_chance(least=LEAST_ITEMS),
        severity="leak",
        headline="texts of {share} of the items name what others bought with them",
        meaning="Such lists are made from everyone's purchases, those that are to be predicted among them.",
        remedy=f"take them out of the fields that are shown and embedded ({_shown_fields(texts)})",
        examples=(Example(None, i, excerpt(_raw(texts, i), words, 60)) for i, words in hits),
    )


def _next_title(texts: Texts) -> Check:
    """Checks for items whose text holds the title of the item chosen next, beside items dealt out at random."""
    rng = np.random.default_rng(0)
    # The stroke: the end of one field and the start of the next are no title.
    texts_of_items = [f"{a}|{b}" for a, b in zip(texts.rendered, texts.embedded, strict=True)]
    pairs = [
        (a, b) for sequence in texts.dataset.sequences for a, b in pairwise(sequence) if a != b and texts.is_telling[b]
    ]
    if len(pairs) > PAIRS:
        pairs = [pairs[i] for i in rng.choice(len(pairs), PAIRS, replace=False)]

    def names(a: int, b: int) -> bool:
        # "OPI Lacquer" is in "OPI Lacquer, red": a family of titles, and no news.
        return texts.titles[b] in texts_of_items[a] and texts.titles[b] not in texts.titles[a]

    hits = [(a, b) for a, b in pairs if names(a, b)]
    dealt = rng.permutation([b for _, b in pairs]).tolist() if pairs else []
    chance = sum(names(a, b) for (a, _), b in zip(pairs, dealt, strict=True) if a != b)
    expected_share = (chance + 0.5) / len(pairs) if pairs else None
    return judge(
        "next title in item texts",
        Tally(len(hits), len(pairs), "pairs of neighbours", expected_share),
        severity="leak",
        headline="item texts hold the title of what was chosen next ({share} of the pairs)",
        meaning="A policy that copies from the history's texts, or an embedding of them, is told what comes next.",
        remedy=f"take other items' titles out of the fields that are shown and embedded ({_shown_fields(texts)})",
        examples=(Example(None, a, excerpt(_raw(texts, a), texts.raw_titles[b])) for a, b in dict.fromkeys(hits)),
    )


def _fields(texts: Texts) -> Check:
    """Checks for fields whose names tell that they hold what nobody knew at the time."""
    items = texts.dataset.items
    fields = {key for item in items for key, value in item.items() if value not in (None, "", [], {})}
    late = {name: why for name in sorted(fields) if (why := why_late(name)) is not None}
    in_use = {name for _, name, _, _ in string.Formatter().parse(texts.section.item_template)} | {texts.emb_type}
    late_in_use = [name for name in late if name in in_use]
    # Counts do no harm where they are not shown; reviews and lists do as soon as someone writes them into `text`.
    to_tell = late_in_use or [name for name in late if late[name] is not COUNTS]
    if not to_tell:
        return Check("fields known too late", "ok", f"none of {count_of(len(fields), 'field')} is one by its name")
    first = to_tell[0]
    holders = [i for i, item in enumerate(items) if item.get(first)]
    return judge(
        "fields known too late",
        Tally(len(holders), len(items), f"items have {first}"),
        flagged=True,
        severity="leak" if late_in_use and late[first] is not COUNTS else "warning",
        headline=f"field {', '.join(to_tell)} is {'shown or embedded' if late_in_use else 'there, though not shown'}",
        meaning=f"{late[first]}.",
        remedy="name it neither in prompt.item_template nor in retrieval.emb_type, and leave it out of `text`",
        examples=(Example(None, i, f"{first}: {excerpt(str(items[i][first]), '')}") for i in holders),
    )


def _control_tokens(texts: Texts) -> Check:
    """Checks for words in item texts that are control tokens of usual model families."""
    lines = [f"{title} | {text}" for title, text in zip(texts.raw_titles, texts.raw_rendered, strict=True)]
    hits = [(i, name) for i, text in enumerate(lines) if (name := CONTROL_TOKENS.search(text))]
    names = ", ".join(sorted({name[0] for _, name in hits})[:5])
    return judge(
        "names of control tokens",
        Tally(len(hits), len(lines), "items"),
        flagged=bool(hits),
        severity="warning",
        headline=f"{count_of(len(hits), 'item')} with words that are control tokens of some models ({names})",
        meaning="Prompts and training targets of rl4rec spell such words out. Other programs that read these texts may "
        "take them for the end of a turn or of the text.",
        remedy="take them out of titles and texts, or leave them as they are where that is what the items are called",
        examples=(Example(None, i, _marked(lines[i], *name.span())) for i, name in hits),
    )


def _raw(texts: Texts, item: int) -> str:
    return f"{texts.raw_embedded[item]} | {texts.raw_rendered[item]}"


def _shown_fields(texts: Texts) -> str:
    return " and ".join(dict.fromkeys([texts.emb_type, f"prompt.item_template {texts.section.item_template!r}"]))
