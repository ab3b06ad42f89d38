"""Every way to hold item vectors, by the real command: the same result to the last digit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_lines import run_commands, said

WAYS = {
    "fp32": ("fp32", "off"),
    "fp32-mapped": ("fp32", "on"),
    "fp16": ("fp16", "off"),
    "fp16-mapped": ("fp16", "on"),
    "int8": ("int8", "off"),
    "int8-mapped": ("int8", "on"),
}


@pytest.mark.slow
def test_a_result_does_not_depend_on_how_vectors_are_held(tmp_path: Path, minilm: str) -> None:
    commands = {
        "data": ["data", "synth", "shop", "--users", "120", "--items", "400"],
        "embed": ["embed", "shop", "--model", minilm, "--device", "cpu"],
    }
    common = ["--set", f"retrieval.model={minilm}", "--set", "retrieval.device=cpu", "--set", "eval.cache_dir=null"]
    methods = ["--baselines", "last_item,history_mean,decayed_mean", "--json"]
    for name, (storage, mapped) in WAYS.items():
        own = ["--set", f"retrieval.storage={storage}", "--set", f"retrieval.memory_map={mapped}"]
        commands[name] = ["eval", "--dataset", "shop", *methods, *common, *own]
    run_commands(commands, tmp_path)
    results: dict[str, Any] = {name: json.loads(said(tmp_path, name)["out"]) for name in WAYS}
    assert {name: result["methods"] for name, result in results.items()} == dict.fromkeys(
        WAYS, results["fp32"]["methods"]
    )
    assert 0 < results["fp32"]["methods"]["last item"]["ndcg@10"] < 1
    for name, (storage, mapped) in WAYS.items():
        held = said(tmp_path, name)["err"]
        words = f"{storage} beside the mapped file" if storage != "fp32" else "fp32 in the mapped file"
        assert (words in held) == (mapped == "on"), (name, held)
