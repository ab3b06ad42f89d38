"""vLLM writes, through the real commands: every trainer, going on, evaluation, recommendations, and its death.

All commands run in one process, which imports once; every vLLM is a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import ends, log_of, run_commands, said
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vllm; `make test-vllm` installs it"),
]

SMALL = (
    *("data.synthetic.users=60", "data.synthetic.items=24", "data.train_targets=last", "eval.users=24"),
    *("eval.baselines=[last_item,untrained]", "eval.cache_dir=null", "eval.steps=2", "eval.step_users=8"),
    *("policy.tiny.vocab_size=400", "generation.max_completion_length=6", "logging.steps=1"),
    *("trainer.learning_rate=0.02", "trainer.max_steps=4", "generation.engine=vllm"),
)
WARM = "trainer.warm_start={max_steps: 60, num_train_epochs: 99, learning_rate: 3e-3, batch_size: 16, target: last}"
GROUPS = (WARM, "trainer.batch_size=4", "trainer.num_generations=4")
SINGLE = (WARM, "trainer.batch_size=16")
ADAPTER = "policy.lora.r=8"
SWAPPED = (ADAPTER, "generation.vllm.handover=adapter")
TRAININGS = {
    "grpo": (
        *GROUPS,
        *SWAPPED,
        "trainer.beta=0.05",
        "trainer.learning_rate=0.005",  # on some processors this one's texts collapse into their end at four times that
        "logging.save_steps=3",
        "trainer.num_iterations=2",
        "trainer.max_steps=6",
    ),
    "rloo": (*GROUPS, ADAPTER, "trainer.zero_variance=refill"),
    "ppo": (*SINGLE, "trainer.mini_batch_size=8", "trainer.ppo_epochs=2"),
    # Weights of two bytes in vLLM and of four in the trainer: their probabilities differ.
    "reinforce": (*SINGLE, "generation.vllm.dtype=bf16", "generation.vllm.correction_max=1.0001", "health.window=3"),
}
# What plain vLLM writes for token sequences, most likely tokens only.
READER = """
import contextlib, json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
asked, written = json.loads(sys.stdin.read()), {}
how = SamplingParams(temperature=0, max_tokens=6)
given = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
for name, (folder, *adapter) in asked["models"].items():
    own = {"enable_lora": True, "max_lora_rank": 8} if adapter else {}
    llm = LLM(folder, dtype="float32", max_model_len=128, enforce_eager=True, enable_chunked_prefill=False, **own)
    with_it = LoRARequest("a", 1, adapter[0]) if adapter else None
    found = llm.generate(given, how, lora_request=with_it, use_tqdm=False)
    written[name] = [list(one.outputs[0].token_ids) for one in found]
    del llm
print(json.dumps(written))
"""
# A reward that looks for the engine in its third batch, and ends it or this process.
REWARD = """
import os, signal, time
from pathlib import Path

calls = 0

def length(texts, targets, histories, **kwargs):
    global calls
    calls += 1
    if calls == 3:
        Path("reached").write_text(" ".join(engines()))
        for pid in engines():
            os.kill(int(pid) if Path("engine").exists() else os.getpid(), signal.SIGKILL)
    return [len(t) / 100 for t in texts]

