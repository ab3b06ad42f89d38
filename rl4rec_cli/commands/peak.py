"""Measure the peak memory of a step of the real trainer, in a process of its own.

Decides: what counts (on a CPU the growth of the resident set after the imports; on a GPU the memory that torch
reserved, and the context); that it makes two optimiser steps: the second one meets the optimiser's state of the first.
Hides: the process, `/proc`, torch's counters.

It uses the examples with the longest prompts, as many as two steps need: no step of the run takes more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rl4rec_cli.errors import Rl4RecError
from rl4rec_cli.processes import end_with_parent
from rl4rec_cli.variables import settings_win

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RetrievalSection, RunConfig
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.retrieval.retriever import VectorRetriever

STEPS = 2


@dataclass(frozen=True)
class Peak:
    """The peak memory of one phase."""

    phase: str
    """The algorithm."""
    bytes: int
    prompt_tokens: int
    """Longest prompt that was used."""
    text_tokens: int
    """Longest text: what the policy wrote, or was taught."""
    is_warm_start: bool = False


def measure_peaks(config: RunConfig) -> list[Peak]:
    """Makes two optimiser steps of each phase of a run (warm start, then the algorithm) and measures their memory.

    Raises:
        Rl4RecError: training failed (with its message), or the kernel killed the process because memory ran out.
    """
    from rl4rec_cli.config.layering import dump_config

    with tempfile.TemporaryDirectory() as folder:
        recipe, answer = Path(folder) / "config.yaml", Path(folder) / "peaks.json"
        recipe.write_text(dump_config(config), encoding="utf-8")
        # The allocator gives back what is freed, so that the resident set is what is in use.
        own = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576", "MALLOC_ARENA_MAX": "1"}
        command = [sys.executable, "-m", "rl4rec_cli.commands.peak", str(os.getpid()), str(recipe), str(answer), folder]
        process = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **own})
        if process.returncode < 0:
            raise Rl4RecError(
                f"the measured step was ended by {signal.Signals(-process.returncode).name}",
                hint="if memory ran out, that is the answer: it does not fit",
            )
        if process.returncode:
            errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
            last = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
            raise Rl4RecError(f"the measured step failed: {errors[-1].removeprefix('error: ') if errors else last}")
        return [Peak(**one) for one in json.loads(answer.read_text(encoding="utf-8"))]


@settings_win()
def _measure(config: RunConfig, folder: Path) -> list[Peak]:
    """Measures in the process that `measure_peaks` starts."""
    from rl4rec_cli import console
    from rl4rec_cli.data.dataset import joint_digest
    from rl4rec_cli.data.opening import open_datasets

    datasets = open_datasets(config.data)
    from rl4rec_cli.policy.backend import prepare_backend

    prepare_backend(config.policy)  # Unsloth before all others
    console.quiet_libraries()
    _import_all(config.retrieval)
    import torch

    on_gpu = config.policy.device.startswith("cuda") or (config.policy.device == "auto" and torch.cuda.is_available())
    meter = _GpuMeter() if on_gpu else _ProcessMeter()

    from rl4rec_cli.commands import train_policy
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.policy.loading import save_policy
    from rl4rec_cli.retrieval.opening import open_retrievers
    from rl4rec_cli.rewards.credit import Groups
    from rl4rec_cli.rewards.scorer import open_scorers
    from rl4rec_cli.runs.making import create_run
    from rl4rec_cli.train.environments import open_environments
    from rl4rec_cli.train.phase import train_phase

    vector_retrievers: Sequence[VectorRetriever] = open_retrievers(config.retrieval, datasets)
    retrievers = {dataset.name: one for dataset, one in zip(datasets, vector_retrievers, strict=True)}
    policy = train_policy.load_start(config, datasets)
    # Fused ranks take one matrix more; nothing is fitted to measure it.
    by_text = config.reward.model_copy(update={"fuse": "none"})
    scorers = open_scorers(retrievers, by_text, groups=Groups.of(config))
    environments = open_environments(config, datasets, retrievers, scorers, policy.tokenizer)
    longest = [(len(d.builder.build(e.user, e.history).ids), d.name, e) for d in environments for e in d.examples]
    longest.sort(key=lambda one: -one[0])
    run = create_run(config, dataset="+".join(retrievers), digest=joint_digest(datasets))
    log, rollouts = JsonLines(folder / "log.jsonl"), JsonLines(folder / "rollouts.jsonl")
    peaks = []
    phases = _phases(config.trainer)
    for phase in phases:
        longest_examples = longest[: _examples_needed(phase)]
        some = [replace(d, examples=[e for _, name, e in longest_examples if name == d.name]) for d in environments]
        is_warm_start = phase is not phases[-1]
        if not is_warm_start and train_policy.makes_base(config.policy):
            train_policy.put_adapter(policy, run)
        if not is_warm_start and config.policy.model == "tiny":
            save_policy(policy, run.start)
            policy.model.config._name_or_path = str(run.start)
        _, longest_text = train_phase(phase, run, policy, some, log, rollouts)
        peaks.append(Peak(phase.algorithm, meter.peak(), longest_examples[0][0], longest_text, is_warm_start))
    log.close()
    rollouts.close()
    return peaks


def _phases(section: TrainerSection) -> list[TrainerSection]:
    """Returns the phases, cut to two optimiser steps."""
    short = {"max_steps": STEPS, "num_train_epochs": 1000.0}
    return [phase.without_warm_start().model_copy(update=short) for phase in section.phases]


def _examples_needed(phase: TrainerSection) -> int:
    return phase.batch_size * phase.gradient_accumulation_steps * -(-STEPS // phase.updates_per_batch)


def _import_all(section: RetrievalSection) -> None:
    """Imports everything that a run imports, so that the growth counts none of it."""
    from importlib import import_module

    from rl4rec_cli.retrieval.embedder import find_embedder

    modules = ["accelerate", "datasets", "peft", "sklearn.feature_extraction.text", "transformers", "trl"]
    modules += find_embedder(section).libraries
    module_by_name = {name: import_module(name) for name in modules}
    # These two load their classes when they are first asked for.
    for module, name in (("trl", "SFTTrainer"), ("trl", "GRPOTrainer"), ("transformers", "AutoModelForCausalLM")):
        getattr(module_by_name[module], name)


class _ProcessMeter:
    """Measures the growth of the process's resident set since the meter was made."""

    def __init__(self) -> None:
        self._before = _status("VmRSS")
        self._reset()

    def peak(self) -> int:
        """Returns the most bytes since the last call."""
        most = _status("VmHWM") - self._before
        self._reset()
        return most

    def _reset(self) -> None:
        # Sets the high-water mark back; where the kernel lets nobody do that, the mark is that of the whole process.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise Rl4RecError(f"/proc/self/status has no {field}: memory can be measured on Linux only")


