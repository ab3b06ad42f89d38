"""Every setting is documented, can be found by the names that others use, and hints know those names too."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rl4rec_cli.cli.main import main
from rl4rec_cli.config.aliases import GUIDES, LIBRARIES, OPTIONS, find_alias, flag_of
from rl4rec_cli.config.layering import FLAGS, load_config
from rl4rec_cli.config.settings import all_settings, find_settings
from rl4rec_cli.config.trainer import trainer_sections
from rl4rec_cli.errors import ConfigError

ALIASES = (*GUIDES, *LIBRARIES)
GUIDES_OPTIONS = [
    "policy_model", "reward_type", "num_sample_generations", "mini_batch_size", "use_ref_model", "use_dummy",
    "prompt_file", "sequential_file", "dataset", "emb_type", "emb_model", "k", "learning_rate", "batch_size",
    "num_epochs", "max_steps", "max_new_tokens", "max_input_length", "temperature", "top_p",
    "gradient_accumulation_steps", "ppo_epochs", "num_generations", "normalize_rewards", "output_dir",
    "save_steps", "logging_steps", "seed", "use_wandb", "wandb_project", "quick_test", "load_in_4bit",
    "use_unsloth", "gpu", "retrieval_service_name", "namespace", "max_completion_length", "max_prompt_length",
    "per_device_train_batch_size", "num_train_epochs", "use_vllm", "vllm_gpu_memory_utilization", "bf16",
    "fp16", "lora_alpha", "target_modules", "beta", "kl_coef", "report_to", "run_name",
]  # fmt: skip


def test_every_key_of_every_algorithm_has_a_meaning_a_type_and_a_default() -> None:
    settings = {setting.key: setting for setting in all_settings()}
    assert len(settings) > 150
    assert not [key for key, setting in settings.items() if not (setting.meaning and setting.type and setting.default)]
    for algorithm, section in trainer_sections().items():
        missing = [name for name in section.model_fields if f"trainer.{name}" not in settings]
        assert missing == ["algorithm"], algorithm


def test_a_setting_says_its_range_and_what_differs_between_algorithms() -> None:
    settings = {setting.key: setting for setting in all_settings()}
    assert settings["run.seed"].facts == "whole number; at least 0, at most 2147483647; default `42`"
    rl = ", ".join(name for name, section in trainer_sections().items() if section.learns_from_rewards)
    assert settings["trainer.learning_rate"].default == f"{rl}: 1e-05; sft: 0.0001; dpo: 5e-07; retriever: 0.002"
    assert settings["trainer.lam"].algorithms == ("ppo",)
    assert settings["trainer.max_steps"].algorithms == ()
    assert settings["policy.quantization"].type == "`none` or `4bit` or `8bit`"
    assert settings["eval.ks"].facts.startswith("list of (whole number); at least 1 entry, each at least 1")
    assert settings["policy.lora"].default == "null"


def test_other_names_mean_settings_that_there_are() -> None:
    keys = {setting.key for setting in all_settings()}
    for alias in ALIASES:
        assert alias.key or alias.flag, alias.name
        assert set(filter(None, alias.key.split(","))) <= keys, alias.name
    for table in (GUIDES, LIBRARIES):
        assert len({alias.name for alias in table}) == len(table)
    assert not [name for name in GUIDES_OPTIONS if find_alias(name) is None]


def test_flags_of_the_table_are_options_of_train() -> None:
    import typer

    from rl4rec_cli.cli.main import app

    train = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    options = {name for parameter in train.commands["grpo"].params for name in parameter.opts}
    assert {alias.flag for alias in ALIASES if alias.flag} | set(OPTIONS) <= options
    for alias in ALIASES:  # what a setting is called by the table, it is called in errors and in the reference
        if alias.flag in OPTIONS and alias.key:
            assert OPTIONS[alias.flag].startswith(alias.key), alias.name
    assert FLAGS["trainer.precision"] == flag_of("trainer.precision") == "--bf16 or --fp16"


@pytest.mark.parametrize(
    ("word", "first"),
    [
        ("max_new_tokens", "generation.max_completion_length"),
        ("--max-new-tokens", "generation.max_completion_length"),
        ("reward_type", "reward.functions"),
        ("kl_coef", "trainer.beta"),
        ("trainer.lam", "trainer.lam"),
        ("lora", "policy.lora"),
        ("nucleus", "generation.top_p"),
        ("vllm_gpu_memory_utilization", "generation.vllm.memory_share"),
    ],
)
def test_settings_are_found_by_key_meaning_and_other_names(word: str, first: str) -> None:
    assert find_settings(word)[0].key == first


def test_a_search_that_finds_nothing_says_what_may_have_been_meant(capsys: Any) -> None:
    with pytest.raises(ConfigError, match="no setting has `tempratur`") as caught:
        find_settings("tempratur")
    assert "did you mean temperature?" in str(caught.value.hint)
    assert main(["settings", "tempratur"]) == 2
    assert main(["settings", "temperature", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"generation.temperature", "eval.temperature"} <= {one["key"] for one in found}
    assert next(one for one in found if one["key"] == "generation.temperature")["flag"] == "--temperature"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("generation.max_new_tokens=5", "did you mean `generation.max_completion_length`?"),
        ("reward.reward_type=ndcg", "did you mean `reward.functions`?"),
        ("trainer.per_device_train_batch_size=2", "did you mean `trainer.batch_size`?"),
        ("trainer.kl_coef=1", "did you mean `trainer.beta`?"),
        ("use_wandb=true", "did you mean `logging.report_to`?"),
        ("trainer.bta=1", "did you mean `trainer.beta`?"),
    ],
)
def test_the_hint_for_an_unknown_key_knows_other_names(text: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(algorithm="grpo", sets=[text])
    assert meant in caught.value.message


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["train", "grpo", "--learning_rate", "1"], "it is written --learning-rate"),
        (["train", "grpo", "--max_completion_length", "9"], "it is called --max-new-tokens here"),
        (["train", "grpo", "--policy_model", "x"], "it is called --model here"),
        (["train", "ppo", "--mini_batch_size", "4"], "it is the setting --set trainer.mini_batch_size=… (ppo only"),
        (["train", "grpo", "--use_vllm"], "it is the setting --set generation.engine=… (generation.engine=vllm)"),
        (["train", "grpo", "--beta", "1"], "it is the setting --set trainer.beta=…"),
        (["train", "grpo", "--screen-rank", "1"], "it is a setting: --set trainer.screen_rank=…"),
        (["eval", "x", "--sequential_file", "f"], "it is written --sequential-file"),
        (["train", "grpo", "--nonsense"], "`rl4rec train grpo --help` shows what there is"),
    ],
)
def test_the_hint_for_an_unknown_option_knows_other_names(args: list[str], hint: str, capsys: Any) -> None:
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no such option: --")
    assert f"hint: {hint}" in error


def test_options_of_train_set_what_they_are_named_after(capsys: Any) -> None:
    options = {
        **{"--learning-rate": "0.5", "--batch-size": "7", "--num-generations": "3", "--max-steps": "9"},
        **{"--epochs": "2.5", "-k": "4", "--temperature": "0.7", "--max-new-tokens": "11", "--lora-r": "8"},
        "--run-name": "mine",
    }
    args = ["train", "grpo", "--quick-test", "--dry-run", "--load-in-4bit", "--bf16"]
    assert main([*args, *(word for pair in options.items() for word in pair)]) == 0
    from rl4rec_cli.strict_yaml import load_yaml

    config: Any = load_yaml(capsys.readouterr().out)
    trainer = config["trainer"]
    assert [trainer[k] for k in ("learning_rate", "batch_size", "num_generations")] == [0.5, 7, 3]
    assert [trainer[k] for k in ("max_steps", "num_train_epochs", "precision")] == [9, 2.5, "bf16"]
    assert config["reward"]["k"] == 4
    assert config["generation"]["temperature"] == 0.7
    assert config["generation"]["max_completion_length"] == 11
    assert (config["policy"]["lora"]["r"], config["policy"]["quantization"]) == (8, "4bit")
    assert config["run"]["name"] == "mine"


def test_errors_name_the_option_that_gave_a_value(capsys: Any) -> None:
    args = ["--num-generations", "1", "--k", "0", "--lora-r", "0", "--epochs", "-1", "--run-name", "a/b"]
    assert main(["train", "grpo", "--quick-test", *args]) == 2
    error = capsys.readouterr().err
    for option in ("--num-generations", "--k", "--lora-r", "--epochs", "--run-name"):
        assert f"({option})" in error
    assert main(["train", "grpo", "--quick-test", "--bf16", "--fp16"]) == 2
    assert "give one of them" in capsys.readouterr().err
