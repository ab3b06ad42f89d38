"""What Unsloth's vLLM engine is asked for, with an engine that only keeps what it was asked. The engine itself needs a
GPU: see `docs/install.md`."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.policy.fast_inference import has_engine, write_by_engine
from rl4rec_cli.policy.generation import generate_ids


class Model:
    def __init__(self) -> None:
        self.vllm_engine = SimpleNamespace(generate=self._generate)
        self.peft_config: dict[str, Any] = {"default": None}
        self.version = 0
        self.asked: list[Any] = []
        self.generation_config = SimpleNamespace(eos_token_id=[2, 7])

    def load_lora(self, name: str, *, load_tensors: bool) -> tuple[str, int]:
        assert load_tensors
        return name, self.version

    def _generate(self, prompts: Any, *, sampling_params: Any, use_tqdm: bool, lora_request: Any) -> list[Any]:
        self.asked.append((prompts, sampling_params, lora_request))
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(len(p["prompt_token_ids"]), 2))]) for p in prompts]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    vllm: Any = ModuleType("vllm")
    vllm.SamplingParams = lambda **settings: settings
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    return Model()


def test_each_call_uses_the_adapter_of_the_moment_and_each_text_its_own_seed(model: Model) -> None:
    prompts = [[5, 6], [5, 6], [9]]
    sampling = Sampling(12, 0.7, top_p=0.9, top_k=0, repetition_penalty=1.1)
    assert has_engine(model)
    seeds = []
    for version in (1, 2):
        model.version = version
        torch.manual_seed(3)
        tokenizer = SimpleNamespace(eos_token_id=2, pad_token_id=0)
        assert generate_ids(model, tokenizer, prompts, sampling) == [[2, 2], [2, 2], [1, 2]]
        given, settings, adapter = model.asked[-1]
        assert given == [{"prompt_token_ids": p} for p in prompts]
        assert adapter == ("rl4rec", version)
        own = [s.pop("seed") for s in settings]
        assert len(set(own)) == 3
        seeds.append(own)
        expected = {
            "max_tokens": 12, "temperature": 0.7, "top_p": 0.9, "top_k": -1, "repetition_penalty": 1.1,
            "stop_token_ids": [2, 7], "detokenize": False,
        }  # fmt: skip
        assert settings == [expected] * 3
    assert seeds[0] == seeds[1]
    assert torch.randint(2**31, (1,)).item() not in seeds[0]


def test_the_most_likely_text_needs_no_seed(model: Model) -> None:
    del model.peft_config
    state = torch.get_rng_state()
    write_by_engine(model, [[4]], Sampling(3, 0.0), [2])
    _, settings, adapter = model.asked[-1]
    assert (settings[0]["seed"], settings[0]["temperature"], adapter) == (None, 0.0, None)
    assert state.equal(torch.get_rng_state())
    assert not has_engine(SimpleNamespace())
