"""Unsloth itself, on the CPU: every trainer, going on, reloading and exporting, through the real commands.

Unsloth patches transformers, trl and peft for good, so it only ever lives in a process of its own: one for all
commands, one for reading back what they wrote, and one for each thing that must be refused at its import.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import log_of, run_commands, said, skip_without_instructions
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.unsloth,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("unsloth") is None, reason="needs unsloth; `make test-unsloth` installs it"),
]

SMALL = (
    *("data.synthetic.users=60", "data.synthetic.items=24", "data.train_targets=last", "eval.users=24"),
    *("eval.baselines=[last_item,untrained]", "eval.cache_dir=null", "eval.steps=2", "eval.step_users=8"),
    *("policy.tiny.vocab_size=400", "generation.max_completion_length=6", "logging.steps=1"),
    *("trainer.learning_rate=0.02", "trainer.max_steps=4", "policy.backend=unsloth", "policy.lora.r=8"),
)
WARM = "trainer.warm_start={max_steps: 150, num_train_epochs: 99, learning_rate: 3e-3, batch_size: 16, target: last}"
GROUPS = (WARM, "trainer.batch_size=4", "trainer.num_generations=4")
SINGLE = (WARM, "trainer.batch_size=16")
TRAININGS = {
    "grpo": (*GROUPS, "trainer.beta=0.05", "logging.save_steps=2", "trainer.num_iterations=2"),
    "rloo": (*GROUPS, "trainer.beta=0.05"),
    "ppo": (*SINGLE, "trainer.mini_batch_size=8", "trainer.ppo_epochs=2", "trainer.critic=adapter"),
    "reinforce": (*SINGLE, "trainer.gradient_checkpointing=unsloth", "trainer.precision=bf16"),
    "sft": (),
}
# What plain Unsloth writes for token sequences, most likely tokens only.
READER = """
import contextlib, json, os, sys
with contextlib.redirect_stdout(sys.stderr):
    from unsloth import FastLanguageModel
    import torch
    asked = json.loads(sys.stdin.read())
    written = {}
    for name, (folder, four_bit) in asked["models"].items():
        model, tokenizer = FastLanguageModel.from_pretrained(
            folder, dtype=torch.float32, load_in_4bit=four_bit, load_in_16bit=not four_bit, max_seq_length=128
        )
        FastLanguageModel.for_inference(model)
        written[name] = []
        for ids in asked["prompts"]:
            given = torch.tensor([ids])
            ends = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
            mask = torch.ones_like(given)
            out = model.generate(input_ids=given, attention_mask=mask, max_new_tokens=6, do_sample=False, **ends)
            written[name].append(tokenizer.decode(out[0, len(ids):], skip_special_tokens=True).strip())
print(json.dumps(written))
"""


def run(code: str, *args: str, cwd: Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=cwd, input=given, capture_output=True, text=True, check=False, env=ENV
    )
    skip_without_instructions(done.returncode)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


ENV = {k: v for k, v in os.environ.items() if not k.startswith("UNSLOTH")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all commands were run."""
    folder = tmp_path_factory.mktemp("unsloth")
    commands: dict[str, list[str]] = {}
    for algorithm, sets in TRAININGS.items():
        given = [part for text in (*SMALL, *sets, f"run.name={algorithm}") for part in ("--set", text)]
        commands[algorithm] = ["train", algorithm, "--quick-test", *given]
    more = (*GROUPS, "policy.quantization=none", "run.name=sixteen")
    commands["sixteen"] = ["train", "grpo", "--quick-test", *(p for text in (*SMALL, *more) for p in ("--set", text))]
    base = "policy.model=runs/grpo/checkpoints/checkpoint_base"
    more = (*GROUPS, base, "policy.lora=null", "policy.quantization=none", "run.name=whole")
    kept = [text for text in (*SMALL, *more) if text not in ("policy.lora.r=8", WARM)]
    commands["whole"] = ["train", "grpo", "--quick-test", *(p for text in kept for p in ("--set", text))]
    left = ["checkpoints/checkpoint_final", "checkpoints/checkpoint_step_4", "checkpoints/checkpoint_best", "eval"]
    commands["copy"] = ["copy", "runs/grpo", "runs/resumed", *left]
    commands["resume"] = ["train", "grpo", "--resume", "runs/resumed"]
    commands["eval"] = ["eval", "runs/grpo", "--baselines", "untrained", "--json"]
    commands["recommend"] = ["recommend", "runs/grpo", "--user", "u1", "--json"]
    commands["merged"] = ["export", "runs/grpo", "--to", "merged", "--output", "merged"]
    commands["adapter"] = ["export", "runs/grpo", "--to", "adapter", "--output", "adapter"]
    run_commands(commands, folder)
    return folder


