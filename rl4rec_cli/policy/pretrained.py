"""Loads models and adapters from a folder or the Hub.

Decides: type and device of the weights, their quantisation, the adapter on them, and what is refused: a model that
reads ahead, lacks weights, has another quantisation than the settings, or has no room for prompts and completions.
Hides: transformers, PEFT and bitsandbytes; unsloth_loading.py hides Unsloth.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rl4rec_cli.errors import ConfigError, PolicyError, first_line
from rl4rec_cli.files.paths import expand
from rl4rec_cli.models.adapters import is_peft
from rl4rec_cli.models.names import find_preset
from rl4rec_cli.models.vocabulary import RESIZE, describe_extra, extra_tokens, pad_within
from rl4rec_cli.policy.backend import half_of_gpu
from rl4rec_cli.policy.sources import ADAPTER, MODEL_TRIES, Source, cannot_load, find_source, read_base
from rl4rec_cli.retrieval.embedders.models import model_identity

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import LoraSection, PolicySection


def load_pretrained(
    section: PolicySection,
    backend: str,
    device: str,
    *,
    trainable: bool,
    seed: int,
    max_length: int | None,
    gradient_checkpointing: bool | str,
    engine_share: float | None = None,
) -> tuple[Any, Any]:
    """Loads model (with its adapter) and tokenizer; see `load_policy`."""
    trains_all = trainable and section.lora is None and not (Path(section.model) / ADAPTER).is_file()
    dtype = find_dtype(section.dtype, device, trains_all=trains_all)
    name = section.model
    source = find_source(section, backend)
    try:
        tokenizer, config = load_tokenizer(source)
        _check_ends(tokenizer, name)
        _check_room(config, name, max_length)
        _check_stored(config, section)
        if backend == "unsloth":
            from rl4rec_cli.policy.unsloth_loading import load_by_unsloth

            model = load_by_unsloth(
                section, source, device, dtype,
                trainable=trainable, seed=seed, max_length=max_length, gradient_checkpointing=gradient_checkpointing,
                engine_share=engine_share,
            )  # fmt: skip
        else:
            model = _load_by_transformers(section, source, config, device, dtype, trainable=trainable)
    except (PolicyError, ConfigError):
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are libraries that read it
        raise cannot_load(f"the policy {name!r}", error, names=source.remote) from error
    _check_held(model, section)
    keep_trainable_layout(model)
    _check_causal(model, name)
    if trainable and section.lora is not None and not is_peft(model):
        targets = lora_targets(section.lora, name)
        try:
            if backend == "unsloth":
                from rl4rec_cli.policy.unsloth_loading import add_lora_by_unsloth

                model = add_lora_by_unsloth(
                    model, section, targets, seed=seed, gradient_checkpointing=gradient_checkpointing
                )
            else:
                model = _add_lora(model, section.lora, targets, section.revision)
        except (ValueError, re.error) as error:
            raise ConfigError(
                f"policy.lora.target_modules={targets!r}: {first_line(error)}",
                hint="`all-linear` adapts every linear layer but the head",
            ) from error
    return model, tokenizer


def read_tokenizer(section: PolicySection, backend: str, max_length: int | None = None) -> Any:
    """Loads the tokenizer of the policy that a section names.

    Args:
        max_length: longest prompt and completion together, in tokens; None: not checked.

    Raises:
        PolicyError: not found, damaged, without an end token, or with tokens that the model has no rows for.
        ConfigError: a model without room for `max_length` tokens.
    """
    source = find_source(section, backend)
    try:
        tokenizer, config = load_tokenizer(source)
        _check_ends(tokenizer, section.model)
        _check_room(config, section.model, max_length)
        return tokenizer
    except (PolicyError, ConfigError):
        raise
    except Exception as error:
        raise cannot_load(f"the tokenizer of {section.model!r}", error, names=source.remote) from error


def policy_identity(model: str) -> str:
    """Identifies the weights of a policy: `model_identity`, with that of an adapter's base.

    An adapter's own files name its base, but do not change when another training replaces the base.
    """
    folder = expand(model)
    if not (folder / ADAPTER).is_file():
        return model_identity(model)
    try:
        base, _ = read_base(folder)
    except PolicyError:  # loading the policy raises the same, with the reason
        return model_identity(model)
    return f"{model_identity(model)} on {model_identity(base)}"


def load_tokenizer(source: Source) -> tuple[Any, Any]:
    """Loads the tokenizer, with a padding token, and the model's configuration.

    Raises:
        PolicyError: the tokenizer has tokens that the model has no rows for.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.tokenizer, padding_side="left", **source.tokenizer_options)
    config = AutoConfig.from_pretrained(source.model, **source.options)
    rows = getattr(config.get_text_config(), "vocab_size", None)
    rows = rows if isinstance(rows, int) else len(tokenizer)
    if extra := extra_tokens(tokenizer, rows):
        raise PolicyError(f"{source.model}: {describe_extra(tokenizer, rows, extra)}", hint=RESIZE)
    pad_within(tokenizer, rows)
    return tokenizer, config


