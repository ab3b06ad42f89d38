"""What ids and sequences give away of the targets.

Decides: when ids follow the sequences, and which likenesses of items and of users bend the measurement.
Hides: the counting, and what the same data would give with its ids or its order shuffled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise

import numpy as np

from rl4rec_cli.data.audit.findings import CHANCE, EXAMPLES, Check, Example, Tally, judge, percent
from rl4rec_cli.data.audit.texts import Texts, squeeze
from rl4rec_cli.data.dataset import Dataset

FOLLOWING = 0.5
"""Rank correlation of ids with the items' first appearance from which on they follow it. Ids by age or name come to
.2 or .3, since old items appear early; ids handed out while reading the sequences to 1."""
RISING = 0.75
"""Share of neighbours whose ids rise (or fall) from which on sequences are in the order of ids. Half of them do where
ids are shuffled; popular items that come first and trends move it by some hundredths (Amazon Beauty, whose ids follow
the sequences: .52)."""
TIED = 0.01
"""Share of targets with the time of the item before from which on the order is doubtful."""
TWINS = 0.005
"""Share of targets with a twin in the catalogue. Ties count against the target, so that a twin costs up to .37 of a
target's NDCG: .002 of the mean from this share on."""
COPIED = 0.005
"""Share of users that are copies. They give nothing away, they are only counted twice, which narrows intervals by a
quarter of a per cent at this share."""
LEAST_COPIED = 5
"""Items from which on equal sequences are no coincidence; the same sequences in random order are compared as well."""
CONSTANT = 0.05
"""Share of targets that are one item, and three times more than elsewhere in the sequences: one answer for all."""


def sequence_checks(texts: Texts, *, ids_shown: bool) -> Iterator[Check]:
    """Yields the checks of ids and sequences, in the order to show them.

    Args:
        ids_shown: whether a model can read ids, which makes their order a leak.
    """
    dataset = texts.dataset
    titles, embedded_texts = ([squeeze(text) for text in raw] for raw in (texts.raw_titles, texts.raw_embedded))
    yield _target_in_history(dataset)
    yield from _id_checks(dataset, shown=ids_shown)
    yield _time_ties(dataset)
    yield _twins(texts, "duplicate items", [*zip(titles, texts.brands, embedded_texts, strict=True)])
    yield _twins(texts, "duplicate texts", embedded_texts)
    yield from _copied_users(dataset)
    yield _one_answer(dataset)
    yield _cold_targets(dataset)


def _target_in_history(dataset: Dataset) -> Check:
    name = "target in history"
    if not dataset.mask_history:
        return Check(name, "ok", "allowed: mask_history is false, users choose items again")
    hits = []
    for user, sequence in zip(dataset.users, dataset.sequences, strict=True):
        for end in (len(sequence) - 2, len(sequence) - 1):
            if sequence[end] in sequence[:end]:
                hits.append((user, sequence[end], sequence.index(sequence[end]), end))
    return judge(
        name,
        Tally(len(hits), 2 * len(dataset.users), "targets"),
        severity="leak",
        headline="target in the history for {share} of targets",
        meaning="The other history items are not ranked (mask_history), so that copying the history finds the target.",
        remedy="keep each user's first choice of an item only, or set mask_history to false in meta.json",
        examples=(Example(u, i, f"item {at + 1} of the sequence and again item {end + 1}") for u, i, at, end in hits),
    )


