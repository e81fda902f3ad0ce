"""The acts on one task: those that a reader may do, by the rules of the endpoints behind them, and what they did."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.pages.rights import RULES, TASK
from shared.access.actors import Key

DONE = {
    "cancel": "Cancelled. A running task stops at its next step.",
    "replay": "Submitted again, as this new task.",
    "run": "Submitted, as this task.",
    "signal": "The signal was sent.",
    "budget": "The budget was changed.",
    "resume": "Resumed.",
    "approve": "Approved.",
    "edit": "Approved, with your arguments.",
    "reject": "Rejected.",
    "result": "The result was recorded.",
    "again": "The call is repeated.",
    "fail": "The step was failed.",
}


def permitted(key: Key) -> Callable[[str], bool]:
    """Return whether a key may do an act about a task, such as `cancel`: pages show no other buttons."""
    return lambda act: RULES[f"POST {TASK}/{act}"].permits(key)