class _GpuMeter:
    """Measures the GPU memory that torch holds, and what is held outside torch since the meter was made."""

    def __init__(self) -> None:
        import torch

        free, _ = torch.cuda.mem_get_info()
        # The context is made by the first call; what was taken before it by others is not ours.
        self._free = free
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        import torch

        free, _ = torch.cuda.mem_get_info()
        outside = max(0, self._free - free - torch.cuda.memory_reserved())
        most = torch.cuda.max_memory_reserved() + outside
        torch.cuda.reset_peak_memory_stats()
        return int(most)


def main(parent: str, recipe: str, answer: str, folder: str) -> None:
    end_with_parent(int(parent))
    from rl4rec_cli.config.layering import load_config
    from rl4rec_cli.config.sections import RewardSection

    # Rewards take no memory of note, and code of the user's runs only where the command that measures names it.
    config = load_config(algorithm=None, recipes=[recipe], allow_custom_rewards=True)
    quiet = {
        "run": config.run.model_copy(update={"output_dir": folder, "name": "measured"}),
        "reward": config.reward.model_copy(update={"functions": RewardSection().functions}),
        "eval": config.eval.model_copy(update={"steps": None}),
        "logging": config.logging.model_copy(update={"save_steps": 10**9, "rollouts": 0, "report_to": ()}),
    }
    peaks = _measure(config.model_copy(update=quiet), Path(folder))
    Path(answer).write_text(json.dumps([vars(peak) for peak in peaks]), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Rl4RecError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(1)
