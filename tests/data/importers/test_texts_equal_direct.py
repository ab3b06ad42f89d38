"""Random items, written as CSV and imported, equal a few lines of plain Python: `--title-from`, `--text`, `--leaks`."""

from __future__ import annotations

import csv
import random
import re
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rl4rec_cli.data.importers.importing import Imported, import_files
from rl4rec_cli.data.importers.options import ImportOptions
from rl4rec_cli.errors import ConfigError, DataError, Rl4RecError

Fields = dict[str, str]
COLUMNS = ("title", "brand", "kind_of_thing", "also_bought", "stars")
LATE = {"also_bought", "stars"}
TEXTS = (
    # as the file has it | as the dataset has it
    *((("", ""),) * 3),
    *(("Acme", "Acme"), ("007", "007"), ("  wide   open ", "wide open"), ("Rock &amp;amp; Roll", "Rock & Roll")),
    *(
        ("<b>Bold</b> one", "Bold one"),
        ("{brand}", "{brand}"),
        ("[x] {", "[x] {"),
        ('say "hi", twice', 'say "hi", twice'),
    ),
    *(("two\u200b parts\u0007", "two parts"), ("naïve 東京", "naïve 東京"), ("<script>var a = 1</script>", "")),
)
TEMPLATES = (
    *(
        "title",
        "brand",
        "item",
        "also_bought",
        "nowhere",
        "{title}.[ Brand: {brand}.]",
        "[{brand}]",
        "[{brand} {stars}]",
    ),
    *(
        "{brand} {item}",
        "{title} | {kind_of_thing}",
        "[by {brand}][, {kind_of_thing}] {title}",
        "{stars}[ {also_bought}]",
    ),
)


def fill(template: str, fields: Fields) -> str:
    """The text of one item: parts in brackets go if one of their fields is empty."""
    text = ""
    for part in re.split(r"(\[[^]]*\])", template if "{" in template else f"{{{template}}}"):
        inner = part[1:-1] if part.startswith("[") else part
        if inner == part or all(fields.get(name) for name in re.findall(r"{(\w+)}", part)):
            text += inner.format_map(defaultdict(str, fields))
    return " ".join(text.split())


def direct(items: dict[str, Fields], options: ImportOptions) -> dict[str, Fields] | str:
    """Titled items by id, with their texts, or the name of a field in a template that no item has."""
    items = {
        i: {name: value for name, value in own.items() if value and (options.leaks or name not in LATE)}
        for i, own in items.items()
    }

    def unknown(template: str | None) -> str | None:
        known = {name for own in items.values() for name in own} | {"item"}
        names = re.findall(r"{(\w+)}", template) or [template] if template is not None else []
        return next((name for name in names if name not in known), None)

    if (name := unknown(options.title_from)) is not None:
        return name
    if options.title_from is not None:
        for i, own in items.items():
            if "title" not in own and (title := fill(options.title_from, {**own, "item": i})):
                own["title"] = title
    if (name := unknown(options.text)) is not None:
        return name
    in_order = dict.fromkeys(name for own in items.values() for name in own if name != "title")
    usual = "{title}." + "".join(f"[ {name.replace('_', ' ').capitalize()}: {{{name}}}.]" for name in in_order)
    return {
        i: {**own, "text": fill(options.text or usual, {**own, "item": i}) or own["title"]}
        for i, own in items.items()
        if "title" in own
    }


def run(items: dict[str, list[tuple[str, str]]], folder: Path, options: ImportOptions) -> Imported:
    """Every user chooses every item, so that an item without a title is all that goes."""
    (folder / "rows.csv").write_text("\n".join(["user,item,time", *(f"u{u},{i},{i}" for u in range(3) for i in items)]))
    with (folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item", *COLUMNS])
        writer.writerows([i, *(raw for raw, _ in own)] for i, own in items.items())
    return import_files("csv", [folder / "rows.csv"], options, name="made-up")


@given(
    seed=st.integers(0, 10**6),
    title_from=st.sampled_from([None, *TEMPLATES]),
    text=st.sampled_from([None, *TEMPLATES]),
    leaks=st.booleans(),
)
@example(seed=0, title_from="also_bought", text="{stars}[ {also_bought}]", leaks=True)
@example(seed=0, title_from=None, text="{stars}[ {also_bought}]", leaks=False)
@settings(max_examples=80, deadline=None)
def test_items_equal_direct(seed: int, title_from: str | None, text: str | None, leaks: bool) -> None:
    draw = random.Random(seed)
    items = {str(i): [draw.choice(TEXTS) for _ in COLUMNS] for i in range(1, draw.randrange(4, 14))}
    clean = {i: {name: value for name, (_, value) in zip(COLUMNS, own, strict=True)} for i, own in items.items()}
    with tempfile.TemporaryDirectory() as name:
        options = ImportOptions(
            k_core=0,
            title_from=title_from,
            text=text,
            leaks=leaks,
            titles=str(Path(name) / "items.csv"),
            title="title",
        )
        expected = direct(clean, options)
        if isinstance(expected, str):
            with pytest.raises(Rl4RecError) as refused:
                run(items, Path(name), options)
            # That too few items have a title may be told first.
            assert isinstance(refused.value, DataError) or repr(expected) in str(refused.value)
            return
        if len(expected) < 3:
            with pytest.raises(DataError):
                run(items, Path(name), options)
            return
        done = run(items, Path(name), options)
    dataset = done.dataset
    got = {str(item["source_id"]): dict(item) for item in dataset.items}
    for item in got.values():
        del item["item_id"], item["source_id"]
    assert got == expected
    assert done.table.left == 3 * len(expected)
    left_out = dict(done.choices).get("left out", "")
    assert ("also_bought" in left_out) == ("stars" in left_out) == (not leaks)


def test_a_left_out_field_in_a_template_says_how_to_keep_it(tmp_path: Path) -> None:
    items = {str(i): [("Acme", "")] * len(COLUMNS) for i in range(4)}
    options = ImportOptions(k_core=0, text="{title} {stars}", titles=str(tmp_path / "items.csv"))
    with pytest.raises(ConfigError) as refused:
        run(items, tmp_path, options)
    assert "'stars'" in str(refused.value)
    assert "--leaks" in str(refused.value.hint)
