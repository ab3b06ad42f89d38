"""What is there, where a run goes, and the ways out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.errors import ConfigError
from rl4rec_cli.models.names import PRESETS
from rl4rec_cli.models.shape import RetrievalFacts
from rl4rec_cli.plan import placement
from rl4rec_cli.plan.fitting import Room, find_ways_out, least, smaller_pieces, way_on
from rl4rec_cli.plan.machine import Gpu, Machine, find_machine, parse_gpu, read_smi, visible
from rl4rec_cli.plan.memory import GB, Surroundings, estimate
from rl4rec_cli.plan.placement import plan_placement

ROOT = Path(__file__).parents[2]
RETRIEVAL = RetrievalFacts(100_000, 335_141_888, 1024)
SMI = "0, GPU-aa11, NVIDIA L4, 23034, 22500\n1, GPU-bb22, NVIDIA H100 80GB HBM3, 81559, 81000\n"


def machine(*gigabytes: float, ram: float = 16) -> Machine:
    gpus = tuple(Gpu(i, f"{size} GB", int(size * GB), int(size * GB)) for i, size in enumerate(gigabytes))
    return Machine(gpus, 2, int(ram * GB), int(ram * GB))


def load(model: str = "qwen2.5-1.5b", *sets: str, algorithm: str = "grpo") -> RunConfig:
    return load_config(algorithm=algorithm, recipes=["beauty-grpo"], sets=[f"policy.model={model}", *sets])


def plan(on: Machine, config: RunConfig) -> Any:
    return plan_placement(on, config, PRESETS[config.policy.model].facts, RETRIEVAL)


def choice(placement: Any, what: str) -> tuple[str, str]:
    return next((c.value, c.reason) for c in placement.choices if c.what == what)


# What is there


def test_this_machine() -> None:
    found = find_machine()
    assert found.cores >= 1
    assert 0 < found.ram_free <= found.ram


def test_gpus_as_nvidia_smi_tells_them() -> None:
    small, large = (gpu for _, gpu in read_smi(SMI))
    assert (small.index, small.name, small.total, small.free) == (0, "NVIDIA L4", 23034 << 20, 22500 << 20)
    assert (large.index, large.name) == (1, "NVIDIA H100 80GB HBM3")


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        (None, ["NVIDIA L4", "NVIDIA H100 80GB HBM3"]),
        ("", []),
        ("1", ["NVIDIA H100 80GB HBM3"]),
        ("1,0", ["NVIDIA H100 80GB HBM3", "NVIDIA L4"]),
        ("GPU-bb", ["NVIDIA H100 80GB HBM3"]),
        ("0,7,1", ["NVIDIA L4"]),
        ("-1", []),
    ],
)
def test_only_what_cuda_visible_devices_shows(setting: str | None, names: list[str]) -> None:
    shown = visible(read_smi(SMI), setting)
    assert [gpu.name for gpu in shown] == names
    if setting is not None:
        assert [gpu.index for gpu in shown] == list(range(len(names)))


def test_a_gpu_by_its_size() -> None:
    assert parse_gpu("24").total == parse_gpu(" 24gb ").total == 24 * GB
    assert parse_gpu("24.5", 3).index == 3
    for text in ("x", "", "24 apples", "nan", "0", "-3", "1e9"):
        with pytest.raises(ConfigError):
            parse_gpu(text)


# Placement


def test_a_large_gpu_holds_what_a_small_one_does_not() -> None:
    config = load("qwen2.5-7b")
    assert plan(machine(200), config).fits
    small = plan(machine(24), config)
    assert not small.fits
    assert len(small.ways_out) == 2
    assert small.estimate.bytes > small.room


def test_a_way_out_typed_in_fits_and_learns_from_as_many_texts() -> None:
    for model, size in (("qwen2.5-7b", 24), ("qwen2.5-1.5b", 12), ("llama-3.1-8b", 40)):
        for way in plan(machine(size), load(model)).ways_out:
            typed = load(model, *way.sets)
            assert plan(machine(size), typed).fits, (model, way.sets)
            assert typed.trainer.gradient_accumulation_steps * typed.trainer.micro_batch == 256
            assert typed == way.config


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce", "sft", "rloo"])
def test_ways_out_keep_the_texts_of_every_algorithm(algorithm: str) -> None:
    given = ["trainer.batch_size=64", *_first(algorithm)]
    config = load("qwen2.5-1.5b", *given, algorithm=algorithm)
    facts, surroundings = PRESETS["qwen2.5-1.5b"].facts, Surroundings(on_gpu=True, items=100)
    room = estimate(config, facts, surroundings).bytes * 0.6
    found = find_ways_out(config, facts, surroundings, Room(room))
    assert found
    for way in found:
        typed = load("qwen2.5-1.5b", *given, *way.sets, algorithm=algorithm)
        here = replace(surroundings, retrieval_on_device="retrieval" not in str(way.sets))
        assert estimate(typed, facts, here).bytes <= room
        before, after = config.trainer, typed.trainer
        texts = before.batch_size * before.gradient_accumulation_steps
        assert after.batch_size * after.gradient_accumulation_steps == texts
        assert after.updates_per_batch == before.updates_per_batch


def _first(algorithm: str) -> list[str]:
    if algorithm == "sft":
        return []
    return ["trainer.mini_batch_size=64"] if algorithm == "ppo" else ["trainer.warm_start=null"]


def test_the_cheapest_comes_first_and_none_contains_another() -> None:
    ways = find_ways_out(load("qwen2.5-7b"), PRESETS["qwen2.5-7b"].facts, Surroundings(True, 1000), Room(30 * GB))
    assert [way.cost for way in ways] == sorted(way.cost for way in ways)
    for number, way in enumerate(ways):
        assert not any(other.kinds <= way.kinds for other in ways[:number])


def test_where_nothing_helps_no_way_is_made_up() -> None:
    hopeless = plan(machine(16), load("llama-3.1-70b"))
    assert not hopeless.fits
    assert hopeless.ways_out == ()


def test_choices_say_why() -> None:
    placed = plan(machine(80), load("qwen2.5-1.5b", "trainer.warm_start=null"))
    assert choice(placed, "backend")[0] == "unsloth"
    assert choice(placed, "gradient checkpointing")[0] == "on"
    assert "trainer.gradient_checkpointing says so" in choice(placed, "gradient checkpointing")[1]
    assert choice(placed, "batch")[0] == "8 prompts × 8 completions × 4"
    assert choice(placed, "quantization")[0] == "none"
    assert choice(placed, "vLLM share")[0] == "0"
    whole = plan(machine(80), load("qwen2.5-0.5b", "policy.lora=null", "trainer.warm_start=null"))
    assert choice(whole, "backend")[0] == "hf"
    four = plan(machine(80), load("qwen2.5-1.5b", "policy.quantization=4bit"))
    assert "1.2 GB instead of 3.1 GB" in choice(four, "quantization")[1]
    fast = plan(machine(80), load("qwen2.5-1.5b", "policy.backend=unsloth", "policy.fast_inference=true"))
    assert 0.02 < float(choice(fast, "vLLM share")[0]) < 0.5


def test_the_share_that_a_plan_shows_is_the_one_that_unsloth_s_engine_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    from rl4rec_cli.policy.facts import policy_facts, retrieval_facts

    def share_of(config: RunConfig) -> float | None:
        facts = policy_facts(config.policy), retrieval_facts(config)
        return placement.engine_share(config, *facts)

    monkeypatch.setattr(placement, "find_machine", lambda: machine(80))
    for sets in ([], ["generation.vllm.memory_share=0.33"]):
        config = load("qwen2.5-1.5b", "policy.backend=unsloth", "policy.fast_inference=true", *sets)
        share = share_of(config)
        assert f"{share:.2f}" == choice(plan(machine(80), config), "vLLM share")[0]
        assert (share == 0.33) == bool(sets)
    assert share_of(load("qwen2.5-1.5b")) is None


def test_vllm_has_a_part_of_the_memory_and_the_run_the_rest() -> None:
    plain, engine = (
        plan(machine(80), load("qwen2.5-1.5b", f"generation.engine={e}")) for e in ("transformers", "vllm")
    )
    share, why = choice(engine, "vLLM share")
    # 1.5 B parameters of two bytes, and the cache: 256 texts of 128 + 64 tokens or so of 28 KiB each.
    assert 3.1 + 2.1 < float(share) * 80 < 15
    assert "256 completions" in why
    assert plain.room - engine.room == pytest.approx(float(share) * 80e9, rel=0.1)
    assert "writing" not in [phase.name for phase in engine.estimate.phases]
    given = plan(machine(80), load("qwen2.5-1.5b", "generation.engine=vllm", "generation.vllm.memory_share=0.5"))
    assert choice(given, "vLLM share")[0] == "0.50"
    served = ("generation.engine=vllm", "generation.vllm.server=http://127.0.0.1:8000")
    assert plan(machine(80), load("qwen2.5-1.5b", *served)).room == plain.room
    assert choice(plan(machine(), load("qwen2.5-0.5b", "generation.engine=vllm")), "vLLM share")[0] == "0"


def test_retrieval_goes_where_the_gpus_are() -> None:
    config = load("qwen2.5-0.5b")
    assert choice(plan(machine(), config), "retrieval")[0] == "in-process on cpu"
    assert choice(plan(machine(80), config), "retrieval")[0] == "in-process on cuda:0"
    value, reason = choice(plan(machine(80, 80), config), "retrieval")
    assert value == "ray on cuda:1"
    assert "2 GPUs: a service that the run starts" in reason
    assert choice(plan(machine(24, 24, 24), config), "retrieval")[0] == "ray on cuda:2"
    last = load("qwen2.5-0.5b", "policy.device=cuda:1")
    assert choice(plan(machine(80, 80), last), "retrieval")[0] == "ray on cuda:0"
    assert plan(machine(80, 80), config).estimate.bytes < plan(machine(80), config).estimate.bytes
    for on, sets, why in (
        (machine(80, 80), ["retrieval.backend=in-process"], "retrieval.backend says so"),
        (replace(machine(80, 80), has_ray=False), [], "needs Ray (pip install 'rl4rec[ray]')"),
        (machine(80, 80), ["data.synthetic.users=9"], "lies in no folder"),
        (machine(80, 80), ["policy.device=cpu"], "a GPU that the policy does not use"),
    ):
        value, reason = choice(plan(on, load("qwen2.5-0.5b", *sets)), "retrieval")
        assert (value, why in reason) == ("in-process on cuda:0", True)
    served = plan(machine(80), load("qwen2.5-0.5b", "retrieval.backend=ray"))
    assert choice(served, "retrieval")[0] == "ray on devices of its own"
    assert served.estimate.bytes < plan(machine(80), config).estimate.bytes
    assert (
        choice(plan(machine(80), load("qwen2.5-0.5b", "retrieval.device=cpu")), "retrieval")[0] == "in-process on cpu"
    )
    beside, apart = (plan(machine(80, 80), load("qwen2.5-0.5b", f"retrieval.device=cuda:{n}")) for n in (0, 1))
    assert beside.estimate.bytes - apart.estimate.bytes > 4 * RETRIEVAL.embedder_parameters


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_an_embedder_in_half_precision_takes_half_the_memory(dtype: str) -> None:
    full, half = (
        plan(machine(80), load("qwen2.5-0.5b", f"retrieval.dtype={name}")).estimate.peak.parts
        for name in ("fp32", dtype)
    )
    assert full["embedder"] == 2 * half["embedder"] > 4 * RETRIEVAL.embedder_parameters
    assert full["item matrix"] == half["item matrix"]


def test_a_policy_on_a_device() -> None:
    assert plan(machine(80, ram=64), load("qwen2.5-0.5b", "policy.device=cpu")).device == "cpu"
    assert plan(machine(16, 80), load("qwen2.5-0.5b", "policy.device=cuda:1")).device == "cuda:1"
    with pytest.raises(ConfigError, match="1 GPU there"):
        plan(machine(80), load("qwen2.5-0.5b", "policy.device=cuda:1"))
    with pytest.raises(ConfigError, match="no device"):
        plan(machine(80), load("qwen2.5-0.5b", "policy.device=tpu"))


# What a run that has begun can go on with


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo", "reinforce", "sft"])
def test_a_way_on_fits_and_keeps_weights_and_texts(algorithm: str) -> None:
    given = ["trainer.gradient_checkpointing=false", *(["trainer.mini_batch_size=4"] if algorithm == "ppo" else [])]
    given += [] if algorithm == "sft" else ["trainer.warm_start=null"]
    config = load("qwen2.5-1.5b", *given, algorithm=algorithm)
    facts, surroundings = PRESETS["qwen2.5-1.5b"].facts, Surroundings(on_gpu=True, items=100)
    before = estimate(config, facts, surroundings)
    for share in (0.8, 0.6):
        room = Room(before.peak.lasting + share * before.peak.passing)
        way = way_on(config, facts, surroundings, room)
        assert way is not None
        typed = load("qwen2.5-1.5b", *given, *way.sets, algorithm=algorithm)
        assert not room.over(estimate(typed, facts, surroundings))
        assert typed.policy == config.policy
        was, now = config.trainer, typed.trainer
        assert now.batch_size * now.gradient_accumulation_steps == was.batch_size * was.gradient_accumulation_steps
        assert now.updates_per_batch == was.updates_per_batch


def test_a_phase_with_less_room_than_the_others_is_cut_alone() -> None:
    config = load("qwen2.5-1.5b", "trainer.warm_start=null")
    facts, surroundings = PRESETS["qwen2.5-1.5b"].facts, Surroundings(on_gpu=True, items=100)
    phases = {phase.name: phase for phase in estimate(config, facts, surroundings).phases}
    for name, setting in (("validation", "eval.batch_size"), ("writing", "generation.batch_size")):
        own = {name: phases[name].total - 0.3 * phases[name].passing}
        way = way_on(config, facts, surroundings, Room(200 * GB, own))
        assert way is not None
        assert list(way.settings) == [setting]


def test_fewer_then_shorter_texts_where_smaller_pieces_are_not_enough() -> None:
    given = ["trainer.warm_start=null", "generation.max_completion_length=512"]
    config = load("qwen2.5-1.5b", *given)
    facts, surroundings = PRESETS["qwen2.5-1.5b"].facts, Surroundings(on_gpu=True, items=100)
    lowest = least(config, facts, surroundings).bytes
    seen = []
    for room in (lowest * 3, lowest * 1.25, lowest * 1.001):
        way = way_on(config, facts, surroundings, Room(room))
        assert way is not None
        assert not Room(room).over(way.estimate)
        assert load("qwen2.5-1.5b", *given, *way.sets) == way.config
        seen.append(way.kinds & {"fewer", "shorter"})
    assert seen[0] == set()
    assert "shorter" in seen[2]
    assert way_on(config, facts, surroundings, Room(lowest * 0.999)) is None


def test_smaller_pieces_of_an_unknown_model() -> None:
    assert smaller_pieces(load("qwen2.5-1.5b", "trainer.warm_start=null").trainer)["trainer.batch_size"] == 4
    done = ["trainer.batch_size=1", "trainer.gradient_checkpointing=true", "trainer.warm_start=null"]
    assert smaller_pieces(load("qwen2.5-1.5b", *done).trainer) == {}


# The overlays of GPU budgets


@pytest.mark.parametrize(("size", "model"), [(16, "qwen2.5-7b"), (24, "llama-3.1-8b"), (80, "llama-3.1-8b")])
def test_an_overlay_fits_the_gpu_it_is_for(size: int, model: str) -> None:
    sets = [f"policy.model={model}"]
    config = load_config(algorithm="grpo", recipes=["beauty-grpo", f"gpu-{size}gb"], sets=sets)
    assert plan(machine(size), config).fits
    assert not plan(machine(size * 0.6), config).fits
    assert config.trainer.micro_batch * config.trainer.gradient_accumulation_steps == 256
    assert config.policy.lora is not None
    assert config.trainer.warm_start == load_config(algorithm="grpo", recipes=["beauty-grpo"]).trainer.warm_start


def test_the_overlays_are_what_plan_chooses() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/make_gpu_recipes.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# Item vectors


def test_a_catalogue_that_is_too_large_is_held_otherwise_and_the_plan_says_why() -> None:
    large = RetrievalFacts(10_000_000, 22_713_216, 384)
    config = load("qwen2.5-0.5b")
    facts = PRESETS["qwen2.5-0.5b"].facts
    small = choice(plan_placement(machine(ram=16), config, facts, RETRIEVAL), "item vectors")
    assert small == ("fp32 in memory", "as fp32 they take 410 MB of 16.0 GB free")
    for ram, words, size in (
        (40, "fp32 in memory", 15_360_000_000),
        (20, "fp16 beside the mapped file", 7_680_000_000),
        (10, "int8 beside the mapped file", 3_880_000_000),
        (5, "fp32 in the mapped file", 0),
    ):
        placed = plan_placement(machine(ram=ram), config, facts, large)
        value, reason = choice(placed, "item vectors")
        assert value == words
        assert f"15.4 GB of {ram:.1f} GB free" in reason
        assert all(phase.parts["item matrix"] == size for phase in placed.estimate.phases)
    on_gpu = plan_placement(machine(24), config, facts, large)
    assert choice(on_gpu, "item vectors")[0] == "fp16 beside the mapped file"
    apart = plan_placement(machine(80, 24), config, facts, large)  # a service that the run starts, on the second
    assert choice(apart, "item vectors")[0] == "fp16 beside the mapped file"
    others = plan_placement(machine(80), load("qwen2.5-0.5b", "retrieval.backend=ray"), facts, large)
    assert "item vectors" not in {c.what for c in others.choices}
    with pytest.raises(ConfigError, match="lsa is fitted anew"):
        plan(machine(), load("qwen2.5-0.5b", "retrieval.embedder=lsa", "retrieval.memory_map=on"))


def test_a_plan_says_what_was_asked_for() -> None:
    config = load("qwen2.5-0.5b", "retrieval.storage=int8", "retrieval.memory_map=off")
    value, reason = choice(plan(machine(), config), "item vectors")
    assert value == "int8 beside fp32 in memory"
    assert reason.startswith("retrieval.storage says so")
