"""What a terminal shows while a policy is trained; elsewhere there are plain lines (`train/callbacks.py`).

Decides: what is shown and in which order, that lines fill the terminal's width, and that log lines, bars and the
output of libraries stand above it.
Hides: rich, which is imported only to draw.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
_POINTS = 40
_GAP = "   "


class TrainingView:
    """Shows one phase of training, anew at each refresh.

    Args:
        title: the phase.
        steps: of the whole phase.
        done: steps made before, by the run that this one resumes.
        validation: returns the name of the metric on held-out users, and its steps and values so far.
        samples: returns some of the last completions, each with what it came to, such as its rank.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        title: str,
        steps: int,
        *,
        done: int = 0,
        validation: Callable[[], tuple[str, Sequence[tuple[int, float]]]] | None = None,
        samples: Callable[[], Sequence[tuple[str, str]]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._steps, self._before, self._step = title, steps, done, done
        self._validation, self._samples, self._clock = validation, samples, clock
        self._started = clock()
        self._record: Mapping[str, Any] = {}
        self._rewards: list[float] = []

    def advance(self, step: int) -> None:
        """Takes in how many steps are made."""
        self._step = step

    def show(self, record: Mapping[str, Any]) -> None:
        """Takes in a logged step."""
        self._record = record
        if record.get("avg_reward") is not None:
            self._rewards = [*self._rewards, record["avg_reward"]][-_POINTS:]

    def __rich_console__(self, of: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        for line in self.lines(options.max_width, blocks=_ASCII_BLOCKS if options.ascii_only else _BLOCKS):
            yield Text(line, no_wrap=True, overflow="crop")

    def lines(self, width: int, *, blocks: str = _BLOCKS) -> list[str]:
        """Returns the lines to show, none wider than `width`."""
        lines = [*_packed(self._progress(width, blocks), width), *_packed(self._reward(width, blocks), width)]
        lines += _packed(self._validated(), width)
        lines += _packed(self._numbers(), width)
        for text, worth in self._samples() if self._samples is not None else ():
            line = " ".join(console.clean(text).split())
            lines.append(_cut(f"{worth}  {line}", width))
        return lines

    def _progress(self, width: int, blocks: str) -> list[str]:
        share = self._step / max(1, self._steps)
        seconds, new_steps = self._clock() - self._started, self._step - self._before
        remaining_time = (
            f"{_time(seconds / new_steps * (self._steps - self._step))} left" if new_steps else "time left unknown"
        )
        position = f"{self._title}: step {self._step:,} of {self._steps:,} ({share:.0%})"
        times = f"{_time(seconds)}, {remaining_time}"
        size = max(0, min(30, width - len(position) - len(times) - 2 * len(_GAP)))
        full = round(share * size)
        return [position, *([f"{blocks[-1] * full}{blocks[0] * (size - full)}"] if size else []), times]

    def _reward(self, width: int, blocks: str) -> list[str]:
        record = self._record
        if not self._rewards:
            return []
        line = f"reward {_figure(record.get('avg_reward'))} ± {_figure(record.get('std_reward'))}"
        return [line, sparkline(self._rewards[-max(1, width - len(line) - len(_GAP)) :], blocks)]

    def _validated(self) -> list[str]:
        if self._validation is None:
            return []
        metric, values = self._validation()
        if not values:
            return []
        step, best = max(values, key=lambda pair: (pair[1], -pair[0]))
        return [f"validation {metric} {values[-1][1]:.4f} (step {values[-1][0]:,})", f"best {best:.4f} (step {step:,})"]

    def _numbers(self) -> list[str]:
        record = self._record
        columns = (
            ("loss", "loss", _figure),
            ("kl", "KL", _figure),
            ("entropy", "entropy", _figure),
            ("zero_variance_share", "zero variance", lambda v: f"{v:.0%}"),
            ("tokens_per_second", "tokens/s", lambda v: f"{v:,.0f}"),
            ("memory_gib", "memory", lambda v: f"{v:.1f} GiB"),
        )
        return [f"{name} {form(record[key])}" for key, name, form in columns if record.get(key) is not None]


def sparkline(values: Sequence[float], blocks: str = _BLOCKS) -> str:
    """Draws a series of values as blocks, the least value as the lowest block."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(blocks[round((v - low) / span * (len(blocks) - 1))] for v in values)


def is_drawn() -> bool:
    """Returns whether standard error is a terminal that can be drawn on."""
    return console.is_terminal(sys.stderr) and os.environ.get("TERM", "") not in ("dumb", "unknown")


@contextmanager
def shown(view: TrainingView) -> Iterator[TrainingView | None]:
    """Draws the view until the block ends. Yields None without drawing if there is no terminal to draw on."""
    if not is_drawn():
        yield None
        return
    from rich.live import Live

    with (
        console.drawing() as of,
        Live(
            get_renderable=lambda: view,
            console=of,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=console.is_terminal(sys.stdout),
            vertical_overflow="crop",
        ),
    ):
        yield view


def _packed(parts: Sequence[str], width: int) -> list[str]:
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(_GAP) + len(part) <= width:
            lines[-1] += _GAP + part
        else:
            lines.append(_cut(part, width))
    return lines


def _cut(text: str, width: int) -> str:
    if console.width(text) <= width:
        return text
    while text and console.width(text) >= width:
        text = text[:-1]
    return f"{text}…"


def _figure(value: float | None) -> str:
    return "?" if value is None else f"{value:.4f}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
