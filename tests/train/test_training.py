"""Training in this process: the real trainers of TRL on a random two-layer policy, a few steps at a high rate."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl4rec_cli.cli.main import main
from rl4rec_cli.cli.results import print_all_seeds
from rl4rec_cli.commands.train import train
from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.data.dataset import Dataset, build_examples
from rl4rec_cli.data.opening import open_dataset
from rl4rec_cli.data.prompts import PromptBuilder
from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.errors import ConfigError, PolicyError, RewardError, RunError
from rl4rec_cli.files.logs import JsonLines
from rl4rec_cli.policy.generation import generate_texts
from rl4rec_cli.policy.loading import Policy, load_policy, save_policy
from rl4rec_cli.retrieval.opening import open_retriever
from rl4rec_cli.retrieval.retriever import InProcessRetriever
from rl4rec_cli.rewards.scorer import Scorer
from rl4rec_cli.runs.folder import Run
from rl4rec_cli.runs.making import create_run
from rl4rec_cli.train.algorithms.grpo import grpo_arguments
from rl4rec_cli.train.arguments import number_of_steps
from rl4rec_cli.train.environments import Environment
from rl4rec_cli.train.pairs import build_pairs
from rl4rec_cli.train.parts import Lesson, TrainerParts
from rl4rec_cli.train.phase import train_phase

SMALL = (
    *("data.synthetic.users=80", "data.synthetic.items=30", "data.train_targets=last"),
    *("prompt.max_history=2", "prompt.max_prompt_length=48", "generation.max_completion_length=6"),
    *("policy.tiny.hidden_size=32", "policy.tiny.heads=2", "policy.tiny.vocab_size=400"),
    *("trainer.batch_size=4", "trainer.max_steps=3", "trainer.learning_rate=0.01"),
    *("eval.users=8", "eval.baselines=[]", "logging.steps=1", "logging.rollouts=1000", "run.name=run"),
)
GRPO = (*SMALL, "trainer.num_generations=4", "trainer.warm_start=null")
WARM = {"batch_size": 8, "max_steps": 4, "learning_rate": 0.01}

REWARDS = '''
import math
from pathlib import Path

def navy(texts, targets, histories, **kwargs):
    """Share of the words that are "navy"."""
    return [t.split().count("navy") / max(1, len(t.split())) for t in texts]

def one(texts, targets, histories, **kwargs):
    return [1.0] * len(texts)

def broken(texts, targets, histories, **kwargs):
    return [1 / 0 for t in texts]

calls = 0

def nan_in_step_3(texts, targets, histories, **kwargs):
    global calls
    calls += 1
    return [float(len(t)) for t in texts[:-1]] + [math.nan if calls == 3 else 0.0]
'''


def small(folder: Path, *sets: str, algorithm: str = "grpo", rewards: dict[str, float] | None = None) -> RunConfig:
    flags: dict[str, Any] = {"run.output_dir": str(folder)}
    if rewards is not None:
        flags["reward.functions"] = rewards
    return load_config(
        algorithm=algorithm,
        recipes=["quick-test"],
        flags=flags,
        sets=[*(GRPO if algorithm == "grpo" else SMALL), *sets],
        allow_custom_rewards=True,
    )


@dataclass
class Trained:
    run: Run
    log: list[dict[str, Any]]
    rollouts: list[dict[str, Any]]

    def column(self, name: str, phase: str = "grpo") -> list[Any]:
        return [record[name] for record in self.log if record["phase"] == phase and "health" not in record]


def no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=no_constant) for line in path.read_text().splitlines()]


def results(run: Run) -> Trained:
    logs = [path for name in ("warm_start_log", "training_log") if (path := run.folder / f"{name}.jsonl").is_file()]
    log = [record for path in logs for record in read_lines(path)]
    return Trained(run, log, read_lines(run.folder / "rollouts.jsonl"))


def whole(config: RunConfig, seed: int = 0) -> Trained:
    """What `rl4rec train` does."""
    return results(train(config, (seed,))[0].run)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(small(tmp_path_factory.getbasetemp()).data)


@pytest.fixture(scope="session")
def retriever(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> InProcessRetriever:
    return open_retriever(small(tmp_path_factory.getbasetemp()).retrieval, dataset)


@pytest.fixture(scope="session")
def base(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored random model, for what `tiny` cannot do: adapters."""
    folder = tmp_path_factory.mktemp("base") / "model"
    save_policy(load_policy(small(folder).policy, dataset=dataset, seed=7), folder)
    return folder


