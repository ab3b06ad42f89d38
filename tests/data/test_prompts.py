"""Prompts: what the policy reads, and what is dropped when it is too long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl4rec_cli.config.sections import PromptSection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.prompts import PromptBuilder, item_renderer
from rl4rec_cli.errors import ConfigError

Make = Callable[..., Dataset]
SHORT = "Chosen:\n{history}\nNext:"


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder)


def chat_tokenizer(tiny_folder: Path, template: str) -> Any:
    """The tiny tokenizer with a chat template, and a BOS that it puts before every text by itself."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = template
    return tokenizer


CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


# --- items ---


def test_template_fields(make_dataset: Make) -> None:
    fields = [{"brand": "Rosa", "price": 3.5, "tags": ["skin", None, "hand"]}] + [{}] * 5
    dataset = make_dataset(fields=fields)
    shown = item_renderer("{title} by {brand}: {price} [{tags}] {{x}}", dataset, setting="t")
    assert shown[0] == "rose hand cream by Rosa: 3.5 [skin, , hand] {x}"
    assert shown[1] == "mint shower gel by :  [] {x}"
    assert item_renderer("plain", dataset, setting="t") == ["plain"] * 6


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{colour}", "no item of shop has a field 'colour'"),
        ("{item_id}", "item_id must not be shown"),
        ("{title} {item_id!s}", "item_id must not be shown"),
        ("{title:{item_id}}", "only plain field names"),
        ("{title!r}", "only plain field names"),
        ("{title:d}", "only plain field names"),
        ("{title:>1000000000}", "only plain field names"),
        ("{title.__class__}", "only plain field names"),
        ("{title[0]}", "only plain field names"),
        ("{}", "only plain field names"),
        ("{0}", "only plain field names"),
        ("{title", "is not a template"),
        ("title}", "is not a template"),
    ],
)
def test_templates_that_are_refused(make_dataset: Make, tokenizer: Any, template: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        PromptBuilder(PromptSection(item_template=template), make_dataset(), tokenizer)
    assert caught.value.message.startswith("prompt.item_template")


def test_braces_in_titles_are_text(make_dataset: Make, tokenizer: Any) -> None:
    dataset = make_dataset(["a {history} {title} {0} {", "b"])
    prompt = PromptBuilder(PromptSection(template=SHORT), dataset, tokenizer).build(None, [1, 0])
    assert prompt.text == "Chosen:\nb\na {history} {title} {0} {\nNext:"


# --- histories ---


def test_order_and_separator(make_dataset: Make, tokenizer: Any) -> None:
    def text(**options: Any) -> str:
        section = PromptSection(template="A {history} B", separator=" | ", **options)
        return PromptBuilder(section, make_dataset(), tokenizer).build("u0", [0, 1, 2]).text

    assert text() == "A rose hand cream | mint shower gel | lavender bath salt B"
    assert text(order="newest_first") == "A lavender bath salt | mint shower gel | rose hand cream B"
    assert text(max_history=2) == "A mint shower gel | lavender bath salt B"
    assert text(max_history=2, order="newest_first") == "A lavender bath salt | mint shower gel B"


def test_ids_are_those_of_the_text(make_dataset: Make, tokenizer: Any) -> None:
    prompt = PromptBuilder(PromptSection(), make_dataset(), tokenizer).build(None, [0, 1])
    assert list(prompt.ids) == tokenizer(prompt.text)["input_ids"]
    assert tokenizer.decode(prompt.ids) == prompt.text


@given(
    history=st.lists(st.integers(0, 7), min_size=1, max_size=40),
    limit=st.integers(8, 120),
    order=st.sampled_from(["oldest_first", "newest_first"]),
    most=st.integers(1, 40),
)
def test_the_oldest_are_dropped_and_no_more_than_must_be(
    history: list[int], limit: int, order: Any, most: int, make_dataset: Make, tokenizer: Any
) -> None:
    titles = ("a", "b", "rose hand cream", "mint", "x" * 60, "Ä€ß", "lavender bath salt " * 9, "q" * 400)
    section = PromptSection(
        template="{history}>", order=order, max_history=most, max_prompt_length=limit, separator="\n"
    )
    prompt = PromptBuilder(section, make_dataset(titles), tokenizer).build(None, history)
    assert 0 < len(prompt.ids) <= limit
    shown = history[-most:]

    def written(keep: int) -> str:
        kept = [titles[i] for i in shown[len(shown) - keep :]]
        return "\n".join(kept if order == "oldest_first" else kept[::-1]) + ">"

    fitting = [n for n in range(1, len(shown) + 1) if len(tokenizer(written(n))["input_ids"]) <= limit]
    if fitting:
        assert prompt.text == written(max(fitting))
    else:
        cut = prompt.text.removesuffix(">")
        assert cut
        assert titles[shown[-1]].startswith(cut)


def test_as_many_short_items_as_fit(make_dataset: Make, tokenizer: Any) -> None:
    section = PromptSection(template="{history}>", max_history=100, max_prompt_length=60)
    prompt = PromptBuilder(section, make_dataset(["a"]), tokenizer).build(None, [0] * 100)
    assert prompt.text == "\n".join("a" * 30) + ">"
    assert len(prompt.ids) == 60


def test_one_long_item_is_cut_at_a_word(make_dataset: Make, tokenizer: Any) -> None:
    title = " ".join(f"word{i}" for i in range(300))
    section = PromptSection(template=SHORT, max_prompt_length=60)
    prompt = PromptBuilder(section, make_dataset(["b", title]), tokenizer).build(None, [0, 1])
    assert 50 < len(prompt.ids) <= 60
    shown = prompt.text.removeprefix("Chosen:\n").removesuffix("\nNext:")
    assert title.startswith(shown + " ")


def test_a_template_that_names_the_history_twice(make_dataset: Make, tokenizer: Any) -> None:
    section = PromptSection(template="{history}>{history}", max_prompt_length=40)
    builder = PromptBuilder(section, make_dataset(["ab", "word " * 200]), tokenizer)
    assert builder.build(None, [0]).text == "ab>ab"
    assert "{history}" not in builder.build(None, [1]).text


def test_a_megabyte(make_dataset: Make, tokenizer: Any) -> None:
    megabyte = "x" * 1_000_000
    dataset = make_dataset(["b", megabyte, "w " * 500_000], prompts={"u0": megabyte, "u1": "w " * 500_000})
    dataset = Dataset(**{**dataset.__dict__, "users": ("u0", "u1", "u2")})
    builder = PromptBuilder(PromptSection(template=SHORT, max_prompt_length=50), dataset, tokenizer)
    for prompt in (
        builder.build(None, [0, 1]),
        builder.build(None, [2]),
        builder.build("u0", []),
        builder.build("u1", []),
    ):
        assert 40 <= len(prompt.ids) <= 50
        assert list(prompt.ids) == tokenizer(prompt.text)["input_ids"]


def test_a_template_that_leaves_no_room(make_dataset: Make, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="no room for items"):
        PromptBuilder(PromptSection(template=SHORT * 9, max_prompt_length=50), make_dataset(), tokenizer)


def test_an_empty_history(make_dataset: Make, tokenizer: Any) -> None:
    builder = PromptBuilder(PromptSection(template=SHORT), make_dataset(), tokenizer)
    assert builder.build(None, []).text == "Chosen:\n\nNext:"


# --- prompts.json ---


def test_prompts_json_overrides_for_its_users_only(make_dataset: Make, tokenizer: Any) -> None:
    dataset = make_dataset(prompts={"u0": "She likes {history} and roses.\nNext:"})
    builder = PromptBuilder(PromptSection(template=SHORT), dataset, tokenizer)
    assert builder.build("u0", [1]).text == "She likes {history} and roses.\nNext:"
    for user in ("u1", None):
        assert builder.build(user, [1]).text == "Chosen:\nmint shower gel\nNext:"


def test_a_long_override_keeps_its_lines_when_cut(make_dataset: Make, tokenizer: Any) -> None:
    text = "first line\n\n" + "second  line " * 100
    dataset = make_dataset(prompts={"u0": text})
    prompt = PromptBuilder(PromptSection(template=SHORT, max_prompt_length=30), dataset, tokenizer).build("u0", [1])
    assert text.startswith(prompt.text)
    assert prompt.text.startswith("first line\n\nsecond  line")
    assert len(prompt.ids) <= 30


# --- chat ---


def test_a_chat_template_is_applied_once_with_one_bos(make_dataset: Make, tiny_folder: Path) -> None:
    chat = chat_tokenizer(tiny_folder, CHAT)
    section = PromptSection(template="A {history}", system="Be brief.")
    prompt = PromptBuilder(section, make_dataset(prompts={"u0": "mine"}), chat).build(None, [0])
    assert prompt.text == "<bos><system>Be brief.</system><user>A rose hand cream</user><assistant>"
    assert prompt.ids[0] == chat.bos_token_id
    assert prompt.ids.count(chat.bos_token_id) == 1
    assert chat.decode(prompt.ids) == prompt.text
    own = PromptBuilder(section, make_dataset(prompts={"u0": "mine"}), chat).build("u0", [0])
    assert own.text == "<bos><system>Be brief.</system><user>mine</user><assistant>"


def test_without_chat_the_tokenizers_own_bos_is_kept(make_dataset: Make, tiny_folder: Path) -> None:
    chat = chat_tokenizer(tiny_folder, CHAT)
    prompt = PromptBuilder(PromptSection(template="A {history}", chat="never"), make_dataset(), chat).build(None, [0])
    assert prompt.text == "A rose hand cream"
    assert prompt.ids[0] == chat.bos_token_id
    assert prompt.ids.count(chat.bos_token_id) == 1


def test_a_chat_prompt_that_is_too_long_keeps_its_frame(make_dataset: Make, tiny_folder: Path) -> None:
    chat = chat_tokenizer(tiny_folder, CHAT)
    section = PromptSection(template="A {history}", max_prompt_length=48)
    builder = PromptBuilder(section, make_dataset(["word " * 100, "ab"], prompts={"u0": "mine " * 100}), chat)
    for prompt in (builder.build(None, [0]), builder.build("u0", [1]), builder.build(None, [1] * 30)):
        assert len(prompt.ids) <= 48
        assert prompt.text.startswith("<bos><user>")
        assert prompt.text.endswith("</user><assistant>")


def test_chat_settings_that_do_not_fit(make_dataset: Make, tokenizer: Any, tiny_folder: Path) -> None:
    dataset = make_dataset()
    with pytest.raises(ConfigError, match=r"prompt\.system needs a chat model"):
        PromptBuilder(PromptSection(system="Be brief."), dataset, tokenizer)
    with pytest.raises(ConfigError, match=r"prompt\.system needs a chat model"):
        PromptBuilder(PromptSection(system="x", chat="never"), dataset, chat_tokenizer(tiny_folder, CHAT))
    with pytest.raises(ConfigError, match="no chat template"):
        PromptBuilder(PromptSection(chat="always"), dataset, tokenizer)
    no_system = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}x"
    with pytest.raises(ConfigError, match="no system here"):
        PromptBuilder(PromptSection(system="x"), dataset, chat_tokenizer(tiny_folder, no_system))


