"""Merges a trained policy's adapter into its base.

Decides: that a base in 4 or 8 bits is dequantised, so that the merged model is the one that was trained and measured;
the weights from before the quantisation are another model. A base that shares weights between embedding and head loses
that sharing if the adapter changed one of them.
Hides: transformers and PEFT.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rl4rec_cli.errors import PolicyError, first_line
from rl4rec_cli.models.devices import resolve_device
from rl4rec_cli.policy.loading import Policy, load_policy
from rl4rec_cli.policy.pretrained import find_dtype, load_tokenizer
from rl4rec_cli.policy.sources import find_source

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import PolicySection


def load_merged(section: PolicySection, folder: Path, *, dtype: str = "auto") -> Policy:
    """Loads a checkpoint as a model without adapter and quantisation.

    Args:
        section: the policy settings of its training.
        folder: the checkpoint.
        dtype: type of the merged weights: `bf16`, `fp16`, `fp32`, or `auto`, the one of the training.

    Raises:
        PolicyError: it cannot be loaded or merged.
        ConfigError: a quantised base needs bitsandbytes, which is not installed.
    """
    plain = section.model_copy(update={"model": str(folder), "backend": "hf", "fast_inference": False})
    source = find_source(plain, "hf")
    target_dtype = find_dtype(
        section.dtype if dtype == "auto" else dtype, resolve_device(section.device, "policy.device")
    )
    if source.adapter is None:
        policy = load_policy(plain)
        model: Any = policy.model
    else:
        base = {"model": source.model, "revision": source.options["revision"]}
        policy = load_policy(plain.model_copy(update={**base, "lora": None}))
        model = _merge(policy.model, source.adapter, is_quantised=section.quantization != "none")
        policy.tokenizer, _ = load_tokenizer(source)
    return Policy(model.to(target_dtype).eval(), policy.tokenizer, policy.name)


def _merge(base: Any, adapter: Path, *, is_quantised: bool) -> Any:
    from peft import PeftModel

    try:
        # PEFT merges into quantised weights too, but rounds most of the adapter away.
        model = base.dequantize() if is_quantised else base
        was_tied = _untie(model)
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
        if was_tied:
            _tie_equals(model)
    except (ValueError, RuntimeError) as error:
        raise PolicyError(
            f"{adapter}: cannot merge the adapter: {first_line(error)}", hint="export it with --to adapter"
        ) from error
    return model


def _untie(model: Any) -> bool:
    """Gives the head weights of its own. Returns whether it shared those of the embedding.

    An adapter is trained on one of the two: merged into shared weights it would change the other, too.
    """
    head = model.get_output_embeddings()
    if head is None or head.weight is not model.get_input_embeddings().weight:
        return False
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    _set_tied(model, is_tied=False)
    return True


def _tie_equals(model: Any) -> None:
    """Shares one matrix between embedding and head again, if the adapter changed neither."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
        _set_tied(model, is_tied=True)


def _set_tied(model: Any, *, is_tied: bool) -> None:
    """Sets in the model's configuration, which loaders follow, whether embedding and head share their weights."""
    for config in {id(one): one for one in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = is_tied
