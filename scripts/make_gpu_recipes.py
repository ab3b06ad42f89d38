"""Write the overlays of GPU budgets, `recipes/gpu-*.yaml`, from what `rl4rec plan` chooses.

    python scripts/make_gpu_recipes.py [--check]

Each overlay is for a GPU of some size and was planned for one preset: `beauty-grpo` with a LoRA adapter, all 256 texts
of a step in one micro-batch and nothing recomputed, is cut down by `plan_placement` until it fits. With --check nothing
is written, and the exit status is 1 where a file differs.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.models.names import PRESETS
from rl4rec_cli.models.shape import RetrievalFacts
from rl4rec_cli.plan.machine import Machine, parse_gpu
from rl4rec_cli.plan.memory import human
from rl4rec_cli.plan.placement import Placement, plan_placement

FOLDER = Path(__file__).parents[1] / "recipes"
BASE = "beauty-grpo"
PROMPTS = 32
# More items than Amazon Beauty has, and mxbai-embed-large, which the recipe names.
RETRIEVAL = RetrievalFacts(100_000, 335_141_888, 1024)


@dataclass(frozen=True)
class Budget:
    gigabytes: int
    model: str
    quantization: str

    @property
    def name(self) -> str:
        return f"gpu-{self.gigabytes}gb"


BUDGETS = (
    Budget(16, "qwen2.5-7b", "4bit"),
    Budget(24, "llama-3.1-8b", "4bit"),
    Budget(80, "llama-3.1-8b", "none"),
)


def wish(budget: Budget) -> RunConfig:
    """The run before anything is cut."""
    sets = [
        *(f"policy.model={budget.model}", f"policy.quantization={budget.quantization}", "policy.dtype=bf16"),
        *(f"trainer.batch_size={PROMPTS}", "trainer.gradient_accumulation_steps=1", "trainer.warm_start=null"),
        "trainer.gradient_checkpointing=false",
    ]
    return load_config(algorithm="grpo", recipes=[BASE], sets=sets)


def plan(budget: Budget, config: RunConfig) -> Placement:
    machine = Machine((parse_gpu(str(budget.gigabytes)),), 8, 64 * 10**9, 64 * 10**9)
    return plan_placement(machine, config, PRESETS[budget.model].facts, RETRIEVAL)


def text(budget: Budget) -> str:
    """The overlay: what every run of this size needs, and what had to be cut."""
    before = wish(budget)
    placed = plan(budget, before)
    config = before if placed.fits else placed.ways_out[0].config
    needs = plan(budget, config).estimate.bytes
    trainer, lora = config.trainer, config.policy.lora
    assert lora is not None
    assert trainer.algorithm == "grpo"
    cut = [
        f"{section}: {{{key}: {getattr(getattr(config, section), key)}}}\n"
        for section, key in (("generation", "batch_size"), ("retrieval", "device"), ("eval", "batch_size"))
        if getattr(getattr(config, section), key) != getattr(getattr(before, section), key)
    ]
    return f"""\
# Purpose:  overlay for one GPU with {budget.gigabytes} GB: {_said(budget)} on models up to {budget.model}.
# Hardware: one GPU with {budget.gigabytes} GB ({human(needs)} by plan for {budget.model}; not measured on one yet).
# Time:     that of the recipe below it; more where activations are computed twice.
# Command:  rl4rec train grpo -r {BASE} -r {budget.name} --model {budget.model} --dataset data/beauty
# Written by scripts/make_gpu_recipes.py from what `rl4rec plan` chooses: {PROMPTS} prompts x 8 completions a step.
policy:
  dtype: bf16
  quantization: {budget.quantization}
  lora: {{r: {lora.r}, alpha: {lora.alpha}}}
{"".join(cut)}trainer:
  precision: bf16
  gradient_checkpointing: {str(bool(trainer.gradient_checkpointing)).lower()}
  grpo:
    batch_size: {trainer.batch_size}
    num_generations: {trainer.num_generations}
    gradient_accumulation_steps: {trainer.gradient_accumulation_steps}
  sft: {{batch_size: 4, gradient_accumulation_steps: 4, gradient_checkpointing: true}}
"""


def _said(budget: Budget) -> str:
    return "4-bit LoRA" if budget.quantization == "4bit" else "LoRA in bf16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    old = []
    for budget in BUDGETS:
        path = FOLDER / f"{budget.name}.yaml"
        if path.is_file() and path.read_text(encoding="utf-8") == text(budget):
            continue
        old.append(path.name)
        if not is_check:
            path.write_text(text(budget), encoding="utf-8")
            print(f"wrote {path}")
    if is_check and old:
        sys.exit(f"not what plan chooses: {', '.join(old)}; run scripts/make_gpu_recipes.py")


if __name__ == "__main__":
    main()