def test_one_of_several_datasets_may_have_templates_of_its_own(
    make_dataset: Callable[..., Dataset], tokenizer: Any
) -> None:
    section = PromptSection(
        template=SHORT,
        templates={"toys": "Toys: {history}."},
        item_templates={"toys": "<{title}>"},
        separator=", ",
    )
    titles = ["ball", "kite"]
    said = {
        name: PromptBuilder(section, make_dataset(titles, name=name), tokenizer).build(None, [0, 1]).text
        for name in ("toys", "books")
    }
    assert said == {"toys": "Toys: <ball>, <kite>.", "books": SHORT.replace("{history}", "ball, kite")}
    assert section.of("toys").of("books") == section.of("toys")


# --- chat templates that leave something out ---


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        ("{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}", "prompt.system is not in"),
        ("{% for m in messages if m['role'] == 'system' %}{{ m['content'] }}{% endfor %}", "prompt.template is not in"),
        ("{% for m in messages %}{% for part in m['content'] %}{{ part }} {% endfor %}{% endfor %}", "is not in"),
    ],
)
def test_a_chat_template_that_leaves_a_turn_out_is_refused(
    loop: str, message: str, make_dataset: Make, tiny_folder: Path
) -> None:
    section = PromptSection(template=SHORT, system="You sell things.")
    with pytest.raises(ConfigError, match=message):
        PromptBuilder(section, make_dataset(), chat_tokenizer(tiny_folder, loop))


def test_a_chat_template_may_trim_and_wrap_what_it_gets(make_dataset: Make, tiny_folder: Path) -> None:
    trimming = "{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}"
    section = PromptSection(template=f"  {SHORT}\n\n", system=" You sell\nthings. ")
    prompt = PromptBuilder(section, make_dataset(), chat_tokenizer(tiny_folder, trimming)).build(None, [0])
    assert prompt.text == "[You sell\nthings.][Chosen:\nrose hand cream\nNext:]"
