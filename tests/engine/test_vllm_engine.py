"""Texts by vLLM itself, on the CPU: always the policy's own, token for token, probability for probability."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from rl4rec_cli.config.policy import LoraSection, PolicySection, TinySection
from rl4rec_cli.config.sections import RunConfig
from rl4rec_cli.data.dataset import Dataset
from rl4rec_cli.engine.sampling import Sampling
from rl4rec_cli.engine.vllm import VllmEngine
from rl4rec_cli.errors import ConfigError, EngineError, PolicyError
from rl4rec_cli.policy.generation import ending_ids, generate_ids, generate_texts
from rl4rec_cli.policy.loading import Policy, load_policy, save_policy

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vllm; `make test-vllm` installs it"),
]

GREEDY = Sampling(max_new_tokens=12, temperature=0.0)
SAMPLED = Sampling(max_new_tokens=12, temperature=0.7)
TEXTS = ("rose hand cream\n", "mint", "lavender bath salt and cedar beard oil\n", "honey lip balm\ncharcoal") * 4


def config(**generation: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "prompt": {"max_prompt_length": 400},
            "generation": {"engine": "vllm", "max_completion_length": 16, **generation},
        }
    )


def adapted(folder: Path, targets: str | tuple[str, ...] = "all-linear") -> Policy:
    section = PolicySection(
        model=str(folder), device="cpu", dtype="fp32", lora=LoraSection(r=4, alpha=8, target_modules=targets)
    )
    return load_policy(section, trainable=True, seed=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Dataset]) -> Path:
    """A policy whose next token is not sure, with heads as wide as vLLM's kernels want them."""
    folder = tmp_path_factory.mktemp("base") / "base"
    policy = load_policy(PolicySection(device="cpu", tiny=TinySection(head_dim=32)), dataset=make_dataset(), seed=1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6.0)
    save_policy(policy, folder)
    return folder


@pytest.fixture(scope="module", params=["adapter", "merged", "all weights"])
def policy(request: pytest.FixtureRequest, base: Path) -> Iterator[Policy]:
    """Writes by vLLM: an adapter over a base, swapped or merged, or a model that is trained whole."""
    if request.param == "all weights":
        policy = load_policy(PolicySection(model=str(base), device="cpu", dtype="fp32"), trainable=True)
        policy.engine = VllmEngine(config())
    else:
        policy = adapted(base)
        policy.engine = VllmEngine(config(vllm={"handover": request.param}))
    yield policy
    policy.close()


def prompts_of(policy: Policy) -> list[list[int]]:
    return [policy.tokenizer(text)["input_ids"] for text in TEXTS]


def write(policy: Policy, sampling: Sampling = SAMPLED, *, seed: int = 0) -> tuple[list[list[int]], list[list[float]]]:
    assert policy.engine is not None
    torch.manual_seed(seed)
    return policy.engine.write(policy.model, prompts_of(policy), sampling, ending_ids(policy.model, policy.tokenizer))