Grpo = Callable[..., Trained]


@pytest.fixture
def grpo(dataset: Dataset, retriever: InProcessRetriever) -> Grpo:
    """GRPO alone, on a policy in memory."""

    def do(config: RunConfig, policy: Policy) -> Trained:
        run = create_run(config, dataset=dataset.name)
        log, rollouts = JsonLines(run.folder / "training_log.jsonl"), JsonLines(run.folder / "rollouts.jsonl")
        examples = build_examples(dataset, "train")
        builder = PromptBuilder(config.prompt, dataset, policy.tokenizer)
        environment = Environment(dataset, retriever, Scorer(retriever, config.reward), builder, examples)
        train_phase(config.trainer, run, policy, [environment], log, rollouts)
        log.close()
        rollouts.close()
        return results(run)

    return do


@pytest.fixture
def rewards_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(REWARDS)
    return path


# Supervised fine-tuning


def test_labels_are_the_item_and_the_end_only(dataset: Dataset, tmp_path: Path) -> None:
    config = small(tmp_path, "generation.max_completion_length=40", algorithm="sft")
    policy = load_policy(config.policy, dataset=dataset)
    builder = PromptBuilder(config.prompt, dataset, policy.tokenizer)
    examples = build_examples(dataset, "train")
    for target, item in (("next", lambda e: e.target), ("last", lambda e: e.history[-1])):
        section = config.trainer.model_copy(update={"target": target})
        assert section.algorithm == "sft"
        for pair, example in zip(
            build_pairs(
                Environment(dataset, None, None, builder, examples).taught(section),  # type: ignore[arg-type]
                builder,
                max_completion_length=40,
            ),
            examples,
            strict=True,
        ):
            prompt = builder.build(example.user, example.history).ids
            assert pair["input_ids"][: len(prompt)] == list(prompt)
            assert pair["labels"][: len(prompt)] == [-100] * len(prompt)
            taught = pair["labels"][len(prompt) :]
            assert taught == pair["input_ids"][len(prompt) :]
            assert taught[-1] == policy.tokenizer.eos_token_id
            assert policy.tokenizer.decode(taught[:-1]) == dataset.items[item(example)]["title"]
    cut = build_pairs(
        Environment(dataset, None, None, builder, examples).taught(section),  # type: ignore[arg-type]
        builder,
        max_completion_length=4,
    )
    assert {len(pair["labels"]) - pair["labels"].count(-100) for pair in cut} == {4}
    assert {pair["labels"][-1] for pair in cut} == {policy.tokenizer.eos_token_id}


