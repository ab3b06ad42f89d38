"""A policy that is an adapter already: it goes on being trained as it is, and the record says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl4rec_cli.cli.main import main
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.policy import LoraSection, PolicySection
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.errors import ConfigError, PolicyError
from rl4rec_cli.policy.loading import load_policy, save_policy
from rl4rec_cli.policy.sources import with_own_adapter

OWN = {"r": 3, "alpha": 5, "dropout": 0.0, "target_modules": ("q_proj", "v_proj"), "seed": None}


@pytest.fixture(scope="module")
def adapter(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Dataset]) -> Path:
    folder = tmp_path_factory.mktemp("own") / "adapter"
    lora = LoraSection.model_validate({**OWN, "dropout": 0.0})
    save_policy(
        load_policy(PolicySection(model=str(tiny_folder), device="cpu", lora=lora), trainable=True, seed=1), folder
    )
    return folder


@pytest.mark.parametrize(
    "lora",
    [None, {}, {"r": 3}, {"alpha": 5, "seed": 9}, {"target_modules": ["v_proj", "q_proj"]}, {"target_modules": "auto"}],
)
def test_settings_that_do_not_contradict_become_the_adapter_s(adapter: Path, lora: Any) -> None:
    section = PolicySection.model_validate({"model": str(adapter), "lora": lora})
    resolved = with_own_adapter(section)
    assert resolved.lora is not None
    assert resolved.lora.model_dump() == OWN
    assert with_own_adapter(PolicySection.model_validate(resolved.model_dump())) == resolved  # as it is resumed


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"r": 16}, "policy.lora.r=16, but {} is an adapter with 3"),
        ({"alpha": 32}, "policy.lora.alpha=32, but {} is an adapter with 5"),
        ({"dropout": 0.1}, "policy.lora.dropout=0.1, but {} is an adapter with 0.0"),
        (
            {"target_modules": ["o_proj"]},
            'policy.lora.target_modules=["o_proj"], but {} is an adapter with ["q_proj", "v_proj"]',
        ),
    ],
)
def test_settings_of_another_adapter_are_refused(adapter: Path, lora: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_own_adapter(PolicySection.model_validate({"model": str(adapter), "lora": lora}))
    assert said.format(adapter) in caught.value.message
    assert "leave policy.lora out" in str(caught.value.hint)


def test_adapters_of_another_kind_and_damaged_ones_are_refused(adapter: Path, tmp_path: Path) -> None:
    saved = json.loads((adapter / "adapter_config.json").read_text())
    section = PolicySection(model=str(tmp_path))
    for change, said in [({"peft_type": "IA3"}, "an adapter of kind IA3"), ({"r": "three"}, "must be whole numbers")]:
        (tmp_path / "adapter_config.json").write_text(json.dumps({**saved, **change}))
        with pytest.raises(PolicyError, match=said):
            with_own_adapter(section)


def test_the_record_holds_what_was_trained(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = (
        *("data.synthetic.users=12", "data.synthetic.items=20", "generation.max_completion_length=4"),
        *("retrieval.lsa_dim=8", "trainer.batch_size=2", "trainer.num_generations=2", "trainer.max_steps=1"),
        *("trainer.warm_start=null", "eval.users=4", "eval.baselines=[]", "eval.steps=null", "eval.cache_dir=null"),
    )
    flags = {"policy.model": str(adapter), "run.output_dir": str(tmp_path), "run.name": "mine"}
    config = load_config(algorithm="grpo", recipes=["quick-test"], flags=flags, sets=sets)
    [trained] = train(config, (1,))
    run = trained.run.folder
    kept = load_config(algorithm=None, recipes=[str(run / "config.yaml")])
    assert kept.policy.lora is not None
    assert kept.policy.lora.model_dump() == OWN
    saved = json.loads((run / "checkpoints" / "checkpoint_final" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"]) == (3, 5)
    assert main(["export", str(run), "--to", "adapter", "--output", str(tmp_path / "out")]) == 0
    assert "a LoRA adapter (rank 3, alpha 5)" in (tmp_path / "out" / "README.md").read_text()
    capsys.readouterr()
    command = ["train", "grpo", "--quick-test", "--model", str(adapter)]
    assert main([*command, "--set", "policy.lora.r=16"]) == 2
    assert "is an adapter with 3" in capsys.readouterr().err
    assert main([*command, "--dry-run"]) == 0
    assert "r: 3\n" in capsys.readouterr().out
