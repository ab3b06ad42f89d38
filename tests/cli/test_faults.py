"""What can happen to a run, through the command: exit code, message, and what is left on disk."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import Ended, Process, Zygote
from safetensors.torch import load_file

from rl4rec_cli.files.folders import problems
from rl4rec_cli.strict_yaml import load_yaml

SMALL = [
    *("data.synthetic.users=40", "data.synthetic.items=25", "policy.tiny.hidden_size=32", "policy.tiny.heads=2"),
    *("policy.tiny.vocab_size=400", "generation.max_completion_length=6", "prompt.max_history=2"),
    *("trainer.batch_size=4", "trainer.num_generations=4", "trainer.warm_start=null", "trainer.num_train_epochs=99"),
    *("eval.users=6", "eval.baselines=[]", "eval.cache_dir=null", "logging.steps=1", "logging.rollouts=99"),
    *("logging.save_steps=2", "run.name=r"),
]
REWARD = """
import math, os, signal, time
from pathlib import Path

calls = 0

def length(texts, targets, histories, **kwargs):
    return [len(t) / 100 for t in texts]

def nan_in_4(texts, targets, histories, **kwargs):
    global calls
    calls += 1
    return [math.nan if calls == 4 else len(t) / 100 for t in texts]

def raises_in_4(texts, targets, histories, **kwargs):
    global calls
    calls += 1
    if calls == 4 and not Path("mended").exists():
        raise ValueError("no such word")
    return [len(t) / 100 for t in texts]

def signalled_in_4(texts, targets, histories, **kwargs):
    global calls
    calls += 1
    if calls == 4 and Path("signal").exists():
        number = int(Path("signal").read_text())
        Path("signal").unlink()
        os.kill(os.getpid(), number)
        time.sleep(60)  # the handler ends this
    return [len(t) / 100 for t in texts]

def waits_in_4(texts, targets, histories, **kwargs):
    global calls
    calls += 1
    if calls == 4:
        Path("waiting").touch()
        while not Path("go").exists():
            time.sleep(0.01)
    return [len(t) / 100 for t in texts]
"""


PREPARE = """
import torch, transformers
import rl4rec_cli.eval.policies as policies
import rl4rec_cli.retrieval.embedding as embedding
import rl4rec_cli.train.resumable as resumable
import rl4rec_cli.train.rollouts as rollouts
from torch.optim import AdamW

def signal_at(owner, name, at, number):
    real, count = getattr(owner, name), [0]
    def call(self, *args, **options):
        count[0] += 1
        if count[0] == at:
            os.kill(os.getpid(), number)
            for _ in range(100): pass  # a handler that raises would raise here
        return real(self, *args, **options)
    setattr(owner, name, call)

PLACES = {
    "update": (AdamW, "step", 3), "generation": (rollouts.Rollout, "write", 4),
    "last save": (resumable.Keeper, "_keep_last", 1),
}

OWNERS = {
    "learning": (resumable.Resumable, "training_step", 4),
    "updating": (AdamW, "step", 4),
    "writing": (transformers.LlamaForCausalLM, "generate", 4),
    "validation": (policies, "write_texts", 1),
    "measuring": (policies, "write_texts", 1),
}

def no_memory(said, where):
    owner, name, at = OWNERS[where]
    real, count = getattr(owner, name), [0]
    def call(*args, **options):
        count[0] += 1
        if count[0] == at:
            real(*args, **options)  # what it holds is there already
            raise {"cuda": torch.OutOfMemoryError, "python": MemoryError}.get(said, RuntimeError)(said)
        return real(*args, **options)
    setattr(owner, name, call)

def not_finite_in_4():
    write, unit_rows, count = rollouts.Rollout.write, embedding.unit_rows, [0]
    def counted(self, *args, **options):
        count[0] += 1
        return write(self, *args, **options)
    def overflowing(vectors, texts, name):
        if count[0] == 4:
            vectors = vectors.clone()
            vectors[1, 0] = torch.nan
        return unit_rows(vectors, texts, name)
    rollouts.Rollout.write, embedding.unit_rows = counted, overflowing

def prepare(order):
    if order["memory"]:
        no_memory(*order["memory"])
    if order["nan"]:
        not_finite_in_4()
    for where, number in order["signals"]:
        if where == "save":  # in the midst of it: the optimiser's state is written
            real, sent = resumable.torch_save, []
            def save(value, path):
                real(value, path)
                if not sent:
                    sent.append(number)
                    os.kill(os.getpid(), number)
                    for _ in range(100): pass
            resumable.torch_save = save
        else:
            signal_at(*PLACES[where], number)
