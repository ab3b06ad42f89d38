"""Texts to words, for every script: the one splitter of retrieval by words, of figures about texts and of the audit.

Decides: what a word is where blanks part words, and where they do not (Chinese, Japanese, Thai, Lao, Burmese, Khmer).
In the latter scripts each sign is one, and retrieval reads pairs of neighbouring signs, too, as they are nearly words.
Hides: Unicode.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise

UNPARTED = (
    "\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese, Japanese
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
)
"""Signs of scripts without blanks between words, as the inside of a regular expression's brackets."""
WORDS_VERSION = 2
"""Part of what is known by its words, such as files of vectors: raise it when a text gets other words."""
LEAST_SHARED = 0.5
"""Share of texts with a word in common with another text, below which words say next to nothing of a catalogue."""
_ASCII = re.compile(r"\w+")
_SIGN_OR_WORD = re.compile(rf"[{UNPARTED}]|[^{UNPARTED}]+")
_SIGN = re.compile(f"[{UNPARTED}]")


def folded(text: str) -> str:
    """Folds case and forms of signs: full-width letters and ligatures become plain ones."""
    return text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def split(text: str) -> list[str]:
    """Returns the words of a text, unfolded; each sign of a script without blanks is one."""
    if text.isascii():
        return _ASCII.findall(text)
    return [part for run in _runs().findall(text) for part in _SIGN_OR_WORD.findall(run)]


def words(text: str) -> list[str]:
    """Returns what retrieval by words reads of a text: its folded words, one-letter words too, and pairs of signs."""
    text = folded(text)
    if text.isascii():
        return _ASCII.findall(text)
    terms: list[str] = []
    for run in _runs().findall(text):
        parts = _SIGN_OR_WORD.findall(run)
        terms += parts
        terms += [a + b for a, b in pairwise(parts) if _SIGN.match(a) and _SIGN.match(b)]
    return terms


def share_with_common_words(texts: Sequence[Iterable[str]]) -> float:
    """Returns the share of texts with a word in common with another text, among texts with words; 1 without any.

    Args:
        texts: the words of each; equal texts count as one.
    """
    distinct = {frozenset(text) for text in texts} - {frozenset()}
    counts = Counter(word for text in distinct for word in text)
    count = sum(any(counts[word] > 1 for word in text) for text in distinct)
    return count / len(distinct) if len(distinct) > 1 else 1.0


@cache
def _runs() -> re.Pattern[str]:
    """Matches letters, digits and the marks on them: to Python the vowels of Hindi and Thai are no part of a word."""
    marks = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "M"]
    return re.compile(rf"[\w{''.join(marks)}]+")
