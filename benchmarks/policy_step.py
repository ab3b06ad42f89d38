"""The parts of a GRPO step with a real language model, beside bare TRL: seconds, shares and peak memory.

Each variant takes the same steps in a process of its own, in turns: the same policy (LoRA), prompts, Scorer and
settings. Bare TRL is `GRPOTrainer` with its own generation and a plain reward function; its prompts are tokenised by
TRL.

    python benchmarks/policy_step.py [--model models/smollm2-135m] [--rounds 1] [--steps 2]
    python benchmarks/policy_step.py --model tiny --rounds 2 --steps 6

`--model` is a folder (`make smollm2` makes the default one) or `tiny`. A step is --texts completions (32) of at most
--tokens tokens (16), in groups of --group (8). `--only NAME` measures some variants. Prints for each the median seconds
of a step, the part of generation, log-probabilities (with the loss's forward pass), reward, backward pass and
optimiser, the most memory that the process held, and the ratio to bare TRL in the same run. The first step of each
process warms it up and is left out. `--clock cpu` counts the seconds that cores worked instead. On a machine that
others use, with OMP_NUM_THREADS=1, its ratios hold where those of the wall clock do not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

BARE = "bare TRL"
VARIANTS: dict[str, tuple[str, ...]] = {
    BARE: (),
    "rl4rec": (),
    "bf16 weights": ("policy.dtype=bf16",),
    "bf16 autocast": ("trainer.precision=bf16",),
    "checkpointing": ("trainer.gradient_checkpointing=true",),
    "prompts read once": ("generation.share_prompts=true",),
    "prompts read once, bf16 weights": ("generation.share_prompts=true", "policy.dtype=bf16"),
    "micro-batches of one group": ("trainer.batch_size=1", "trainer.gradient_accumulation_steps={groups}"),
}
"""Settings of each. Braces are filled in."""
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
PARTS = ("generation", "log-probabilities", "reward", "backward", "optimiser")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m")
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--only", action="append", choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--worker", choices=list(VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.texts % args.group:
        parser.error(f"--texts {args.texts} are no whole groups of {args.group}")
    if args.worker is not None:
        print(json.dumps(measure(args)))
        return
    names = [name for name in VARIANTS if not args.only or name in args.only]
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number in range(args.rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(json.loads(process.stdout.splitlines()[-1]))
    show(found)


def show(found: dict[str, list[dict[str, Any]]]) -> None:
    """Prints a row for each variant."""
    width = max(len(name) for name in found) + 2
    first = next(iter(found.values()))[0]
    print(f"prompts of {first['prompt_tokens']:.0f} tokens, completions of {first['text_tokens']:.1f}, in the mean")
    print(
        f"{'':<{width}}{'s / step':>9}{'ratio':>7}{'peak GiB':>10}{'ratio':>7}  " + "".join(f"{p:>19}" for p in PARTS)
    )
    base: tuple[float, float] | None = None
    for name, runs in found.items():
        seconds = statistics.median(step for run in runs for step in run["steps"])
        memory = max(run["peak_gib"] for run in runs)
        base = base if base is not None else (seconds, memory)
        parts = [statistics.median(value for run in runs for value in run["parts"][part]) for part in PARTS]
        shares = "".join(f"{part:>12.2f} ({part / seconds:>4.0%})" for part in parts)
        print(
            f"{name:<{width}}{seconds:>9.2f}{seconds / base[0]:>7.2f}{memory:>10.2f}{memory / base[1]:>7.2f}  {shares}"
        )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Takes the steps of one variant. Everything that is printed on the way goes to standard error."""
    from rl4rec_cli import console
    from rl4rec_cli.config.layering import load_config

    groups = args.texts // args.group
    sets = [setting.format(groups=groups) for setting in VARIANTS[args.worker]]
    own = ["policy.lora.r=16", "prompt.max_history=4"] if args.model != "tiny" else []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        config = load_config(
            algorithm="grpo",
            recipes=["quick-test"],
            sets=[
                *(
                    "trainer.warm_start=null",
                    f"trainer.max_steps={args.steps + 1}",
                    "logging.steps=1",
                    "eval.steps=null",
                ),
                *(f"trainer.batch_size={groups}", f"trainer.num_generations={args.group}"),
                *(f"generation.max_completion_length={args.tokens}", f"policy.model={args.model}"),
                *("data.synthetic.items=2000", "prompt.max_prompt_length=128", f"run.output_dir={folder}"),
                *(*own, *sets),
            ],
        )
        console.quiet_libraries()
        take = _bare if args.worker == BARE else _ours
        return take(config, args.steps, CLOCKS[args.clock])


