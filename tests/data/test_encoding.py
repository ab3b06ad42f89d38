"""Texts to tokens: prompts end open, and what stands in an item's text is never a control token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from rl4rec_cli.cli.main import main
from rl4rec_cli.config.sections import PromptSection
from rl4rec_cli.config.trainer import SftSection
from rl4rec_cli.data.dataset import Dataset, Example
from rl4rec_cli.data.encoding import MARK, TextEncoder
from rl4rec_cli.data.prompts import PromptBuilder
from rl4rec_cli.errors import PolicyError
from rl4rec_cli.train.environments import Environment
from rl4rec_cli.train.pairs import build_pairs

Make = Callable[..., Dataset]
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["<eos>", "<bos>", "<pad>", "<|im_start|>", MARK, MARK + "\U000f0002", "rose", " hand\n", "é", "", "<", "eos>"]


def tokenizer_of(folder: Path, single: str = "$A", chat: str | None = None) -> Any:
    """The tiny tokenizer with one more control token; `single` is what it makes of a text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    ids = [("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ids)
    tokenizer.chat_template = chat
    return tokenizer


@pytest.mark.parametrize("single", ["$A", "<bos> $A", "$A <eos>", "<bos> $A <eos>"])
def test_a_prompt_ends_open_whatever_the_tokenizer_appends(single: str, tiny_folder: Path, make_dataset: Make) -> None:
    tokenizer = tokenizer_of(tiny_folder, single)
    section = PromptSection(template="{history}\n", max_prompt_length=40)
    prompt = PromptBuilder(section, make_dataset(), tokenizer).build(None, [0, 1])
    text = "rose hand cream\nmint shower gel\n"
    opening = [tokenizer.bos_token_id] if "<bos>" in single else []
    assert list(prompt.ids) == opening + tokenizer(text, add_special_tokens=False)["input_ids"]
    # An end that the template itself asks for stays.
    own = PromptSection(template="{history}<eos>", max_prompt_length=40)
    ids = PromptBuilder(own, make_dataset(), tokenizer).build(None, [0]).ids
    assert list(ids) == opening + tokenizer("rose hand cream<eos>", add_special_tokens=False)["input_ids"]


@given(
    words=st.lists(st.sampled_from(WORDS), max_size=6),
    is_chat=st.booleans(),
    single=st.sampled_from(["$A", "<bos> $A", "$A <eos>"]),
)
def test_item_texts_hold_no_control_token_and_other_texts_are_as_before(
    words: list[str], is_chat: bool, single: str, tiny_folder: Path, make_dataset: Make
) -> None:
    title = "".join(words)
    tokenizer = tokenizer_of(tiny_folder, single, CHAT if is_chat else None)
    controls = set(tokenizer.all_special_ids)
    frame = "<eos>Chosen: {history}\nNext:" if not is_chat else "Chosen: {history}\nNext:"
    section = PromptSection(template=frame, max_prompt_length=200)
    builder = PromptBuilder(section, make_dataset([title or "x", "y"]), tokenizer)
    prompt, plain = builder.build(None, [0]), builder.build(None, [1])
    # As many control tokens as with a title that has none, in the same order: all of them are the frame's.
    assert [i for i in prompt.ids if i in controls] == [i for i in plain.ids if i in controls]
    assert (title or "x") in prompt.text
    read = tokenizer.decode([i for i in prompt.ids if i not in controls])
    assert f"Chosen: {title or 'x'}\nNext:" in read
    if builder.encoder.guard(title) == title:
        whole = tokenizer(prompt.text, add_special_tokens=not is_chat)["input_ids"]
        has_end = "<eos>" in single and not is_chat
        assert list(prompt.ids) == (whole[:-1] if has_end else whole)
    assert builder.encoder.show(builder.encoder.guard(title)) == title
    assert not controls.intersection(builder.encoder.text_ids(title))


def test_a_text_that_is_cut_within_a_name_is_cut_there(tiny_folder: Path, make_dataset: Make) -> None:
    tokenizer = tokenizer_of(tiny_folder)
    section = PromptSection(template="{history}\n", max_prompt_length=5)
    builder = PromptBuilder(section, make_dataset(["<eos>" * 30, "y"]), tokenizer)
    prompt = builder.build(None, [0])
    assert prompt.is_cut
    assert set(prompt.text) <= set("<eos>\n")
    assert tokenizer.eos_token_id not in prompt.ids


def test_targets_and_written_prompts_hold_no_control_token(tiny_folder: Path, make_dataset: Make) -> None:
    tokenizer = tokenizer_of(tiny_folder)
    dataset = make_dataset(["a <eos> b", "<bos>"], sequences=[[0, 1, 0]], prompts={"u0": "likes <eos><|im_start|>"})
    builder = PromptBuilder(PromptSection(template="{history}\n"), dataset, tokenizer)
    [row] = build_pairs(
        Environment(dataset, None, None, builder, [Example("u0", (0,), 1)]).taught(SftSection()),  # type: ignore[arg-type]
        builder,
        max_completion_length=20,
    )
    prompt = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
    target = [label for label in row["labels"] if label != -100]
    controls = set(tokenizer.all_special_ids)
    assert not controls.intersection(prompt)
    assert tokenizer.decode(prompt) == "likes <eos><|im_start|>"
    assert controls.intersection(target) == {tokenizer.eos_token_id}
    assert target.count(tokenizer.eos_token_id) == 1
    assert target[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(target[:-1]).strip() == "<bos>"


def test_a_tokenizer_that_makes_control_tokens_all_the_same_is_refused(tiny_folder: Path) -> None:
    tokenizer = tokenizer_of(tiny_folder)
    encoder = TextEncoder(tokenizer)

    class Deaf:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, text: Any, split_special_tokens: bool = False, **options: Any) -> Any:
            return tokenizer(text, **options)

    encoder._tokenizer = Deaf()
    ids = encoder.text_ids("a <eos> b")  # the name is cut apart
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "a <eos> b"

    class Stubborn(Deaf):
        def __call__(self, text: Any, **options: Any) -> Any:
            return {"input_ids": [tokenizer.eos_token_id]}

    encoder._tokenizer = Stubborn()
    with pytest.raises(PolicyError, match="reads '<eos>' in the text of an item as a control token"):
        encoder.text_ids("a <eos> b")


def test_the_command_shows_where_a_prompt_ends(
    tiny_folder: Path, tmp_path: Path, make_dataset: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    from rl4rec_cli.data.saving import save_dataset

    tokenizer_of(tiny_folder, "<bos> $A <eos>").save_pretrained(tmp_path / "model")
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / "model" / name).symlink_to(tiny_folder / name)
    config = json.loads((tiny_folder / "config.json").read_text())
    (tmp_path / "model" / "config.json").unlink()
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 1}))
    save_dataset(make_dataset(sequences=[[0, 1, 2, 3]] * 3), tmp_path / "shop")
    command = ["prompts", str(tmp_path / "shop"), "--model", str(tmp_path / "model"), "--user", "u0"]
    command += ["--set", "prompt.template={history}\n"]
    assert main(command) == 0
    assert "its last tokens: " in (out := capsys.readouterr().out)
    assert "<eos>" not in out
    assert main([*command, "--json"]) == 0
    [prompt] = json.loads(capsys.readouterr().out)["prompts"]
    assert prompt["last_tokens"][-1].startswith("Ċ (")


@pytest.mark.parametrize("name", ["<｜User｜>", "<tool_call>", "</think>"])
def test_names_that_steer_a_model_without_a_flag_are_text_too(name: str, tiny_folder: Path) -> None:
    tokenizer = tokenizer_of(tiny_folder)
    tokenizer.add_tokens([name, "<h1>"])
    encoder = TextEncoder(tokenizer)
    text = f"rose {name} cream{name}"
    ids = encoder.prompt_ids(f"{name}{encoder.guard(text)}", is_framed=True)
    control = tokenizer.convert_tokens_to_ids(name)
    assert ids[0] == control
    assert control not in ids[1:]
    assert tokenizer.decode(ids[1:]) == text
    # A tag of HTML steers nothing: it is the token that it is in any text.
    assert encoder.text_ids("<h1>rose") == tokenizer("<h1>rose", add_special_tokens=False)["input_ids"]