"""
zygotes: list[Zygote] = []


@pytest.fixture(scope="module", autouse=True)
def zygote() -> Iterator[None]:
    with Zygote(PREPARE) as one:
        zygotes.append(one)
        yield


def start(args: list[str], folder: Path, **options: Any) -> Process:
    return zygotes[-1].start(args, folder, **{"signals": [], "memory": [], "nan": False, **options})


def run(args: list[str], folder: Path, **options: Any) -> Ended:
    return start(args, folder, **options).end()


def sets(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--set", text)]


def command(folder: Path, *more: str, reward: str | None = None, sets_: tuple[str, ...] = ()) -> list[str]:
    (folder / "my.py").write_text(REWARD)
    rewards = ["--reward", f"./my.py:{reward}=1"] if reward else []
    return ["train", "grpo", "--quick-test", *rewards, *sets(*SMALL, *sets_), *more]


def resume(folder: Path, *more: str, reward: str | None = None) -> list[str]:
    rewards = ["--reward", f"./my.py:{reward}=1"] if reward else []
    return ["train", "grpo", "--resume", "runs/r", *rewards, *more]


def checkpoints(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "runs" / "r" / "checkpoints").iterdir())


def steps(folder: Path) -> list[int]:
    lines = (folder / "runs" / "r" / "training_log.jsonl").read_bytes().decode().splitlines()
    return [record["step"] for record in map(json.loads, lines) if "health" not in record]


def is_whole(folder: Path) -> bool:
    return all(problems(p) == [] for p in (folder / "runs" / "r" / "checkpoints").iterdir())


def final(folder: Path) -> dict[str, Any]:
    weights = load_file(folder / "runs" / "r" / "checkpoints" / "checkpoint_final" / "model.safetensors")
    return {name: w.tolist() for name, w in weights.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """The folder of a run of so many steps with a reward, undisturbed."""

    @cache
    def make(reward: str, steps: int) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        done = run(command(folder, reward=reward, sets_=(f"trainer.max_steps={steps}",)), folder)
        assert done.returncode == 0, done.stderr
        return folder

    return make


@pytest.fixture(scope="module")
def uninterrupted(whole: Callable[[str, int], Path]) -> Callable[..., dict[str, Any]]:
    """The final weights of such a run."""
    return lambda reward, steps=8: final(whole(reward, steps))


@pytest.fixture(scope="module")
def sizes(whole: Callable[[str, int], Path]) -> dict[str, int]:
    """Bytes of each file of the checkpoint of step 2."""
    folder = whole("length", 2) / "runs" / "r" / "checkpoints" / "checkpoint_step_2"
    return {file.name: file.stat().st_size for file in folder.iterdir()}


@pytest.fixture(scope="module")
def terminated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of eight steps that SIGTERM ended in the reward of the fourth."""
    folder = tmp_path_factory.mktemp("terminated")
    (folder / "signal").write_text(str(int(signal.SIGTERM)))
    stopped = run(command(folder, reward="signalled_in_4", sets_=("trainer.max_steps=8",)), folder)
    assert stopped.returncode == 143, stopped.stderr
    return folder


