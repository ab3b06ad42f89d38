"""What the words of device settings (`auto`, `cpu`, `cuda`, `cuda:1`) and of type settings (`fp32`, `bf16`) mean.

Decides: `auto` is a GPU where torch sees one, and a GPU that is named must be there.
Hides: torch, which is imported when a device is asked for.
"""

from __future__ import annotations

from rl4rec_cli.errors import ConfigError

WORDS = "auto, cpu, cuda, cuda:1 …"
TYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""What torch and vLLM call the types that settings name."""


def resolve_device(device: str, setting: str) -> str:
    """`cpu` or `cuda…`.

    Args:
        setting: where the word comes from, for messages.

    Raises:
        ConfigError: there is no such device.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"{setting}={device} is no device", hint=WORDS) from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"{setting}={device}, but torch sees no GPU", hint="use auto or cpu")
    return device


def gpu_index(device: str, setting: str) -> int:
    """Which GPU a word other than `cpu` means, without importing torch; of `auto` and `cuda` the first.

    Raises:
        ConfigError: it means no device.
    """
    name, _, number = ("cuda" if device == "auto" else device).partition(":")
    if name != "cuda" or (number and not number.isdigit()):
        raise ConfigError(f"{setting}={device} is no device", hint=WORDS)
    return int(number or 0)