class Clock:
    """Seconds of a trainer's parts, step by step."""

    def __init__(self, trainer: Any, now: Callable[[], float]) -> None:
        self._now = now
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps: list[float] = []
        self.parts: dict[str, list[float]] = defaultdict(list)
        self._last = now()
        self.tokens: list[int] = []
        self.prompts: list[int] = []
        self._around(trainer, "_generate", "generation", self._count)
        self._around(trainer, "_get_per_token_logps_and_entropies", "log-probabilities")
        self._around(trainer, "_calculate_rewards", "reward")
        self._around(trainer.accelerator, "backward", "backward")
        create = trainer.create_optimizer

        def created(*args: Any, **more: Any) -> Any:
            optimizer = create(*args, **more)
            self._around(optimizer, "step", "optimiser")
            return optimizer

        trainer.create_optimizer = created

    def _count(self, result: Any) -> None:
        self.prompts += [len(ids) for ids in result[0]]
        self.tokens += [len(ids) for ids in result[1]]

    def _around(self, owner: Any, method: str, part: str, see: Callable[[Any], None] | None = None) -> None:
        call = getattr(owner, method)

        def timed(*args: Any, **more: Any) -> Any:
            start = self._now()
            result = call(*args, **more)
            self.seconds[part] += self._now() - start
            if see is not None:
                see(result)
            return result

        setattr(owner, method, timed)

    def end_step(self) -> None:
        """Notes what the step took."""
        self.steps.append(self._now() - self._last)
        for part in PARTS:
            self.parts[part].append(self.seconds.pop(part, 0.0))
        self._last = self._now()

    def result(self) -> dict[str, Any]:
        """Returns the steps after the first, and the most memory that the process held."""
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return {
            "steps": self.steps[1:],
            "parts": {part: values[1:] for part, values in self.parts.items()},
            "peak_gib": int(status["VmHWM"].split()[0]) / 2**20,
            "prompt_tokens": statistics.mean(self.prompts),
            "text_tokens": statistics.mean(self.tokens),
        }


def _ours(config: Any, steps: int, now: Callable[[], float]) -> dict[str, Any]:
    from rl4rec_cli.train.rl_trainer import RLTrainer

    with RLTrainer(config) as trainer:
        clock = Clock(trainer._trainer, now)
        for _ in range(steps + 1):
            trainer.train_step()
            clock.end_step()
        return clock.result()


def _bare(config: Any, steps: int, now: Callable[[], float]) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOTrainer

    from rl4rec_cli.data.opening import open_dataset
    from rl4rec_cli.data.prompts import PromptBuilder
    from rl4rec_cli.policy.opening import load_for_training
    from rl4rec_cli.retrieval.opening import open_retriever
    from rl4rec_cli.rewards.scorer import Scorer
    from rl4rec_cli.train.algorithms.grpo import grpo_arguments
    from rl4rec_cli.train.examples import training_examples
    from rl4rec_cli.train.parts import Lesson, TrainerParts

    dataset = open_dataset(config.data)
    retriever = open_retriever(config.retrieval, dataset)
    policy = load_for_training(config, datasets=[dataset])
    builder, scorer = PromptBuilder(config.prompt, dataset, policy.tokenizer), Scorer(retriever, config.reward)
    rows = [
        {"prompt": builder.build(e.user, e.history).text, "target": e.target, "history": list(e.history)}
        for e in training_examples(config.training_data, dataset, seed=config.run.seed)
    ]

    def reward(completions: list[str], target: list[int], history: list[list[int]], **_: Any) -> list[float]:
        return scorer.score([text.strip() for text in completions], target, history).rewards.tolist()

    class Ends(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                clock.end_step()

    lesson = Lesson(Dataset.from_list(rows), config.generation.max_completion_length, dict)
    with tempfile.TemporaryDirectory() as scratch:
        parts = TrainerParts(config.trainer, config, policy, steps + 1, Path(scratch), lesson)
        trainer = GRPOTrainer(
            model=policy.model,
            args=grpo_arguments(parts),
            train_dataset=lesson.rows,
            processing_class=policy.tokenizer,
            reward_funcs=reward,
            callbacks=[Ends()],
        )
        trainer.remove_callback(PrinterCallback)
        clock = Clock(trainer, now)
        trainer.train()
        return clock.result()


if __name__ == "__main__":
    main()
