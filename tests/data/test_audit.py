"""The leakage audit: each leak planted in clean data is found, by its own check only; clean data passes."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rl4rec_cli.config.sections import PromptSection
from rl4rec_cli.data.audit.audit import Audit, Check, Finding, audit_dataset
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.opening import load_dataset
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import ConfigError, DataError

PROMPTS = (
    *("users of prompts.json", "title in prompts.json", "brand in prompts.json", "id in prompts.json"),
    *("target's words in prompts.json", "training target in prompts.json", "shared prompts"),
)
TEMPLATE = ("title in templated prompts", "brand in templated prompts", "prompts.json")
ALWAYS = (
    *("co-purchases in item texts", "next title in item texts", "fields known too late", "names of control tokens"),
    "target in history",
    *("ids follow the sequences", "sequences in order of ids", "ids follow popularity", "same-time ties"),
    *("duplicate items", "duplicate texts", "copied users", "users inside others", "one item as many targets"),
    "cold targets",
)


@pytest.fixture(scope="module")
def clean() -> Dataset:
    return synthesize(500, 300, 0)


@pytest.fixture(scope="module")
def shop() -> Dataset:
    """Clean data with a larger vocabulary: every title has two words of its own, every tenth item a brand."""
    rng = random.Random(1)
    base = synthesize(600, 400, 3)
    return dataclasses.replace(
        base,
        items=tuple(
            {
                "item_id": i,
                "title": f"{item['category']} zor{rng.randrange(10**6)} mip{rng.randrange(10**6)}",
                "text": f"Fine {item['category']} of {item['material']}, size {i % 7}, style {rng.randrange(10**6)}x.",
                "brand": f"Brand{i // 10}",
            }
            for i, item in enumerate(base.items)
        ),
    )


def audit_of(dataset: Dataset, **settings: Any) -> tuple[Audit, dict[str, Finding]]:
    audit = audit_dataset(dataset, **settings)
    return audit, {finding.check: finding for finding in audit.findings}


def check_of(audit: Audit, name: str) -> Check:
    return next(check for check in audit.checks if check.name == name)


def with_items(dataset: Dataset, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Dataset:
    items = tuple({**item, **change(dict(item))} for item in dataset.items)
    return dataclasses.replace(dataset, items=items)


def with_sequences(dataset: Dataset, sequences: Sequence[Sequence[int]]) -> Dataset:
    rows = tuple(map(tuple, sequences))
    return dataclasses.replace(dataset, sequences=rows, users=tuple(f"u{i + 1}" for i in range(len(rows))))


def with_prompts(dataset: Dataset, write: Callable[[int, tuple[int, ...]], str]) -> Dataset:
    """`write(user's index, sequence)` for every user."""
    pairs = enumerate(zip(dataset.users, dataset.sequences, strict=True))
    return dataclasses.replace(dataset, prompts={user: write(u, sequence) for u, (user, sequence) in pairs})


def summary(dataset: Dataset, items: Sequence[int]) -> str:
    """Two words of each item, none of them its whole title: what a summary by a language model keeps."""
    return "This customer likes " + ", ".join(" ".join(str(dataset.items[i]["title"]).split()[:2]) for i in items)


def titles(dataset: Dataset, items: Sequence[int]) -> str:
    return "Chosen so far: " + "; ".join(str(dataset.items[i]["title"]).upper() for i in items)


# Clean data


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("users", "items"), [(1, 20), (30, 20), (300, 60), (1200, 300)])
def test_clean_data_passes(users: int, items: int, seed: int) -> None:
    audit, found = audit_of(synthesize(users, items, seed))
    assert found == {}
    assert audit.is_clean
    assert tuple(check.name for check in audit.checks) == (*TEMPLATE, *ALWAYS)
    assert audit.one_line() == "Audit: nothing found (17 checks; not checked: same-time ties)"


@pytest.mark.parametrize("write", [titles, summary])
@pytest.mark.parametrize("seed", range(3))
def test_prompts_from_what_comes_before_every_target_pass(
    write: Callable[[Dataset, Sequence[int]], str], seed: int, shop: Dataset
) -> None:
    for data in (synthesize(500, 300, seed), shop):
        prompted = with_prompts(data, lambda u, sequence, data=data: f"{u}. {write(data, sequence[:-3])}")  # type: ignore[misc]
        audit, found = audit_of(prompted)
        assert found == {}
        assert tuple(check.name for check in audit.checks) == (*PROMPTS, *ALWAYS)


def test_noise_in_prompts_passes(shop: Dataset) -> None:
    rng = random.Random(0)
    draw = lambda: rng.sample(range(shop.num_items), 20)  # noqa: E731
    noisy = with_prompts(
        shop, lambda u, _: f"{titles(shop, draw())} {draw()} {[shop.items[i]['brand'] for i in draw()]}"
    )
    assert audit_of(noisy)[1] == {}


def test_noise_in_a_small_catalogue_is_what_chance_says() -> None:
    """Other users' targets often stand in a user's own history there; counting those would halve the chance."""
    data, rng = synthesize(1500, 25, 0), random.Random(0)
    noisy = with_prompts(data, lambda u, _: f"{u} {titles(data, [rng.randrange(25) for _ in range(8)])}")
    audit, found = audit_of(noisy)
    assert found == {}
    seen = check_of(audit, "title in prompts.json").seen
    share, chance = (float(number) for number in re.findall(r"([\d.]+) %", seen)[:2])
    assert share == pytest.approx(chance, rel=0.1)


def test_shuffled_users_and_ids_pass_in_a_dataset_of_trends(shop: Dataset) -> None:
    """Some items are chosen by nearly everyone, and early: that is popularity, no leak."""
    rng = random.Random(5)
    popular = rng.sample(range(shop.num_items), 20)
    rows = [tuple(dict.fromkeys([*rng.sample(popular, 2), *sequence])) for sequence in shop.sequences]
    assert audit_of(with_sequences(shop, rows))[1] == {}


def test_the_same_dataset_gives_the_same_audit(shop: Dataset) -> None:
    prompted = with_prompts(shop, lambda u, sequence: titles(shop, sequence))
    assert audit_dataset(prompted) == audit_dataset(prompted)


# Prompts


def test_test_targets_in_prompts(clean: Dataset) -> None:
    """One prompt in ten names the test target, in other case and punctuation than its title."""

    def write(u: int, sequence: tuple[int, ...]) -> str:
        hint = str(clean.items[sequence[-1]]["title"]).upper().replace(" ", "-")
        return f"{u}: {titles(clean, sequence[:-3])}" + (f" ({hint}!)" if u % 10 == 0 else "")

    audit, found = audit_of(with_prompts(clean, write))
    assert set(found) == {"title in prompts.json", "brand in prompts.json"}  # the titles hold the brands
    finding = found["title in prompts.json"]
    assert (finding.severity, finding.count, finding.of) == ("leak", 50, 1000)
    assert finding.share == 0.05
    assert finding.expected is not None
    assert finding.expected < 0.01
    assert "figures for test are" in finding.meaning
    assert "[validation 0 %, test 10 %]" in check_of(audit, "title in prompts.json").seen
    assert len(finding.examples) == 3
    user, item, text = finding.examples[0]
    assert (user, item) == ("u1", clean.sequences[0][-1])
    assert str(clean.items[clean.sequences[0][-1]]["title"]).upper().replace(" ", "-") in text
    assert audit.one_line("data/x") == (
        "Audit: 2 findings (target's title in 5 % of prompts; target's brand, new to the user, in 4.1 % of prompts): "
        "rl4rec data audit data/x shows them"
    )


def test_validation_targets_in_prompts(clean: Dataset) -> None:
    """Prompts written for the test split: everything but the last item."""
    found = audit_of(with_prompts(clean, lambda u, sequence: titles(clean, sequence[:-1])))[1]
    assert "figures for validation are" in found["title in prompts.json"].meaning
    assert found["title in prompts.json"].severity == "leak"
    assert found["training target in prompts.json"].severity == "warning"


def test_a_few_targets_in_a_large_dataset_are_below_what_matters() -> None:
    big = synthesize(4000, 300, 1)
    found = audit_of(
        with_prompts(big, lambda u, sequence: f"{u} {titles(big, sequence[-1:] if u < 3 else sequence[:-3])}")
    )[1]
    assert found == {}


@pytest.mark.parametrize("how", ["last", "all"])
def test_training_targets_in_prompts(how: str, clean: Dataset) -> None:
    """Written from all but the two held-out items: in training the answer stands in the prompt."""
    prompted = with_prompts(clean, lambda u, sequence: f"{u} {titles(clean, sequence[:-2])}")
    found = audit_of(prompted, train_targets=how)[1]
    assert set(found) == {"training target in prompts.json"}
    assert found["training target in prompts.json"].severity == "warning"
    assert found["training target in prompts.json"].share > 0.95
    safe = with_prompts(clean, lambda u, sequence: f"{u} {titles(clean, sequence[:1])}")
    assert audit_of(safe, train_targets=how)[1] == {}


def test_brands_of_targets_in_prompts(shop: Dataset) -> None:
    def write(share: int) -> Callable[[int, tuple[int, ...]], str]:
        brand = lambda u, s: shop.items[s[-1]]["brand"] if u % share == 0 else "none"  # noqa: E731
        return lambda u, s: f"{u}: {summary(shop, s[:-3])}. Favourite brand: {brand(u, s)}."

    for share, severity in ((1, "leak"), (8, "warning")):
        found = audit_of(with_prompts(shop, write(share)))[1]
        assert set(found) == {"brand in prompts.json"}
        assert found["brand in prompts.json"].severity == severity
    # The brands of the history are what a summary is for.
    kept = lambda u, s: f"{u}: likes {', '.join(str(shop.items[i]['brand']) for i in s[:-3])}"  # noqa: E731
    assert audit_of(with_prompts(shop, kept))[1] == {}


def test_ids_of_targets_in_prompts(shop: Dataset) -> None:
    def write(u: int, sequence: tuple[int, ...]) -> str:
        return f"{summary(shop, sequence[:-3])}. Code {sequence[-1]}, ref E{sequence[-2]}, 0.{sequence[-2]}"

    audit, found = audit_of(with_prompts(shop, write))
    assert set(found) == {"id in prompts.json"}
    assert found["id in prompts.json"].severity == "leak"
    assert "[validation 0 %, test 100 %]" in check_of(audit, "id in prompts.json").seen


def test_prompts_written_from_the_target_without_quoting_it(shop: Dataset) -> None:
    rng = random.Random(0)

    def write(share: float) -> Callable[[int, tuple[int, ...]], str]:
        return lambda u, s: f"{u}. {summary(shop, [*s[:-3], *s[-1:]] if rng.random() < share else s[:-3])}"

    found = audit_of(with_prompts(shop, write(0.9)))[1]
    assert set(found) == {"target's words in prompts.json"}
    assert found["target's words in prompts.json"].severity == "leak"
    assert audit_of(with_prompts(shop, write(0.4)))[1]["target's words in prompts.json"].severity == "warning"
    assert audit_of(with_prompts(shop, write(0.05)))[1] == {}  # a guesser's


def test_one_prompt_for_several_users(clean: Dataset) -> None:
    found = audit_of(with_prompts(clean, lambda u, s: "A customer." if u % 20 == 0 else f"Customer {u}x."))[1]
    assert set(found) == {"shared prompts"}
    assert found["shared prompts"].share == 0.05


def test_prompts_for_unknown_users_and_for_some_users(clean: Dataset) -> None:
    some = dataclasses.replace(clean, prompts={"u1": titles(clean, clean.sequences[0][:-3])})
    audit, found = audit_of(some)
    assert found == {}
    assert check_of(audit, "users of prompts.json").seen.startswith("0.2 % (1 of 500 users have one); the others")
    assert check_of(audit, "title in templated prompts").seen == "0 % (0 of 998 prompts)"
    unknown = dataclasses.replace(some, prompts={**some.prompts, "nobody": "Someone."})
    assert audit_of(unknown)[1]["users of prompts.json"].share == 0.5


def test_a_title_twice_in_the_catalogue_is_in_the_templated_prompt(clean: Dataset) -> None:
    """Item 0 and item 1 bear one title, and thirty users choose one after the other."""
    twin = with_items(clean, lambda item: {"title": clean.items[0]["title"].upper()} if item["item_id"] == 1 else {})
    rows = [(*(i for i in s if i > 1), 0, 1) if u < 30 else s for u, s in enumerate(clean.sequences)]
    found = audit_of(with_sequences(twin, rows))[1]
    assert found["title in templated prompts"].count == 30
    assert found["title in templated prompts"].severity == "leak"
    short = PromptSection(max_history=1)
    spaced = [(*s[:-1], 5, s[-1]) if u < 30 else s for u, s in enumerate(rows)]
    assert "title in templated prompts" not in audit_of(with_sequences(twin, spaced), prompt=short)[1]


def test_a_shown_field_that_names_the_target(clean: Dataset) -> None:
    after = {a: b for s in clean.sequences for a, b in zip(s[-3:], s[-2:], strict=False)}
    described = with_items(
        clean,
        lambda item: {"story": f"{item['title']} goes with {clean.items[after.get(item['item_id'], 0)]['title']}."},
    )
    assert audit_of(described)[1] == {}  # not shown
    section = PromptSection(item_template="{title}: {story}")
    found = audit_of(described, prompt=section)[1]
    assert set(found) == {"title in templated prompts", "next title in item texts"}
    assert found["title in templated prompts"].share > 0.2
    assert set(audit_of(described, emb_type="story")[1]) == {"next title in item texts"}


# Item texts


@pytest.mark.parametrize(
    "words",
    ["Customers who bought this", "also_viewed: 3", "Also bought: x", "bought_together", "People who viewed it"],
)
def test_texts_that_name_what_others_bought(words: str, clean: Dataset) -> None:
    told = with_items(clean, lambda item: {"text": f"{item['text']} {words}"} if item["item_id"] % 20 == 0 else {})
    found = audit_of(told)[1]
    assert set(found) == {"co-purchases in item texts"}
    finding = found["co-purchases in item texts"]
    assert (finding.severity, finding.share) == ("leak", 0.05)
    assert words.split()[0].rstrip(":") in finding.examples[0].text


def test_texts_that_hold_the_title_of_what_comes_next(clean: Dataset) -> None:
    after = {a: b for s in clean.sequences for a, b in pairwise(s)}
    told = with_items(
        clean, lambda item: {"text": f"{item['text']} See {clean.items[after.get(item['item_id'], 0)]['title']}"}
    )
    found = audit_of(told)[1]
    assert set(found) == {"next title in item texts"}
    finding = found["next title in item texts"]
    assert finding.severity == "leak"
    assert finding.expected is not None
    assert finding.share > 3 * finding.expected
    # The same texts dealt out at random tell nothing.
    rng = random.Random(0)
    dealt = with_items(clean, lambda item: {"text": f"{item['text']} See {rng.choice(clean.items)['title']}"})
    assert audit_of(dealt)[1] == {}


@pytest.mark.parametrize(
    ("field", "template", "severity"),
    [
        ("reviewText", "{title}", "warning"),
        ("reviews", "{title} {reviews}", "leak"),
        ("also_bought", "{title}", "warning"),
        ("related", "{title} {related}", "leak"),
        ("average_rating", "{title} {average_rating}", "warning"),
        ("average_rating", "{title}", None),
        ("description", "{title} {description}", None),
    ],
)
def test_fields_by_name(field: str, template: str, severity: str | None, clean: Dataset) -> None:
    data = with_items(clean, lambda item: {field: "good"} if item["item_id"] else {field: None})
    found = audit_of(data, prompt=PromptSection(item_template=template))[1]
    assert {name: finding.severity for name, finding in found.items()} == (
        {"fields known too late": severity} if severity else {}
    )


# Ids


def first_appearance(dataset: Dataset) -> Dataset:
    """The same data with ids handed out in the order of first appearance."""
    new = {i: n for n, i in enumerate(dict.fromkeys(i for s in dataset.sequences for i in s))}
    for i in range(dataset.num_items):
        new.setdefault(i, len(new))
    items = sorted(({**item, "item_id": new[item["item_id"]]} for item in dataset.items), key=lambda i: i["item_id"])
    return dataclasses.replace(
        dataset, items=tuple(items), sequences=tuple(tuple(new[i] for i in s) for s in dataset.sequences)
    )


def test_ids_in_order_of_first_appearance(clean: Dataset) -> None:
    found = audit_of(first_appearance(clean))[1]
    assert set(found) == {"ids follow the sequences"}
    assert found["ids follow the sequences"].severity == "warning"
    assert "first appearance are +1.00" in found["ids follow the sequences"].meaning


def test_consecutive_ids_are_found_whatever_order_the_users_have() -> None:
    """Users in random order: nothing follows the first appearance, but neighbours still have neighbouring ids."""
    data = first_appearance(synthesize(400, 3000, 2))
    rows = list(data.sequences)
    random.Random(0).shuffle(rows)
    audit, found = audit_of(with_sequences(data, rows))
    assert set(found) == {"ids follow the sequences"}
    finding = found["ids follow the sequences"]
    assert finding.expected == 1 / 3000
    assert finding.share > 0.05
    assert finding.examples[0].text.startswith("after item ")
    assert "+1.00" not in check_of(audit, "ids follow the sequences").seen


def test_ids_that_are_shown_make_their_order_a_leak(clean: Dataset) -> None:
    data = first_appearance(clean)
    in_text = with_items(data, lambda item: {"text": f"{item['text']} No. {item['item_id']}"})
    assert audit_of(in_text)[1]["ids follow the sequences"].severity == "leak"
    in_prompts = with_prompts(data, lambda u, s: f"Customer u{u} chose {' '.join(map(str, s[:-2]))}")
    assert audit_of(in_prompts)[1]["ids follow the sequences"].severity == "leak"
    assert audit_of(with_items(clean, lambda item: {"text": f"No. {item['item_id']}"}))[1] == {}


def test_sequences_sorted_by_id(clean: Dataset) -> None:
    for reverse in (False, True):
        found = audit_of(with_sequences(clean, [sorted(s, reverse=reverse) for s in clean.sequences]))[1]
        assert "sequences in order of ids" in found


def test_ids_in_order_of_popularity(clean: Dataset) -> None:
    flat = [i for s in clean.sequences for i in s]
    new = {i: n for n, i in enumerate(sorted(range(clean.num_items), key=flat.count, reverse=True))}
    rows = [tuple(new[i] for i in s) for s in clean.sequences]
    found = audit_of(with_sequences(clean, rows))[1]
    assert set(found) == {"ids follow popularity"}


# Sequences


def test_targets_in_the_history(clean: Dataset) -> None:
    rows = [(*s[:-1], s[0]) if u % 10 == 0 else s for u, s in enumerate(clean.sequences)]
    repeating = with_sequences(clean, rows)
    found = audit_of(repeating)[1]
    assert set(found) == {"target in history"}
    finding = found["target in history"]
    assert (finding.severity, finding.count, finding.of) == ("leak", 50, 1000)
    assert finding.examples[0] == ("u1", rows[0][0], f"item 1 of the sequence and again item {len(rows[0])}")
    assert audit_of(dataclasses.replace(repeating, mask_history=False))[1] == {}


@pytest.mark.parametrize(
    ("ties", "result", "said"),
    [
        ({"validation": 10, "test": 40}, "warning", "5 % (50 of 1,000 targets)"),
        ({"test": 2}, "ok", "0.4 % (2 of 500 targets)"),
        ({"validation": 0, "test": 0}, "ok", "0 % (0 of 1,000 targets)"),
        (None, "not checked", "no times"),
        ("many", "not checked", "must be"),
        ({"test": 501}, "not checked", "must be"),
        ({"train": 3}, "not checked", "must be"),
        ({"test": True}, "not checked", "must be"),
    ],
)
def test_same_time_ties(ties: object, result: str, said: str, clean: Dataset) -> None:
    meta = {} if ties is None else {"time_ties": ties}
    audit = audit_dataset(dataclasses.replace(clean, meta=meta))
    check = check_of(audit, "same-time ties")
    assert check.result == result
    assert said in check.seen
    assert ("same-time ties" in audit.one_line()) == (result == "not checked")


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ({"options": {"ties": "shuffle:3"}}, "drawn at random (--ties shuffle:3)"),
        ({"options": {"ties": "item"}}, "that of ids (--ties item)"),
        ({"options": {"ties": "file"}}, "that of the source's rows"),
        ({"options": ["ties"]}, "that of the source's rows"),
        (None, "that of the source's rows"),
    ],
)
def test_the_order_of_ties_is_told_as_the_import_noted_it(note: object, said: str, clean: Dataset) -> None:
    meta = {"time_ties": {"validation": 10, "test": 40}, "import": note}
    finding = audit_of(dataclasses.replace(clean, meta=meta))[1]["same-time ties"]
    assert said in finding.meaning


def test_duplicate_items_and_texts(clean: Dataset) -> None:
    """Every tenth item becomes a copy of the one before, with other case and white space."""

    def copy(item: dict[str, Any], *fields: str) -> dict[str, Any]:
        before = clean.items[item["item_id"] - 1]
        return {f: f" {before[f].upper()}  " for f in fields} if item["item_id"] % 10 == 1 else {}

    found = audit_of(with_items(clean, lambda item: copy(item, "title", "brand", "text")))[1]
    assert {"duplicate items", "duplicate texts"} <= set(found)
    assert found["duplicate items"].share > 0.1
    assert found["duplicate items"].examples[0].text.startswith("items 0, 1: ")
    found = audit_of(with_items(clean, lambda item: copy(item, "text")))[1]
    assert set(found) == {"duplicate texts"}
    assert audit_of(with_items(clean, lambda item: copy(item, "brand")))[1] == {}


def test_copied_users(clean: Dataset) -> None:
    found = audit_of(with_sequences(clean, [*clean.sequences, *clean.sequences[:20]]))[1]
    assert set(found) == {"copied users"}
    finding = found["copied users"]
    assert (finding.severity, finding.count, finding.of) == ("warning", 20, 520)
    assert finding.examples[0].text.endswith("items as user u1")


def test_users_whose_sequence_begins_anothers_training_part(clean: Dataset) -> None:
    rest = [tuple(i for i in range(4) if i not in s) for s in clean.sequences[:20]]
    longer = [s + r[:2] for s, r in zip(clean.sequences, rest, strict=False) if len(r) >= 2]
    found = audit_of(with_sequences(clean, [*clean.sequences, *longer]))[1]
    assert set(found) == {"users inside others"}
    assert (found["users inside others"].severity, found["users inside others"].count) == ("leak", len(longer))
    assert len(longer) > 10
    by_one = [s[:-1] for s in longer]  # there the target is held out too
    assert audit_of(with_sequences(clean, [*clean.sequences, *by_one]))[1] == {}


def test_short_sequences_that_agree_by_chance_pass() -> None:
    rng = random.Random(0)
    base = synthesize(4, 20, 0)
    rows = [tuple(rng.sample(range(6), rng.randint(3, 6))) for _ in range(3000)]
    found = audit_of(with_sequences(base, rows))[1]
    assert not {"copied users", "users inside others"} & set(found)


def test_one_item_as_many_targets(clean: Dataset) -> None:
    rows = [(*(i for i in s if i != 7), 7) if u % 8 == 0 else s for u, s in enumerate(clean.sequences)]
    found = audit_of(with_sequences(clean, rows))[1]
    assert set(found) == {"one item as many targets"}
    assert found["one item as many targets"].examples[0].item == 7
    assert "test targets" in found["one item as many targets"].headline


# The audit itself


def test_titles_too_short_to_tell_are_said_not_to_be_checked(make_dataset: Callable[..., Dataset]) -> None:
    names = [f"t{i}x" for i in range(30)]
    rng = random.Random(0)
    rows = [rng.sample(range(30), 6) for _ in range(40)]
    data = make_dataset(names, sequences=rows)
    data = with_prompts(data, lambda u, s: f"{u} {names[s[-1]]}")
    audit, _ = audit_of(data)
    assert check_of(audit, "title in prompts.json").result == "not checked"
    assert check_of(audit, "next title in item texts").result == "not checked"


def test_titles_without_spaces_or_letters(make_dataset: Callable[..., Dataset]) -> None:
    """Chinese and Japanese have no spaces; titles of signs alone are different titles."""
    names = [f"玫瑰护手霜第{chr(0x4E00 + i)}号{chr(0x5E00 + i)}款" for i in range(60)]
    rng = random.Random(0)
    rows = [rng.sample(range(60), 7) for _ in range(200)]
    data = make_dataset(names, sequences=rows)
    assert audit_of(data)[1] == {}
    told = with_prompts(data, lambda u, s: f"用户{u}喜欢{names[s[-1]]}吗")
    assert audit_of(told)[1]["title in prompts.json"].count == 200
    assert audit_of(make_dataset(["+" * (i + 1) for i in range(60)], sequences=rows))[1] == {}


def test_json_and_paragraphs(clean: Dataset) -> None:
    audit = audit_dataset(first_appearance(with_sequences(clean, [*clean.sequences, *clean.sequences[:20]])))
    said = json.loads(json.dumps(audit.as_json(), allow_nan=False))
    assert said == audit.as_json()
    assert (said["clean"], said["leaks"], said["warnings"], said["dataset"]) == (False, 0, 2, clean.name)
    assert [check["name"] for check in said["checks"]] == [*TEMPLATE, *ALWAYS]
    finding = said["findings"][0]
    assert finding["check"] == "ids follow the sequences"
    assert {"share", "count", "of", "unit", "expected", "meaning", "remedy"} <= set(finding)
    assert set(finding["examples"][0]) == {"user", "item", "text"}
    text = str(audit.findings[1])
    assert text.startswith("warning: 3.8 % of users have the very sequence of another\n  They are counted")
    assert "\n  To mend it: keep one of each.\n  e.g. user u501: the same " in text


def test_leaks_come_first_in_the_line(clean: Dataset) -> None:
    rows = [(*s[:-1], s[0]) if u % 10 == 0 else s for u, s in enumerate(clean.sequences)]
    audit = audit_dataset(first_appearance(with_sequences(clean, rows)))
    assert audit.one_line().startswith("Audit: 2 findings (target in the history for 5 % of targets; ids follow the")


@pytest.mark.parametrize("rows", [[[0, 0, 0]], [[0, 1, 2]], [[0, 1, 2], [2, 1, 0, 3]], [[5, 4, 3]] * 30])
def test_the_smallest_datasets(rows: list[list[int]], make_dataset: Callable[..., Dataset]) -> None:
    data = make_dataset(sequences=rows)
    for dataset in (data, with_prompts(data, lambda u, s: "?!"), dataclasses.replace(data, prompts={"x": "unknown"})):
        for how in ("last", "all"):
            audit = audit_dataset(dataset, train_targets=how)  # type: ignore[arg-type]
            assert json.dumps(audit.as_json(), allow_nan=False)
            assert audit.one_line().startswith("Audit: ")


def test_settings_that_do_not_fit(clean: Dataset) -> None:
    with pytest.raises(ConfigError, match="field 'colours'"):
        audit_dataset(clean, prompt=PromptSection(item_template="{colours}"))
    with pytest.raises(DataError, match="field 'story' is missing"):
        audit_dataset(clean, emb_type="story")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from rl4rec_cli.data.audit.audit import audit_dataset;"
        "from rl4rec_cli.data.synthetic import synthesize;"
        "assert audit_dataset(synthesize(50, 50, 0)).is_clean;"
        "print([m for m in ('torch', 'transformers', 'scipy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Real data

BEAUTY = Path(os.environ.get("RL4REC_REALDATA") or Path(__file__).parents[2] / "data") / "amazon_beauty"


@pytest.mark.realdata
@pytest.mark.skipif(
    not BEAUTY.is_dir(), reason=f"no {BEAUTY}; set RL4REC_REALDATA to the folder that has amazon_beauty"
)
def test_beauty_has_ids_in_order_of_first_appearance_and_nothing_else() -> None:
    beauty = load_dataset(BEAUTY)
    audit, found = audit_of(beauty)
    assert set(found) == {"ids follow the sequences"}
    finding = found["ids follow the sequences"]
    assert (finding.severity, finding.count, finding.of) == ("warning", 1056, 44726)
    assert "+1.00 correlated" in finding.meaning
    assert check_of(audit, "title in templated prompts").seen == "0.022 % (10 of 44,726 prompts)"
    new = list(range(beauty.num_items))
    random.Random(0).shuffle(new)
    items = sorted(({**item, "item_id": new[i]} for i, item in enumerate(beauty.items)), key=lambda i: i["item_id"])
    shuffled = dataclasses.replace(
        beauty, items=tuple(items), sequences=tuple(tuple(new[i] for i in s) for s in beauty.sequences)
    )
    assert audit_dataset(shuffled).is_clean


@pytest.mark.parametrize("name", ["<|im_end|>", "</s>", "<eos>", "[INST]", "<end_of_turn>"])
def test_names_of_control_tokens_are_shown_where_they_stand(shop: Dataset, name: str) -> None:
    planted = with_items(shop, lambda item: {"title": f"{item['title']}'s {name} box"} if item["item_id"] == 7 else {})
    _, findings = audit_of(planted)
    finding = findings["names of control tokens"]
    assert (finding.severity, finding.count) == ("warning", 1)
    assert name in finding.headline
    assert f"'s «{name}» box" in finding.examples[0].text