def _id_checks(dataset: Dataset, *, shown: bool) -> Iterator[Check]:
    """Checks whether ids tell the order in which users chose items."""
    items = dataset.num_items
    flat, starts = _flat(dataset.sequences)
    inside = np.ones(len(flat), dtype=bool)
    inside[starts] = False  # a user's first item follows none
    after = np.flatnonzero(inside)
    before_N, next_N = flat[after - 1], flat[after]
    present, first = np.unique(flat, return_index=True)
    appearance = _correlation(present, first)
    popularity = _correlation(present, np.bincount(flat, minlength=items)[present])
    # Five standard errors of a rank correlation between unrelated orders.
    enough = max(FOLLOWING, 5 / np.sqrt(max(len(present) - 1, 1)))
    use = (
        "The ids stand in texts that the policy reads or that are embedded, so it can count on."
        if shown
        else "No harm while ids are not shown to a model and break no ties; rl4rec does neither, other code may."
    )
    remedy = "shuffle the ids when importing: one permutation for items.jsonl and sequential_data.txt"

    # Pairs that many users share count once: under shuffled ids they would be consecutive together or not at all.
    pairs = np.unique(before_N * items + next_N)
    consecutive = Tally(int((pairs % items == pairs // items + 1).sum()), len(pairs), "different pairs", 1 / items)
    ends = np.append(starts[1:], len(flat))
    targets = np.stack([ends - 2, ends - 1], axis=1).ravel()
    hits = targets[flat[targets] == flat[targets - 1] + 1]
    tally = Tally(len(hits), len(targets), "targets", 1 / items)
    # Ids by popularity follow the first appearance too, as popular items appear early.
    in_order = abs(appearance) >= enough and abs(appearance) > abs(popularity)
    examples = [
        Example(
            dataset.users[int(np.searchsorted(starts, at, side="right")) - 1],
            int(flat[at]),
            f"after item {before} came {target}",
        )
        for at, before, target in zip(hits[:EXAMPLES], flat[hits[:EXAMPLES] - 1], flat[hits[:EXAMPLES]], strict=True)
    ]
    yield judge(
        "ids follow the sequences",
        tally,
        flagged=consecutive.above_chance() or in_order,
        severity="leak" if shown else "warning",
        headline="ids follow the sequences",
        meaning=f"The target's id is the previous id + 1 for {percent(tally.share)} of targets; shuffled ids would "
        f"give {percent(1 / items)}. Ids and the order of first appearance are {appearance:+.2f} correlated. {use}",
        remedy=remedy,
        examples=examples or [Example(None, int(i), f"among the first to appear: {i}") for i in flat[:EXAMPLES]],
        note=f"; first appearance {appearance:+.2f} correlated",
    )

    rises = Tally(int((next_N > before_N).sum()), len(after), "neighbours rise", 0.5)
    # Neighbours share items, so the items are the draws: five standard errors of as many tosses of a coin.
    far = max(RISING - 0.5, 2.5 / np.sqrt(max(min(len(after), items), 1)))
    yield judge(
        "sequences in order of ids",
        rises,
        flagged=abs(rises.share - 0.5) >= far,
        severity="leak" if shown else "warning",
        headline="sequences run in the order of ids",
        meaning="Either they were sorted by id, not by time, and the last item is only that with the greatest id; or "
        f"ids were given in the order of time. {use}",
        remedy="sort by time before sequences are cut into history and target, and shuffle the ids",
        examples=(
            Example(user, sequence[-1], f"… {' '.join(map(str, sequence[-6:]))}")
            for user, sequence in zip(dataset.users[:EXAMPLES], dataset.sequences[:EXAMPLES], strict=True)
        ),
    )

    yield judge(
        "ids follow popularity",
        Tally(len(present), items, "items were chosen"),
        flagged=bool(abs(popularity) >= enough and not in_order),
        severity="warning",
        headline="ids follow popularity",
        meaning=f"Ids and how often items were chosen, in the test part too, are {popularity:+.2f} correlated. {use}",
        remedy=remedy,
        note=f"; counts {popularity:+.2f} correlated",
    )


def _time_ties(dataset: Dataset) -> Check:
    """Checks the times, or else `meta["time_ties"]`: how many targets have the time of the item before."""
    name, ties = "same-time ties", dataset.time_ties() or dataset.meta.get("time_ties")
    if ties is None:
        return Check(name, "not checked", "the dataset has no times, and meta.json no time_ties")
    parts = [ties[split] for split in ("validation", "test") if split in ties] if isinstance(ties, dict) else []
    of = len(dataset.users) * len(parts)
    if not parts or any(type(part) is not int or not 0 <= part <= len(dataset.users) for part in parts):
        form = '{"validation": N, "test": N}, counts of targets'
        return Check(name, "not checked", f"time_ties in meta.json must be {form}, and is {str(ties)[:60]}")
    tally = Tally(sum(parts), of, "targets")
    return judge(
        name,
        tally,
        flagged=tally.share >= TIED,
        severity="warning",
        headline="{share} of targets have the time of the item before",
        meaning=f"Which came first is not known: {_order_of_ties(dataset)}, and what stands in the history may have "
        "come after the target.",
        remedy="use finer times if the source has them; otherwise import with --ties shuffle:SEED for several seeds, "
        "and mind that the target is one of several",
    )


def _order_of_ties(dataset: Dataset) -> str:
    """Says what the order of items of one time is, by what `data import` noted, if it did."""
    note: object = dataset.meta
    for name in ("import", "options", "ties"):
        note = note.get(name) if isinstance(note, Mapping) else None
    if isinstance(note, str) and note.startswith("shuffle:"):
        return f"their order was drawn at random (--ties {note}), one of many"
    if note == "item":
        return "their order is that of ids (--ties item), which a model can learn"
    return "the order is that of the source's rows, often of its ids, which a model can learn"


def _twins(texts: Texts, name: str, keys: Sequence[object]) -> Check:
    """Checks for items that are the same but for their ids."""
    groups: dict[object, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        groups[key].append(i)
    twins = [group for group in groups.values() if len(group) > 1]
    ids = {i for group in twins for i in group}
    count = sum((s[-2] in ids) + (s[-1] in ids) for s in texts.dataset.sequences)
    tally = Tally(count, 2 * len(texts.dataset.users), "targets")
    what = "title, brand and text" if name == "duplicate items" else "embedded text"
    return judge(
        name,
        tally,
        flagged=tally.above_chance(least=TWINS),
        severity="warning",
        headline=f"{{share}} of targets have a twin with the same {what}",
        meaning="Twins have one embedding, so they tie, and ties count against the target; with a twin in the history, "
        "copying it comes close to the target.",
        remedy="merge them into one item when importing" if name == "duplicate items" else "write texts that differ",
        examples=(
            Example(None, group[0], f"items {', '.join(map(str, group[:4]))}: {texts.raw_titles[group[0]]}")
            for group in twins
        ),
        note=f"; {len(ids):,} items",
    )


def _copied_users(dataset: Dataset) -> Iterator[Check]:
    """Checks for sequences under several users, and for users whose whole sequence begins another's training part."""
    users, sequences = dataset.users, dataset.sequences
    twin_pairs, inside_pairs = _matches(sequences)
    copied_chance, inside_chance = (len(pairs) for pairs in _matches(_shuffled(sequences)))
    tally = Tally(len(twin_pairs), len(users), "users", (copied_chance + 0.5) / len(users))
    yield judge(
        "copied users",
        tally,
        flagged=tally.above_chance(least=COPIED),
        severity="warning",
        headline="{share} of users have the very sequence of another",
        meaning="They are counted several times, so that intervals come out too narrow.",
        remedy="keep one of each",
        examples=(
            Example(users[a], None, f"the same {len(sequences[a])} items as user {users[b]}") for a, b in twin_pairs
        ),
    )
    yield judge(
        "users inside others",
        Tally(len(inside_pairs), len(users), "users", (inside_chance + 0.5) / len(users)),
        severity="leak",
        headline="{share} of users' sequences begin another's training part",
        meaning="Training on the longer one shows the test target of the shorter one behind the very same history.",
        remedy="keep the longer one of each",
        examples=(
            Example(users[a], sequences[a][-1], f"its {len(sequences[a])} items are the first of user {users[b]}")
            for a, b in inside_pairs
        ),
    )


def _matches(sequences: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns (user, other) with one sequence, and (user, other) where user's begins the other's training part."""
    first: dict[tuple[int, ...], int] = {}
    pairs = []
    for u, sequence in enumerate(sequences):
        if len(sequence) >= LEAST_COPIED and first.setdefault(sequence, u) != u:
            pairs.append((u, first[sequence]))
    whole = {}
    for sequence, u in first.items():
        code = 0
        for item in sequence:
            code = hash((code, item))
        whole[code] = u
    inside: dict[int, int] = {}
    for u, sequence in enumerate(sequences):
        code = 0
        for length, item in enumerate(sequence[:-2], start=1):
            code = hash((code, item))  # rolls on: hashing every beginning anew would be quadratic in the length
            other = whole.get(code)
            if other is not None and sequences[other] == sequence[:length]:
                inside.setdefault(other, u)
    return pairs, list(inside.items())


def _one_answer(dataset: Dataset) -> Check:
    """Checks the item that is most often the target, beside its share of everything else that users chose."""
    items, users = dataset.num_items, len(dataset.users)
    flat, _ = _flat(dataset.sequences)
    everything = np.bincount(flat, minlength=items)
    candidates = []
    for split, back in (("validation", 2), ("test", 1)):
        counts = np.bincount([sequence[-back] for sequence in dataset.sequences], minlength=items)
        top = int(counts.argmax())
        elsewhere = (int(everything[top] - counts[top]) + 0.5) / (len(flat) - users)
        candidates.append((Tally(int(counts[top]), users, f"{split} targets", min(elsewhere, 1.0)), top, split))
    tally, top, split = max(candidates, key=lambda each: each[0].share)
    return judge(
        "one item as many targets",
        tally,
        # Any item could have been the one: as many questions as there are items.
        flagged=tally.above_chance(ratio=3.0, least=CONSTANT, chance=CHANCE / items),
        severity="warning",
        headline=f"one item is {{share}} of {split} targets",
        meaning="It comes last far more often than elsewhere, so that one answer for all users scores.",
        remedy="leave out what is not chosen (bags, shipping, gift cards), and compare with the popularity baseline",
        examples=[Example(None, top, str(dataset.items[top]["title"]))],
        note=f": item {top}",
    )


def _cold_targets(dataset: Dataset) -> Check:
    """Counts, for information, the targets of which a policy learns nothing but by their texts."""
    trained_items = {item for part in (*(s[:-2] for s in dataset.sequences), *dataset.training_only) for item in part}
    count = sum(sequence[-1] not in trained_items for sequence in dataset.sequences)
    tally = Tally(count, len(dataset.users), "test targets")
    return Check("cold targets", "info", f"{tally} are in nobody's training part")


def _shuffled(sequences: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Returns every sequence in random order."""
    flat, starts = _flat(sequences)
    owner = np.repeat(np.arange(len(sequences)), np.diff(starts, append=len(flat)))
    items = flat[np.lexsort((np.random.default_rng(0).random(len(flat)), owner))].tolist()
    return [tuple(items[a:b]) for a, b in pairwise([*starts.tolist(), len(flat)])]


def _flat(sequences: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns all item ids one after another, and where each sequence starts."""
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    flat = np.fromiter(chain.from_iterable(sequences), dtype=np.int64, count=int(lengths.sum()))
    return flat, np.concatenate([[0], lengths.cumsum()[:-1]])


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Returns Spearman's rank correlation. Equal values get their mean rank. It is 0 where `a` or `b` is constant."""
    ranks = []
    for values in (a, b):
        _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
        rank = (sizes.cumsum() - (sizes - 1) / 2)[group]
        ranks.append(rank - rank.mean())
    scale = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum()) / scale if scale else 0.0
