"""What prompts give away of the targets.

Decides: when a prompt tells more of its target than the history before it explains. The measure is the targets of other
users, dealt out at random among the same prompts. They are as popular as the true ones, and their titles as long, so
they have in common with a prompt what chance gives.
Hides: the dealing, and what counts as explained.

Training, validation and test show the same text of `prompts.json`, so its writer should know only what comes before
all of their targets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rl4rec_cli.data.audit.findings import Check, Example, Severity, Tally, judge, percent
from rl4rec_cli.data.audit.texts import Texts, excerpt, numbers, squeeze

SPLITS = {"validation": 2, "test": 1}
"""Splits and how far from a sequence's end their target stands."""
DEALS = 100_000
"""Targets of other users tried in all: at least 2 and at most 10 for each prompt."""
WORDS = 5_000
"""Most prompts whose words the audit compares: enough to tell a share to one per cent."""
LEAST_SHARED = 0.01
"""Share of prompts that stand word for word under another user too from which on it is no coincidence."""
GUESSED = 0.2
"""Share of targets whose brand, new to the user, is in the prompt, below which the writer may have guessed it."""
WRITTEN_WITH = (0.25, 0.5)
"""From which part of the way on, between another user's target and an item that the writer of the prompt knew, the
target's own words are a warning and a leak. Prompts whose writer did not know the target stay near 0 (a good guesser
comes to .1 or so), those whose writer knew it near 1, and a half of each in the middle."""

_REWRITE = "write prompts.json anew from all but the last two items of each sequence"
# For a user and the number of items that may be known: whether a target shows in the prompt; None where it cannot tell.
Look = Callable[[int, int], Callable[[int], bool | None]]


def prompt_checks(prompts_json: WrittenPrompts, train_targets: str) -> Iterator[Check]:
    """Yields the checks of prompts, in the order to show them.

    Args:
        train_targets: `last` or `all`, as in `data.train_targets`.
    """
    texts = prompts_json.texts
    if len(prompts_json.users) < len(texts.dataset.users):
        yield _title_in_template(texts)
        yield _brand_in_template(texts)
    if not texts.dataset.prompts:
        yield Check("prompts.json", "ok", "there is none: every prompt is made by the template")
        return
    yield _coverage(texts)
    yield _targets(prompts_json, prompts_json.title, "title", "target's title")
    yield _targets(prompts_json, prompts_json.brand, "brand", "target's brand, new to the user,")
    yield _targets(prompts_json, prompts_json.number, "id", "target's id")
    yield _words(prompts_json)
    yield _training_target(prompts_json, train_targets)
    yield _shared(texts)


def ids_shown(prompts_json: WrittenPrompts) -> bool:
    """Returns whether a policy can read ids: in half of the items' texts, or of three in ten history items in prompts.

    Numbers that happen to equal an id are far fewer.
    """
    texts = prompts_json.texts
    items = len(texts.titles)
    raw = enumerate(zip(texts.raw_titles, texts.raw_rendered, texts.raw_embedded, strict=True))
    if sum(i in numbers(" ".join(parts)) for i, parts in raw) >= items / 2:
        return True
    count, chance = 0, 0.0
    pairs = [(i, ids) for u, ids in prompts_json.numbers.items() for i in prompts_json.sequences[u][:-2][-3:]]
    for i, ids in pairs:
        count += i in ids
        chance += sum(number < items for number in ids) / items
    return count >= max(0.3 * len(pairs), 2 * chance, 3)


