"""What `rl4rec plan` predicts against what the real trainer takes, on a CPU or a CUDA GPU.

For each configuration a Llama with random weights is built in a folder, `rl4rec_cli.commands.peak` makes two optimiser
steps of the real trainer in a process of its own, and the growth of its resident set over that of the imported
libraries (on a GPU: what torch reserves, and the context) stands beside what `rl4rec_cli.plan.memory` says of prompts
and texts of the lengths that came up.

    python benchmarks/memory.py [--only NAME …] [--measured FILE] [--device cuda]

Prints a table. Claim: within 15 % for each. What was measured is kept in FILE, so that a changed prediction can be set
beside it without measuring again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rl4rec_cli import console
from rl4rec_cli.commands.peak import Peak, measure_peaks
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.policy import TinySection
from rl4rec_cli.config.sections import DataSection, RunConfig, SyntheticSection
from rl4rec_cli.models.shape import ModelFacts, read_facts
from rl4rec_cli.plan.memory import MIB, Surroundings, estimate

CLAIM = 0.15
DATA = SyntheticSection(users=200, items=200)


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    ffn: int
    vocab: int
    heads: int = 8
    kv_heads: int = 4


@dataclass(frozen=True)
class Case:
    name: str
    shape: Shape
    algorithm: str
    sets: tuple[str, ...] = field(default=())
    for_gpu: bool = False
    """Left out on a CPU, where it takes too long."""


SMALL = Shape(hidden=512, layers=12, ffn=1536, vocab=32_000)  # 54 M parameters
LARGE = Shape(hidden=768, layers=12, ffn=2304, vocab=32_000)  # 110 M parameters
WIDE = Shape(hidden=256, layers=4, ffn=768, vocab=100_000)  # 29 M parameters, 26 M of them the vocabulary
REAL = Shape(hidden=1024, layers=24, ffn=2816, vocab=32_000, heads=16, kv_heads=8)  # 316 M parameters
LORA = ("policy.lora.r=16",)
TEXTS = "generation.max_completion_length"
GRPO = ("trainer.batch_size=2", "trainer.num_generations=4", "trainer.gradient_accumulation_steps=1")
CASES = (
    Case("54 M, all weights, sft", SMALL, "sft", ("trainer.batch_size=8",)),
    Case("54 M, LoRA, sft", SMALL, "sft", (*LORA, "trainer.batch_size=8")),
    Case("54 M, all weights, grpo", SMALL, "grpo", GRPO),
    Case("54 M, LoRA, grpo, 2 x 8 texts", SMALL, "grpo", (*LORA, *GRPO, "trainer.num_generations=8")),
    Case(
        *("54 M, LoRA, grpo, 2 x 8 texts, checkpointing", SMALL, "grpo"),
        (*LORA, *GRPO, "trainer.num_generations=8", "trainer.gradient_checkpointing=true"),
    ),
    Case("110 M, all weights, grpo, beta", LARGE, "grpo", (*GRPO, "trainer.beta=0.04")),
    Case(
        *("110 M, all weights, grpo, 4 micro-batches", LARGE, "grpo"),
        (*GRPO, "trainer.batch_size=1", "trainer.gradient_accumulation_steps=4"),
    ),
    Case("29 M, vocabulary of 100,000, LoRA, grpo", WIDE, "grpo", (*LORA, *GRPO, f"{TEXTS}=48")),
    Case(
        *("54 M, LoRA, ppo", SMALL, "ppo"),
        (*LORA, "trainer.batch_size=16", "trainer.mini_batch_size=8", "trainer.ppo_epochs=1"),
    ),
    # Measured after what is predicted was settled for those above.
    Case(
        *("110 M, LoRA, sft, checkpointing", LARGE, "sft"),
        (*LORA, "trainer.batch_size=8", "trainer.gradient_checkpointing=true"),
    ),
    Case("29 M, vocabulary of 100,000, all weights, sft", WIDE, "sft", ("trainer.batch_size=4",)),
    # Measured after the last change, the entropies of sft.
    Case(
        *("54 M, all weights, rloo, 2 micro-batches", SMALL, "rloo"),
        (*GRPO, "trainer.num_generations=6", "trainer.gradient_accumulation_steps=2"),
    ),
    Case(
        *("29 M, vocabulary of 100,000, LoRA, sft, 2 micro-batches", WIDE, "sft"),
        (*LORA, "trainer.batch_size=2", "trainer.gradient_accumulation_steps=2"),
    ),
    Case("316 M, LoRA, grpo, bf16", REAL, "grpo", (*LORA, *GRPO, "policy.dtype=bf16"), for_gpu=True),
)
SHARED = (
    *("retrieval.embedder=lsa", "data.train_targets=all", "prompt.max_prompt_length=160"),
    *(f"{TEXTS}=16", f"data.synthetic.users={DATA.users}", f"data.synthetic.items={DATA.items}"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="names of configurations")
    parser.add_argument("--measured", type=Path, help="JSON file of what was measured, read and added to")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    on_gpu = args.device.startswith("cuda")
    known = json.loads(args.measured.read_text()) if args.measured and args.measured.is_file() else {}
    rows, worst = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if (args.only and case.name not in args.only) or (case.for_gpu and not on_gpu):
                continue
            started = time.perf_counter()
            facts, config = build(case, Path(folder), args.device)
            if case.name not in known:
                (measured,) = measure_peaks(config)
                known[case.name] = vars(measured)
            peak = Peak(**known[case.name])
            predicted = predict(config, facts, peak, on_gpu=on_gpu)
            ratio = predicted / peak.bytes
            worst = max(worst, abs(ratio - 1))
            rows.append((case.name, f"{predicted / MIB:.0f}", f"{peak.bytes / MIB:.0f}", f"{ratio:.3f}"))
            console.log(f"{' | '.join(rows[-1])} | {time.perf_counter() - started:.0f} s")
            if args.measured:
                args.measured.write_text(json.dumps(known, indent=1))
    console.table("", ["configuration", "predicted MiB", "measured MiB", "ratio"], rows)
    if not rows:
        parser.error("no configuration of this name for this device")
    print(f"\nworst {worst:.1%} off, claim: at most {CLAIM:.0%}")
    sys.exit(worst > CLAIM)


def build(case: Case, folder: Path, device: str) -> tuple[ModelFacts, RunConfig]:
    """The model's shape and the run, with a folder that holds random weights of that shape."""
    path = folder / "-".join(map(str, vars(case.shape).values()))
    if not path.is_dir():
        save_random_llama(case.shape, path)
    own = (f"policy.model={path}", f"policy.device={device}", f"run.output_dir={folder}")
    config = load_config(algorithm=case.algorithm, sets=[*SHARED, *own, *case.sets])
    return read_facts(case.name, json.loads((path / "config.json").read_text())), config


def save_random_llama(shape: Shape, path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from rl4rec_cli.data.opening import open_dataset
    from rl4rec_cli.policy.loading import build_tiny

    console.quiet_libraries()
    _, tokenizer = build_tiny(TinySection(vocab_size=1024), [open_dataset(DataSection(synthetic=DATA))])
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def predict(config: RunConfig, facts: ModelFacts, peak: Peak, *, on_gpu: bool) -> int:
    """Bytes at most, for prompts and texts of the lengths that came up."""
    around = Surroundings(
        on_gpu=on_gpu, items=DATA.items, prompt_tokens=peak.prompt_tokens, text_tokens=peak.text_tokens
    )
    eval_off = config.eval.model_copy(update={"steps": None})
    return estimate(config.model_copy(update={"eval": eval_off}), facts, around).bytes


if __name__ == "__main__":
    main()
