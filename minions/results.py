"""What a builtin tool or a function may return instead of a result, to have its task wait without a worker.

from minions.results import snooze

def poll(arguments, context):
    return the_report() or snooze(60)
"""

from __future__ import annotations

from typing import Any


def snooze(seconds: float) -> dict[str, Any]:
    """Run the task again after so many seconds. No attempt is charged."""
    return {"$snooze": seconds}


def retry_after(seconds: float, reason: str) -> dict[str, Any]:
    """This attempt failed. The next one, if there is one left, begins after so many seconds."""
    return {"$retry_after": seconds, "reason": reason}


def sleep(seconds: float) -> dict[str, Any]:
    """Go on after so many seconds. The call's result is `{"timed_out": True}`."""
    return {"$wait": {"seconds": seconds}}


def wait_for_signal(name: str, timeout: float | None = None) -> dict[str, Any]:
    """Go on when somebody sends the signal to the task, or after `timeout` seconds.

    The call's result is `{"signal": name, "payload": …, "sent_at": …}`, or `{"timed_out": True}`.
    """
    return {"$wait": {"signal": name} if timeout is None else {"signal": name, "seconds": timeout}}