@pytest.mark.parametrize(("number", "code", "word"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_a_signal_in_a_reward(
    number: int, code: int, word: str, tmp_path: Path, uninterrupted: Callable[[str], dict[str, Any]]
) -> None:
    """The step is abandoned, the one before it is whole on disk, and the run goes on as if nothing had been."""
    (tmp_path / "signal").write_text(str(number))
    stopped = run(command(tmp_path, reward="signalled_in_4", sets_=("trainer.max_steps=8",)), tmp_path)
    assert stopped.returncode == code, stopped.stderr
    *_, kept, how, last = stopped.stderr.splitlines()
    assert kept == "Stopped: the policy of step 3 is in runs/r/checkpoints/checkpoint_step_3"
    assert how == f"To go on with it: rl4rec train grpo --resume runs/r --reward {tmp_path}/my.py:signalled_in_4=1"
    assert last == f"error: {word}"
    assert stopped.stdout == ""
    assert checkpoints(tmp_path) == ["checkpoint_start", "checkpoint_step_2", "checkpoint_step_3"]
    assert is_whole(tmp_path)
    assert steps(tmp_path) == [1, 2, 3]
    done = run(resume(tmp_path, reward="signalled_in_4"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert steps(tmp_path) == list(range(1, 9))
    assert final(tmp_path) == uninterrupted("length")


@pytest.mark.parametrize(
    ("where", "number", "code", "last"), [("update", 15, 143, 3), ("update", 2, 130, 3), ("save", 15, 143, 2),
                                          ("generation", 2, 130, 3)]
)  # fmt: skip
def test_a_signal_elsewhere(
    where: str, number: int, code: int, last: int, tmp_path: Path, uninterrupted: Callable[[str], dict[str, Any]]
) -> None:
    """In the midst of an update or a save it waits for its end: never is half of it on disk."""
    args = command(tmp_path, reward="length", sets_=("trainer.max_steps=8",))
    stopped = run(args, tmp_path, signals=[(where, number)])
    assert stopped.returncode == code, stopped.stderr
    assert f"the policy of step {last} is in runs/r/checkpoints/checkpoint_step_{last}" in stopped.stderr
    assert "--resume runs/r" in stopped.stderr
    assert is_whole(tmp_path)
    assert steps(tmp_path) == list(range(1, last + 1))
    done = run(resume(tmp_path, reward="length"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert final(tmp_path) == uninterrupted("length")


def test_a_second_ctrl_c_while_the_interpreter_ends_prints_no_traceback(tmp_path: Path) -> None:
    """One during the command, the next from what is done at exit."""
    code = (
        "import atexit, os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell began it with &\n"
        "from rl4rec_cli.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run in the background
        "def interrupt() -> None: os.kill(os.getpid(), signal.SIGINT)\n"
        "atexit.register(interrupt)\n"
        "main.app.registered_groups.clear()\n"
        "main.app.registered_commands.clear()\n"
        "main.app.command('one')(interrupt)\n"
        "main.app.command('two')(interrupt)\n"
        "sys.argv = ['rl4rec', 'one']\n"
        "sys.exit(main.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (130, -signal.SIGINT)  # as a shell counts it, and as the kernel does
    assert done.stderr == "error: interrupted\n"


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    args = command(tmp_path, reward="length", sets_=("trainer.max_steps=8",))
    stopped = run(args, tmp_path, signals=[("update", 15), ("last save", 15)])
    assert stopped.returncode == 143
    assert stopped.stderr.endswith("error: stopped at once by a second signal\n")
    assert checkpoints(tmp_path) == ["checkpoint_start", "checkpoint_step_2"]
    assert is_whole(tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment(seed: int, tmp_path: Path, uninterrupted: Callable[..., dict[str, Any]]) -> None:
    """SIGKILL after a random number of lines, wherever the process is by then, and once more while it goes on.

    So many steps that some are left to be killed in, however late the signal comes.
    """
    draw = random.Random(seed)
    args = command(tmp_path, reward="length", sets_=("trainer.max_steps=30",))
    for _ in range(2):
        process = start(args, tmp_path)
        left = draw.randrange(1, 6)
        for line in process.err:
            left -= line.startswith(("Step ", "Run "))
            if not left:
                break
        for _ in range(draw.randrange(200_000)):
            pass
        process.kill()
        assert process.end().returncode == -9
        args = resume(tmp_path, reward="length")
    done = run(args, tmp_path)
    assert done.returncode == 0, done.stderr
    assert steps(tmp_path) == list(range(1, 31))
    assert final(tmp_path) == uninterrupted("length", 30)


def test_a_file_size_limit(sizes: dict[str, int], tmp_path: Path) -> None:
    """As a full disk in the midst of a file: the optimiser's is the largest, and the checkpoint is the second one."""
    assert max(sizes, key=lambda name: sizes[name]) == "optimizer.pt"
    args = command(tmp_path, reward="length", sets_=("trainer.max_steps=8",))
    full = run(args, tmp_path, limit=sizes["optimizer.pt"] - 1000)
    assert full.returncode == 1
    assert "error: runs/r/checkpoints/checkpoint_step_2: cannot write the checkpoint of about" in full.stderr
    assert "bytes: File too large" in full.stderr
    assert "Traceback" not in full.stderr
    assert checkpoints(tmp_path) == ["checkpoint_start"]
    assert is_whole(tmp_path)
    done = run(resume(tmp_path, reward="length"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert steps(tmp_path) == list(range(1, 9))


@pytest.fixture
def small_disk(tmp_path: Path) -> Callable[[int], Path]:
    """Folder on a file system of its own of so many bytes."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        path = tmp_path / "disk"
        path.mkdir()
        options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        if subprocess.run(options, capture_output=True, check=False).returncode:
            pytest.skip("a small disk needs the right to mount one")
        mounted.append(path)
        return path

    yield mount  # type: ignore[misc]
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk(small_disk: Callable[[int], Path], sizes: dict[str, int]) -> None:
    folder = small_disk(int(3.4 * sum(sizes.values())))  # the start, two checkpoints, but not a third
    args = command(folder, reward="length", sets_=("trainer.max_steps=8",))
    full = run(args, folder)
    assert full.returncode == 1, full.stderr
    assert "cannot write the checkpoint of about" in full.stderr
    assert "No space left on device" in full.stderr
    assert "bytes are free" in full.stderr
    kept = checkpoints(folder)
    assert "checkpoint_step_4" in kept
    assert not any(name.startswith(".") for name in kept)
    assert is_whole(folder)
    assert "Stopped: the policy of step 4 is in runs/r/checkpoints/checkpoint_step_4" in full.stderr


def test_a_checkpoint_that_is_cut_short(
    terminated: Path, tmp_path: Path, uninterrupted: Callable[[str], dict[str, Any]]
) -> None:
    shutil.copytree(terminated / "runs", tmp_path / "runs")
    weights = tmp_path / "runs" / "r" / "checkpoints" / "checkpoint_step_3" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    done = run(["train", "grpo", "--resume", "runs/r", "--reward", f"{terminated}/my.py:signalled_in_4=1"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "checkpoint_step_3 is damaged (model.safetensors has " in done.stderr
    assert "put aside as damaged_step_3, going on from before it" in done.stderr
    assert "going on after step 2" in done.stderr
    assert "damaged_step_3" in checkpoints(tmp_path)
    assert final(tmp_path) == uninterrupted("length")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    refused = run(command(tmp_path), tmp_path)
    assert refused.returncode == 1
    assert "error: runs/r: cannot make the run folder: Not a directory" in refused.stderr
    assert "Retrieval on" not in refused.stderr  # nothing was loaded before
    assert refused.stdout == ""


def test_what_was_measured_is_shown_where_it_cannot_be_kept(tmp_path: Path) -> None:
    """A cache that cannot be kept is passed over; a result that cannot is shown, and the exit code says so."""
    (tmp_path / "cache").write_text("a file where the folder should be")
    sets_ = ("trainer.max_steps=2", "eval.cache_dir=cache", "eval.baselines=[popularity,untrained]")
    done = run(command(tmp_path, reward="length", sets_=sets_), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cannot be kept (" in done.stderr
    table = done.stdout.partition("\n")[2]
    assert "tuned policy" in table
    results = tmp_path / "runs" / "r" / "eval"
    shutil.rmtree(results)
    results.write_text("a file where the folder should be")
    again = run(resume(tmp_path, reward="length"), tmp_path)
    shown, as_json = (run(["eval", "runs/r", *more], tmp_path) for more in ([], ["--json"]))
    for ended in (again, shown, as_json):
        assert ended.returncode == 1, ended.stderr
        error, hint = ended.stderr.splitlines()[-2:]
        assert error.startswith("error: what was measured is shown, but not kept: runs/r/eval/validation")
        assert "cannot write it: " in error
        assert "and measure again" in hint
    assert "tuned policy" in again.stdout
    assert "tuned policy" in shown.stdout
    assert json.loads(as_json.stdout)["subject"] == "tuned policy"
    results.unlink()
    unseen = run(["eval", "runs/r"], tmp_path, out="/dev/full")  # neither costs the other
    assert unseen.returncode == 1
    assert "error: cannot write to stdout: no space left on device" in unseen.stderr
    assert json.loads((results / "validation.json").read_text()) == json.loads(as_json.stdout)
    shutil.rmtree(results)
    results.write_text("a file where the folder should be")
    warned = "warning: runs/r/eval: nothing can be written there (Not a directory): results are shown, not kept"
    assert shown.stderr.index(warned) < shown.stderr.index("cannot be kept (")  # before anything is measured
    assert results.read_text() == "a file where the folder should be"
    (tmp_path / "runs" / "r" / "test_openings.jsonl").mkdir()
    closed = run(["eval", "runs/r", "--split", "test"], tmp_path)
    assert (closed.returncode, closed.stdout) == (1, "")
    assert "error: the test split stays closed, as its opening cannot be recorded: runs/r/" in closed.stderr
    (tmp_path / "runs" / "r" / "test_openings.jsonl").rmdir()
    page = run(["compare", "runs/r", "popularity", "--html", "page.html"], tmp_path, limit=15_000)
    assert page.returncode == 1, page.stderr
    assert "tuned policy" in page.stdout or "runs/r" in page.stdout
    assert "error: what was measured is shown, but not kept: page.html: cannot write it: File too large" in page.stderr
    refused = run(["export", "runs/r", "--output", "cache/export"], tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-2] == "error: cache/export: cannot be written: Not a directory"


def test_a_disk_that_became_read_only(small_disk: Callable[[int], Path], terminated: Path) -> None:
    """As one does whose controller fails: what is on it stays as it is."""
    folder = small_disk(50 << 20)
    shutil.copytree(terminated / "runs", folder / "runs")
    go_on = ["train", "grpo", "--resume", "runs/r", "--reward", f"{terminated}/my.py:signalled_in_4=1"]
    before = {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()}
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    another = ["train", "grpo", "--quick-test", *sets(*SMALL, "run.name=new")]
    refused, new = run(go_on, folder), run(another, folder)
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    for ended in (refused, new):
        assert ended.returncode == 1, ended.stderr
        assert "Read-only file system" in ended.stderr
        assert "Traceback" not in ended.stderr
    assert {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()} == before
    assert run(go_on, folder).returncode == 0
    assert steps(folder) == list(range(1, 9))


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("nan_in_4", "error: reward 'PLACE/my.py:nan_in_4' returned nan for completion 0: "),
        ("raises_in_4", "error: reward 'PLACE/my.py:raises_in_4' raised ValueError: no such word (PLACE/my.py:"),
    ],
)
def test_a_reward_that_fails(
    reward: str, said: str, tmp_path: Path, uninterrupted: Callable[[str], dict[str, Any]]
) -> None:
    stopped = run(command(tmp_path, reward=reward, sets_=("trainer.max_steps=8",)), tmp_path)
    assert stopped.returncode == 1
    assert said.replace("PLACE", str(tmp_path)) in stopped.stderr
    assert "Stopped: the policy of step 3 is in runs/r/checkpoints/checkpoint_step_3" in stopped.stderr
    assert checkpoints(tmp_path) == ["checkpoint_start", "checkpoint_step_2", "checkpoint_step_3"]
    assert is_whole(tmp_path)
    (tmp_path / "mended").touch()
    if reward == "raises_in_4":
        done = run(resume(tmp_path, reward=reward), tmp_path)
        assert done.returncode == 0, done.stderr
        assert final(tmp_path) == uninterrupted("length")


def settings(folder: Path) -> dict[str, Any]:
    return load_yaml((folder / "runs" / "r" / "config.yaml").read_text())["trainer"]


def how_to_go_on(line: str) -> list[str]:
    """The arguments of the command that a stopped run names."""
    before, _, printed = line.partition(": ")
    assert before == "To go on with it"
    name, *args = shlex.split(printed)
    assert name == "rl4rec"
    return args


@pytest.mark.parametrize(
    "said", ["cuda", "python", "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"]
)
def test_out_of_memory(said: str, tmp_path: Path, uninterrupted: Callable[[str], dict[str, Any]]) -> None:
    """The step is left out, and the printed command goes on to the same policy, but for rounding."""
    args = command(tmp_path, reward="length", sets_=("trainer.max_steps=8",))
    stopped = run(args, tmp_path, memory=[said, "learning"])
    assert stopped.returncode == 1
    *_, kept, how, last, hint = stopped.stderr.splitlines()
    assert kept == "Stopped: the policy of step 3 is in runs/r/checkpoints/checkpoint_step_3"
    assert last == f"error: out of memory at step 4 of grpo, while learning: {said}"
    smaller = "trainer.batch_size=2 trainer.gradient_accumulation_steps=2"
    said_so = (
        r"hint: by the plan learning needs (\d+) MB, where .* can be used \(.* of memory are free now\): it is too low "
        rf"here, .*\. The next step down is (\d+) MB: {smaller} \(smaller micro-batches"
    )
    figures = re.match(said_so, hint)
    assert figures is not None, hint
    assert int(figures[2]) < int(figures[1])
    assert checkpoints(tmp_path) == ["checkpoint_start", "checkpoint_step_2", "checkpoint_step_3"]
    assert is_whole(tmp_path)
    if said != "cuda":
        return
    again = how_to_go_on(how)
    refused = run([arg for arg in again if arg != "--allow-partial"], tmp_path)
    assert refused.returncode == 1
    assert "trainer.batch_size was 4, is 2" in refused.stderr
    assert settings(tmp_path)["batch_size"] == 4
    done = run(again, tmp_path)
    assert done.returncode == 0, done.stderr
    assert steps(tmp_path) == list(range(1, 9))
    assert (settings(tmp_path)["batch_size"], settings(tmp_path)["gradient_accumulation_steps"]) == (2, 2)
    ours, theirs = final(tmp_path), uninterrupted("length")
    assert ours != theirs  # it was cut in other pieces
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], atol=2e-4)


@pytest.mark.parametrize(
    ("where", "when", "flags"),
    [
        (
            "validation",
            "in the validation after step 2 of grpo, while measuring validation users",
            "eval.batch_size=32",
        ),
        ("measuring", "while measuring validation users", "eval.batch_size=32"),
        ("writing", "at step 4 of grpo, while writing completions", "generation.batch_size=8"),
        ("updating", "at step 4 of grpo, while updating the weights", ""),
    ],
)
def test_out_of_memory_elsewhere(
    where: str, when: str, flags: str, tmp_path: Path, uninterrupted: Callable[[str], dict[str, Any]]
) -> None:
    validated = ("eval.steps=2",) if where == "validation" else ()
    args = command(tmp_path, reward="length", sets_=("trainer.max_steps=8", *validated))
    stopped = run(args, tmp_path, memory=["cuda", where])
    assert stopped.returncode == 1
    *_, how, last, hint = stopped.stderr.splitlines()
    assert last == f"error: out of memory {when}: cuda"
    again = how_to_go_on(how)
    if not flags:
        assert "--set" not in again
        assert "no settings are proposed" in hint
        return
    assert again[-1] == flags
    assert ("--allow-partial" in again) is (where == "writing")
    done = run(again, tmp_path)
    assert done.returncode == 0, done.stderr
    if where == "writing":  # other texts are drawn where they are written in parts
        assert steps(tmp_path) == list(range(1, 9))
    else:
        assert final(tmp_path) == uninterrupted("length")


def test_an_embedding_that_is_not_finite(tmp_path: Path, uninterrupted: Callable[[str], dict[str, Any]]) -> None:
    stopped = run(command(tmp_path, reward="length", sets_=("trainer.max_steps=8",)), tmp_path, nan=True)
    assert stopped.returncode == 1
    *_, kept, _how, last, hint = stopped.stderr.splitlines()
    assert kept == "Stopped: the policy of step 3 is in runs/r/checkpoints/checkpoint_step_3"
    assert last.startswith("error: embedder lsa")
    assert "returned a non-finite vector for text 1 of " in last
    assert hint.startswith("hint: half precision can overflow: where retrieval.dtype is fp16")
    assert stopped.stdout == ""
    assert checkpoints(tmp_path) == ["checkpoint_start", "checkpoint_step_2", "checkpoint_step_3"]
    assert is_whole(tmp_path)
    assert steps(tmp_path) == [1, 2, 3]
    texts = [json.loads(line) for line in (tmp_path / "runs" / "r" / "rollouts.jsonl").read_text().splitlines()]
    assert {text["step"] for text in texts} == {1, 2, 3}
    done = run(resume(tmp_path, reward="length"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert final(tmp_path) == uninterrupted("length")


def test_a_health_rule_that_stops(tmp_path: Path, uninterrupted: Callable[[str], dict[str, Any]]) -> None:
    """A policy this young does not end its texts."""
    sets_ = ("trainer.max_steps=8", "health.truncated=stop", "health.window=3")
    stopped = run(command(tmp_path, reward="length", sets_=sets_), tmp_path)
    assert stopped.returncode == 1
    *_, kept, how, last, hint = stopped.stderr.splitlines()
    assert kept == "Stopped: the policy of step 3 is in runs/r/checkpoints/checkpoint_step_3"
    assert how.startswith("To go on with it: rl4rec train grpo --resume runs/r")
    assert last.startswith("error: stopped by health.truncated after step 3: the share of completions cut at ")
    assert "raise generation.max_completion_length" in hint
    assert hint.endswith("to go on as it is, resume with --set health.truncated=warn")
    assert is_whole(tmp_path)
    done = run(resume(tmp_path, "--set", "health.truncated=off", reward="length"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr.replace("Warning (health.zero", "")
    assert final(tmp_path) == uninterrupted("length")


def test_settings_win_over_the_environment(tmp_path: Path, uninterrupted: Callable[..., dict[str, Any]]) -> None:
    """Also variables of a launcher that starts one process only."""
    env = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2", "HF_TOKEN": "hf_x"}
    env |= {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "WANDB_API_KEY": "x", "HF_ENDPOINT": "http://u:p@hub"}
    args = command(tmp_path, reward="length", sets_=("trainer.max_steps=2",))
    done = run(args, tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert (
        "Left out of the environment, as the run's settings decide: ACCELERATE_GRADIENT_ACCUMULATION_STEPS, "
        "ACCELERATE_MIXED_PRECISION" in done.stderr
    )
    assert final(tmp_path) == uninterrupted("length", 2)
    record = json.loads((tmp_path / "runs/r/env.json").read_text())
    assert record["variables"]["OMP_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"]
    assert record["variables_left_out"]["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert record["variables_left_out"]["LOCAL_RANK"] == "0"
    assert not {"HF_TOKEN", "WANDB_API_KEY", "HF_ENDPOINT"} & record["variables"].keys()


def test_one_process_of_several_is_refused(tmp_path: Path) -> None:
    for env, shown in (
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2"),
        ({"LOCAL_RANK": "1", "MASTER_ADDR": "localhost"}, "LOCAL_RANK=1"),
        ({"RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE=4"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
    ):
        refused = run(command(tmp_path), tmp_path, env=env)
        assert refused.returncode == 2, refused.stderr
        error, hint = refused.stderr.splitlines()
        assert error.startswith(f"error: the environment's {shown} ")
        unset = hint.partition("a leftover: env ")[2]
        assert {name for name in unset.split() if name.isupper()} == env.keys()
        planned = run(["train", "grpo", "--dry-run", "--quick-test"], tmp_path, env=env)
        assert f"the environment's {shown} " in planned.stderr
    assert not (tmp_path / "runs").exists()


def test_two_processes_on_one_folder(tmp_path: Path) -> None:
    args = command(tmp_path, reward="waits_in_4", sets_=("trainer.max_steps=5",))
    first = start(args, tmp_path)
    assert any(line.startswith("Step      3 ") for line in first.err)
    before = checkpoints(tmp_path)
    second = run(resume(tmp_path, reward="waits_in_4"), tmp_path)
    assert second.returncode == 1
    assert f"error: runs/r: another process trains this run (process {first.pid} on " in second.stderr
    again = run(command(tmp_path), tmp_path)
    assert again.returncode == 1
    assert "error: runs/r: this run is there already" in again.stderr
    assert checkpoints(tmp_path) == before
    (tmp_path / "go").touch()
    assert first.end().returncode == 0
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


def test_what_resume_refuses(terminated: Path, tmp_path: Path) -> None:
    nothing = run(["train", "grpo", "--resume", "runs/r"], tmp_path)
    assert nothing.returncode == 1
    assert "error: runs/r: not a run folder (no config.yaml)" in nothing.stderr
    shutil.copytree(terminated / "runs", tmp_path / "runs")
    reward = f"{terminated}/my.py:signalled_in_4=1"
    for more, code, said in (
        (["--seeds", "1"], 2, "--seeds cannot be given with --resume"),
        ([], 2, "my.py:signalled_in_4=1"),
        (["--reward", reward, "--set", "trainer.beta=0.5"], 1, "trainer.beta was 0.0, is 0.5"),
    ):
        refused = run(["train", "grpo", "--resume", "runs/r", *more], tmp_path)
        assert refused.returncode == code, refused.stderr
        assert said in refused.stderr
    other = run(["train", "sft", "--resume", "runs/r"], tmp_path)
    assert other.returncode == 2
    assert "use `rl4rec train grpo`" in other.stderr
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["r"]
