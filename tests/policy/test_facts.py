"""Where the sizes of policies and embedders come from; nothing is loaded, nothing is fetched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl4rec_cli.config.policy import PolicySection, TinySection
from rl4rec_cli.config.sections import DataSection, RetrievalSection, RunConfig, SyntheticSection
from rl4rec_cli.errors import PolicyError
from rl4rec_cli.models.names import PRESETS
from rl4rec_cli.policy.facts import policy_facts, retrieval_facts

SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 500,
}


def folder(path: Path, **files: object) -> str:
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return str(path)


def test_a_preset_by_any_of_its_names() -> None:
    for name in ("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", "unsloth/Qwen2.5-7B-Instruct-unsloth-bnb-4bit"):
        assert policy_facts(PolicySection(model=name)) == PRESETS["qwen2.5-7b"].facts


def test_a_saved_tiny_policy_is_what_the_configuration_says(tiny_folder: Path) -> None:
    saved, said = policy_facts(PolicySection(model=str(tiny_folder))), policy_facts(PolicySection())
    assert (saved.hidden, saved.layers, saved.ffn, saved.is_tied) == (said.hidden, said.layers, said.ffn, True)
    wide = policy_facts(PolicySection(tiny=TinySection(hidden_size=128, layers=3, vocab_size=1000)))
    assert (wide.hidden, wide.head_dim, wide.ffn, wide.vocab) == (128, 32, 512, 1000)


def test_an_adapter_has_the_sizes_of_its_base(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", config=SMALL)
    adapter = folder(tmp_path / "adapter", adapter_config={"base_model_name_or_path": base, "r": 8})
    assert policy_facts(PolicySection(model=adapter)) == policy_facts(PolicySection(model=base))


def test_the_hub_s_cache_and_nothing_beyond_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.file_download as hub

    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--model"
    folder(repository / "snapshots" / "abc", config=SMALL)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert policy_facts(PolicySection(model="some/model")).layers == 2
    for model, revision in (("some/model", "other"), ("other/model", None)):
        with pytest.raises(PolicyError, match="not in the Hub's cache"):
            policy_facts(PolicySection(model=model, revision=revision))


def test_a_catalogue_is_counted_or_assumed(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"item_id": 0}\n\n{"item_id": 1}\n{"item_id": 2}')
    counted = retrieval_facts(RunConfig(data=DataSection(path=str(tmp_path)), retrieval=RetrievalSection()))
    assert (counted.items, counted.embedder_parameters, counted.dim, counted.notes) == (3, 335_141_888, 1024, ())
    made = retrieval_facts(
        RunConfig(data=DataSection(synthetic=SyntheticSection(items=77)), retrieval=RetrievalSection(embedder="lsa"))
    )
    assert (made.items, made.embedder_parameters, made.dim) == (77, 0, 128)
    assert (
        "100,000 items is assumed"
        in retrieval_facts(RunConfig(data=DataSection(), retrieval=RetrievalSection())).notes[0]
    )


def test_an_embedder_by_its_folder_or_assumed(minilm: str) -> None:
    known = retrieval_facts(RunConfig(data=DataSection(), retrieval=RetrievalSection(model=minilm)))
    # Biases and norms are left out.
    assert known.embedder_parameters == pytest.approx(22_713_216, rel=0.02)
    assert known.dim == 384
    unknown = retrieval_facts(RunConfig(data=DataSection(), retrieval=RetrievalSection(model="some/embedder")))
    assert any("some/embedder is not known" in note for note in unknown.notes)
