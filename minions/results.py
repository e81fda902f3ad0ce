"""Values that a builtin tool or a function may return instead of a result, to make its task wait without a worker.

A builtin tool may raise `GiveUp`, so that its task fails without further attempts.

from minions.results import snooze

def poll(arguments, context):
    return the_report() or snooze(60)
"""

from __future__ import annotations

from typing import Any


class GiveUp(Exception):
    """Raised by a builtin tool: the call had no effect, and must not be repeated. Other errors are retried."""


def snooze(seconds: float) -> dict[str, Any]:
    """Run the task again after this many seconds. No attempt is charged."""
    return {"$snooze": seconds}


def retry_after(seconds: float, reason: str) -> dict[str, Any]:
    """Fail this attempt. The next one, if any is left, begins after this many seconds."""
    return {"$retry_after": seconds, "reason": reason}


def sleep(seconds: float) -> dict[str, Any]:
    """Continue after this many seconds. The call's result is `{"timed_out": True}`."""
    return {"$wait": {"seconds": seconds}}


def wait_for_signal(name: str, timeout: float | None = None) -> dict[str, Any]:
    """Continue when a signal of that name is sent to the task, or after `timeout` seconds.

    The call's result is `{"signal": name, "payload": …, "sent_at": …}`, or `{"timed_out": True}`.
    """
    return {"$wait": {"signal": name} if timeout is None else {"signal": name, "seconds": timeout}}
