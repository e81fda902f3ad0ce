"""Control values (`shared.control_values`), as the minion obeys them."""

from __future__ import annotations

from shared.contracts.strict_json import JsonValue
from shared.control_values import RetryAfter, Snooze, Wait, control_of
from shared.errors import ToolError
from workers.journal import Journal
from workers.outcomes import Postponed, Suspended


def obeyed(value: JsonValue, called: str) -> JsonValue:
    """The value of a call that has been made; a wait is one, and comes after it.

    Raises:
        Postponed: the task is to run again later; the call is made again then.
        ToolError: the attempt failed, and says when the next one may begin.
    """
    match control_of(value):
        case Snooze(seconds):
            raise Postponed(seconds)
        case RetryAfter(seconds, reason):
            raise ToolError(f"{called!r} asks to be called again later: {reason}"[:2000], retry_after=seconds)
    return value


def waited(output: JsonValue | Suspended, journal: Journal) -> JsonValue | Suspended:
    """A call's output; where it was a wait, what the wait brought."""
    if isinstance(output, Suspended):
        return output
    match control_of(output):
        case Wait(signal, seconds):
            return journal.wait(signal, seconds)
    return output