class WrittenPrompts:
    """The prompts of `prompts.json`, and what of a target shows in them."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        names, self.sequences = texts.dataset.users, texts.dataset.sequences
        self.users = [u for u, name in enumerate(names) if name in texts.prompts]
        self.raw = {u: texts.dataset.prompts[names[u]] for u in self.users}
        self.prompts = {u: texts.prompts[names[u]] for u in self.users}
        self.numbers = {u: numbers(text) for u, text in self.raw.items()}
        self.content_words = [
            frozenset(word for word in words if len(word) > 2 and not word.isdecimal()) for words in texts.title_words
        ]

    def title(self, user: int, end: int) -> Callable[[int], bool | None]:
        texts, history, prompt = self.texts, self.sequences[user][:end], self.prompts[user]

        def explained(target: int) -> bool:
            """Returns whether the history has these words: in one item, or a short title's anywhere."""
            words = texts.title_words[target]
            return any(words <= texts.words([i]) for i in history) or (
                len(words) <= 3 and words <= texts.words(history)
            )

        def look(target: int) -> bool | None:
            if not texts.is_telling[target]:
                return None
            return texts.titles[target] in prompt and target not in history and not explained(target)

        return look

    def brand(self, user: int, end: int) -> Callable[[int], bool | None]:
        texts, history, prompt = self.texts, self.sequences[user][:end], self.prompts[user]
        brands = {texts.brands[i] for i in history}

        def look(target: int) -> bool | None:
            brand = texts.brands[target]
            if len(brand) < 5 or brand in brands:  # three letters and two spaces
                return None
            return brand in prompt and not texts.words(history).issuperset(brand.split())

        return look

    def number(self, user: int, end: int) -> Callable[[int], bool | None]:
        history, ids = self.sequences[user][:end], self.numbers[user]
        return lambda target: None if target in history else target in ids

    def own_words(self, user: int, end: int) -> Callable[[int], bool | None]:
        texts, history, words = self.texts, self.sequences[user][:end], set(self.prompts[user].split())
        history_words = texts.words(history)

        def look(target: int) -> bool | None:
            others = texts.words(i for i in history if i != target) if target in history else history_words
            own = self.content_words[target] - others
            return not own.isdisjoint(words) if own else None

        return look

    def compare(
        self, look: Look, back: int, known: int | None = None, *, most: int | None = None
    ) -> tuple[Tally, list[tuple[int, int]]]:
        """Returns how often targets show in their prompts, beside other users' targets, and their (user, target).

        Args:
            back: how far from a sequence's end the target stands; 0 for the middle of the training part. Users whose
                target would be the first item are left out.
            known: how far from the end the part of the sequence stops that prompts may be written from; None: before
                the target.
            most: look at this many users, drawn at random.
        """
        rng = np.random.default_rng(0)
        users = self.users
        if most is not None and len(users) > most:
            users = [users[i] for i in sorted(rng.choice(len(users), most, replace=False).tolist())]
        rows = []
        for user in users:
            sequence = self.sequences[user]
            at = len(sequence) - back if back else (len(sequence) - 2) // 2
            if at >= 1:
                rows.append((user, sequence[at], at if known is None else len(sequence) - known))
        targets = [target for _, target, _ in rows]
        deals = max(2, min(10, DEALS // max(len(rows), 1)))
        dealt = [rng.permutation(targets).tolist() for _ in range(deals)] if rows else []
        hits, count, others, chance = [], 0, 0, 0
        for row, (user, target, end) in enumerate(rows):
            shows = look(user, end)
            is_there = shows(target)
            if is_there is not None:
                count += 1
                if is_there:
                    hits.append((user, target))
            own = set(self.sequences[user])
            for deal in dealt:
                if deal[row] not in own and (is_there := shows(deal[row])) is not None:
                    others += 1
                    chance += is_there
        # Half a case more than was seen: none among the others does not prove that there can be none.
        return Tally(len(hits), count, "prompts", min((chance + 0.5) / max(others, 1), 1.0)), hits

    def example(self, user: int, target: int, part: str) -> Example:
        return Example(self.texts.dataset.users[user], target, excerpt(self.raw[user], part))


def _targets(prompts_json: WrittenPrompts, look: Look, what: str, headline: str) -> Check:
    """Checks for validation and test targets that show in their prompts."""
    by_split = {split: prompts_json.compare(look, back, 2) for split, back in SPLITS.items()}
    guilty = [split for split, (tally, _) in by_split.items() if tally.above_chance()]
    tally = _pooled([tally for tally, _ in by_split.values()])
    shares = ", ".join(f"{split} {percent(one.share)}" for split, (one, _) in by_split.items())
    texts = prompts_json.texts
    part = {"title": texts.raw_titles, "brand": texts.brands, "id": list(map(str, range(len(texts.titles))))}[what]
    meaning = f"The text tells what is to be predicted: figures for {' and '.join(guilty or by_split)} are not real."
    guess = what == "brand" and max(one.share for one, _ in by_split.values()) < GUESSED
    if guess:
        meaning = (
            "Either the texts were written with the target in sight, or their writer guesses well: see the examples."
        )
    note = f" [{shares}]"
    if what == "title" and (short := 2 * len(prompts_json.users) - tally.of):
        note += f"; {short:,} titles too short to tell"
    return judge(
        f"{what} in prompts.json",
        tally,
        flagged=bool(guilty) or tally.above_chance(),
        severity="warning" if guess else "leak",
        headline=f"{headline} in {{share}} of prompts",
        meaning=meaning,
        remedy=_REWRITE,
        examples=(
            prompts_json.example(user, target, part[target])
            for split in guilty or by_split
            for user, target in by_split[split][1]
        ),
        note=note,
    )


def _pooled(parts: Sequence[Tally]) -> Tally:
    of = sum(part.of for part in parts)
    expected_share = sum((part.expected or 0.0) * part.of for part in parts) / max(of, 1)
    return Tally(sum(part.count for part in parts), of, parts[0].unit, expected_share)


def _words(prompts_json: WrittenPrompts) -> Check:
    """Compares words that only the target would bring with those that only one item of the training part would bring.

    It finds prompts whose writer knew the target but did not quote it.
    """
    name, texts = "target's words in prompts.json", prompts_json.texts
    # The fourth last item: every writer knows it, and it is no target of training.
    control, _ = prompts_json.compare(prompts_json.own_words, 4, 2, most=WORDS)
    by_split = {
        split: prompts_json.compare(prompts_json.own_words, back, 2, most=WORDS) for split, back in SPLITS.items()
    }
    worst = max(by_split, key=lambda split: by_split[split][0].share)
    tally, hits = by_split[worst]
    if tally.of < 20 or control.of < 20:
        return Check(name, "not checked", "too few prompts with words of one item alone")
    way = (tally.share - (tally.expected or 0)) / max(control.share - (control.expected or 0), 1e-9)
    note = f" [{worst}; a known item's {percent(control.share)}]"
    severity: Severity = "leak" if way >= WRITTEN_WITH[1] else "warning"
    return judge(
        name,
        tally,
        flagged=tally.above_chance() and way >= WRITTEN_WITH[0],
        severity=severity,
        headline="words that only the target has in {share} of prompts",
        meaning=f"They come up {way:.0%} as often, beyond chance, as the words of items that the texts were written "
        f"from: some of the texts were written with the {worst} target in sight.",
        remedy=_REWRITE,
        examples=(
            prompts_json.example(
                u, t, max(prompts_json.content_words[t] - texts.words(prompts_json.sequences[u][:-2]), key=len)
            )
            for u, t in hits
        ),
        note=note,
    )


def _training_target(prompts_json: WrittenPrompts, train_targets: str) -> Check:
    tally, hits = prompts_json.compare(prompts_json.title, 3 if train_targets == "last" else 0)
    before = "the last three items" if train_targets == "last" else "every target (no one text can be, with `all`)"
    return judge(
        "training target in prompts.json",
        tally,
        severity="warning",
        headline="training target's title in {share} of prompts",
        meaning="In training the answer can be copied from the prompt, in evaluation it cannot: copying is learnt.",
        remedy=f"write prompts.json from all but {before}, or for other users than those trained on",
        examples=(prompts_json.example(user, target, prompts_json.texts.raw_titles[target]) for user, target in hits),
    )


def _coverage(texts: Texts) -> Check:
    dataset = texts.dataset
    unknown = sorted(set(dataset.prompts) - set(dataset.users))
    count = len(dataset.prompts) - len(unknown)
    if not unknown:
        rest = "" if count == len(dataset.users) else "; the others get the template"
        text = f"{percent(count / len(dataset.users))} ({count:,} of {len(dataset.users):,} users have one){rest}"
        return Check("users of prompts.json", "info", text)
    return judge(
        "users of prompts.json",
        Tally(len(unknown), len(dataset.prompts), "prompts are for unknown users"),
        flagged=True,
        severity="warning",
        headline="{share} of prompts are for unknown users",
        meaning="The texts may belong to other users than their keys say.",
        remedy="make prompts.json from the users of sequential_data.txt",
        examples=(Example(user, None, excerpt(dataset.prompts[user], "")) for user in unknown),
    )


def _shared(texts: Texts) -> Check:
    counts = Counter(texts.prompts.values())
    sharing_users = [user for user, text in texts.prompts.items() if counts[text] > 1]
    tally = Tally(len(sharing_users), len(texts.prompts), "prompts")
    return judge(
        "shared prompts",
        tally,
        flagged=tally.above_chance(least=LEAST_SHARED),
        severity="warning",
        headline="{share} of prompts are word for word another user's",
        meaning="Such a text says nothing of the user, or users and texts were joined wrongly.",
        remedy="check how the texts were made and joined; leave users without a text of their own out of prompts.json",
        examples=(
            Example(user, None, excerpt(texts.dataset.prompts[user], ""))
            for user in sorted(sharing_users, key=lambda user: texts.prompts[user])
        ),
    )


def _templated(texts: Texts) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Yields (user, target, history items shown) of validation and test where the template makes the prompt."""
    most = texts.section.max_history
    for u, (user, sequence) in enumerate(zip(texts.dataset.users, texts.dataset.sequences, strict=True)):
        if user not in texts.prompts:
            for back in SPLITS.values():
                end = len(sequence) - back
                yield u, sequence[end], sequence[max(0, end - most) : end]


def _title_in_template(texts: Texts) -> Check:
    """Checks for other history items with the target's title, or in their text. Another check covers the target."""
    titles = [squeeze(title) for title in texts.raw_titles]
    same = {title: i for i, title in enumerate(titles)}
    key = [same[title] for title in titles]
    tells_more = texts.rendered is not texts.titles
    count, hits = 0, []
    for user, target, history in _templated(texts):
        count += 1
        title = texts.titles[target]
        for i in history:
            is_named = tells_more and title in texts.rendered[i] and title not in texts.titles[i]
            if i != target and (key[i] == key[target] or (is_named and texts.is_telling[target])):
                hits.append((user, target, i))
                break
    return judge(
        "title in templated prompts",
        Tally(len(hits), count, "prompts"),
        severity="leak",
        headline="target's title in {share} of prompts",
        meaning="Another item of the history bears the target's title or names it, so that copying is right.",
        remedy="merge items that are the same, and show fields in prompt.item_template that name no other item",
        examples=(
            Example(
                texts.dataset.users[u],
                target,
                f"history item {i}: {excerpt(texts.raw_rendered[i], texts.raw_titles[target])}",
            )
            for u, target, i in hits
        ),
    )


def _brand_in_template(texts: Texts) -> Check:
    """For information: users stay with brands, and a history shows them."""
    name = "brand in templated prompts"
    rows = [(target, history) for _, target, history in _templated(texts) if texts.brands[target].strip()]
    if not rows:
        return Check(name, "ok", "items have no brands")
    dealt = np.random.default_rng(0).permutation([target for target, _ in rows]).tolist()
    history_brands = [{texts.brands[i] for i in history} for _, history in rows]
    count = sum(texts.brands[target] in brands for (target, _), brands in zip(rows, history_brands, strict=True))
    chance = sum(texts.brands[target] in brands for target, brands in zip(dealt, history_brands, strict=True))
    tally = Tally(count, len(rows), "prompts", chance / len(rows))
    return Check(name, "info", f"{tally}; users stay with brands")
