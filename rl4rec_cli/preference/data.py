"""Preference data as a run learns from them: pairs, of which some prompts are held out.

Decides: which pairs are used, which prompts are held out (whole prompts, drawn by `data.pairs.seed`), what identifies
the data.
Hides: records that are no pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rl4rec_cli import console
from rl4rec_cli.errors import ConfigError, DataError
from rl4rec_cli.files.digests import sha256, sha256_of_parts
from rl4rec_cli.preference.records import Pair, RecordError, read_pair
from rl4rec_cli.preference.sources import PUBLISHED, Source, open_source
from rl4rec_cli.preference.synthetic import synthesize_pairs

if TYPE_CHECKING:
    from rl4rec_cli.config.pairs import PairsSection
    from rl4rec_cli.config.sections import DataSection


@dataclass(frozen=True)
class PairsDataset:
    """Pairs to train on, and pairs of other prompts to measure."""

    name: str
    train: tuple[Pair, ...]
    held_out: tuple[Pair, ...]

    @property
    def has_validation(self) -> bool:
        """Whether there are prompts that nothing is trained on."""
        return bool(self.held_out)

    @property
    def has_test(self) -> bool:
        """Whether there is a split beyond the held-out prompts: never."""
        return False

    @cached_property
    def digest(self) -> str:
        """Returns the identity (hex) of all pairs."""
        pairs = (*self.train, *self.held_out)
        return sha256_of_parts(part for pair in pairs for part in (pair.key, pair.chosen, pair.rejected))

    def texts(self, field: str = "text") -> list[str]:
        """Returns all answers that are trained on, better and worse: what fitted embedders are fitted on."""
        return [text for pair in self.train for text in (pair.chosen, pair.rejected)]

    @property
    def tokenizer_texts(self) -> list[str]:
        """Returns what a tokenizer is trained on: prompts and answers."""
        return [turn.content for pair in self.train for turn in pair.prompt] + self.texts()


def open_pairs(section: DataSection) -> PairsDataset:
    """Opens the pairs that a run's `data` section names, or makes them up.

    Raises:
        ConfigError: it names none, or several. DataError: they cannot be read, some are no pairs, or too few are.
    """
    if section.synthetic is not None:
        made = section.synthetic
        pairs = synthesize_pairs(made.users, made.items, made.seed)
        return split_pairs("synthetic", pairs[: section.pairs.max_samples], section.pairs)
    if len(section.paths) != 1:
        raise ConfigError(
            "no preference data: data.path is not set"
            if not section.paths
            else "one set of preference data is trained on",
            hint=f"give --dataset FILE, {', '.join(PUBLISHED)} or a name of the Hub, or --quick-test for made-up pairs",
        )
    source = open_source(section.paths[0], section.pairs)
    return split_pairs(source.name, read_pairs(source, section.pairs), section.pairs)


def read_pairs(source: Source, section: PairsSection) -> list[Pair]:
    """Reads the first `max_samples` pairs of a source.

    Raises:
        DataError: records are no pairs and are to be refused (all are named), or none is one.
    """
    if source.note:
        console.log(f"Note: {source.note}")
    pairs: list[Pair] = []
    problems: list[tuple[str, str]] = []
    for where, record in source.records:
        if len(pairs) == section.max_samples:
            break
        try:
            if isinstance(record, RecordError):
                raise record
            pairs.append(read_pair(record))
        except RecordError as error:
            problems.append((where, error.message))
    refuses = source.is_own if section.bad_records == "auto" else section.bad_records == "refuse"
    total = len(pairs) + len(problems)
    if problems and (refuses or not pairs):
        what = (
            f"{len(problems):,} of {total:,} records are no pairs" if pairs else f"none of {total:,} records is a pair"
        )
        raise DataError(
            f"{source.name}: {what}",
            hint="mend them, or leave them out: --set data.pairs.bad_records=leave_out" if pairs else None,
            problems=[f"{where}: {message}" for where, message in problems],
        )
    if problems:
        counts = Counter(message for _, message in problems).most_common(3)
        told = "; ".join(f"{message} ({count:,})" for message, count in counts)
        console.log(f"{source.name}: {len(problems):,} of {total:,} records are no pairs and are left out: {told}")
    if not pairs:
        raise DataError(f"{source.name}: there are no records")
    return pairs


def split_pairs(name: str, pairs: Iterable[Pair], section: PairsSection) -> PairsDataset:
    """Holds out the pairs of a share of the prompts.

    Raises:
        DataError: too few prompts to hold any out.
    """
    pairs = tuple(pairs)
    keys = sorted({pair.key for pair in pairs}, key=lambda key: sha256(f"{section.seed}\0{key}".encode()))
    count = max(1, round(section.held_out * len(keys))) if section.held_out else 0
    if count >= len(keys):
        raise DataError(
            f"{name}: {len(keys)} prompt{'s' * (len(keys) != 1)}, too few to hold one out",
            hint="give more, or hold none out: --set data.pairs.held_out=0",
        )
    held = set(keys[:count])
    return PairsDataset(name, tuple(p for p in pairs if p.key not in held), tuple(p for p in pairs if p.key in held))
