"""Processes of `minion up` end with it, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

FOLLOW = "MINION_FOLLOW_PARENT"
PR_SET_PDEATHSIG = 1


def follow_environment(number: signal.Signals) -> dict[str, str]:
    """What to put into a child's environment so that it gets this signal when this process is gone."""
    return {FOLLOW: f"{int(number)}:{os.getpid()}"}


def follow_parent(value: str) -> None:
    """In the child: arranges for the signal. Linux delivers it; elsewhere a thread looks every second."""
    number, _, parent = value.partition(":")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(int(parent), int(number)), daemon=True).start()
    if os.getppid() != int(parent):
        os.kill(os.getpid(), int(number))


def _watch(parent: int, number: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), number)
