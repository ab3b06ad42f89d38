"""Where a policy is read, and what is said where it cannot be: before a run folder is made, in one line each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl4rec_cli.cli.main import main
from rl4rec_cli.config.policy import LoraSection, PolicySection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.errors import ConfigError, PolicyError, Rl4RecError
from rl4rec_cli.models.vocabulary import RESIZE
from rl4rec_cli.policy.facts import policy_facts
from rl4rec_cli.policy.loading import check_tokenizer, load_policy, save_policy
from rl4rec_cli.policy.sources import find_base, find_source

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 2471645608\n"


def section(model: Path | str) -> PolicySection:
    return PolicySection(model=str(model), device="cpu", dtype="fp32")


def refusal(model: Path | str, max_length: int | None = None, kind: type[Rl4RecError] = PolicyError) -> Rl4RecError:
    with pytest.raises(kind) as caught:
        check_tokenizer(section(model), max_length)
    assert "\n" not in caught.value.message
    return caught.value


def with_tokens(base: Path, folder: Path, *tokens: str, special: bool = False, **named: str) -> Path:
    """A copy of a model whose tokenizer has tokens that the embedding has no rows for."""
    from transformers import AutoTokenizer

    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("manifest.json"))  # as models of others come
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens), special_tokens=special)
    tokenizer.add_special_tokens(named)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    loaded = section(tiny_folder).model_copy(update={"lora": LoraSection(r=2)})
    save_policy(load_policy(loaded, trainable=True), folder)
    return folder


def test_words_that_the_model_has_no_rows_for(tiny_folder: Path, tmp_path: Path) -> None:
    rows = json.loads((tiny_folder / "config.json").read_text())["vocab_size"]
    error = refusal(with_tokens(tiny_folder, tmp_path / "words", "zyx", "wvu"))
    assert error.message.endswith(
        f"its tokenizer has {rows + 2:,} tokens, but its embedding has {rows:,} rows: none for 'zyx', 'wvu'"
    )
    assert error.hint == RESIZE
    assert "model.resize_token_embeddings" in RESIZE
    end = with_tokens(tiny_folder, tmp_path / "end", eos_token="<end>")
    assert "none for '<end>'" in refusal(end).message
    template = with_tokens(tiny_folder, tmp_path / "template", "<turn>", special=True)
    (template / "chat_template.jinja").write_text("{% for m in messages %}<turn>{{ m['content'] }}{% endfor %}")
    assert "none for '<turn>'" in refusal(template).message


def test_padding_and_special_tokens_that_no_text_becomes_do_no_harm(tiny_folder: Path, tmp_path: Path) -> None:
    """As the token for pictures of a model that reads text alone."""
    folder = with_tokens(tiny_folder, tmp_path / "pad", "<picture>", special=True, pad_token="[PAD]")
    tokenizer = load_policy(section(folder)).tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_a_gguf_file_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "quantised").mkdir()
    file = tmp_path / "quantised" / "Small Model.Q4_1.gguf"
    file.write_bytes(b"GGUF" + bytes(600))
    for model in (file, file.parent):
        error = refusal(model)
        assert error.message.startswith(f"{file} is a GGUF file")
        assert f"python scripts/convert_gguf.py '{file}' 'models/small model.q4_1'" in (error.hint or "")
        with pytest.raises(PolicyError, match="is a GGUF file"):
            policy_facts(section(model))  # what `plan` and `--dry-run` ask
    other = tmp_path / "weights.safetensors"
    other.write_bytes(bytes(16))
    assert refusal(other).message == f"{other}: a file, not a folder"


def test_a_gguf_file_beside_a_model_does_no_harm(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / "more.gguf").write_bytes(b"GGUF" + bytes(600))
    check_tokenizer(section(tmp_path / "model"), None)


def test_a_model_without_an_end_and_texts_longer_than_it_reads_are_refused_before_weights_are_read(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("manifest.json", "model.safetensors"))
    check_tokenizer(section(folder), 2048)
    error = refusal(folder, 2049, ConfigError)
    assert error.message == f"prompt and completion may have 2,049 tokens together, but {folder} reads 2,048 at most"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    error = refusal(folder)
    assert "has no end-of-sequence token: completions could never end" in error.message
    assert "tokenizer_config.json" in (error.hint or "")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / name).write_text(POINTER)
    error = refusal(tmp_path / "model")
    assert error.message == f"{tmp_path / 'model' / name} is a Git LFS pointer, not the file itself"
    assert "git lfs pull" in str(error.hint)


@pytest.mark.parametrize(
    ("change", "words", "way_out"),
    [
        ({"base_model_name_or_path": None}, "has base_model_name_or_path=None: nothing says which", "write it there"),
        ({}, "has no base_model_name_or_path: nothing says which model", "write it there"),
        ({"base_model_name_or_path": "/home/ann/base-7b"}, "/home/ann/base-7b is not on this machine", "beside it"),
        ({"base_model_name_or_path": "C:\\models\\base-7b"}, "base-7b is not on this machine", "beside it"),
        ({"base_model_name_or_path": "../nowhere/base-7b"}, "base-7b is not on this machine", "beside it"),
        (
            {"base_model_name_or_path": "some/base"},
            "some/base is not on this machine (neither",
            "hf download some/base",
        ),
    ],
)
def test_an_adapter_whose_base_is_not_there(
    change: dict[str, Any], words: str, way_out: str, adapter: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapter, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    saved = json.loads(file.read_text())
    del saved["base_model_name_or_path"]
    file.write_text(json.dumps({**saved, **change}))
    error = refusal(tmp_path / "adapter")
    assert words in error.message
    assert way_out in str(error.hint)


def test_a_base_of_another_machine_is_taken_from_beside_the_adapter(
    adapter: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapter, tmp_path / "adapter")
    shutil.copytree(tiny_folder, tmp_path / "base-7b")
    file = tmp_path / "adapter" / "adapter_config.json"
    saved = json.loads(file.read_text())
    for recorded in ("/home/ann/base-7b", "D:\\models\\base-7b", "../models/base-7b"):
        file.write_text(json.dumps({**saved, "base_model_name_or_path": recorded}))
        assert find_source(section(tmp_path / "adapter"), "hf").model == str(tmp_path / "base-7b")


@pytest.mark.parametrize(("own", "adapter"), [("base", "."), ("checkpoint_base", "checkpoints/checkpoint_final")])
def test_a_base_of_its_own_is_taken_before_what_now_lies_at_the_recorded_place(
    own: str, adapter: str, tmp_path: Path
) -> None:
    """A run or an export was renamed, and another one was given the name."""
    for name in ("mine", "others"):
        (tmp_path / name / adapter).mkdir(parents=True)
        (tmp_path / name / Path(adapter).parent / own).mkdir()
    recorded = str(tmp_path / "others" / Path(adapter).parent / own)
    assert find_base(tmp_path / "mine" / adapter, recorded) == recorded.replace("others", "mine")


def test_an_adapter_beside_another_is_no_base(tmp_path: Path) -> None:
    """A run's `checkpoint_start` may be an adapter on another run's, and both have the same name."""
    start = tmp_path / "mine" / "checkpoints" / "checkpoint_start"
    start.mkdir(parents=True)
    (start / "adapter_config.json").write_text("{}")
    recorded = str(tmp_path / "gone" / "checkpoints" / "checkpoint_start")
    assert find_base(start.parent / "checkpoint_final", recorded) == recorded


def test_a_name_of_the_hub_without_the_hub() -> None:
    error = refusal("gpt2")
    assert "openai-community/gpt2 is not on this machine" in error.message
    assert "the Hub is switched off by HF_HUB_OFFLINE" in error.message
    assert "unset HF_HUB_OFFLINE" in str(error.hint)
    assert "`hf download openai-community/gpt2`" in str(error.hint)
    assert "a local folder" in str(error.hint)


def test_every_command_says_it_before_it_makes_anything(
    tiny_folder: Path, tmp_path: Path, make_dataset: Callable[..., Dataset], capsys: pytest.CaptureFixture[str]
) -> None:
    """The embedder does not exist: whoever asked for it first would say that."""
    save_dataset(make_dataset(sequences=[[0, 1, 2, 3, 4], [5, 4, 3, 2, 1]]), tmp_path / "data")
    words = str(with_tokens(tiny_folder, tmp_path / "words", "zyx"))
    data, embedder = str(tmp_path / "data"), ["--set", "retrieval.model=nobody/none"]
    embedder += ["--set", "retrieval.embedder=sentence-transformers"]
    few = ["--set", "trainer.batch_size=2", "--set", "trainer.gradient_accumulation_steps=1"]
    few += ["--set", "trainer.warm_start=null"]
    few += ["--set", f"run.output_dir={tmp_path / 'runs'}"]
    for command in (
        ["train", "grpo", "--dataset", data, "--model", words, *embedder, *few],
        ["eval", words, "--dataset", data, *embedder],
        ["compare", words, "last_item", "--dataset", data, *embedder],
        ["plan", "--dataset", data, "--model", words, *embedder],
        ["prompts", data, "--model", words],
        ["doctor", data, words],
    ):
        assert main(command) == 1
        assert "rows: none for 'zyx'" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "runs").exists()


def test_plan_looks_at_the_embedder(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny_folder, tmp_path / "embedder")
    (tmp_path / "embedder" / "model.safetensors").write_text(POINTER)
    sets = ("retrieval.embedder=sentence-transformers", f"retrieval.model={tmp_path / 'embedder'}")
    assert main(["plan", *(part for text in sets for part in ("--set", text))]) == 2
    assert "model.safetensors is a Git LFS pointer" in capsys.readouterr().err
