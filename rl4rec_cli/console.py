"""Everything drawn on a terminal.

Decides: results go to standard output, progress and logs to standard error; tables and bars are drawn on a terminal
and are plain aligned lines elsewhere; text from outside (titles, generated texts) cannot move the cursor.
Hides: rich, which is imported when something is drawn on a terminal.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

T = TypeVar("T")
_NUMBER = re.compile(r"[-+−±]?\.?\d[\d.,_]*(e[-+]?\d+)?( ?[%×sGMk]?i?B?)( ?[±\[(].*)?", re.IGNORECASE)
_drawing: list[Console] = []  # the console of what is on screen, through which log lines must go


def is_terminal(stream: IO[str] | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def log(*values: object) -> None:
    """Prints a line on standard error. A closed standard error is no reason to stop."""
    line = clean(" ".join(str(value) for value in values), keep="\n\t")
    if _drawing:
        _drawing[-1].print(line, markup=False, highlight=False, soft_wrap=True)
        return
    if sys.stderr is not None:  # closed from the start; `print` would take standard output instead
        with suppress(BrokenPipeError, ValueError):
            print(line, file=sys.stderr, flush=True)


def result(text: str) -> None:
    """Prints text on standard output as it is: YAML, a recipe."""
    print(text.removesuffix("\n"), flush=True)


def print_json(value: Any) -> None:
    """Prints a result as JSON on standard output. It refuses `NaN`, which is no JSON."""
    result(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))


def clean(text: str, *, keep: str = "") -> str:
    """Returns the text without control characters and without what reorders it on a terminal."""
    return "".join(c if c in keep or unicodedata.category(c) not in ("Cc", "Cf") else " " for c in text)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table on standard output. Aligns columns of numbers right; floats get four decimals."""
    cells = [[_cell(value) for value in row] for row in rows]
    for row in cells:
        if len(row) != len(columns):
            raise ValueError(f"a row has {len(row)} cells for {len(columns)} columns: {row}")
    right = [_is_numeric([row[i] for row in cells]) for i in range(len(columns))]
    widths = [max(map(width, column)) for column in zip(columns, *cells, strict=True)]
    # A drawn table that is too wide would cut its numbers.
    if is_terminal(sys.stdout) and sum(widths) + 3 * len(widths) < shutil.get_terminal_size().columns:
        _draw_table(title, columns, cells, right)
        return
    lines = [[clean(name) for name in columns], *cells]
    if title:
        print(title)
    # A terminal would break a line inside a number: what has no room follows below, each row by its name again.
    room = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None
    for place, block in enumerate(_blocks(widths, room)):
        if place:
            print()
        for line in lines:
            print("  ".join(_pad(line[i], widths[i], right[i]) for i in block).rstrip())


def _blocks(widths: Sequence[int], room: int | None) -> list[list[int]]:
    """Splits columns into blocks that fit a line, with the first one in every block; one block if there is no limit."""
    blocks = [[0]]
    for i in range(1, len(widths)):
        total = sum(widths[j] + 2 for j in blocks[-1])
        if room is not None and total + widths[i] > room and len(blocks[-1]) > 1:
            blocks.append([0])
        blocks[-1].append(i)
    return blocks


def figures(values: Mapping[str, Any], *, as_json: bool = False) -> None:
    """Print named figures, one a line, as `figure_rows` has them."""
    if as_json:
        print_json(values)
        return
    table("", FIGURE_COLUMNS, figure_rows(values))


FIGURE_COLUMNS = ["figure", "value"]