def _check_ends(tokenizer: Any, name: str) -> None:
    """Refuses a tokenizer without an end token: no text that it makes could teach a policy to end."""
    if tokenizer.eos_token_id is None:
        raise PolicyError(
            f"the tokenizer of {name!r} has no end-of-sequence token: completions could never end",
            hint='name one of its tokens in tokenizer_config.json, as "eos_token": "</s>"; for a chat model, the one '
            "that its chat template writes after an answer",
        )


def _check_room(config: Any, name: str, max_length: int | None) -> None:
    """Refuses sequences longer than the model's positions, which would fail with unclear errors."""
    room = getattr(config, "max_position_embeddings", None)
    if isinstance(room, int) and max_length is not None and max_length > room:
        raise ConfigError(
            f"prompt and completion may have {max_length:,} tokens together, but {name} reads {room:,} at most",
            hint="lower prompt.max_prompt_length or generation.max_completion_length",
        )


def _stored_quantization(config: Any) -> str:
    """Returns the quantisation of the stored weights: `none`, `4bit`, `8bit`, or the name of another method."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return "none"
    values = settings if isinstance(settings, dict) else settings.to_dict()
    kinds = [kind for kind in ("4bit", "8bit") if values.get(f"load_in_{kind}")]
    return kinds[0] if kinds else str(values.get("quant_method", "unknown"))


def _check_stored(config: Any, section: PolicySection) -> None:
    quantization = _stored_quantization(config)
    if quantization not in ("none", section.quantization):
        full = find_preset(section.model)
        other = f", or the full weights: policy.model={full.repository}" if full else ""
        advice = f"policy.quantization={quantization}" if quantization in ("4bit", "8bit") else "another model"
        raise ConfigError(
            f"{section.model} is stored in {quantization}, but policy.quantization={section.quantization}",
            hint=f"use {advice}{other}",
        )


def _load_by_transformers(
    section: PolicySection, source: Source, config: Any, device: str, dtype: torch.dtype, *, trainable: bool
) -> Any:
    from transformers import AutoModelForCausalLM

    options = dict(source.options)
    if section.quantization != "none":
        options["device_map"] = {"": device}
        if _stored_quantization(config) == "none":
            options["quantization_config"] = _quantization(section, device)
    both: Any = AutoModelForCausalLM.from_pretrained(source.model, dtype=dtype, output_loading_info=True, **options)
    model, loading_info = both
    # transformers fills what a file lacks with random numbers and a warning.
    if lacking := sorted(loading_info["missing_keys"]):
        raise PolicyError(
            f"cannot load the policy {section.model!r}: {len(lacking)} of its weights are in no file, as {lacking[0]}",
            hint=MODEL_TRIES,
        )
    if source.adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            model = PeftModel.from_pretrained(model, str(source.adapter), is_trainable=trainable)
        # Its actual place: the adapter of a moved run records another.
        model.peft_config["default"].base_model_name_or_path = source.model
    return model if section.quantization != "none" else model.to(device)


def _quantization(section: PolicySection, device: str) -> Any:
    from transformers import BitsAndBytesConfig

    if section.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    own = section.four_bit
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=own.quant_type,
        bnb_4bit_use_double_quant=own.double_quantization,
        bnb_4bit_compute_dtype=find_dtype(section.dtype if own.compute_dtype == "auto" else own.compute_dtype, device),
    )


def _check_held(model: Any, section: PolicySection) -> None:
    """Refuses weights with another quantisation than the settings: libraries fall back to 16 bits with a warning."""
    quantization = next(
        (k for k in ("4bit", "8bit") if any(type(m).__name__ == _LINEAR[k] for m in model.modules())), "none"
    )
    if quantization != section.quantization:
        raise PolicyError(
            f"policy.quantization={section.quantization}, but the weights of {section.model} came as {quantization}",
            hint="bitsandbytes cannot hold this model so on this machine; use policy.quantization=none",
        )


_LINEAR = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}


def keep_trainable_layout(model: Any) -> None:
    """Stops bitsandbytes from repacking 4-bit layers without a GPU.

    On a processor with AVX512-BF16 it repacks a layer for good at its first pass without gradient. From then on no
    gradient passes back through the layer: after the first completion, adapters before it silently learn nothing.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@torch.no_grad()
