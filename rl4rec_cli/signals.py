"""SIGINT and SIGTERM.

Decides: the first one raises where the program is, unless something is being done that must not be cut in two; a
second one ends the process at once.
Hides: handlers, and the signal that waits for the end of such work.

A weight update that is half done cannot be saved, and a step whose log line is missing cannot be resumed: training
holds signals back from before an update until the step is whole (`train/resumable.py`). Everything else, generation
and rewards above all, is abandoned where it is.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)
_is_held = False
_waiting: int | None = None
_seen: int | None = None


class Terminated(KeyboardInterrupt):
    """SIGTERM: whatever tidies up after Ctrl-C does so for it too."""


@contextmanager
def handled() -> Iterator[None]:
    """Handles both signals in this way while the body runs, then restores the handlers from before."""
    global _is_held, _waiting, _seen
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _is_held, _waiting, _seen = False, None, None
    # A command in the background of a script is told to ignore Ctrl-C, and goes on doing so.
    before = {n: handler for n in NUMBERS if (handler := signal.getsignal(n)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, _on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hold() -> None:
    """Lets signals wait from here on."""
    global _is_held
    _is_held = True


def let_go() -> None:
    """Lets signals through again, and raises one that waited.

    Raises:
        KeyboardInterrupt: one came meanwhile.
    """
    global _is_held, _waiting
    _is_held = False
    if _waiting is not None:
        number, _waiting = _waiting, None
        _raise(number)


def _on_signal(number: int, _: Any) -> None:
    global _seen, _waiting
    if _seen is not None:
        with suppress(OSError):
            os.write(2, b"error: stopped at once by a second signal\n")
        os._exit(128 + number)
    _seen = number
    if _is_held:
        _waiting = number
    else:
        _raise(number)


def _raise(number: int) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
