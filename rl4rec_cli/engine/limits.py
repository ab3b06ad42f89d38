"""What vLLM can write with, and the room it needs.

Decides: which loaded models and adapters vLLM takes, and the share of the GPU that it gets.
Hides: the widths of attention heads and the ranks that its kernels are made for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rl4rec_cli.config.policy import GenerationSection, PolicySection
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.models.adapters import is_peft, largest_rank
from rl4rec_cli.plan.memory import engine_need, pass_bytes, pass_tokens

if TYPE_CHECKING:
    import torch

_CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Widths of an attention head that vLLM's kernels for the CPU have."""


def check_head(width: int, what: str) -> None:
    """Refuses attention heads of a width that vLLM cannot compute without a GPU.

    Raises:
        ConfigError: vLLM's CPU kernels do not have this width.
    """
    if width not in _CPU_HEADS:
        raise ConfigError(
            f"generation.engine=vllm on the CPU has no attention for heads {width} wide ({what})",
            hint=f"heads may be {', '.join(map(str, _CPU_HEADS))} wide; or use generation.engine=transformers",
        )


RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Adapter ranks that vLLM reserves memory for."""


def check_fits(model: Any, section: PolicySection, generation: GenerationSection) -> None:
    """Refuses a loaded model that vLLM cannot generate with.

    Raises:
        ConfigError: weights in 8 bits, or in 4 without a GPU; an adapter over more than linear layers; or a head that
            vLLM's kernels do not have.
    """
    on_gpu = device_of(model).type == "cuda"
    quantization = policy_quantization(model)
    if quantization == "8bit" or (quantization == "4bit" and not on_gpu):
        raise ConfigError(
            f"generation.engine=vllm cannot hold the weights in {quantization}" + ("" if on_gpu else " without a GPU"),
            hint="use policy.quantization=none, or generation.engine=transformers",
        )
    if quantization == "4bit" and str(model.dtype) != "torch.bfloat16":
        raise ConfigError(
            f"generation.engine=vllm computes with 4-bit weights in bf16, and this policy in {model.dtype}",
            hint="set policy.dtype=bf16 where the GPU has it, or use generation.engine=transformers",
        )
    if not on_gpu:
        check_head(head_width(model.config), "the model's attention head")
    if not is_peft(model):
        return
    adapter = model.peft_config["default"]
    if what := _of_another_kind(adapter):
        raise ConfigError(
            f"generation.engine=vllm cannot take this adapter: {what}",
            hint=f"use a plain LoRA adapter on linear layers, of rank at most {RANKS[-1]}, or "
            "generation.engine=transformers",
        )


def _of_another_kind(adapter: Any) -> str:
    """Returns what an adapter does besides adding B·A to a layer's weights, or an empty string if nothing.

    The hand-over to vLLM covers B·A alone.
    """
    if adapter.peft_type != "LORA":
        return f"it is no LoRA adapter but {getattr(adapter.peft_type, 'value', adapter.peft_type)}"
    settings = ("modules_to_save", "trainable_token_indices", "use_dora", "lora_bias", "target_parameters")
    if whole := next((name for name in settings if getattr(adapter, name, None)), None):
        return f"its {whole}"
    if getattr(adapter, "bias", "none") != "none":
        return f"its bias={adapter.bias}"
    rank = largest_rank(adapter)
    return f"rank {rank}" if rank > RANKS[-1] else ""


def head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def room_for(rank: int) -> int:
    return next(size for size in RANKS if size >= rank)


def policy_quantization(model: Any) -> str:
    """Returns the quantisation of a loaded model's weights: `none`, `4bit` or `8bit`."""
    if getattr(model, "is_loaded_in_4bit", False):
        return "4bit"
    return "8bit" if getattr(model, "is_loaded_in_8bit", False) else "none"


def cache_bytes(model: Any, tokens: int) -> int:
    """Returns the bytes of keys and values of one sequence of `tokens` tokens."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_width(config) * model.dtype.itemsize * tokens


def weight_bytes(model: Any) -> int:
    """Returns the bytes of a model's weights without its adapter."""
    return sum(p.numel() * p.element_size() for n, p in model.named_parameters() if "lora_" not in n)


def scale_bytes(model: Any) -> int:
    """Returns the bytes of the scales that vLLM holds for 4-bit weights: one float32 for 64 weights, two to a byte."""
    packed_bytes = sum(p.numel() for p in model.parameters() if type(p).__name__ == "Params4bit")
    return packed_bytes * 2 // 64 * 4


def memory_share(model: Any, tokens: int, texts: int) -> float:
    """Returns vLLM's share of the GPU: its own weights, the cache of a batch, and room for its passes.

    Args:
        tokens: the longest prompt and completion together.
        texts: completions in a batch.

    Raises:
        ConfigError: they need more than 95 % of the GPU.
    """
    import torch

    _, total = torch.cuda.mem_get_info(device_of(model))
    config = model.config.get_text_config()
    passes = pass_bytes(
        hidden=config.hidden_size,
        ffn=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocab=config.vocab_size,
        tokens=pass_tokens(tokens),
        texts=texts,
        itemsize=model.dtype.itemsize,
    )
    cache = cache_bytes(model, tokens) * texts
    need = engine_need(weight_bytes(model) + scale_bytes(model), cache, passes, on_gpu=True)
    if need > 0.95 * total:
        raise ConfigError(
            f"generation.engine=vllm needs {need / 1e9:.1f} GB for {texts} completions; "
            f"the GPU has {total / 1e9:.1f} GB",
            hint="lower generation.batch_size, or set generation.vllm.memory_share",
        )
    return round(need / total, 3)


def handed_bytes(model: Any, *, swaps: bool) -> int:
    """Returns the bytes of two hand-overs: the next one is written while the one before still exists.

    Args:
        swaps: vLLM gets the adapter alone.
    """
    if is_frozen(model):
        return 0
    tensors = [p for name, p in model.named_parameters() if ("lora_" in name or not swaps)]
    return 2 * sum(p.numel() * p.element_size() for p in tensors)


def make_room(model: Any) -> None:
    """Returns torch's unused GPU memory to the driver: vLLM takes its share of what is free."""
    if device_of(model).type == "cuda":
        import torch

        torch.cuda.empty_cache()


def is_frozen(model: Any) -> bool:
    """Whether training leaves a model as it was loaded, so that vLLM can load it by itself."""
    name = str(getattr(model.config, "_name_or_path", ""))
    return bool(name) and not is_peft(model) and not any(p.requires_grad for p in model.parameters())


def device_of(model: Any) -> torch.device:
    """Returns the device of a model's weights."""
    return next(model.parameters()).device