def engines():
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [p for p in children if "engine.worker" in Path(f"/proc/{p}/cmdline").read_text()]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all commands were run."""
    folder = tmp_path_factory.mktemp("vllm")
    commands: dict[str, list[str]] = {}
    for algorithm, sets in TRAININGS.items():
        given = [part for text in (*SMALL, *sets, f"run.name={algorithm}") for part in ("--set", text)]
        commands[algorithm] = ["train", algorithm, "--quick-test", *given]
    left = [f"checkpoints/checkpoint_{name}" for name in ("final", "step_6", "best")] + ["eval"]
    commands["copy"] = ["copy", "runs/grpo", "runs/resumed", *left]
    commands["resume"] = ["train", "grpo", "--resume", "runs/resumed"]
    commands["eval"] = ["eval", "runs/grpo", "--baselines", "none", "--json"]
    plain = ["--set", "generation.engine=transformers"]
    commands["eval_plain"] = ["eval", "runs/grpo", "--baselines", "none", "--json", *plain]
    commands["merged"] = ["export", "runs/grpo", "--to", "merged", "--output", "merged"]
    commands["adapter"] = ["export", "runs/grpo", "--to", "adapter", "--output", "adapter"]
    commands["recommend"] = ["recommend", "runs/rloo", "--user", "u1", "--json"]
    commands["recommend_plain"] = [*commands["recommend"], *plain]
    commands["data"] = ["data", "synth", "toy", "--users", "40", "--items", "24"]
    for name, sets in {"prompts": ["--set", "generation.engine=vllm"], "prompts_plain": plain}.items():
        asked = ["--template", "{history}\n", "--set", "prompt.max_prompt_length=96", "--summaries", f"{name}.json"]
        commands[name] = ["prompts", "toy", "--model", "runs/grpo/checkpoints/checkpoint_start", *asked, *sets]
    run_commands(commands, folder)
    return folder


def steps_of(place: Path, algorithm: str) -> list[dict[str, Any]]:
    return [line for line in log_of(place, algorithm) if line["phase"] == algorithm and "loss" in line]


@pytest.mark.parametrize("algorithm", TRAININGS)
def test_every_trainer_learns_from_the_policy_s_own_texts(algorithm: str, place: Path) -> None:
    said(place, algorithm)
    steps = steps_of(place, algorithm)
    assert [line["step"] for line in steps] == list(range(1, 7 if algorithm == "grpo" else 5))
    handed = [line.get("handover_bytes", 0) for line in steps]
    # Before each batch of texts but the first, whose weights vLLM starts with where all are trained. grpo makes two
    # updates of a batch, ppo four, the others one.
    batches = {"grpo": [True, False] * 3, "ppo": [False] * 4}
    assert [size > 0 for size in handed] == batches.get(algorithm, [False, True, True, True])
    if algorithm != "reinforce":  # float32 on both sides
        measured = [line for line in steps if "logp_difference" in line]
        assert len(measured) == {"grpo": 3, "ppo": 1, "rloo": 4}[algorithm]
        assert all(line["logp_difference_max"] < 1e-4 and line["masked_share"] == 0 for line in measured)
    final = place / "runs" / algorithm / "checkpoints" / "checkpoint_final"
    start = place / "runs" / algorithm / "checkpoints" / "checkpoint_start"
    name = "adapter_model.safetensors" if (final / "adapter_config.json").is_file() else "model.safetensors"
    before, after = load_file(start / name), load_file(final / name)
    assert [n for n in before if torch.equal(before[n], after[n])] == []


def test_probabilities_that_differ_are_corrected_and_warned_of(place: Path) -> None:
    steps = steps_of(place, "reinforce")
    assert all(1e-4 < line["logp_difference_max"] < 1 for line in steps)
    assert all(line["masked_share"] > 0.2 for line in steps)
    assert all(line["importance_ratio"] < 1 for line in steps)
    assert "the share left out or cut by importance sampling" in said(place, "reinforce")["err"]


def test_prompts_are_written_as_transformers_writes_them(place: Path) -> None:
    said(place, "prompts"), said(place, "prompts_plain")
    written, plain = (json.loads((place / f"{name}.json").read_text()) for name in ("prompts", "prompts_plain"))
    assert len(set(written.values())) > 1
    assert written == plain


def test_what_vllm_prints_is_kept_with_the_run(place: Path) -> None:
    assert (place / "runs" / "grpo" / "vllm.log").stat().st_size > 0
    assert "vllm" not in said(place, "grpo")["out"].lower()


def test_going_on_is_the_same_curve_and_the_same_weights(place: Path) -> None:
    """From the midst of a batch of texts, with two more to be written."""
    assert "going on after step 3" in said(place, "resume")["err"]

    def without_handover(name: str) -> list[dict[str, Any]]:  # a new engine starts with the base alone
        return [{k: v for k, v in line.items() if k != "handover_bytes"} for line in log_of(place, name)]

    assert without_handover("resumed") == without_handover("grpo")
    finals = [place / "runs" / name / "checkpoints/checkpoint_final" for name in ("resumed", "grpo")]
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in finals)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_evaluation_and_recommendations_write_what_transformers_does(place: Path) -> None:
    by_vllm, plain = (json.loads(said(place, name)["out"]) for name in ("eval", "eval_plain"))
    assert by_vllm["methods"]["tuned policy"] == plain["methods"]["tuned policy"]
    own = json.loads((place / "runs" / "grpo" / "eval" / "validation.json").read_text())
    assert by_vllm["methods"]["tuned policy"] == own["methods"]["tuned policy"]
    texts = [json.loads(said(place, name)["out"])["text"] for name in ("recommend", "recommend_plain")]
    assert texts[0] == texts[1] != ""


def by_plain_vllm(models: dict[str, list[str]], prompts: list[list[int]], cwd: Path) -> dict[str, list[list[int]]]:
    """The likeliest tokens of each model, a folder or a base and an adapter's folder, by vLLM as anybody uses it."""
    given = json.dumps({"models": models, "prompts": prompts})
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READER],
        **{"cwd": cwd, "input": given, "capture_output": True, "text": True, "env": {**os.environ, **settings}},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def by_transformers(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    written = []
    for ids in prompts:
        given = torch.tensor([ids])
        out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=6, do_sample=False)
        written.append(out[0, len(ids) :].tolist())
    return written


