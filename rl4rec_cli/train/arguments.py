"""What every trainer shares: transformers' training arguments and the number of steps.

Decides: how our optimiser settings become transformers' ones, and how many steps a run has.
Hides: names and defaults of `transformers.TrainingArguments` (trl turns on bf16 and gradient checkpointing by
default: here every such switch is set).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rl4rec_cli.errors import ConfigError

if TYPE_CHECKING:
    from rl4rec_cli.config import OptimSection, RunConfig


def shared_arguments(section: OptimSection, config: RunConfig, *, output_dir: Path, device: str) -> dict[str, Any]:
    """Keyword arguments for any trainer's configuration.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    on_cpu = not device.startswith("cuda")
    precision = section.precision
    if precision == "auto":
        precision = "bf16" if not on_cpu and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and on_cpu:
        raise ConfigError("trainer.precision=fp16 needs a GPU", hint="use fp32 or bf16")
    return {
        "output_dir": str(output_dir),
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": section.lr_scheduler_type,
        "warmup_steps": section.warmup_steps,
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        "gradient_accumulation_steps": section.gradient_accumulation_steps,
        "gradient_checkpointing": section.gradient_checkpointing,
        "dataloader_num_workers": section.dataloader_num_workers,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": on_cpu,
        "seed": config.run.seed,
        "logging_steps": config.logging.steps,
        "logging_first_step": True,
        # Our checkpoints are written whole and renamed (callbacks.py); transformers' own are not.
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


def number_of_steps(section: OptimSection, *, examples: int, per_step: int, updates: int = 1) -> int:
    """Optimiser steps: the epochs' worth, at most `max_steps`.

    Args:
        examples: training examples.
        per_step: examples a step takes.
        updates: steps made from one batch.

    Raises:
        ConfigError: fewer examples than one step takes.
    """
    if examples < per_step:
        raise ConfigError(
            f"one step takes {per_step} examples (batch_size × gradient_accumulation_steps), but there are {examples}",
            hint="lower trainer.batch_size or trainer.gradient_accumulation_steps, or train on more users",
        )
    per_epoch = examples // per_step * updates
    return max(1, min(section.max_steps, round(section.num_train_epochs * per_epoch)))