def test_the_loss_counts_the_labels_only(dataset: Dataset, retriever: InProcessRetriever, tmp_path: Path) -> None:
    config = small(tmp_path, "trainer.batch_size=80", "trainer.max_steps=1", "trainer.learning_rate=0", algorithm="sft")
    policy = load_policy(config.policy, dataset=dataset, trainable=True)
    builder = PromptBuilder(config.prompt, dataset, policy.tokenizer)
    examples = build_examples(dataset, "train")
    section = config.trainer
    assert section.algorithm == "sft"
    pairs = build_pairs(
        Environment(dataset, None, None, builder, examples).taught(section),  # type: ignore[arg-type]
        builder,
        max_completion_length=6,
    )
    losses = []
    with torch.no_grad():
        for pair in pairs:
            logits = policy.model(torch.tensor([pair["input_ids"]])).logits[0]
            labels = torch.tensor(pair["labels"])
            kept = labels[1:] != -100
            losses.append(torch.nn.functional.cross_entropy(logits[:-1][kept], labels[1:][kept], reduction="none"))
    run = create_run(config, dataset=dataset.name)
    log = JsonLines(run.folder / "training_log.jsonl")
    environment = Environment(dataset, retriever, Scorer(retriever, config.reward), builder, examples)
    rollouts = JsonLines(run.folder / "rollouts.jsonl")
    train_phase(section, run, policy, [environment], log, rollouts, is_warm_start=True)
    log.close()
    rollouts.close()
    [record] = read_lines(run.folder / "training_log.jsonl")
    assert record["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)


def test_sft_lowers_the_loss_and_moves_every_weight(tmp_path: Path) -> None:
    done = whole(small(tmp_path, "trainer.max_steps=20", "trainer.batch_size=16", algorithm="sft"))
    losses = done.column("loss", "sft")
    assert len(losses) == 15  # 80 examples, 16 a step, 3 epochs at most
    assert losses[-1] < 0.8 * losses[0]
    before, after = weights(done.run.start), weights(done.run.final)
    assert [name for name in before if torch.equal(before[name], after[name])] == []


# GRPO


def test_grpo_moves_every_weight_and_logs_every_step(tmp_path: Path, retriever: InProcessRetriever) -> None:
    config = small(tmp_path, "logging.save_steps=1", "logging.save_total_limit=2", "trainer.max_steps=4")
    done = whole(config)
    before, after = weights(done.run.start), weights(done.run.final)
    assert [name for name in before if torch.equal(before[name], after[name])] == []

    assert done.column("step") == [1, 2, 3, 4]
    for record in done.log:
        assert {"loss", "avg_reward", "min_reward", "max_reward", "std_reward", "kl", "entropy"} <= record.keys()
        own = [r["reward"] for r in done.rollouts if r["step"] == record["step"]]
        assert len(own) == 16
        assert record["avg_reward"] == pytest.approx(sum(own) / 16)
        assert (record["min_reward"], record["max_reward"]) == (min(own), max(own))
        assert record["kl"] is None
        assert record["entropy"] > 0
        assert record["learning_rate"] >= 0

    histories = {e.user: e.history for e in build_examples(open_dataset(config.data), "train")}
    texts, targets = [r["text"] for r in done.rollouts], [r["target"] for r in done.rollouts]
    again = retriever.target_ranks(texts, targets, [histories[r["user"]] for r in done.rollouts])
    assert [r["rank"] for r in done.rollouts] == again.ranks.tolist()
    assert len(set(texts)) > 30

    names = sorted(p.name for p in done.run.checkpoints.iterdir())
    assert names == ["checkpoint_final", "checkpoint_start", "checkpoint_step_3", "checkpoint_step_4"]
    assert not same(weights(done.run.step(3)), after)
    assert same(weights(done.run.step(4)), after)


def test_a_logged_step_tells_of_all_texts_since_the_last(tmp_path: Path) -> None:
    done = whole(small(tmp_path, "logging.steps=2", "trainer.max_steps=4"))
    assert done.column("step") == [1, 2, 4]
    for record, steps in zip(done.log, ({1}, {2}, {3, 4}), strict=True):
        own = [r["reward"] for r in done.rollouts if r["step"] in steps]
        assert record["avg_reward"] == pytest.approx(sum(own) / (16 * len(steps)))
        assert record["max_reward"] == max(own)


def test_checkpoints_load_with_plain_transformers(dataset: Dataset, tmp_path: Path) -> None:
    config = small(tmp_path, "logging.save_steps=2")
    done = whole(config)
    for folder in (done.run.start, done.run.step(2), done.run.final):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        ours = load_policy(config.policy.model_copy(update={"model": str(folder)}))
        prompt = PromptBuilder(config.prompt, dataset, ours.tokenizer).build(None, [1, 2])
        assert tuple(tokenizer(prompt.text)["input_ids"]) == prompt.ids
        out = model.generate(torch.tensor([prompt.ids]), max_new_tokens=6, do_sample=False)
        text = tokenizer.decode(out[0, len(prompt.ids) :], skip_special_tokens=True).strip()
        assert generate_texts(ours, [prompt.ids], Sampling(6, temperature=0.0), batch_size=1) == [text]


def test_learning_rate_zero_changes_nothing(tmp_path: Path) -> None:
    config = small(
        *(tmp_path, "trainer.learning_rate=0", "eval.baselines=[untrained]", "eval.users=null"),
        f"trainer.warm_start={json.dumps(WARM)}",
    )
    [done] = train(config, (0,))
    assert same(weights(done.run.start), weights(done.run.final))
    [evaluation] = done.evaluations.values()
    before, after = evaluation.methods
    assert (before.name, after.name) == ("before RL", "tuned policy")
    assert before.texts == after.texts
    assert before.ranking.ranks.tolist() == after.ranking.ranks.tolist()
    difference = evaluation.difference(after.name, before.name)
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert len(set(results(done.run).column("avg_reward"))) > 1  # it did sample


def test_a_dense_reward_is_raised(tmp_path: Path, rewards_file: Path) -> None:
    def shares(rate: float, name: str) -> list[float]:
        sets = (f"trainer.learning_rate={rate}", "trainer.max_steps=20", "trainer.batch_size=8", f"run.name={name}")
        warm = json.dumps({**WARM, "max_steps": 20, "batch_size": 16, "num_train_epochs": 9})
        config = small(
            *(tmp_path, *sets, "trainer.num_generations=8", f"trainer.warm_start={warm}"),
            *("trainer.num_train_epochs=9", "policy.tiny.vocab_size=512", "generation.max_completion_length=4"),
            rewards={f"{rewards_file}:navy": 1.0},
        )
        return whole(config).column("avg_reward")

    taught, idle = shares(0.01, "taught"), shares(0.0, "idle")
    assert taught[0] == idle[0]
    spread = max(idle) - min(idle)
    assert sum(taught[-5:]) / 5 > max(idle) + 3 * spread
    assert sum(taught[-5:]) / 5 > 0.3


def test_the_base_stays_as_it_is_under_an_adapter(base: Path, tmp_path: Path, grpo: Grpo) -> None:
    config = small(tmp_path, f"policy.model={base}", "policy.lora.r=4", "logging.save_steps=2", "trainer.beta=0.1")
    policy = load_policy(config.policy, trainable=True)
    names = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    done = grpo(config, policy)
    after = dict(policy.model.named_parameters())
    assert [name for name in names if torch.equal(before[name], after[name])] == []
    assert [name for name in before if name not in names and not torch.equal(before[name], after[name])] == []
    # TRL's frozen copy is what the adapter was, and is not saved.
    copies = [name for name in after if ".ref." in name]
    assert copies
    assert all(torch.equal(after[name], before[name.replace(".ref.", ".default.")]) for name in copies)
    assert done.column("kl")[0] == pytest.approx(0, abs=1e-7)

    folder = done.run.step(2)
    assert {p.name for p in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not any(p.is_dir() for p in folder.iterdir())
    assert not any("ref" in name for name in load_file(folder / "adapter_model.safetensors"))
    save_policy(policy, done.run.final)
    ids = torch.arange(3, 20)[None]
    plain = AutoModelForCausalLM.from_pretrained(done.run.final)
    again = load_policy(config.policy.model_copy(update={"model": str(done.run.final)}))
    with torch.no_grad():
        expected = policy.model(ids).logits
        torch.testing.assert_close(plain(ids).logits, expected)
        torch.testing.assert_close(again.model(ids).logits, expected)


def test_a_tiny_policy_gets_its_adapter_over_a_stored_base(tmp_path: Path) -> None:
    warm = f"trainer.warm_start={json.dumps(WARM)}"
    done = whole(small(tmp_path / "runs", "policy.lora.r=4", warm, "eval.steps=2"))
    full = whole(small(tmp_path / "full", warm))
    base = weights(done.run.base)
    assert same(base, weights(full.run.start))  # all weights are warm-started, none of them afterwards
    for folder in (done.run.start, done.run.final):
        assert {p.name for p in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
        assert not (folder / "model.safetensors").exists()
    before, after = (load_file(f / "adapter_model.safetensors") for f in (done.run.start, done.run.final))
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        start, base_model = (AutoModelForCausalLM.from_pretrained(f) for f in (done.run.start, done.run.base))
        torch.testing.assert_close(start(ids).logits, base_model(ids).logits)
        expected = AutoModelForCausalLM.from_pretrained(done.run.final)(ids).logits
        assert not torch.allclose(expected, base_model(ids).logits)
        # Where the run was moved, the base beside the adapter is meant.
        (tmp_path / "runs").rename(tmp_path / "moved")
        moved = tmp_path / "moved" / done.run.folder.name / "checkpoints" / "checkpoint_final"
        again = load_policy(done.run.config.policy.model_copy(update={"model": str(moved)}))
        torch.testing.assert_close(again.model(ids).logits, expected)


@pytest.mark.parametrize("kind", ["full", "full bf16", "autocast", "lora"])
def test_the_reference_is_the_policy_that_rl_starts_from(kind: str, base: Path, tmp_path: Path) -> None:
    sets = {
        "full": [],
        "full bf16": ["policy.dtype=bf16"],
        "autocast": ["trainer.precision=bf16"],
        "lora": [f"policy.model={base}", "policy.lora.r=4"],
    }[kind]
    warm = json.dumps({**WARM, "learning_rate": 0.05})
    done = whole(small(tmp_path, "trainer.beta=0.1", f"trainer.warm_start={warm}", *sets))
    kl = done.column("kl")
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > 1e-4


def test_two_updates_from_one_batch(tmp_path: Path) -> None:
    done = whole(small(tmp_path, "trainer.num_iterations=2", "trainer.max_steps=4"))
    assert done.column("step") == [1, 2, 3, 4]
    rewards = done.column("avg_reward")
    assert rewards[0] == rewards[1] != rewards[2] == rewards[3]
    assert sorted({r["step"] for r in done.rollouts}) == [1, 3]
    losses = done.column("loss")
    assert losses[0] != losses[1]
    config = small(tmp_path, "trainer.num_iterations=2", "trainer.num_train_epochs=1", "trainer.max_steps=999")
    assert number_of_steps(config.trainer, 80) == 40


def test_accumulation_splits_a_step_and_adds_nothing(tmp_path: Path) -> None:
    done = whole(small(tmp_path, "trainer.batch_size=2", "trainer.gradient_accumulation_steps=2"))
    assert [sum(r["step"] == step for r in done.rollouts) for step in (1, 2, 3, 4)] == [16, 16, 16, 0]
    at_once = whole(small(tmp_path, "run.name=once"))
    assert done.rollouts[:16] == at_once.rollouts[:16]
    assert done.log[0]["grad_norm"] == pytest.approx(at_once.log[0]["grad_norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("option", "sets"),
    [
        ("gradient_checkpointing=true", []),
        ("gradient_checkpointing=true", ["policy.lora.r=4"]),
        ("dataloader_num_workers=1", []),
    ],
)
def test_options_that_change_speed_or_memory_only(option: str, sets: list[str], tmp_path: Path) -> None:
    plain = whole(small(tmp_path, "trainer.max_steps=2", *sets))
    other = whole(small(tmp_path, "trainer.max_steps=2", f"trainer.{option}", "run.name=other", *sets))
    assert plain.column("avg_reward") == other.column("avg_reward")
    assert plain.column("loss") == pytest.approx(other.column("loss"), abs=1e-5)


def test_bf16_on_the_cpu(tmp_path: Path) -> None:
    done = whole(small(tmp_path, "trainer.precision=bf16"))
    before, after = weights(done.run.start), weights(done.run.final)
    assert {w.dtype for w in after.values()} == {torch.float32}  # autocast: the weights stay what they are
    assert not same(before, after)
    plain = whole(small(tmp_path, "run.name=plain"))
    assert plain.column("grad_norm")[0] != done.column("grad_norm")[0]
    assert plain.column("grad_norm")[0] == pytest.approx(done.column("grad_norm")[0], rel=0.05)


def test_each_phase_has_its_own_precision_and_evaluation_none(tmp_path: Path) -> None:
    """accelerate leaves its autocast on a model, and prepares none twice."""
    seen = {}
    for warm in ("fp32", "bf16"):
        for precision in ("fp32", "bf16"):
            config = small(
                *(tmp_path, f"trainer.precision={precision}", f"run.name={warm}-{precision}", "trainer.max_steps=1"),
                f"trainer.warm_start={json.dumps({**WARM, 'max_steps': 1, 'precision': warm})}",
            )
            done = whole(config)
            seen[warm, precision] = done.column("loss", "sft")[0], done.column("entropy")[0]
    assert seen["fp32", "fp32"][0] == seen["fp32", "bf16"][0] != seen["bf16", "fp32"][0] == seen["bf16", "bf16"][0]
    assert seen["fp32", "fp32"][1] != seen["fp32", "bf16"][1]
    assert seen["bf16", "fp32"][1] != seen["bf16", "bf16"][1]


def test_a_trained_policy_is_given_back_without_autocast(dataset: Dataset, tmp_path: Path, grpo: Grpo) -> None:
    config = small(tmp_path, "trainer.precision=bf16", "trainer.learning_rate=0")
    policy = load_policy(config.policy, dataset=dataset, trainable=True)
    ids = torch.arange(3, 20)[None]
    before = policy.model(ids).logits
    grpo(config, policy)
    assert torch.equal(policy.model(ids).logits, before)


def test_what_is_refused_before_a_run_is_made(tmp_path: Path) -> None:
    fp16 = small(tmp_path, f"trainer.warm_start={json.dumps(WARM)}", "trainer.precision=fp16")
    with pytest.raises(ConfigError, match=r"precision=fp16 needs a GPU"):
        train(fp16, (0,))
    greedy = small(tmp_path, f"trainer.warm_start={json.dumps(WARM)}", "trainer.batch_size=81")
    with pytest.raises(ConfigError, match=r"one step takes 81 examples .*, but there are 80"):
        train(greedy, (0,))
    with pytest.raises(ConfigError, match=r"one step takes 16 examples"):
        train(
            small(tmp_path, "trainer.batch_size=8", "trainer.gradient_accumulation_steps=2", "data.train_users=15"),
            (0,),
        )
    with pytest.raises(ConfigError, match="no training examples"):
        number_of_steps(greedy.trainer, 0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run-s1").mkdir()
    with pytest.raises(RunError, match="run-s1: this run is there already"):
        train(small(tmp_path), (0, 1))
    assert [p.name for p in tmp_path.iterdir()] == ["run-s1"]


def test_advantages_are_not_scaled_with_shaping(dataset: Dataset, tmp_path: Path) -> None:
    for shaping, expected in ((0.1, "none"), (0, "group")):
        config = small(tmp_path, f"reward.rank_shaping={shaping}")
        policy = load_policy(config.policy, dataset=dataset)
        assert config.trainer.algorithm == "grpo"
        arguments = grpo_arguments(TrainerParts(config.trainer, config, policy, 1, tmp_path, Lesson(None, 0, dict)))
        assert arguments.scale_rewards == expected


def test_a_reward_that_raises_names_its_own_line(tmp_path: Path, rewards_file: Path) -> None:
    with pytest.raises(
        RewardError, match=rf"broken' raised ZeroDivisionError: division by zero \({rewards_file}:\d+\)"
    ):
        train(small(tmp_path, rewards={f"{rewards_file}:broken": 1.0}), (0,))
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint_start"]


def test_a_reward_that_is_not_a_number_stops_the_run(
    tmp_path: Path, rewards_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = f"{rewards_file}:nan_in_step_3"
    sets = ("trainer.lr_scheduler_type=constant", "trainer.max_steps=5")
    args = ["train", "grpo", "--quick-test", "--output", str(tmp_path), "--seeds", "0", "--reward", name]
    assert main([*args, *(part for text in (*GRPO, *sets) for part in ("--set", text))]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert f"error: reward {name!r} returned nan for completion 15: " in err
    assert f"Stopped: the policy of step 2 is in {tmp_path / 'run' / 'checkpoints' / 'checkpoint_step_2'}" in err
    kept = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in kept.iterdir()) == ["checkpoint_start", "checkpoint_step_2"]
    assert [r["step"] for r in read_lines(tmp_path / "run" / "training_log.jsonl")] == [1, 2]
    # What is kept is the policy after step 2, whole.
    two = whole(small(tmp_path, *sets, "trainer.max_steps=2", "run.name=two", rewards={name: 1.0}))
    assert same(weights(kept / "checkpoint_step_2"), weights(two.run.final))


def test_blank_texts_earn_nothing_and_break_nothing(dataset: Dataset, tmp_path: Path, grpo: Grpo) -> None:
    config = small(tmp_path, "reward.rank_shaping=0.5")
    policy = load_policy(config.policy, dataset=dataset, trainable=True)
    end = policy.tokenizer.eos_token_id
    bias = torch.zeros(len(policy.tokenizer))
    bias[end] = 1e4
    policy.model.lm_head.register_forward_hook(lambda module, args, logits: logits + bias)
    done = grpo(config, policy)
    assert {r["text"] for r in done.rollouts} == {""}
    assert {r["rank"] for r in done.rollouts} == {dataset.num_items}
    assert done.column("max_reward") == [0.0] * 3
    assert done.column("zero_variance_share") == [1.0] * 3


def test_a_seed_gives_one_run_and_another_seed_another(tmp_path: Path) -> None:
    def curves(seed: int, name: str) -> tuple[Any, ...]:
        done = whole(small(tmp_path, f"trainer.warm_start={json.dumps(WARM)}", f"run.name={name}"), seed)
        texts, users = [r["text"] for r in done.rollouts], [r["user"] for r in done.rollouts]
        return (
            done.column("loss", "sft"),
            done.column("loss"),
            done.column("avg_reward"),
            texts,
            users,
            weights(done.run.final),
        )

    first, again, other = curves(3, "a"), curves(3, "b"), curves(4, "c")
    assert first[:-1] == again[:-1]
    assert same(first[-1], again[-1])
    for ours, theirs in zip(first[:-1], other[:-1], strict=True):
        assert ours != theirs


def test_the_table_of_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small(tmp_path, "eval.baselines=[popularity, untrained]", "trainer.max_steps=1")
    done = train(config, (5, 6))
    assert [d.run.folder.name for d in done] == ["run-s5", "run-s6"]
    assert [d.run.config.run.seed for d in done] == [5, 6]
    print_all_seeds(done)
    lines = capsys.readouterr().out.splitlines()
    [at] = [i for i, line in enumerate(lines) if line == "ndcg@10 on the validation split, 2 seeds"]
    assert lines[at + 1].endswith("gain, 95 % interval over users")
    assert lines[at + 4].startswith("Gain over 2 seeds: ")
    for line, trained in zip(lines[at + 2 : at + 4], done, strict=True):
        [evaluation] = trained.evaluations.values()
        methods = evaluation.as_json()["methods"]
        expected = [f"{methods[m]['ndcg@10']:.4f}" for m in ("popularity", "before RL", "tuned policy")]
        assert line.split()[:4] == [str(trained.run.config.run.seed), *expected]


def test_one_ranking_for_all_rewards(
    dataset: Dataset,
    retriever: InProcessRetriever,
    tmp_path: Path,
    rewards_file: Path,
    grpo: Grpo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []
    rank = retriever.target_ranks

    def counted(texts: Any, targets: Any, histories: Any) -> Any:
        sizes.append(len(texts))
        return rank(texts, targets, histories)

    monkeypatch.setattr(retriever, "target_ranks", counted)
    one = f"{rewards_file}:one"
    config = small(tmp_path, "reward.rank_shaping=0", rewards={"ndcg": 1.0, "hit": 0.0, "mixed": 0.5, one: 2.0})
    done = grpo(config, load_policy(config.policy, dataset=dataset, trainable=True))
    assert sizes == [16] * 3
    for record in done.log:
        own = f"{rewards_file.name}:one"  # without the folder: a log is read elsewhere, too
        parts = {name: record[f"reward/{name}"] for name in ("ndcg", "hit", "mixed", own)}
        assert parts[own] == 1
        assert parts["mixed"] == pytest.approx((parts["ndcg"] + parts["hit"]) / 2)
        assert record["avg_reward"] == pytest.approx(parts["ndcg"] + 0.5 * parts["mixed"] + 2, abs=1e-6)


# Disks


def test_a_file_too_large_leaves_the_checkpoint_that_was_there(base: Path, tmp_path: Path) -> None:
    policy = load_policy(small(tmp_path, f"policy.model={base}").policy)
    folder = tmp_path / "checkpoint_final"
    save_policy(policy, folder)
    before = weights(folder)
    with torch.no_grad():
        next(policy.model.parameters()).add_(1.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(PolicyError, match=r"checkpoint_final: cannot write the checkpoint of about [\d,]+ bytes"):
            save_policy(policy, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_final"]
    assert same(weights(folder), before)


def test_a_log_that_cannot_be_written() -> None:
    log = JsonLines(Path("/dev/full"))
    with pytest.raises(RunError, match=r"/dev/full: cannot write it: No space left on device"):
        log.write({"step": 1})
    log.close()


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo", "reinforce"])
def test_a_process_trains_on_one_gpu_however_many_it_sees(
    algorithm: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainingArguments

    from rl4rec_cli.train.algorithms import ppo, rloo

    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: getattr(self, "_n_gpu", 0) or 2))
    own = ["trainer.mini_batch_size=4"] if algorithm == "ppo" else []
    config = small(tmp_path, *own, algorithm=algorithm)
    policy = load_policy(config.policy, dataset=dataset)
    make: Any = {"grpo": grpo_arguments, "rloo": rloo.rloo_arguments}.get(algorithm, ppo.ppo_arguments)
    made = make(TrainerParts(config.trainer, config, policy, 1, tmp_path, Lesson(None, 0, dict)))
    assert (made._n_gpu, made.train_batch_size) == (1, made.per_device_train_batch_size)


def test_a_run_keeps_where_files_lie_that_are_not_in_the_datasets_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rl4rec_cli.commands.run_checks import with_whole_paths

    monkeypatch.chdir(tmp_path)
    for name in ("p.json", "s.txt"):
        (tmp_path / name).touch()
    flags = {"data.path": "none", "data.prompt_file": "p.json", "data.sequential_file": "s.txt"}
    data = with_whole_paths(load_config(algorithm="grpo", flags=flags)).data
    assert (data.path, data.prompt_file, data.sequential_file) == ("none", f"{tmp_path}/p.json", f"{tmp_path}/s.txt")
