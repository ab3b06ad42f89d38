"""What ends a completion of a chat model: the token that its chat template writes after an answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl4rec_cli.config.policy import PolicySection
from rl4rec_cli.config.sections import PromptSection
from rl4rec_cli.config.trainer import SftSection
from rl4rec_cli.data.dataset import Dataset, build_examples
from rl4rec_cli.data.prompts import PromptBuilder
from rl4rec_cli.models.turns import end_of_turn
from rl4rec_cli.policy.generation import decode_texts, ending_ids
from rl4rec_cli.policy.loading import load_policy
from rl4rec_cli.train.environments import Environment
from rl4rec_cli.train.pairs import build_pairs

# In the place of a turn's end stands a token that the tiny model has a row for.
TURNS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<pad>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
NO_ANSWERS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.mark.parametrize(
    ("template", "token"),
    [
        (None, None),
        (TURNS, "<pad>"),
        (TURNS.replace("<pad>", "\n<eos><pad>"), "<eos>"),
        (TURNS.replace("<pad>", "</s>"), None),
        (TURNS.replace("<pad>", ""), None),
        (NO_ANSWERS, None),
    ],
)
def test_the_token_after_an_answer(template: str | None, token: str | None, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    end = end_of_turn(tokenizer)
    assert (None if end is None else tokenizer.convert_ids_to_tokens(end)) == token


def test_the_longest_token_that_stands_there_counts(tokenizer: Any) -> None:
    tokenizer.add_tokens(["<end>", "<end>!"])
    tokenizer.chat_template = TURNS.replace("<pad>", "<end>!")
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<end>!")


def test_a_completion_ends_by_it_and_is_taught_it(
    tiny_folder: Path, tmp_path: Path, make_dataset: Callable[..., Dataset], capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where the files name another end, as converters and Gemma do."""
    folder = tmp_path / "chat"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("manifest.json"))
    (folder / "chat_template.jinja").write_text(TURNS)
    policy = load_policy(PolicySection(model=str(folder), device="cpu"))
    tokenizer = policy.tokenizer
    turn, end = tokenizer.convert_tokens_to_ids("<pad>"), tokenizer.eos_token_id
    assert ending_ids(policy.model, tokenizer) == [end, turn]
    assert "ends a turn by <pad>, and the model's files name <eos> as the end" in capfd.readouterr().err

    dataset = make_dataset()
    examples = build_examples(dataset, "train", train_targets="last")
    for chat, expected in (("auto", turn), ("never", end)):
        builder = PromptBuilder(PromptSection(chat=chat), dataset, tokenizer)
        (pair, *_) = build_pairs(
            Environment(dataset, None, None, builder, examples).taught(SftSection()),  # type: ignore[arg-type]
            builder,
            max_completion_length=8,
        )
        assert pair["labels"][-1] == pair["input_ids"][-1] == expected

    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<pad>"}))
    load_policy(PolicySection(model=str(folder), device="cpu"))
    assert "ends a turn" not in capfd.readouterr().err


def test_an_end_of_turn_that_is_not_flagged_as_special_is_not_in_the_text(tokenizer: Any) -> None:
    tokenizer.add_tokens(["<turn_over>"])
    tokenizer.chat_template = TURNS.replace("<pad>", "<turn_over>")
    over = tokenizer.convert_tokens_to_ids("<turn_over>")
    word = tokenizer("cream", add_special_tokens=False)["input_ids"]
    assert decode_texts(tokenizer, [[*word, over], word, [over], []]) == ["cream", "cream", "", ""]
