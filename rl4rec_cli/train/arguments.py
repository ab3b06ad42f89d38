"""What every trainer shares: transformers' training arguments and the number of steps.

Decides: how our optimiser settings become transformers' ones, and how many steps a run has.
Hides: names and defaults of `transformers.TrainingArguments` (trl turns on bf16 and gradient checkpointing by
default: here every such switch is set).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from rl4rec_cli.errors import ConfigError
from rl4rec_cli.train.library_names import PREPARED

if TYPE_CHECKING:
    from rl4rec_cli.config.trainer import GroupSection, RlSection
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.train.parts import TrainerParts


def resolve_precision(section: TrainerSection, device: str) -> str:
    """Returns `fp32`, `bf16` or `fp16`. `auto` is the 16-bit type that the GPU supports, and fp32 without a GPU.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    on_cpu = not device.startswith("cuda")
    if section.precision == "fp16" and on_cpu:
        raise ConfigError("trainer.precision=fp16 needs a GPU", hint="use fp32 or bf16")
    if section.precision != "auto":
        return section.precision
    from rl4rec_cli.policy.backend import half_of_gpu

    return "fp32" if on_cpu else half_of_gpu()


def shared_arguments(parts: TrainerParts) -> dict[str, Any]:
    """Keyword arguments for any trainer's configuration.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    section, device = parts.section, str(parts.policy.device)
    precision = resolve_precision(section, device)
    return {
        "output_dir": str(parts.output_dir),
        "max_steps": parts.steps,
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": section.lr_scheduler_type,
        "warmup_steps": section.warmup_steps,
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        "gradient_accumulation_steps": section.gradient_accumulation_steps,
        "gradient_checkpointing": bool(section.gradient_checkpointing),
        "dataloader_num_workers": section.dataloader_num_workers,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": not device.startswith("cuda"),
        "seed": parts.config.run.seed,
        "logging_steps": parts.config.logging.steps,
        # A loss that is not finite is what it is; transformers would log the mean of those before.
        "logging_nan_inf_filter": False,
        "logging_first_step": True,
        # We write checkpoints whole and rename them (resumable.py); transformers does not.
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


def reference_arguments(parts: TrainerParts) -> dict[str, Any]:
    """How TRL is to load the reference policy of full fine-tuning.

    It does so by the policy's name, as another type and of another revision unless it is told: the divergence would not
    begin at 0.
    """
    loading = parts.config.policy
    return {
        "dtype": str(parts.policy.model.dtype).removeprefix("torch."),
        "revision": loading.revision,
        "trust_remote_code": loading.trust_remote_code,
    }


def rl_arguments(parts: TrainerParts) -> dict[str, Any]:
    """Keyword arguments for any of TRL's configurations of reinforcement learning.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    section, generation = cast("RlSection", parts.section), parts.config.generation
    return {
        **shared_arguments(parts),
        "model_init_kwargs": reference_arguments(parts) if section.beta > 0 else None,
        "epsilon": section.epsilon,
        "epsilon_high": section.epsilon_high,
        "beta": section.beta,
        "mask_truncated_completions": section.mask_truncated_completions,
        "max_completion_length": generation.max_completion_length,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
        "repetition_penalty": generation.repetition_penalty,
        "use_vllm": False,
    }


def group_arguments(parts: TrainerParts) -> dict[str, Any]:
    """Keyword arguments for TRL's configurations of algorithms with several completions per prompt.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    section = cast("GroupSection", parts.section)
    return {
        **rl_arguments(parts),
        "per_device_train_batch_size": section.micro_batch,
        "num_generations": section.num_generations,
        "num_iterations": section.num_iterations,
    }


def one_gpu(arguments: Any) -> Any:
    """Returns training arguments of a process that trains on one GPU, however many it sees.

    transformers would spread each batch over all of them (`nn.DataParallel`) and make it larger by their number.
    `variables.py` refuses several processes before.
    """
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


@contextmanager
def weights_kept(model: Any) -> Iterator[None]:
    """Keeps the trained weights in their own type while a trainer is made.

    TRL turns the adapter of a quantised model into bf16, in which a step of 1e-5 does not change a weight of 0.02.
    """
    before = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in before:
            parameter.data = before[name]


def steps_per_epoch(section: TrainerSection, examples: int) -> int:
    """Returns the optimiser steps of one pass over the examples.

    Raises:
        ConfigError: fewer examples than one step takes.
    """
    if not examples:
        raise ConfigError("no training examples: every user needs at least 4 items", hint="see `rl4rec data stats`")
    per_step = section.batch_size * section.gradient_accumulation_steps
    if examples < per_step:
        raise ConfigError(
            f"one step takes {per_step} examples (batch_size × gradient_accumulation_steps), but there are {examples}",
            hint="lower trainer.batch_size or trainer.gradient_accumulation_steps, or train on more users",
        )
    return examples // per_step * section.updates_per_batch


def number_of_steps(section: TrainerSection, examples: int) -> int:
    """Returns the optimiser steps of all epochs, at most `max_steps`.

    Raises:
        ConfigError: fewer examples than one step takes.
    """
    return max(1, min(section.max_steps, round(section.num_train_epochs * steps_per_epoch(section, examples))))


def release(trainer: Any) -> None:
    """Takes the model back from a finished trainer.

    accelerate leaves its autocast on the model and does not prepare it a second time. Without this, the next trainer
    and the evaluation would run in the precision of this one.
    """
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    vars(model).pop(PREPARED, None)