def _check_causal(model: Any, name: str) -> None:
    """Refuses a model whose logits are not finite, or that reads ahead (transformers loads BERT as a causal model)."""
    model.eval()
    ids_BT = torch.tensor([[0, 0], [0, 1]], device=next(model.parameters()).device)
    logits_BV = model(input_ids=ids_BT).logits[:, 0].float()
    if not torch.isfinite(logits_BV).all():
        raise PolicyError(f"the policy {name!r} computes numbers that are not finite", hint="its weights are damaged")
    # Far more than rounding in half precision, far less than what another word does.
    if (logits_BV[0] - logits_BV[1]).norm() > 0.05 * (logits_BV[0] - logits_BV[0].mean()).norm():
        raise PolicyError(f"{name!r} is not a causal language model: it reads ahead", hint=MODEL_TRIES)


def lora_targets(section: LoraSection, model: str) -> str | list[str]:
    """Returns the modules that get an adapter: those that the section names, or those of `auto` for this model."""
    if section.target_modules == "auto":
        preset = find_preset(model)
        return list(preset.targets) if preset is not None else "all-linear"
    return section.target_modules if isinstance(section.target_modules, str) else list(section.target_modules)


def _add_lora(model: Any, section: LoraSection, targets: str | list[str], revision: str | None) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    if section.seed is not None:
        torch.manual_seed(section.seed)
    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            revision=revision,  # of the base, which whoever loads the adapter must load too
            r=section.r,
            lora_alpha=section.alpha,
            lora_dropout=section.dropout,
            target_modules=targets,
        ),
    )


def find_dtype(precision: str, device: str, *, trains_all: bool = False) -> torch.dtype:
    """Returns the type that a precision names; `auto` is the GPU's 16-bit type, and fp32 without a GPU.

    Args:
        trains_all: training changes the weights themselves. In fp16 they would lose small updates, and PyTorch's
            gradient scaler refuses them: on a GPU without bf16, `auto` is fp32 then.

    Raises:
        ConfigError: fp16 for weights that training itself changes on a GPU.
    """
    if trains_all and precision == "fp16" and device.startswith("cuda"):
        raise ConfigError(
            "policy.dtype=fp16: weights that are trained themselves are not held in fp16",
            hint="use policy.dtype=fp32 with trainer.precision=fp16, or train an adapter: policy.lora.r=16",
        )
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision != "auto":
        return dtypes[precision]
    if not device.startswith("cuda"):
        return torch.float32
    half = dtypes[half_of_gpu()]
    return torch.float32 if trains_all and half == torch.float16 else half
