"""What is said when memory runs out; `tests/cli/test_faults.py` lets it run out in runs that are then resumed."""

from __future__ import annotations

import itertools
import re
import shlex
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from rl4rec_cli.config.layering import load_config
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.models.names import PRESETS
from rl4rec_cli.plan.memory import GB, Surroundings, estimate, human
from rl4rec_cli.plan.phases import Phase, during, phase_of, phases_of
from rl4rec_cli.train.out_of_memory import OutOfMemory, Usable, advise, advise_by_plan, is_out_of_memory, used_gib

MODEL = "qwen2.5-1.5b"
FACTS = PRESETS[MODEL].facts
SURROUNDINGS = Surroundings(on_gpu=True, items=100_000, embedder_parameters=335_141_888, embedding_dim=1024)


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 5"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_which_errors_are_it(error: BaseException, is_it: bool) -> None:
    assert is_out_of_memory(error) is is_it


def fails_in(*phases: Phase) -> MemoryError:
    """An error raised inside these phases, the outermost first."""
    try:
        with ExitStack() as stack:
            for phase in phases:
                stack.enter_context(during(phase))
            raise MemoryError
    except MemoryError as error:
        return error


@pytest.mark.parametrize(
    ("phases", "phase"),
    [
        ([], Phase.UPDATING),
        ([Phase.LOADING], Phase.LOADING),
        ([Phase.LEARNING, Phase.WRITING], Phase.WRITING),
        ([Phase.RANKING], Phase.RANKING),
        ([Phase.MEASURING, Phase.WRITING], Phase.MEASURING),
        ([Phase.MEASURING, Phase.RANKING], Phase.RANKING),
    ],
)
def test_an_error_says_in_which_phase_it_was_raised(phases: list[Phase], phase: Phase) -> None:
    error = fails_in(*phases)
    assert phases_of(error) == tuple(reversed(phases))
    assert phase_of(error, otherwise=Phase.UPDATING) is phase


def raises(*_: Any, **__: Any) -> NoReturn:
    raise MemoryError