def prompts_of(folder: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [
        tokenizer(text)["input_ids"] for text in ("Veltra ivory linen boots\n", "olive wool gloves\n", "scarf", "navy")
    ]


def test_what_is_exported_is_read_by_vllm(place: Path) -> None:
    prompts = prompts_of(place / "merged")
    base = json.loads((place / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    written = by_plain_vllm({"merged": ["merged"], "adapter": [base, "adapter"]}, prompts, place)
    assert written["merged"] == written["adapter"] == by_transformers(place / "merged", prompts)
    assert len(set(map(tuple, written["merged"]))) > 1


@pytest.mark.skipif(find_spec("unsloth") is None, reason="needs unsloth; `make unsloth-cpu` installs it")
def test_what_unsloth_trained_in_4_bits_is_read_by_vllm(tmp_path: Path) -> None:
    sets = [*SMALL, *GROUPS, "policy.backend=unsloth", "policy.tiny.head_dim=32", "policy.lora.r=8", "run.name=u"]
    sets += ["generation.engine=transformers", "trainer.learning_rate=0.001"]
    given = [part for text in sets for part in ("--set", text)]
    commands = {
        "u": ["train", "grpo", "--quick-test", *given],
        "m": ["export", "runs/u", "--to", "merged", "--output", "merged"],
    }
    run_commands(commands, tmp_path)
    assert "Backend unsloth, quantization 4bit" in said(tmp_path, "u")["err"]
    assert said(tmp_path, "m")["out"] == "merged\n"
    prompts = prompts_of(tmp_path / "merged")
    written = by_plain_vllm({"merged": ["merged"]}, prompts, tmp_path)
    assert written["merged"] == by_transformers(tmp_path / "merged", prompts)
    assert len(set(map(tuple, written["merged"]))) > 1


def test_the_quick_test_learns(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rl4rec_cli.cli.main", "train", "grpo", "--quick-test", "--seeds", "0"]
    given = ["--set", "generation.engine=vllm", "--set", "run.name=q"]
    done = subprocess.run([*command, *given], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "runs" / "q" / "eval" / "validation.json").read_text())
    assert result["differences"]["before RL"]["mean"] > 0.01  # .03 is usual; the interval of one seed is .02 wide
    lines = [json.loads(line) for line in (tmp_path / "runs" / "q" / "training_log.jsonl").read_text().splitlines()]
    written = [line for line in lines if line["phase"] == "grpo"]
    assert len(written) == 10
    assert all(line["logp_difference_max"] < 1e-4 for line in written)
    assert all(line["handover_bytes"] > 0 for line in written[1:])  # it starts with the first step's weights


@pytest.mark.parametrize("dies", ["engine", "trainer"])
def test_when_one_of_them_is_killed_nothing_is_left_running(dies: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(REWARD)
    if dies == "engine":
        (tmp_path / "engine").touch()
    sets = (*SMALL, *GROUPS, ADAPTER, "run.name=r", "eval.steps=null", "eval.baselines=[]", "trainer.warm_start=null")
    given = [part for text in sets for part in ("--set", text)]
    command = [sys.executable, "-m", "rl4rec_cli.cli.main", "train", "grpo", "--quick-test", *given]
    done = subprocess.run(
        [*command, "--reward", "./own.py:length=1"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    (engine,) = (tmp_path / "reached").read_text().split()
    assert ends(int(engine))
    if dies == "trainer":
        assert done.returncode == -signal.SIGKILL
        return
    assert done.returncode == 1, done.stderr[-3000:]
    assert "error: vLLM (generation.engine=vllm) was killed by SIGKILL while" in done.stderr
    assert "Stopped: the policy of step 3 is in runs/r/checkpoints/checkpoint_step_3" in done.stderr
    assert "hint: " in done.stderr
    assert "To go on with it: rl4rec train grpo --resume" in done.stderr
    assert (tmp_path / "runs/r/checkpoints/checkpoint_step_3/adapter_model.safetensors").is_file()
