"""Generation by the vLLM engine that Unsloth holds beside its model (`policy.fast_inference`, GPU only).

Decides: that every call uses the adapter's current weights. Torch's generator draws a seed for each completion, so that
a run's seed decides its completions and equal prompts get different ones.
Hides: vLLM's sampling settings and Unsloth's hand-over of the adapter, which shares memory and writes no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from rl4rec_cli.engine.sampling import Sampling


def has_engine(model: Any) -> bool:
    """Whether Unsloth gave the model an engine."""
    return getattr(model, "vllm_engine", None) is not None


def write_by_engine(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, ends: Sequence[int]
) -> list[list[int]]:
    """Returns B token sequences for B prompts, with the ending token if the completion ended by itself."""
    from vllm import SamplingParams

    seeds = torch.randint(2**31, (len(prompts),)).tolist() if sampling.temperature > 0 else [None] * len(prompts)
    settings = [
        SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or -1,
            repetition_penalty=sampling.repetition_penalty,
            stop_token_ids=list(ends),
            seed=seed,
            detokenize=False,
        )
        for seed in seeds
    ]
    adapter = model.load_lora("rl4rec", load_tensors=True) if hasattr(model, "peft_config") else None
    inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    outputs = model.vllm_engine.generate(inputs, sampling_params=settings, use_tqdm=False, lora_request=adapter)
    return [list(one.outputs[0].token_ids) for one in outputs]
