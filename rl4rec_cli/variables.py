"""Environment variables that change a run.

Decides: settings win over the environment; several processes are refused; a run records the variables that remain.
Hides: the names that accelerate, transformers, TRL and launchers read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rl4rec_cli import console
from rl4rec_cli.errors import ConfigError

OVERRIDING = ("ACCELERATE_", "KUBEFLOW_TRAINER_")
"""Prefixes of variables that take a setting's place: accelerate and transformers read them where they were told
nothing, as `ACCELERATE_MIXED_PRECISION` where neither bf16 nor fp16 is asked for, or report to somebody whom
`logging.report_to` does not name."""
_COUNTS = (
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "MPI_LOCALNRANKS",
)
_RANKS = (
    *("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "MPI_LOCALRANKID"),
    *("OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
)
_ADDRESSES = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
RECORDED = (
    *(*OVERRIDING, "TORCH_", "PYTORCH_", "CUDA_", "CUBLAS_", "NVIDIA_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_"),
    *("ONEDNN_", "ATEN_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "TRL_", "VLLM_", "UNSLOTH_", "WANDB_"),
)
"""Prefixes of variables that can change a run's numbers, speed or place."""
_SECRET = re.compile(r"(KEYS?|TOKENS?|SECRETS?|PASSWORD|PASSWD|PASS|CREDENTIALS?|AUTH|COOKIE|HEADERS?)(_|$)", re.I)
_LOGIN = re.compile(r"://[^/\s]*@")

_overruled: dict[str, str] = {}
"""Taken out of the environment by `settings_win`, while it lasts."""


def check_one_process() -> None:
    """Refuses an environment in which this is one process of several, before anything is made.

    Raises:
        ConfigError: it is one, or a variable is not a number.
    """
    values = {name: os.environ[name].strip() for name in (*_COUNTS, *_RANKS) if os.environ.get(name, "").strip()}
    odd = [name for name, value in values.items() if not re.fullmatch(r"-?[0-9]{1,9}", value)]
    several = [name for name in values if name not in odd and int(values[name]) > (1 if name in _COUNTS else 0)]
    if not odd and not several:
        return
    unset = " ".join(f"-u {name}" for name in [*values, *(name for name in _ADDRESSES if name in os.environ)])
    pairs = ", ".join(f"{name}={values[name]}" for name in odd or several)
    what = "is not a number" if odd else "says that this is one of several processes, but a run trains in one"
    raise ConfigError(
        f"the environment's {pairs} {what}",
        hint=f"start it without torchrun, `accelerate launch` or mpirun; where none is used, the variables are a "
        f"leftover: env {unset} rl4rec …",
    )


@contextmanager
def settings_win() -> Iterator[None]:
    """Takes out of the environment what would overrule settings, and a launcher's variables for one process.

    Raises:
        ConfigError: this is one process of several.
    """
    check_one_process()
    names = [n for n in os.environ if n.startswith(OVERRIDING) or n in (*_COUNTS, *_RANKS)]
    before = {name: os.environ.pop(name) for name in names}
    if overriding := sorted(name for name in before if name.startswith(OVERRIDING)):
        console.log(f"Left out of the environment, as the run's settings decide: {', '.join(overriding)}")
    _overruled.update(before)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.setdefault(name, value)
            _overruled.pop(name, None)


def recorded_variables() -> dict[str, dict[str, str]]:
    """Returns the variables that can change a run, and those that `settings_win` took out. Never a secret."""
    names = (*_COUNTS, *_RANKS, *_ADDRESSES, "PYTHONHASHSEED")
    values = {name: value for name, value in os.environ.items() if name.startswith(RECORDED) or name in names}
    return {"variables": _without_secrets(values), "variables_left_out": _without_secrets(_overruled)}


def _without_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    return {n: v for n, v in sorted(variables.items()) if not _SECRET.search(n) and not _LOGIN.search(v)}


_changed_by_import: dict[str, tuple[str | None, str | None]] = {}
"""What a library's import did to the environment: value before and after, None for none."""


@contextmanager
def import_noted() -> Iterator[None]:
    """Notes what an import changes in the environment, for `child_environment` to take back."""
    before = dict(os.environ)
    try:
        yield
    finally:
        after = dict(os.environ)
        for name in before.keys() | after.keys():
            if before.get(name) != after.get(name):
                first = _changed_by_import.get(name, (before.get(name), None))[0]
                _changed_by_import[name] = (first, after.get(name))


def child_environment() -> dict[str, str]:
    """Returns the environment for a process of ours, without what imports in this process put there.

    Unsloth asks for expandable segments of PyTorch's allocator as `PYTORCH_ALLOC_CONF`. vLLM's sleep cannot free such
    memory, and switches them off under the older name `PYTORCH_CUDA_ALLOC_CONF` alone: the option is taken out under
    the newer one, whoever set it.
    """
    environment = dict(os.environ)
    for name, (before, after) in _changed_by_import.items():
        if environment.get(name) != after:  # changed again since, by somebody who meant it
            continue
        if before is None:
            environment.pop(name, None)
        else:
            environment[name] = before
    if options := environment.pop("PYTORCH_ALLOC_CONF", ""):
        others = [part for part in options.split(",") if not part.strip().startswith("expandable_segments")]
        if others:
            environment["PYTORCH_ALLOC_CONF"] = ",".join(others)
    return environment