def figure_rows(values: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Returns named figures as rows of a table; `{"length": {"min": 2}}` is the row `length min`."""
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        below = value.items() if isinstance(value, Mapping) else [("", value)]
        rows += [(f"{name} {key}".strip().replace("_", " "), _figure(v)) for key, v in below]
    return rows


def _figure(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _draw_table(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text  # cells are Text: a `[` in a title is no markup

    rich_table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, title_justify="left")
    for name, is_number in zip(columns, right, strict=True):
        rich_table.add_column(Text(name), justify="right" if is_number else "left", no_wrap=is_number)
    for row in cells:
        rich_table.add_row(*(Text(text) for text in row))
    from rich.console import Console

    Console(file=sys.stdout, highlight=False).print(rich_table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    return clean(str(value)).strip()


def _is_numeric(column: Sequence[str]) -> bool:
    texts = [text for text in column if text and text not in ("-", "–", "—", "nan")]
    return bool(texts) and all(_NUMBER.fullmatch(text) for text in texts)


def width(text: str) -> int:
    """Columns a text takes on a terminal: East Asian characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _pad(text: str, columns: int, right: bool) -> str:
    gap = " " * (columns - width(text))
    return gap + text if right else text + gap


@contextmanager
def progress(
    total: int | None, description: str, *, every: float = 10.0, rows: Callable[[], int] | None = None
) -> Iterator[Callable[[int], None]]:
    """Shows how far something is, on standard error: `with progress(n, "embedding") as advance: … advance(batch)`.

    It draws a bar on a terminal. Elsewhere it prints a line every `every` seconds, so that quick work prints none.

    Args:
        rows: what has been done, where `total` counts something else, such as bytes; shown with its rate.
    """
    if is_terminal(sys.stderr):
        with _bar(total, description, rows) as advance:
            yield advance
        return
    position, started, last_line_at = 0, time.monotonic(), time.monotonic()

    def say() -> None:
        seconds = time.monotonic() - started
        if rows is not None:
            left = f", {(total - position) / position * seconds:.0f} s left" if total and 0 < position <= total else ""
            log(f"{description}: {rows():,} rows, {rows() / max(seconds, 1e-9):,.0f} a second, {seconds:.0f} s{left}")
            return
        of = f"/{total:,} ({position / total:.0%})" if total else ""
        log(f"{description}: {position:,}{of}, {seconds:.0f} s")

    def plain(count: int = 1) -> None:
        nonlocal position, last_line_at
        position += count
        if time.monotonic() - last_line_at >= every:
            last_line_at = time.monotonic()
            say()

    yield plain
    if last_line_at != started and time.monotonic() - started >= every:
        say()


@contextmanager
def _bar(total: int | None, description: str, rows: Callable[[], int] | None) -> Iterator[Callable[[int], None]]:
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn() if rows is None else rich_progress.TextColumn("{task.fields[rows]}"),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with (
        drawing() as console,
        rich_progress.Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar,
    ):
        task = bar.add_task(clean(description), total=total, rows="")
        yield partial(_advance, bar, task, rows)


@contextmanager
def drawing() -> Iterator[Console]:
    """The console to draw on, through which log lines go meanwhile; within another drawing it is the same one.

    Two would each move the cursor as if the other were not there.
    """
    from rich.console import Console

    console = _drawing[-1] if _drawing else Console(file=sys.stderr)
    _drawing.append(console)
    try:
        yield console
    finally:
        _drawing.pop()


def _advance(bar: Progress, task: TaskID, rows: Callable[[], int] | None, count: int = 1) -> None:
    bar.advance(task, count)
    if rows is not None:
        elapsed = bar.tasks[bar.task_ids.index(task)].elapsed or 1e-9
        bar.update(task, rows=f"{rows():,} rows, {rows() / elapsed:,.0f} a second")


def quiet_libraries() -> None:
    """Keep notices and bars of transformers and its kin off the terminal, where they would stand between our lines.

    Errors still show. Imports transformers.
    """
    import logging
    import os
    import warnings

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # what it says of torchao's classes
    import transformers

    if os.environ.get("WANDB_MODE") == "offline":  # it says so on standard output when it is imported
        with redirect_stdout(None):
            import transformers.integrations.integration_utils
    transformers.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers.logging.disable_progress_bar()
    for name in ("trl", "accelerate", "peft", "datasets", "sentence_transformers", "httpx", "torchao", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    # Such an adapter is merged into weights of its own; PEFT's own merge would not do so.
    warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True` and a tied layer is part")


@contextmanager
def hushed() -> Iterator[None]:
    """Keeps what a library prints off standard output, which is for results. Logs it if the body fails."""
    output = io.StringIO()
    try:
        with redirect_stdout(output):
            yield
    except BaseException:
        if text := output.getvalue().strip():
            log(text)
        raise
