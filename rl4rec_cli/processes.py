"""Processes of ours that another one of ours starts.

Decides: such a process ends with the one that started it, however that one ends: it may be killed while this one
computes.
Hides: how its end is noticed.

Linux offers to send a signal (PR_SET_PDEATHSIG), but sends it when the *thread* ends that started this process: a
service that a thread started would end in the middle of the run. So a thread of this process looks instead.
"""

from __future__ import annotations

import os
import signal
import threading
import time

_LOOKS_SECONDS = 0.5


def end_with_parent(parent: int, *, grace: float = 0.0) -> None:
    """End this process when its parent does: at once, or as SIGTERM ends it.

    Args:
        parent: the process that started this one. If it is gone already, this process ends here.
        grace: seconds that this process has to end by itself after SIGTERM.
    """
    if os.getppid() != parent:
        os._exit(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOKS_SECONDS)
        if grace:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
