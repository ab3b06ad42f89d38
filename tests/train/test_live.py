"""What a terminal shows while a policy is trained, and that nothing else on the terminal breaks."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl4rec_cli import console
from rl4rec_cli.train import live
from rl4rec_cli.train.live import TrainingView, sparkline

RECORD = {
    "avg_reward": 0.25,
    "std_reward": 0.125,
    "loss": 0.0123,
    "kl": 0.004,
    "entropy": 1.5,
    "zero_variance_share": 0.25,
    "tokens_per_second": 12345.6,
    "memory_gib": 1.26,
}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def view(*, done: int = 0) -> tuple[TrainingView, Clock]:
    clock = Clock()
    made = TrainingView(
        *("GRPO", 100),
        done=done,
        validation=lambda: ("ndcg@10", [(10, 0.2), (20, 0.3), (30, 0.1)]),
        samples=lambda: [("a \x1b[2Jred\n hand cream", "rank      3"), ("香水 " * 80, "rank 12,345")],
        clock=clock,
    )
    return made, clock


def test_what_it_says() -> None:
    shown, clock = view()
    assert shown.lines(80)[0].endswith("0:00, time left unknown")
    shown.advance(25)
    clock.now += 90
    shown.show({**RECORD, "avg_reward": 0.1})
    shown.show(RECORD)
    *lines, last = shown.lines(120)
    assert lines == [
        "GRPO: step 25 of 100 (25%)   ████████▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁   1:30, 4:30 left",
        "reward 0.2500 ± 0.1250   ▁█",
        "validation ndcg@10 0.1000 (step 30)   best 0.3000 (step 20)",
        "loss 0.0123   KL 0.0040   entropy 1.5000   zero variance 25%   tokens/s 12,346   memory 1.3 GiB",
        "rank      3  a [2Jred hand cream",
    ]
    assert last.startswith("rank 12,345  香水 香水 ")
    assert last.endswith("…")
    assert 118 <= console.width(last) <= 120


def test_time_left_is_that_of_the_steps_made_here() -> None:
    shown, clock = view(done=50)
    shown.advance(60)
    clock.now += 36000
    assert shown.lines(200)[0].endswith("10:00:00, 40:00:00 left")


@pytest.mark.parametrize("width", [1, 5, 20, 30, 41, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    shown, _ = view()
    for step in range(1, 60):
        shown.advance(step)
        shown.show({**RECORD, "avg_reward": step / 60})
    assert all(console.width(line) <= max(width, 1) for line in shown.lines(width))
    if width >= 41:
        said = "  ".join(shown.lines(width))
        for word in ("step 59 of 100", "reward 0.9833 ± 0.1250", "entropy 1.5", "zero variance 25%", "best 0.3000"):
            assert word in said


def test_numbers_that_are_not_there_are_left_out() -> None:
    shown = TrainingView("SFT", 10)
    shown.show({"loss": 2.5, "kl": None})
    assert shown.lines(80)[1:] == ["loss 2.5000"]


def test_the_course_of_a_reward() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0]) == "▁"
    assert sparkline([2, 2, 2]) == "▁▁▁"
    assert sparkline([-1, 1, -1], "_@") == "_@_"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("LINES", "20")
    yield Terminal()
    assert console._drawing == []


def test_log_lines_and_a_bar_meanwhile(screen: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation measures in the midst of training, with a bar of its own, and things are logged."""
    monkeypatch.setattr(sys, "stderr", screen)
    with live.shown(view()[0]) as drawn:
        assert drawn is not None
        console.log("a line with [brackets]")
        with console.progress(10, "validation") as advance:
            advance(3)
            console.log("another")
            print("what a library warns of", file=sys.stderr)
        console.log("a third")
    text = screen.getvalue()
    for said in ("a line with [brackets]\n", "another\n", "what a library warns of\n", "a third\n"):
        assert text.replace("\r", "").count(said) == 1
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is hidden once, and comes back


def test_the_end_is_tidy_whatever_ended_it(screen: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen)
    for _ in range(2):  # several seeds
        with pytest.raises(KeyboardInterrupt), live.shown(view()[0]):
            raise KeyboardInterrupt
        assert sys.stderr is screen
    assert screen.getvalue().count("\x1b[?25l") == screen.getvalue().count("\x1b[?25h") == 2


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_be_drawn_on(term: str, screen: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen)
    assert live.is_drawn()
    monkeypatch.setenv("TERM", term)
    with live.shown(view()[0]) as drawn:
        assert drawn is None
    assert screen.getvalue() == ""


def test_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with live.shown(view()[0]) as drawn:
        assert drawn is None
    monkeypatch.setattr(sys, "stderr", None)
    with live.shown(view()[0]) as drawn:
        assert drawn is None


SMALL = [
    *("data.synthetic.users=40", "data.synthetic.items=25", "policy.tiny.hidden_size=32", "policy.tiny.heads=2"),
    *("policy.tiny.vocab_size=400", "generation.max_completion_length=6", "prompt.max_history=2"),
    *("trainer.batch_size=4", "trainer.num_generations=4", "trainer.warm_start=null", "trainer.max_steps=500"),
    *("trainer.num_train_epochs=999", "eval.users=6", "eval.baselines=[]", "eval.cache_dir=null", "eval.steps=5"),
    *("logging.steps=1", "run.name=r"),
]
WORD = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def test_a_training_on_a_narrow_terminal_that_is_interrupted(tmp_path: Path) -> None:
    """The real command, its results piped away: Ctrl-C in the midst of the view leaves the terminal as it was."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 44, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "rl4rec_cli.cli.main", "train", "grpo", "--quick-test"]
        + [part for text in SMALL for part in ("--set", text)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=tmp_path,
        env={**{k: v for k, v in os.environ.items() if k != "COLUMNS"}, "TERM": "xterm", "NO_COLOR": "1"},
        # A shell's background job ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(theirs)
    seen = b""
    sent = False
    while select.select([ours], [], [], 300)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
        if not sent and b"best 0." in seen and b"rank " in seen:
            process.send_signal(signal.SIGINT)
            sent = True
    os.close(ours)
    assert process.stdout is not None
    assert process.stdout.read() == b""
    assert process.wait() == 130
    text = seen.decode()
    assert not re.search(r"\x1b\[[0-9;]*m", text.replace("\x1b[0m", "").replace("\x1b[1m", ""))  # NO_COLOR
    plain = WORD.sub("", text).replace("\r", "\n")
    assert "GRPO: step " in plain
    assert re.search(r"^reward 0\.\d{4} ± 0\.\d{4}   [▁-█]+", plain, re.MULTILINE)
    assert "Step      1 |" not in plain  # the lines of those who have no terminal
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "Stopped: the policy of step " in plain
    assert plain.rstrip().endswith("error: interrupted")
    assert (tmp_path / "runs" / "r" / "training_log.jsonl").is_file()
