"""Memory on paper: parameters as published, tensors as autograd keeps them."""

from __future__ import annotations

from typing import Any

import pytest

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.policy import LoraSection
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.errors import PolicyError
from rl4rec_cli.models.names import PRESETS
from rl4rec_cli.models.shape import ModelFacts, read_facts
from rl4rec_cli.plan.memory import (
    Surroundings,
    _Types,
    activation_saving,
    estimate,
    human,
    kv_cache_bytes,
    layer_bytes,
)
from rl4rec_cli.plan.phases import Phase

PUBLISHED = {
    "gpt2": 124_439_808,
    "smollm2-135m": 134_515_008,
    "gemma-3-1b": 999_885_952,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "gemma-2-9b": 9_241_705_984,
}
GROUPED = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": {**GROUPED, "tie_word_embeddings": True},
    "qwen3": {**GROUPED, "head_dim": 32},
    "gemma2": {**GROUPED, "head_dim": 32, "tie_word_embeddings": True},
    "gemma3_text": {**GROUPED, "head_dim": 32, "tie_word_embeddings": True},
    "gpt2": {"vocab_size": 500, "n_embd": 64, "n_head": 4},
}


def config_of(kind: str, layers: int) -> Any:
    from transformers import AutoConfig

    name = "n_layer" if kind == "gpt2" else "num_hidden_layers"
    return AutoConfig.for_model(kind, **MODELS[kind], **{name: layers})


def build(kind: str, layers: int, lora: LoraSection | None = None, dtype: str = "float32") -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config_of(kind, layers)).to(getattr(torch, dtype))
    if lora is None:
        return model
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=lora.r, target_modules="all-linear"))


def facts_of(kind: str, layers: int) -> ModelFacts:
    return read_facts(kind, config_of(kind, layers).to_dict())


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    assert PRESETS[name].facts.parameters == PUBLISHED[name]


