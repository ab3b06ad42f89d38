"""A trained policy as one model: its adapter worked into its base.

Decides: a base that was held in 4 or 8 bits is written out as it was computed with, so that the merged model is the one
that was trained and measured; the weights from before the quantisation are another model.
Hides: transformers and PEFT.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli.errors import PolicyError
from rl4rec_cli.policy.loading import Policy, load_policy
from rl4rec_cli.policy.pretrained import find_device, find_dtype, load_tokenizer
from rl4rec_cli.policy.sources import find_source

if TYPE_CHECKING:
    from rl4rec_cli.config import PolicySection


def load_merged(section: PolicySection, folder: Path, *, dtype: str = "auto") -> Policy:
    """A checkpoint as a model without an adapter and without quantisation.

    Args:
        section: what it was trained with.
        folder: the checkpoint.
        dtype: of its weights: `bf16`, `fp16`, `fp32`, or `auto`, the one it was trained in.

    Raises:
        PolicyError: it cannot be loaded or merged.
        ConfigError: bitsandbytes is not installed, which held the base.
    """
    plain = section.model_copy(update={"model": str(folder), "backend": "hf", "fast_inference": False})
    source = find_source(plain, "hf")
    kept = find_dtype(section.dtype if dtype == "auto" else dtype, find_device(section.device))
    if source.adapter is None:
        policy = load_policy(plain)
        model: Any = policy.model
    else:
        base = {"model": source.model, "revision": source.options["revision"]}
        policy = load_policy(plain.model_copy(update={**base, "lora": None}))
        model = _merge(policy.model, source.adapter, is_quantised=section.quantization != "none")
        policy.tokenizer, _ = load_tokenizer(source)
    return Policy(model.to(kept).eval(), policy.tokenizer, policy.name)


def _merge(base: Any, adapter: Path, *, is_quantised: bool) -> Any:
    from peft import PeftModel

    try:
        # Into quantised weights PEFT would merge too, and round most of the adapter away.
        model = base.dequantize() if is_quantised else base
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError) as error:
        raise PolicyError(
            f"{adapter}: cannot merge the adapter: {str(error).splitlines()[0]}", hint="export it with --to adapter"
        ) from error
    return model
