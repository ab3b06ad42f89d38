"""Chooses the library that loads and trains a policy, and imports Unsloth before all others.

Decides: Unsloth or transformers with PEFT, and which quantisation goes with which of them on which device.
Hides: what Unsloth does at import: it patches trl, transformers and peft, prints, and writes compiled code.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.engine.limits import check_head
from rl4rec_cli.engine.process import check_installed
from rl4rec_cli.errors import ConfigError, PolicyError, first_line
from rl4rec_cli.models.names import TINY
from rl4rec_cli.variables import check_one_process, import_noted

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import GenerationSection, PolicySection

PATCHED = ("trl", "transformers", "peft")
"""Packages that Unsloth patches. It must be imported before they are."""
INSTALL = "with a GPU: pip install 'rl4rec[gpu]'; without one: make unsloth-cpu, from the source folder"


@dataclass(frozen=True)
class Backend:
    name: str
    """`hf` or `unsloth`."""
    reason: str


def choose_backend(section: PolicySection) -> Backend:
    """Returns the backend that `policy.backend` means on this machine, and why."""
    if section.backend != "auto":
        return Backend(section.backend, "policy.backend says so")
    if section.lora is None:
        return Backend("hf", "no adapter is trained (policy.lora)")
    if not on_gpu(section.device):
        return Backend("hf", "no GPU is used")
    if find_spec("unsloth") is None:
        return Backend("hf", "unsloth is not installed")
    return Backend("unsloth", "there is a GPU, and unsloth is installed")


def on_gpu(device: str) -> bool:
    """Whether a `policy.device` means a GPU here."""
    if device != "auto":
        return device.startswith("cuda")
    import torch

    return torch.cuda.is_available()


def check_policy(section: PolicySection, *, trainable: bool, gradient_checkpointing: bool | str = False) -> Backend:
    """Refuses settings that exclude each other, before anything is loaded.

    Args:
        trainable: the policy will be trained.
        gradient_checkpointing: the trainer's.

    Returns:
        The backend.

    Raises:
        ConfigError: settings that exclude each other, or a package that is not installed.
    """
    backend = choose_backend(section)
    is_unsloth, quantization = backend.name == "unsloth", section.quantization
    where = f"policy.backend={section.backend}" + (
        f" ({backend.name}: {backend.reason})" if section.backend == "auto" else ""
    )
    if is_unsloth and find_spec("unsloth") is None:
        raise ConfigError(
            "policy.backend=unsloth: unsloth is not installed", hint=f"{INSTALL}; or use policy.backend=hf"
        )
    if quantization != "none" and find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"policy.quantization={quantization}: bitsandbytes is not installed",
            hint=f"{INSTALL}; or use policy.quantization=none",
        )
    if trainable and quantization != "none" and section.lora is None:
        raise ConfigError(
            f"policy.quantization={quantization} without policy.lora: quantised weights cannot be trained",
            hint="train an adapter over them, e.g. --set policy.lora.r=16, or use policy.quantization=none",
        )
    if is_unsloth and trainable and section.model == TINY and section.lora is None:
        raise ConfigError(
            "policy.backend=unsloth with the tiny policy trains an adapter, but policy.lora is null",
            hint="leave policy.lora out, or use policy.backend=hf",
        )
    if section.model == TINY and quantization == "4bit" and section.tiny.hidden_size % 64:
        raise ConfigError(
            f"policy.tiny.hidden_size={section.tiny.hidden_size} cannot be held in 4 bits: blocks have 64 weights",
            hint="use a multiple of 64",
        )
    if section.fast_inference and not (is_unsloth and on_gpu(section.device)):
        raise ConfigError(
            f"policy.fast_inference needs backend unsloth and a GPU; here it is {where}",
            hint="leave policy.fast_inference out",
        )
    if section.fast_inference and find_spec("vllm") is None:  # Unsloth would generate without it, and log it at best
        raise ConfigError("policy.fast_inference: vllm is not installed", hint="pip install 'rl4rec[gpu]'")
    if gradient_checkpointing == "unsloth" and not is_unsloth:
        raise ConfigError(
            f"trainer.gradient_checkpointing=unsloth needs backend unsloth; here it is {where}",
            hint="use trainer.gradient_checkpointing=true",
        )
    if is_unsloth:
        _check_unsloth(section)
    return backend


def _check_unsloth(section: PolicySection) -> None:
    """Refuses settings that Unsloth would override with no more than a line on standard output.

    Raises:
        ConfigError: such a setting.
    """
    own = section.four_bit
    if section.quantization == "4bit" and (own.quant_type != "nf4" or not own.double_quantization):
        raise ConfigError(
            "policy.four_bit: Unsloth knows nf4 with double quantisation only", hint="leave it out, or use backend hf"
        )
    if own.compute_dtype not in ("auto", section.dtype):
        raise ConfigError(
            f"policy.four_bit.compute_dtype={own.compute_dtype}: Unsloth computes in policy.dtype",
            hint="set policy.dtype, or use backend hf",
        )
    if on_gpu(section.device):
        return
    if section.quantization == "8bit":
        raise ConfigError(
            "policy.quantization=8bit: Unsloth has no 8-bit weights without a GPU",
            hint="use 4bit or none, or policy.backend=hf",
        )
    if section.dtype == "fp16":
        raise ConfigError("policy.dtype=fp16: Unsloth has no fp16 without a GPU", hint="use bf16 or fp32")


def check_engine(generation: GenerationSection, policy: PolicySection) -> None:
    """Refuses settings that exclude `generation.engine=vllm`, before anything is loaded.

    Raises:
        ConfigError: vllm is not installed, or settings exclude each other.
    """
    if generation.engine != "vllm":
        return
    if generation.vllm.server is None:
        check_installed("generation.engine=vllm")
    check_one_process()
    if policy.fast_inference:
        raise ConfigError(
            "generation.engine=vllm and policy.fast_inference are two engines", hint="leave policy.fast_inference out"
        )
    is_cuda = on_gpu(policy.device)
    if generation.vllm.server is not None and generation.vllm.sleep:
        raise ConfigError("generation.vllm.sleep is of no use with generation.vllm.server", hint="leave one out")
    if generation.vllm.server is not None and policy.lora is None:
        raise ConfigError(
            "generation.vllm.server takes adapters, but all weights are trained",
            hint="set policy.lora.r, or leave generation.vllm.server out",
        )
    if generation.vllm.sleep and not is_cuda:
        raise ConfigError("generation.vllm.sleep needs a GPU", hint="leave it out")
    if policy.quantization == "8bit" or (policy.quantization == "4bit" and not is_cuda):
        raise ConfigError(
            f"generation.engine=vllm cannot hold the weights in {policy.quantization}"
            + ("" if is_cuda else " without a GPU"),
            hint="use policy.quantization=none, or generation.engine=transformers",
        )
    if is_cuda and policy.dtype == "fp32" and policy.lora is not None:
        vllm = generation.vllm
        why = next(
            (
                what
                for what, is_so in (
                    ("policy.quantization=4bit", policy.quantization == "4bit"),
                    ("generation.vllm.handover=adapter", vllm.handover == "adapter"),
                    ("generation.vllm.server", vllm.server is not None),
                )
                if is_so
            ),
            None,
        )
        if why is not None:
            raise ConfigError(
                f"{why} with policy.dtype=fp32: vLLM applies adapters on a GPU in 16 bits",
                hint="set policy.dtype=bf16 (fp16 on GPUs without it)",
            )
    if policy.quantization == "4bit":
        _check_vllm_form(policy)
    if policy.quantization == "4bit" and find_spec("vllm_bnb_plugin") is None:
        raise ConfigError(
            "generation.engine=vllm with policy.quantization=4bit: vllm-bnb-plugin is not installed",
            hint="pip install vllm-bnb-plugin; or use policy.quantization=none, or generation.engine=transformers",
        )
    if policy.model == "tiny" and not is_cuda:
        check_head(policy.tiny.head_width, "policy.tiny.head_dim")


def _check_vllm_form(policy: PolicySection) -> None:
    """Refuses 4 bits in another form than vLLM's: it would generate with another base than the trained one.

    Raises:
        ConfigError: another form.
    """
    own = policy.four_bit
    if own.quant_type != "nf4" or not own.double_quantization:
        raise ConfigError(
            "generation.engine=vllm holds 4 bits as nf4 with double quantisation only; policy.four_bit asks for "
            f"{own.quant_type}{'' if own.double_quantization else ' without it'}",
            hint="leave policy.four_bit out, or use generation.engine=transformers",
        )
    dtype = own.compute_dtype if own.compute_dtype != "auto" else policy.dtype
    if dtype not in ("auto", "bf16"):
        raise ConfigError(
            f"generation.engine=vllm computes with 4-bit weights in bf16, and this policy in {dtype}",
            hint="set policy.dtype=bf16 (and leave policy.four_bit.compute_dtype out), or use "
            "generation.engine=transformers",
        )


def prepare_backend(*sections: PolicySection) -> None:
    """Imports Unsloth before trl, transformers and peft, if any of these policies needs it.

    Every command calls this before it imports anything heavy. A second call does nothing.

    Raises:
        PolicyError: one of those is imported already, or the import of Unsloth fails.
        ConfigError: Unsloth is not installed.
    """
    for section in sections:
        if choose_backend(section).name == "unsloth":
            if find_spec("unsloth") is None:
                check_policy(section, trainable=False)
            import_unsloth()


def import_unsloth() -> Any:
    """Imports and returns the package `unsloth`.

    Raises:
        PolicyError: a package that it patches is imported already, or its import fails.
    """
    if "unsloth" not in sys.modules:
        early = [name for name in PATCHED if name in sys.modules]
        if early:
            raise PolicyError(
                f"unsloth must be imported before {', '.join(PATCHED)}; already imported: {', '.join(early)}",
                hint="call rl4rec_cli.policy.backend.prepare_backend before importing them, or use policy.backend=hf",
            )
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rl4rec"
        # Otherwise it writes compiled code into the current folder.
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache / "unsloth_compiled_cache"))
        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    keeps_trainers = "unsloth" not in sys.modules and _keep_trainers()
    for name in ("torchao", "bitsandbytes", "torch.utils._pytree", "unsloth", "unsloth_zoo"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with console.hushed(), import_noted():
        try:
            import unsloth
        except Exception as error:  # a missing or clashing package shows in as many ways as there are packages
            reason = first_line(error)
            raise PolicyError(f"cannot import unsloth: {reason}", hint=f"install it anew: {INSTALL}") from error
        finally:
            if keeps_trainers:
                del os.environ[_KEEPS_TRAINERS]
    if keeps_trainers:
        _keep_checkpointing()
    _check_trainers()
    return unsloth


_KEEPS_TRAINERS = "UNSLOTH_ALLOW_CPU"


def _keep_trainers() -> bool:
    """Stops Unsloth from replacing TRL's trainers on a GPU: rl4rec uses its models alone.

    Unsloth's trainers compute the loss without the subclass: they would silently leave out PPO's critic and filtered
    groups. They also measure the KL term of a warm-started adapter from the bare base. This variable, which Unsloth's
    own tests use, leaves TRL alone. On an NVIDIA GPU it has no other effect in the pinned version.

    Returns:
        Whether this call set the variable.
    """
    import torch

    if not torch.cuda.is_available() or torch.version.cuda is None or _KEEPS_TRAINERS in os.environ:
        return False
    os.environ[_KEEPS_TRAINERS] = "1"
    # TRL's own trainers read logits, which Unsloth leaves out of a pass that has labels.
    os.environ.setdefault("UNSLOTH_RETURN_LOGITS", "1")
    return True


def _keep_checkpointing() -> None:
    """Keeps Unsloth's gradient checkpointing on while the policy generates.

    TRL switches checkpointing off and on at every batch, which replaces Unsloth's by its own. Unsloth prevents that
    where it patches TRL's trainers, which rl4rec does not let it do.

    Raises:
        PolicyError: this version of Unsloth has no such patch.
    """
    try:
        from unsloth.models.rl import patch_trl_disable_gradient_checkpointing
    except ImportError as error:
        raise PolicyError(
            f"unsloth cannot keep its gradient checkpointing beside TRL's trainers: {error}",
            hint="install the pinned unsloth (docs/install.md), or use policy.backend=hf",
        ) from error
    patch_trl_disable_gradient_checkpointing()


def half_of_gpu() -> str:
    """Returns the 16-bit type of this GPU: `bf16`, or `fp16` where the GPU would only emulate bf16 (T4, V100)."""
    import torch

    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def check_one_gpu(device: str) -> None:
    """Refuses to train on another GPU than the first visible one, which transformers' trainers use.

    Raises:
        ConfigError: the device names another one.
    """
    index = device.removeprefix("cuda:")
    if device.startswith("cuda:") and index.isdigit() and int(index) > 0:
        raise ConfigError(
            f"policy.device={device}: training takes the first GPU that is seen",
            hint=f"let it see that one alone: CUDA_VISIBLE_DEVICES={index} with policy.device=cuda",
        )


def _check_trainers() -> None:
    """Refuses trainers that Unsloth put in place of TRL's.

    Raises:
        PolicyError: Unsloth replaced a trainer.
    """
    import trl

    for kind in (trl.GRPOTrainer, trl.RLOOTrainer):
        if not kind.__module__.startswith("trl."):
            raise PolicyError(
                f"unsloth put {kind.__module__} in place of TRL's trainer, with which the loss would be another",
                hint="install the pinned unsloth (docs/install.md), or use policy.backend=hf",
            )
