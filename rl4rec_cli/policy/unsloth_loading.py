"""Loads models and adapters with Unsloth.

Decides: Unsloth's options. Its tokenizer is not used: prompts are padded and cut as everywhere else.
Hides: `FastLanguageModel`, which is another class with a GPU than without.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rl4rec_cli import console
from rl4rec_cli.policy.backend import import_unsloth

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import PolicySection
    from rl4rec_cli.policy.sources import Source


def load_by_unsloth(
    section: PolicySection,
    source: Source,
    device: str,
    dtype: torch.dtype,
    *,
    trainable: bool,
    seed: int,
    max_length: int | None,
    gradient_checkpointing: bool | str,
    engine_share: float | None = None,
) -> Any:
    """Loads the model, with its adapter if the source has one. Raises whatever Unsloth raises.

    Args:
        engine_share: share of the GPU for the engine of `policy.fast_inference`; Unsloth's default if None.
    """
    fast = import_unsloth().FastLanguageModel
    options: dict[str, Any] = {
        "max_seq_length": max_length or 2048,
        "dtype": dtype,
        "load_in_4bit": section.quantization == "4bit",
        "load_in_8bit": section.quantization == "8bit",
        "load_in_16bit": section.quantization == "none",
        "full_finetuning": trainable and section.lora is None and source.adapter is None,
        "use_gradient_checkpointing": gradient_checkpointing,
        "use_exact_model_name": True,  # so that a run records the model that it loaded
        "random_state": seed,
        "trust_remote_code": section.trust_remote_code,
        "revision": source.options["revision"] if source.adapter is None else None,
    }
    if device.startswith("cuda"):
        options["device_map"] = {"": device if ":" in device else "cuda:0"}
    if section.fast_inference:
        options |= {"fast_inference": True, "max_lora_rank": section.lora.r if section.lora else 16}
        if engine_share is not None:
            options["gpu_memory_utilization"] = engine_share
    with _stored_with(source) as name, console.hushed():
        model, _ = fast.from_pretrained(model_name=name, **options)
    for parameter in model.parameters() if not trainable else ():
        parameter.requires_grad_(False)
    return model


@contextmanager
def _stored_with(source: Source) -> Iterator[str]:
    """Yields the name for Unsloth, which looks for an adapter's base itself, and only at the recorded place.

    If the base is elsewhere, the name is a temporary folder with a corrected copy of the adapter's configuration.
    """
    if source.adapter is None:
        yield source.model
        return
    settings = json.loads((source.adapter / "adapter_config.json").read_text())
    if settings["base_model_name_or_path"] == source.model:
        yield str(source.adapter)
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in source.adapter.resolve().iterdir():
            (Path(folder) / file.name).symlink_to(file)
        (Path(folder) / "adapter_config.json").unlink()
        new_settings = {**settings, "base_model_name_or_path": source.model}
        (Path(folder) / "adapter_config.json").write_text(json.dumps(new_settings))
        yield folder


def add_lora_by_unsloth(
    model: Any,
    section: PolicySection,
    targets: str | list[str],
    *,
    seed: int,
    gradient_checkpointing: bool | str,
) -> Any:
    """Returns the model with a new adapter.

    Raises:
        ValueError: the targets match nothing.
    """
    lora = section.lora
    if lora is None:
        raise ValueError("no policy.lora")
    try:
        with console.hushed():
            model = import_unsloth().FastLanguageModel.get_peft_model(
                model,
                r=lora.r,
                target_modules=targets,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                use_gradient_checkpointing=gradient_checkpointing,
                random_state=seed if lora.seed is None else lora.seed,
            )
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    # The base's revision: every later load of the adapter needs it.
    model.peft_config["default"].revision = section.revision
    return model