def adapter(place: Path, name: str, which: str = "final") -> dict[str, torch.Tensor]:
    return load_file(place / "runs" / name / "checkpoints" / f"checkpoint_{which}" / "adapter_model.safetensors")


@pytest.mark.parametrize("algorithm", TRAININGS)
def test_every_trainer_moves_the_adapter_and_leaves_the_4bit_base(algorithm: str, place: Path) -> None:
    from rl4rec_cli.files.folders import problems

    told = said(place, algorithm)["err"]
    assert "Backend unsloth, quantization 4bit: policy.backend says so" in told
    before, after = adapter(place, algorithm, "start"), adapter(place, algorithm)
    # rank 8 on seven projections of two layers, an A and a B each
    assert len(after) == 28
    assert {w.dtype for w in after.values()} == {torch.float32}
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    checkpoints = place / "runs" / algorithm / "checkpoints"
    assert problems(checkpoints / "checkpoint_base") == []  # its files are what was written before the training
    steps = [line["step"] for line in log_of(place, algorithm) if line["phase"] == algorithm]
    assert steps == [1, 2, 3, 4]


def test_an_adapter_over_whole_weights_is_trained(place: Path) -> None:
    assert "Backend unsloth, quantization none: policy.backend says so" in said(place, "sixteen")["err"]
    before, after = adapter(place, "sixteen", "start"), adapter(place, "sixteen")
    assert len(after) == 28
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_all_weights_are_trained_where_there_is_no_adapter(place: Path) -> None:
    said(place, "whole")
    checkpoints = place / "runs" / "whole" / "checkpoints"
    assert not (checkpoints / "checkpoint_final" / "adapter_config.json").exists()
    before = load_file(place / "runs/grpo/checkpoints/checkpoint_base/model.safetensors")
    after = load_file(checkpoints / "checkpoint_final" / "model.safetensors")
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_it_was_unsloth_in_4_bits(place: Path) -> None:
    """The command said so; here it is looked at what it loaded."""
    assert {"unsloth", "unsloth_zoo", "bitsandbytes"} <= set(json.loads((place / "modules.json").read_text()))
    code = (
        "from pathlib import Path\n"
        "from rl4rec_cli.runs.making import open_run\n"
        "from rl4rec_cli.policy.loading import load_policy\n"
        "run = open_run(Path('runs/grpo'))\n"
        "policy = load_policy(run.config.policy.model_copy(update={'model': str(run.final)}), trainable=True)\n"
        "kinds = [type(m).__name__ for m in policy.model.modules()]\n"
        "assert policy.backend == 'unsloth' and hasattr(policy.model, 'for_inference')\n"
        "print(kinds.count('Linear4bit'), sum(p.requires_grad for p in policy.model.parameters()))\n"
    )
    counts = run(code, cwd=place).stdout.split()
    assert int(counts[0]) >= 14
    assert counts[1] == "28"


def test_the_reference_is_where_rl_starts(place: Path) -> None:
    for algorithm in ("grpo", "rloo"):
        kl = [line["kl"] for line in log_of(place, algorithm) if line["phase"] == algorithm]
        assert kl[0] == pytest.approx(0, abs=1e-6)
        assert kl[-1] > 1e-5


def test_nothing_is_left_where_the_command_was_typed(place: Path) -> None:
    there = {p.name for p in place.iterdir() if not p.name.startswith("said_")}
    assert there == {"commands.json", "modules.json", "runs", "merged", "adapter"}


def test_going_on_is_the_same_curve_and_the_same_weights(place: Path) -> None:
    assert "going on after step 2" in said(place, "resume")["err"]
    assert log_of(place, "resumed") == log_of(place, "grpo")
    ours, theirs = adapter(place, "resumed"), adapter(place, "grpo")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    users = [(place / "runs" / name / "eval" / "validation_users.jsonl").read_text() for name in ("resumed", "grpo")]
    assert users[0] == users[1]


def test_results_alone_are_on_standard_output(place: Path) -> None:
    measured = json.loads(said(place, "eval")["out"])
    own = json.loads((place / "runs" / "grpo" / "eval" / "validation.json").read_text())
    assert measured["methods"]["tuned policy"] == own["methods"]["tuned policy"]
    assert json.loads(said(place, "recommend")["out"])["text"]
    assert said(place, "merged")["out"] == "merged\n"