def test_every_preset_has_a_published_number() -> None:
    assert set(PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_parameters_are_those_of_transformers_and_peft(kind: str) -> None:
    facts, lora = facts_of(kind, 2), LoraSection(r=3)
    assert facts.parameters == sum(p.numel() for p in build(kind, 2).parameters())
    trained = sum(p.numel() for p in build(kind, 2, lora).parameters() if p.requires_grad)
    assert facts.lora_parameters(3, "all-linear") == trained


def kept_by_autograd(model: Any, sequences: int, tokens: int, *, autocast: bool) -> int:
    """Bytes of the storages that a forward pass saves, but for the model's own."""
    import torch

    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    ids = torch.zeros(sequences, tokens, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # padding, as batches have: without it there is no mask to keep
    model.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        output = model(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False)
    assert output.logits.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("adapted", [False, True], ids=["all", "lora"])
@pytest.mark.parametrize("kind", sorted(MODELS))
def test_a_layer_keeps_what_autograd_keeps(kind: str, adapted: bool, half: bool) -> None:
    lora = LoraSection(r=4) if adapted else None
    dtype = "bfloat16" if half else "float32"
    two, three = (kept_by_autograd(build(kind, n, lora, dtype), 4, 48, autocast=half) for n in (2, 3))
    types = _Types(2 if half else 4, 2 if half else 4, 4 if adapted or not half else 2, None)
    predicted = layer_bytes(facts_of(kind, 3), 48, types, lora)
    # With an adapter in half precision autocast keeps copies of its weights too, which grow with nothing.
    assert predicted == pytest.approx((three - two) / (4 * 48), rel=0.03)


def test_the_cache_is_as_large_as_transformers_makes_it() -> None:
    import torch

    model = build("llama", 3)
    with torch.no_grad():
        cache = model(input_ids=torch.zeros(2, 7, dtype=torch.long), use_cache=True).past_key_values
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    assert kv_cache_bytes(facts_of("llama", 3), 2, 7, _Types(4, 4, 4, None)) == sum(t.nbytes for t in tensors)


# What a run takes


def load(*sets: str, algorithm: str = "grpo") -> RunConfig:
    return load_config(algorithm=algorithm, sets=["policy.model=llama-3.2-1b", *sets])


def needs(*sets: str, algorithm: str = "grpo", on_gpu: bool = True) -> int:
    surroundings = Surroundings(on_gpu=on_gpu, items=1000)
    return estimate(load(*sets, algorithm=algorithm), PRESETS["llama-3.2-1b"].facts, surroundings).bytes


def test_a_prompts_beams_are_measured_together() -> None:
    """However few completions are to be written at once: a prompt is not divided."""

    def measuring(*sets: str) -> int:
        estimated = estimate(load(*sets), PRESETS["llama-3.2-1b"].facts, Surroundings(on_gpu=True, items=1000))
        return next(phase.total for phase in estimated.phases if phase.name == Phase.MEASURING)

    assert measuring("eval.batch_size=8", "generation.num_beams=32") == measuring("eval.batch_size=32")
    assert measuring("eval.batch_size=32", "generation.num_beams=8") == measuring("eval.batch_size=32")


def test_what_takes_less_takes_less() -> None:
    lora = ("policy.lora.r=16", "eval.batch_size=1")
    assert needs(*lora) < needs("eval.batch_size=1")
    assert needs(*lora, "policy.quantization=4bit") < needs(*lora, "policy.quantization=8bit") < needs(*lora)
    assert needs(*lora, "trainer.gradient_checkpointing=true") < needs(*lora)
    assert needs(*lora, "trainer.batch_size=2", "trainer.gradient_accumulation_steps=8") < needs(*lora)
    assert needs(*lora, on_gpu=False) > needs(*lora)
    assert needs("trainer.beta=0.1") - needs() == 2 * PUBLISHED["llama-3.2-1b"]
    assert needs(*lora, algorithm="sft") > needs(*lora, "trainer.batch_size=1", algorithm="sft")
    assert needs(*lora) < needs(*lora, "trainer.sft_weight=0.1") < needs(*lora, "trainer.num_generations=8")
    assert needs(*lora, "reward.fuse=sasrec") - needs(*lora) == 3 * 4 * 1000 * (128 + 64)
    assert needs(*lora, "reward.fuse=history") - needs(*lora) == 3 * 4 * 1000 * (128 + 128)
    assert needs(*lora, "reward.fuse=sasrec", algorithm="sft") == needs(*lora, algorithm="sft")


def test_writing_all_texts_at_once_is_what_the_largest_batch_costs() -> None:
    many = ("policy.lora.r=8", "trainer.batch_size=1", "trainer.gradient_accumulation_steps=512", "eval.steps=null")
    config = load(*many)
    result = estimate(config, PRESETS["llama-3.2-1b"].facts, Surroundings(on_gpu=True, items=1000))
    assert result.peak.name == "writing"
    assert needs(*many, "generation.batch_size=64") < result.bytes / 2


def test_the_larger_of_warm_start_and_algorithm_is_the_peak() -> None:
    sets = ("policy.lora.r=8", "trainer.batch_size=1", "trainer.gradient_accumulation_steps=1", "eval.steps=null")
    assert needs(*sets, "trainer.warm_start.batch_size=64") > 2 * needs(*sets)
    result = estimate(
        load(*sets, "trainer.warm_start.batch_size=64"), PRESETS["llama-3.2-1b"].facts, Surroundings(True, 1000)
    )
    assert result.peak.name == "warm start: learning"


def test_the_sizes_of_a_batch() -> None:
    def of(algorithm: str, *sets: str) -> tuple[int, int]:
        trainer = load(*sets, algorithm=algorithm).trainer
        return trainer.micro_batch, trainer.texts_at_once

    size = ("trainer.batch_size=8", "trainer.gradient_accumulation_steps=3")
    assert of("grpo", *size, "trainer.num_generations=5") == of("rloo", *size, "trainer.num_generations=5") == (40, 120)
    assert of("ppo", *size, "trainer.mini_batch_size=2") == (2, 24)
    assert of("reinforce", *size) == (8, 24)
    assert of("sft", *size) == (8, 0)


def test_checkpointing_keeps_little() -> None:
    config = load("policy.lora.r=8")
    off, on = activation_saving(config, PRESETS["llama-3.2-1b"].facts, Surroundings(on_gpu=True, items=1))
    assert on < off / 5


def test_a_config_json_that_says_too_little() -> None:
    with pytest.raises(PolicyError, match="model_type 'bert'"):
        read_facts("m", {"model_type": "bert"})
    with pytest.raises(PolicyError, match="intermediate_size"):
        read_facts("m", {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1})
    inner = {**GROUPED, "num_hidden_layers": 2, "model_type": "gemma3_text"}
    assert read_facts("m", {"model_type": "gemma3", "text_config": inner}).layers == 2


def test_sizes_in_words() -> None:
    assert (human(3_440_000_000), human(120_400_000)) == ("3.4 GB", "120 MB")
