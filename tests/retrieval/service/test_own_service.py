"""A run that starts a retrieval service for itself: real Ray on the CPU, on a machine that is said to have two GPUs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_lines import ends

from rl4rec_cli.config.sections import RetrievalSection
from rl4rec_cli.data.saving import save_dataset
from rl4rec_cli.data.synthetic import synthesize
from rl4rec_cli.errors import ServiceError
from rl4rec_cli.retrieval.service import own_service

pytestmark = pytest.mark.ray
psutil = pytest.importorskip("psutil")  # comes with accelerate

TWO_GPUS = """
import sys
from rl4rec_cli.plan import machine
from rl4rec_cli.cli.main import main

real = machine.find_machine()
gpus = tuple(machine.Gpu(i, "made up", 24 << 30, 24 << 30) for i in range(2))
machine.find_machine = lambda: machine.replace(real, gpus=gpus)
for number, backend in enumerate(sys.argv[1].split(",")):
    code = main([*sys.argv[2:], "--set", f"retrieval.backend={backend}", "--set", f"run.name={backend}"])
    if code:
        sys.exit(code)
"""
SETS = (
    *("policy.device=auto", "retrieval.device=auto", "retrieval.lsa_dim=12", "eval.steps=null", "eval.baselines=[]"),
    *("trainer.batch_size=4", "trainer.num_generations=4", "trainer.warm_start=null", "eval.cache_dir=null"),
    *("trainer.num_train_epochs=9999", "logging.steps=1", "logging.rollouts=1000", "eval.users=6"),
    *("generation.max_completion_length=5", "retrieval.service.store_mb=100"),
)


@pytest.fixture(autouse=True)
def _ray() -> None:
    pytest.importorskip("ray", reason="pip install 'rl4rec[ray]'")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shop"
    save_dataset(synthesize(30, 40, 3), folder)
    return folder


def start(folder: Path, shop: Path, backends: str, *sets: str) -> subprocess.Popen[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CUDA_VISIBLE"))}
    command = ["train", "grpo", "--quick-test", "--dataset", str(shop), "--output", str(folder / "runs")]
    given = [part for one in (*SETS, *sets) for part in ("--set", one)]
    return subprocess.Popen(
        [sys.executable, "-c", TWO_GPUS, backends, *command, *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**env, "XDG_CACHE_HOME": str(folder / "cache")},
    )


def until(lines: Iterator[str], word: str) -> list[str]:
    """The lines up to one that has the word."""
    seen = []
    for line in lines:
        seen.append(line)
        if word in line:
            return seen
    pytest.fail("".join(seen))


def family(run: subprocess.Popen[str]) -> list[Any]:
    return psutil.Process(run.pid).children(recursive=True)


def curve(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "runs" / name / "training_log.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    return [{k: v for k, v in line.items() if not any(w in k for w in ("second", "memory"))} for line in told]


@pytest.mark.slow
def test_with_two_gpus_the_run_has_a_service_of_its_own_and_the_same_rewards(tmp_path: Path, shop: Path) -> None:
    with start(tmp_path, shop, "auto,in-process", "trainer.max_steps=4") as run:
        assert run.stdout is not None
        seen = until(run.stdout, "Step      1 ")
        assert any("Retrieval on cuda:1: 2 GPUs: a service that the run starts" in line for line in seen)
        [service] = [p for p in family(run) if "rl4rec_cli.retrieval.service.own_service" in p.cmdline()]
        assert service.environ()["CUDA_VISIBLE_DEVICES"] == "1"
        assert service.terminal() is None or os.getsid(service.pid) == service.pid
        actors = [p for p in service.children(recursive=True) if "RetrievalService" in " ".join(p.cmdline())]
        assert len(actors) == 1
        everybody = family(run)
        until(run.stdout, "runs/in-process (seed")  # the first run is over, the process goes on
        assert not service.is_running() or service.status() == psutil.STATUS_ZOMBIE
        rest = run.stdout.read()
    assert run.returncode == 0, rest
    assert all(ends(process.pid, 60) for process in everybody)
    assert curve(tmp_path, "auto") == curve(tmp_path, "in-process")
    assert len(curve(tmp_path, "auto")) == 4
    texts = [(tmp_path / "runs" / name / "rollouts.jsonl").read_text() for name in ("auto", "in-process")]
    assert texts[0] == texts[1]
    # By the run's own name: nobody else finds it, and nothing of it is left.
    assert not list((tmp_path / "cache" / "rl4rec" / "ray").glob("*.json"))


@pytest.mark.slow
def test_the_service_ends_with_a_run_that_is_told_to_end(tmp_path: Path, shop: Path) -> None:
    with start(tmp_path, shop, "auto", "trainer.max_steps=100000") as run:
        assert run.stdout is not None
        until(run.stdout, "Step      3 ")
        everybody = family(run)
        assert len(everybody) > 4
        run.send_signal(signal.SIGTERM)
        rest = run.stdout.read()
    assert run.returncode == 143, rest
    assert all(ends(process.pid, 60) for process in everybody)
    assert list((tmp_path / "runs" / "auto" / "checkpoints").glob("checkpoint_step_*"))
    assert "To go on with it: rl4rec train grpo --resume" in rest


# Without Ray: a process in the service's place


@pytest.mark.parametrize(
    ("does", "said", "hint"),
    [
        ("exit 2", "ended with exit status 2 before it was ready", "--set retrieval.backend=in-process"),
        ('echo \'{"address": "127.0.0.1:9"}\'', "gone", "it was this run's own and has ended"),
    ],
)
def test_a_service_that_cannot_start_or_has_ended(
    does: str, said: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "service"
    stand_in.write_text(f"#!/bin/sh\n{does}\n")
    stand_in.chmod(0o700)
    monkeypatch.setattr(own_service.sys, "executable", str(stand_in))
    processes: list[Any] = []
    begin = own_service._start

    def kept(*arguments: Any) -> Any:
        processes.append(begin(*arguments))
        return processes[0]

    monkeypatch.setattr(own_service, "_start", kept)
    section = RetrievalSection.model_validate({"service": {"name": "Mine", "address": "10.0.0.1:1"}})

    def use() -> None:
        with own_service.own_service(section, [], 0) as found:
            assert (found.backend, found.service.address) == ("ray", "127.0.0.1:9")
            assert found.service.name == f"Mine-{os.getpid()}"
            processes[0].wait()
            raise ServiceError("gone", hint="start it")

    with pytest.raises(ServiceError, match=said) as caught:
        use()
    assert hint in (caught.value.hint or "")