def test_all_ways_of_reloading_write_the_same_text(place: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    from rl4rec_cli.data.dataset import build_examples
    from rl4rec_cli.data.opening import open_dataset
    from rl4rec_cli.data.prompts import PromptBuilder
    from rl4rec_cli.engine.sampling import Sampling
    from rl4rec_cli.policy.generation import generate_texts
    from rl4rec_cli.policy.loading import Policy, load_policy
    from rl4rec_cli.policy.pretrained import keep_trainable_layout
    from rl4rec_cli.runs.making import open_run

    opened = open_run(place / "runs" / "grpo")
    dataset = open_dataset(opened.config.data)
    texts = {
        record["user"]: record["texts"]["tuned policy"]
        for record in map(json.loads, (opened.folder / "eval" / "validation_users.jsonl").read_text().splitlines())
    }
    examples = [e for e in build_examples(dataset, "validation") if e.user in texts]
    builder = PromptBuilder(opened.config.prompt, dataset, AutoTokenizer.from_pretrained(place / "merged"))
    prompts = [builder.build(e.user, e.history).ids for e in examples]
    expected = [texts[e.user] for e in examples]
    assert len(set(expected)) > 3

    def write(model: Any) -> list[str]:
        keep_trainable_layout(model)
        policy = Policy(model, builder.tokenizer, "reloaded")
        return generate_texts(policy, prompts, Sampling(6, 0.0), batch_size=24)

    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    section = opened.config.policy.model_copy(update={"backend": "hf", "model": str(opened.final)})
    asked = {"models": {"adapter": [str(place / "adapter"), True], "merged": [str(place / "merged"), False]}}
    by_unsloth = json.loads(run(READER, cwd=tmp_path, given=json.dumps({**asked, "prompts": prompts})).stdout)
    written = {
        "here": write(load_policy(section).model),
        "PEFT": write(AutoPeftModelForCausalLM.from_pretrained(place / "adapter", quantization_config=nf4)),
        "merged, transformers": write(AutoModelForCausalLM.from_pretrained(place / "merged")),
        "adapter, unsloth": by_unsloth["adapter"],
        "merged, unsloth": by_unsloth["merged"],
    }
    assert {name: found == expected for name, found in written.items()} == dict.fromkeys(written, True)


def test_presets_are_the_repositories_that_unsloth_takes() -> None:
    from rl4rec_cli.models.names import PRESETS

    table = Path(find_spec("unsloth").origin).parent / "models" / "mapper.py"  # type: ignore[union-attr, arg-type]
    taken = runpy.run_path(str(table))["FLOAT_TO_INT_MAPPER"]
    named = {p.repository: p.four_bit for p in PRESETS.values() if p.four_bit is not None}
    # Meta dropped its name from the repository's, and Unsloth's table has the old one of the largest.
    taken["meta-llama/Llama-3.1-70B-Instruct"] = taken["meta-llama/Meta-Llama-3.1-70B-Instruct"]
    assert {full: taken.get(full) for full in named} == named
    assert "openai-community/gpt2" not in taken


def test_trainers_that_unsloth_wrote_anew_are_refused(tmp_path: Path) -> None:
    """As with a GPU: what its import does then is left out as we ask, and noticed where it is not."""
    code = (
        "import os, sys\n"
        "os.environ['UNSLOTH_ALLOW_CPU'] = '1'\n"  # the variable that a GPU makes us set
        "os.environ['UNSLOTH_COMPILE_LOCATION'] = os.path.abspath('compiled')\n"
        "from rl4rec_cli.errors import PolicyError\n"
        "from rl4rec_cli.policy.backend import import_unsloth\n"
        "assert import_unsloth().DEVICE_TYPE == 'cuda'\n"
        "import trl, unsloth.models.rl\n"
        "assert trl.GRPOTrainer.__module__ == 'trl.trainer.grpo_trainer'\n"
        "unsloth.models.rl._patch_trl_rl_trainers('grpo_trainer')\n"
        "assert trl.GRPOTrainer.__module__ == 'UnslothGRPOTrainer'\n"
        "try:\n    import_unsloth()\nexcept PolicyError as error:\n    print(error.message, file=sys.stderr)\n"
    )
    assert "unsloth put UnslothGRPOTrainer in place of TRL's trainer" in run(code, cwd=tmp_path).stderr


def refused(*sets: str, cwd: Path, more: tuple[str, ...] = ()) -> str:
    given = [part for text in (*SMALL, *sets) for part in ("--set", text)]
    command = [sys.executable, "-m", "rl4rec_cli.cli.main", "train", "grpo", "--quick-test", *given, *more]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=ENV)
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stdout == ""
    assert not (cwd / "runs").exists()
    return done.stderr


def test_lora_targets_that_match_nothing(place: Path, tmp_path: Path) -> None:
    base = place / "runs" / "grpo" / "checkpoints" / "checkpoint_base"
    told = refused(f"policy.model={base}", "policy.lora.target_modules=[nothing]", cwd=tmp_path)
    assert "error: policy.lora.target_modules=['nothing']: Target modules" in told
    assert "hint: `all-linear`" in told


def test_what_unsloth_would_quietly_do_otherwise(tmp_path: Path) -> None:
    assert "no 8-bit weights without a GPU" in refused("policy.quantization=8bit", cwd=tmp_path)
    assert "no fp16 without a GPU" in refused("policy.dtype=fp16", cwd=tmp_path)
