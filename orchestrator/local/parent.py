"""Processes of `minion up` end with it, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

FOLLOW = "MINION_FOLLOW_PARENT"
LOOK_SECONDS = 1.0
# Longer than a worker's soft shutdown takes.
GRACE_SECONDS = 12.0
PR_SET_PDEATHSIG = 1


def follow_environment(number: signal.Signals) -> dict[str, str]:
    """What to put into a child's environment so that it gets this signal when this process is gone."""
    return {FOLLOW: f"{int(number)}:{os.getpid()}"}


def follow_parent(value: str) -> None:
    """In the child: arranges for the signal. Linux delivers it at once; a thread looks every second all the same, and
    ends the process where the signal does not: with broker and database gone, a worker may wait for them for ever.
    """
    number, _, parent = value.partition(":")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    threading.Thread(target=_watch, args=(int(parent), int(number)), name="follow-parent", daemon=True).start()


def _watch(parent: int, number: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), number)
    time.sleep(GRACE_SECONDS)
    os._exit(os.EX_UNAVAILABLE)
