"""Ensures that the processes of `minion up` end with it, however it ends."""

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
    """Return environment variables that make a child receive this signal when this process is gone."""
    return {FOLLOW: f"{int(number)}:{os.getpid()}"}


def follow_parent(value: str) -> None:
    """Arrange for the signal, in the child. Linux delivers it at once. A thread also checks every second, and ends the
    process if the signal does not: with broker and database gone, a worker may wait for them indefinitely.
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