@torch.no_grad()
def furthest(
    policy: Policy,
    written: tuple[list[list[int]], list[list[float]]],
    temperature: float,
    prompts: list[list[int]] | None = None,
) -> float:
    """The largest distance of any token's log-probability from the model's own."""
    found = 0.0
    for prompt, ids, logps in zip(prompts or prompts_of(policy), *written, strict=True):
        logits = policy.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / temperature
        own = torch.log_softmax(logits.float(), -1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
        found = max(found, float((own - torch.tensor(logps)).abs().max()))
    return found


def step(policy: Policy, seed: int, size: float = 0.05) -> None:
    """A change of what is trained; small, as rounding grows with what several of them add up to."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * size)


def not_merged(policy: Policy) -> None:
    """Leave out what starts vLLM again: it is that of all weights."""
    if policy.engine is not None and policy.engine._section.vllm.handover == "merged":
        pytest.skip("merged: as with all weights")


def alone(policy: Policy) -> Policy:
    """The same policy, which writes by itself."""
    return Policy(policy.model, policy.tokenizer, policy.name)


def test_the_likeliest_text_is_that_of_transformers(policy: Policy) -> None:
    ours, theirs = (generate_texts(p, prompts_of(policy), GREEDY, batch_size=16) for p in (policy, alone(policy)))
    assert ours == theirs
    assert len(set(ours)) > 2
    seen: list[int] = []
    generate_texts(policy, prompts_of(policy), GREEDY, batch_size=2, progress=seen.append)
    assert sum(seen) == len(TEXTS)


def test_tokens_have_the_probabilities_the_trainer_computes(policy: Policy) -> None:
    written = write(policy)
    assert furthest(policy, written, SAMPLED.temperature) < 1e-4
    assert furthest(policy, written, 1.0) > 0.01  # another temperature's are told apart


def test_a_change_of_weights_is_what_the_next_texts_are_written_with(policy: Policy) -> None:
    before = write(policy)
    step(policy, seed=1)
    after = write(policy)
    assert furthest(policy, after, SAMPLED.temperature) < 1e-4
    assert furthest(policy, before, SAMPLED.temperature) > 0.01
    assert after[0] != before[0]


def test_what_it_kept_of_prompts_is_that_of_the_weights_it_has(policy: Policy) -> None:
    """Prompts longer than the 128 tokens that vLLM keeps at once here, alike in them: kept, and given up in time."""
    assert policy.engine is not None
    ids = [policy.tokenizer(text)["input_ids"] for text in TEXTS]
    start = [token for text in ids[:4] for token in text * 12][:300]
    prompts = [start + text for text in ids]
    ends = ending_ids(policy.model, policy.tokenizer)

    def written() -> tuple[list[list[int]], list[list[float]]]:
        torch.manual_seed(3)
        assert policy.engine is not None
        return policy.engine.write(policy.model, prompts, SAMPLED, ends)

    first = written()
    assert written()[0] == first[0]  # from what was kept
    for seed in (4, 5):
        assert furthest(policy, written(), SAMPLED.temperature, prompts) < 1e-4
        step(policy, seed)
    after = written()
    assert furthest(policy, after, SAMPLED.temperature, prompts) < 1e-4
    assert after[0] != first[0]


def test_without_handing_over_it_would_be_noticed(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the test above fails where the weights are not handed over."""
    assert policy.engine is not None
    write(policy)
    step(policy, seed=2)
    with monkeypatch.context() as patch:
        patch.setattr(policy.engine, "_hand_over", lambda *_: None)
        stale = write(policy)
    assert furthest(policy, stale, SAMPLED.temperature) > 0.01


def test_weights_are_handed_over_only_where_they_changed(policy: Policy) -> None:
    assert policy.engine is not None
    step(policy, seed=3)
    policy.engine.take_handovers()
    write(policy)
    (one,) = policy.engine.take_handovers()
    swapped = policy.engine._swaps(policy.model)
    handed = [p for n, p in policy.model.named_parameters() if p.requires_grad or not swapped]
    size = sum(p.numel() * p.element_size() for p in handed)
    assert 0.9 * size < one.bytes < 2 * size + 65_536  # tied weights are handed over twice, and names take room
    write(policy, seed=1)
    write(policy, GREEDY)
    assert policy.engine.take_handovers() == []


def test_equal_seeds_and_weights_give_equal_texts(policy: Policy) -> None:
    assert write(policy, seed=5) == write(policy, seed=5)
    assert write(policy, seed=5)[0] != write(policy, seed=6)[0]
    several = write(policy, seed=7)[0]
    assert several[0] != several[4]  # of one prompt, each with a seed of its own


def test_a_text_ends_as_with_transformers(policy: Policy) -> None:
    assert policy.engine is not None
    prompts, longer = prompts_of(policy), Sampling(max_new_tokens=16, temperature=0.0)
    free = generate_ids(policy.model, policy.tokenizer, prompts, longer)
    common = free[0][1]
    ends = [*ending_ids(policy.model, policy.tokenizer), common]
    written, logps = policy.engine.write(policy.model, prompts, longer, ends)
    expected = [ids[: next((i for i, t in enumerate(ids) if t in ends), len(ids)) + 1] for ids in free]
    assert written == expected
    assert written[0][-1] == common
    assert list(map(len, logps)) == list(map(len, written))


@pytest.mark.parametrize("how", [{"top_k": 3}, {"top_p": 0.5}, {"repetition_penalty": 1.8}])
def test_settings_of_sampling_reach_it(policy: Policy, how: dict[str, Any]) -> None:
    plain, bent = write(policy, seed=8), write(policy, Sampling(12, 0.7, **how), seed=8)
    assert plain[0] != bent[0]
    if "top_k" in how:
        model = policy.model
        for prompt, ids in zip(prompts_of(policy), bent[0], strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            assert all(token in row.topk(3).indices for token, row in zip(ids, logits, strict=True))


def test_what_is_written_with_other_weights_ends_the_run(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    not_merged(policy)
    assert policy.engine is not None
    write(policy)
    process = policy.engine._process
    assert process is not None
    real = process.ask

    def ask(name: str, *arguments: Any, **more: Any) -> Any:
        answer = real(name, *arguments, **more)
        return [*answer[:-1], (*answer[-1][:2], 999)] if name == "write" else answer

    with monkeypatch.context() as patch:
        patch.setattr(process, "ask", ask)
        with pytest.raises(EngineError, match="vLLM wrote with the weights of hand-over 999, but"):
            write(policy)
    assert not process.is_open
    write(policy)  # it starts again


def test_a_longer_text_than_it_was_started_for_is_refused(policy: Policy) -> None:
    assert policy.engine is not None
    with pytest.raises(EngineError, match="may have 432 tokens, but vLLM was started for 416"):
        policy.engine.write(policy.model, [[5] * 420], GREEDY, [2])


def test_a_policy_that_diverged_is_told(policy: Policy) -> None:
    not_merged(policy)
    before = copy.deepcopy(policy.model.state_dict())
    with torch.no_grad():
        next(p for p in policy.model.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(PolicyError, match="not finite"):
        write(policy)
    policy.model.load_state_dict(before)
    assert furthest(policy, write(policy), SAMPLED.temperature) < 1e-4


def test_an_engine_that_dies_is_told_and_nothing_is_left(policy: Policy) -> None:
    not_merged(policy)
    assert policy.engine is not None
    write(policy)
    process, folder = policy.engine._process, policy.engine._folder
    assert process is not None
    assert folder is not None
    os.kill(process.pid, signal.SIGSTOP)
    real = process._connection.send

    def send(message: Sequence[Any]) -> None:
        real(message)
        os.kill(process.pid, signal.SIGKILL)

    process._connection.send = send  # type: ignore[method-assign,assignment]
    with pytest.raises(EngineError, match=r"was killed by SIGKILL while writing 16 completions; its log: .+\.log"):
        write(policy)
    assert not process.is_open
    policy.close()
    assert not folder.exists()
    assert furthest(policy, write(policy), SAMPLED.temperature) < 1e-4


def test_an_adapter_that_vllm_refuses_ends_with_its_reason(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl4rec_cli.engine import vllm

    policy = adapted(base)
    policy.engine = VllmEngine(config(vllm={"handover": "adapter"}))
    real = vllm.trained_tensors

    def other(model: Any) -> dict[str, torch.Tensor]:
        return {name.replace("q_proj", "no_such_module"): tensor for name, tensor in real(model).items()}

    monkeypatch.setattr(vllm, "trained_tensors", other)
    with pytest.raises(EngineError, match=r"failed while taking the adapter: .*no_such_module"):
        write(policy)
    assert policy.engine._process is not None
    assert not policy.engine._process.is_open
    policy.close()


def test_what_it_cannot_hold_is_refused_before_it_starts(base: Path, make_dataset: Callable[..., Dataset]) -> None:
    narrow = load_policy(PolicySection(device="cpu"), dataset=make_dataset())
    with pytest.raises(ConfigError, match="no attention for heads 16 wide"):
        VllmEngine(config()).write(narrow.model, [[5]], GREEDY, [2])
    policy = adapted(base)
    policy.model.peft_config["default"].modules_to_save = ["lm_head"]
    with pytest.raises(ConfigError, match="cannot take this adapter: its modules_to_save"):
        VllmEngine(config()).write(policy.model, [[5]], GREEDY, [2])


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A `vllm serve` of the base, as the hint of an error says to start it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    policy = adapted(base)
    policy.engine = VllmEngine(config(vllm={"server": f"http://127.0.0.1:{port}"}))
    with pytest.raises(EngineError, match=f"server=http://127.0.0.1:{port} does not answer") as caught:
        write(policy)
    words = str(caught.value.hint).removeprefix("start one: ").split()
    given = {**os.environ, **dict([words[0].split("=")]), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = tmp_path_factory.mktemp("server") / "log"
    assert words[1:3] == ["vllm", "serve"]
    # The command `vllm` looks for a package of that name, which on the CPU is vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", *words[3:], "--port", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--enforce-eager", "--no-enable-chunked-prefill"],
            **{"stdout": out, "stderr": subprocess.STDOUT, "env": given, "start_new_session": True},
        )
    try:
        for _ in range(6000):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.1)
        else:
            pytest.fail(f"the server did not start: {log.read_text()[-3000:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def test_a_running_server_writes_with_the_policy_s_adapter(base: Path, server: str) -> None:
    policy = adapted(base)
    policy.engine = VllmEngine(config(vllm={"server": server}))
    for seed in (1, 2):
        step(policy, seed)
        assert furthest(policy, write(policy), SAMPLED.temperature) < 1e-4
        likeliest = (generate_texts(p, prompts_of(policy), GREEDY, batch_size=16) for p in (policy, alone(policy)))
        assert next(likeliest) == next(likeliest)
    with urllib.request.urlopen(f"{server}/v1/models", timeout=20) as answer:
        assert sum("rl4rec-" in model["id"] for model in json.load(answer)["data"]) == 1
    policy.close()
    with urllib.request.urlopen(f"{server}/v1/models", timeout=20) as answer:
        assert sum("rl4rec-" in model["id"] for model in json.load(answer)["data"]) == 0