def test_what_does_the_work_says_its_phase(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Writing, measuring, ranking, loading and saving, wherever they are called from."""
    from rl4rec_cli.eval import policies
    from rl4rec_cli.policy import generation, loading
    from rl4rec_cli.retrieval import retriever

    monkeypatch.setattr(generation, "generate_ids", raises)
    monkeypatch.setattr(loading, "write_folder", raises)
    monkeypatch.setattr(loading, "check_policy", raises)
    monkeypatch.setattr(loading, "check_whole", raises)
    monkeypatch.setattr(policies, "PromptBuilder", raises)
    for name in ("target_ranks", "search", "score_matrix"):
        monkeypatch.setattr(retriever, name, raises)
    embedder: Any = SimpleNamespace(name="none", embed=raises)
    ranker = retriever.InProcessRetriever(embedder, torch.ones(2, 3))
    one: Any = SimpleNamespace(engine=None, tokenizer=None, model=torch.nn.Linear(1, 1))
    config: Any = load_config(algorithm="grpo")
    for phase, call in [
        (Phase.WRITING, lambda: generation.write_ids(one, one.model, [[1]], one)),
        (Phase.LOADING, lambda: loading.load_policy(config.policy)),
        (Phase.LOADING, lambda: loading.load_weights(one.model, tmp_path)),
        (Phase.SAVING, lambda: loading.write_checkpoint(one, tmp_path / "checkpoint", raises)),
        (Phase.MEASURING, lambda: policies.write_texts("", one, config, one, [])),
        (Phase.MEASURING, lambda: policies.measure_policy("", one, config, one, one, [])),
        (Phase.RANKING, lambda: ranker.target_ranks(["a"], [0], [[]])),
        (Phase.RANKING, lambda: ranker.vector_ranks(torch.ones(1, 3), [0], [[]])),
        (Phase.RANKING, lambda: ranker.vector_search(torch.ones(1, 3), 1)),
        (Phase.RANKING, lambda: ranker.vector_scores(torch.ones(1, 3))),
    ]:
        with pytest.raises(MemoryError) as caught:
            call()
        assert phase_of(caught.value, otherwise=Phase.LEARNING) is phase, phase


def load(*sets: str, algorithm: str = "grpo", model: str = MODEL) -> RunConfig:
    given = ["policy.lora.r=16", "trainer.batch_size=8", "trainer.num_generations=8", *sets]
    if algorithm != "grpo":
        given.remove("trainer.num_generations=8")
    return load_config(algorithm=algorithm, recipes=["beauty-grpo"], sets=[f"policy.model={model}", *given])


def say(config: RunConfig, usable: int, *, phase: Phase = Phase.LEARNING, **how: Any) -> OutOfMemory:
    usable_ = Usable(usable, "a GPU")
    return advise_by_plan(
        "out of memory", config, FACTS, how.pop("surroundings", SURROUNDINGS), usable_, phase=phase, **how
    )


def sets_in(flags: str) -> list[str]:
    words = shlex.split(flags)
    return [word for before, word in itertools.pairwise(words) if before == "--set"]


def phase(config: RunConfig, name: str) -> int:
    return next(one.total for one in estimate(config, FACTS, SURROUNDINGS).phases if one.name == name)


def test_the_settings_fit_and_the_figures_are_the_plans() -> None:
    config = load("trainer.warm_start=null", "trainer.gradient_checkpointing=false")
    before, room = phase(config, "learning"), 20 * GB
    assert before > room
    error = say(config, room)
    after = load("trainer.warm_start=null", "trainer.gradient_checkpointing=false", *sets_in(error.flags))
    assert estimate(after, FACTS, SURROUNDINGS).bytes <= room
    assert error.hint is not None
    assert f"learning needs {human(before)}, where 20.0 GB can be used (a GPU)" in error.hint
    assert f"): {human(phase(after, 'learning'))}. The command above" in error.hint
    for text in sets_in(error.flags):
        assert text in error.hint
    assert error.flags.startswith("--allow-partial --set ")
    assert after.policy == config.policy
    for way in (error.flags, error.hint):
        assert "quantization" not in way


def test_where_the_plan_believed_that_it_fits_it_says_so_and_steps_down() -> None:
    config = load("trainer.warm_start=null", "trainer.gradient_checkpointing=false")
    sizes, sets = [phase(config, "learning")], []
    for _ in range(3):  # each time it runs out again
        error = say(load("trainer.warm_start=null", "trainer.gradient_checkpointing=false", *sets), 500 * GB)
        assert error.hint is not None
        assert "it is too low here, or something else took memory" in error.hint
        sets += sets_in(error.flags)
        after = load("trainer.warm_start=null", "trainer.gradient_checkpointing=false", *sets)
        sizes.append(phase(after, "learning"))
        assert f"The next step down is {human(sizes[-1])}: " in error.hint
    lasting = min(one.lasting for one in estimate(config, FACTS, SURROUNDINGS).phases)
    assert all((b - lasting) <= 0.65 * (a - lasting) for a, b in itertools.pairwise(sizes))


@pytest.mark.parametrize(
    ("during", "flags"),
    [
        (Phase.MEASURING, "--set eval.batch_size=32"),  # nothing of what is learnt: no --allow-partial
        (Phase.WRITING, "--allow-partial --set generation.batch_size=128"),
        (Phase.RANKING, "--allow-partial --set retrieval.device=cpu"),
    ],
)
def test_only_what_ran_out_is_cut(during: Phase, flags: str) -> None:
    config = load("trainer.warm_start=null", "trainer.gradient_accumulation_steps=4", "eval.batch_size=64")
    assert say(config, 500 * GB, phase=during).flags == flags


def test_shorter_completions_come_last_and_their_cost_is_said() -> None:
    """Where even the fewest completions of a step do not fit."""
    config, room = load("trainer.warm_start=null", "generation.max_completion_length=512"), 5 * GB + GB // 5
    error = say(config, room)
    assert "--set generation.max_completion_length=128" in error.flags
    costs = (
        "fewer completions a step: noisier gradients; shorter prompts or completions: the policy reads or writes less"
    )
    assert costs in str(error.hint)
    after = load("trainer.warm_start=null", *sets_in(error.flags))
    cpu = Surroundings(on_gpu=True, items=0, retrieval_on_device=False)
    assert estimate(after, FACTS, cpu).bytes <= room
    mild = say(config, room + 6 * GB)
    assert "max_completion_length" not in mild.flags


def test_where_nothing_fits_it_says_so_with_figures() -> None:
    config = load("trainer.warm_start=null")
    error = say(config, 2 * GB)
    assert error.flags == ""
    assert error.hint is not None
    assert re.search(
        r"With all cut that a begun run can cut it needs [\d.]+ GB, so no settings are proposed", error.hint
    )
    some = load("trainer.warm_start=null", "policy.lora=null")
    full = say(some, 12 * GB)
    assert full.flags == ""
    assert full.hint is not None
    new = full.hint.partition("A new run needs ")[2]
    typed = load("trainer.warm_start=null", *sets_in(new))
    cpu = Surroundings(on_gpu=True, items=0, retrieval_on_device=False)
    assert estimate(typed, FACTS, cpu if "retrieval.device=cpu" in new else SURROUNDINGS).bytes <= 12 * GB


def test_ranking_that_cannot_take_less() -> None:
    config = load("trainer.warm_start=null", "retrieval.embedder=lsa")
    surroundings = Surroundings(on_gpu=False, items=100)
    error = say(config, 500 * GB, phase=Phase.RANKING, surroundings=surroundings)
    assert error.flags == ""
    assert "no settings are proposed" in str(error.hint)


def test_item_vectors_that_take_much_are_held_otherwise() -> None:
    """A GPU gets an int8 copy, a CPU reads the file; where they take little, nothing is said of them."""
    config = load("trainer.warm_start=null")
    many = replace(SURROUNDINGS, items=5_000_000)  # 20 GB
    error = say(config, 24 * GB, surroundings=many)
    assert "--set retrieval.storage=int8" in error.flags
    assert "--set retrieval.device" not in error.flags
    after = load("trainer.warm_start=null", *sets_in(error.flags))
    assert after.retrieval.storage == "int8"
    assert estimate(after, FACTS, replace(many, item_matrix=5_000_000 * 1028)).bytes <= 24 * GB
    on_cpu = replace(many, on_gpu=False)
    ranking = say(config, 500 * GB, phase=Phase.RANKING, surroundings=on_cpu)
    assert "retrieval.batch_size" in ranking.flags
    ranking = say(config, 60 * GB, phase=Phase.RANKING, surroundings=on_cpu)
    assert ranking.flags == "--set retrieval.storage=fp32 --set retrieval.memory_map=on"  # no --allow-partial
    unmapped = load("trainer.warm_start=null", "retrieval.file=vectors.pt")
    assert "retrieval.batch_size" in say(unmapped, 60 * GB, phase=Phase.RANKING, surroundings=on_cpu).flags


def test_what_goes_on_beside_vllm_has_what_is_there_all_the_time() -> None:
    config = load("trainer.warm_start=null", "generation.engine=vllm")
    error = say(config, 500 * GB, phase=Phase.MEASURING)
    assert error.flags == ""
    assert "no settings are proposed" in str(error.hint)
    foreseen = say(config, 4 * GB, phase=Phase.MEASURING)
    assert "where 4.0 GB can be used" in str(foreseen.hint)


def test_a_warm_start_has_its_own_and_sees_to_what_follows() -> None:
    warm = ("trainer.warm_start.batch_size=64", "trainer.gradient_checkpointing=false")
    config = load(*warm)
    room = 20 * GB
    error = say(config, room, is_warm_start=True)
    assert "--set trainer.warm_start.batch_size=" in error.flags
    after = load(*warm, *sets_in(error.flags))
    assert estimate(after, FACTS, SURROUNDINGS).bytes <= room, "reinforcement learning fits, too"
    assert after.trainer.batch_size < config.trainer.batch_size
    foreseen = say(config, 500 * GB, is_warm_start=True)
    assert all(".warm_start." in text for text in sets_in(foreseen.flags))


def test_a_model_that_the_plan_does_not_know() -> None:
    class Config:
        def to_dict(self) -> dict[str, Any]:
            return {"model_type": "unheard-of"}

    policy: Any = SimpleNamespace(model=SimpleNamespace(config=Config()), device="cpu")
    config = load_config(algorithm="grpo", sets=["trainer.batch_size=4", "trainer.gradient_accumulation_steps=3"])
    error = advise(MemoryError(), config, policy, when="at step 7 of grpo", phase=Phase.LEARNING)
    assert error.message == "out of memory at step 7 of grpo, while learning"
    halves = "--set trainer.batch_size=2 --set trainer.gradient_accumulation_steps=6"
    assert error.flags == f"--allow-partial {halves} --set trainer.gradient_checkpointing=true"
    assert "no figures" in str(error.hint)
    assert "whether enough cannot be said" in str(error.hint)
    least = load_config(algorithm="grpo", sets=["trainer.batch_size=1", "trainer.gradient_checkpointing=true"])
    assert advise(MemoryError(), least, policy, when="", phase=Phase.LEARNING).flags == ""


QWEN = {
    **{"model_type": "qwen2", "hidden_size": 1536, "num_attention_heads": 12, "num_hidden_layers": 28},
    **{"num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151_936, "tie_word_embeddings": True},
}


def loaded(device: str) -> Any:
    """A policy that an adapter was put on, of which only the shape is known."""
    base = SimpleNamespace(config=SimpleNamespace(to_dict=lambda: QWEN))
    return SimpleNamespace(model=SimpleNamespace(peft_config={}, get_base_model=lambda: base), device=device)


def test_a_gpu_beside_another_and_beside_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, asked = {0: 80 * GB, 1: 24 * GB}, []

    def mem_get_info(index: int) -> tuple[int, int]:
        asked.append(index)
        return 3 * GB, sizes[index]

    known = {index: SimpleNamespace(name=f"GPU {index}", total_memory=size) for index, size in sizes.items()}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: known[index])
    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: 12 * GB)
    given = ("trainer.warm_start=null", "trainer.gradient_checkpointing=false", "policy.device=cuda:1")
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nIf reserved")
    error = advise(full, load(*given), loaded("cuda:1"), when="at step 2 of grpo", phase=Phase.LEARNING)
    assert asked == [1]
    assert error.message == (
        "out of memory at step 2 of grpo, while learning: CUDA out of memory. Tried to allocate 2 GiB."
    )
    # Free, held by torch, and the context: of 24 GB others hold 8.1; 92 % of the rest can be used.
    assert "where 14.7 GB can be used (GPU 1 with 24.0 GB, 8.1 GB held by others)" in str(error.hint)
    surroundings = Surroundings(True, 100_000, 335_141_888, 1024, retrieval_on_device=False)  # on the first GPU
    after = load(*given, *sets_in(error.flags))
    assert max(p.total for p in estimate(after, FACTS, surroundings).phases) <= 14.7 * GB


def test_a_computers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("trainer.warm_start=null", "policy.device=cpu", "policy.dtype=fp32", "retrieval.embedder=lsa")
    machine_ram = "rl4rec_cli.train.out_of_memory.ram"
    monkeypatch.setattr(machine_ram, lambda: (32 * GB, 10 * GB))
    later = advise(MemoryError(), config, loaded("cpu"), when="", phase=Phase.LEARNING)
    surroundings = Surroundings(False, 100_000, 0, config.retrieval.lsa_dim)
    learning = next(p for p in estimate(config, FACTS, surroundings).phases if p.name == "learning")
    room = learning.lasting + 0.92 * 10 * GB
    assert f"needs {human(learning.total)}, where {human(room)} can be used (10.0 GB of memory are free now)" in str(
        later.hint
    )
    assert later.message == "out of memory while learning"
    first = advise(MemoryError(), config, loaded("cpu"), when="", phase=Phase.LEARNING, is_first=True)
    assert f"where {human(room - learning.parts['optimizer'])} can be used" in str(first.hint)


def test_what_is_in_use() -> None:
    assert 0.01 < used_gib("cpu") < 64
