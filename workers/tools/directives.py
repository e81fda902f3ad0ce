"""The minion's handling of control values (`shared.tasks.directives`)."""

from __future__ import annotations

from shared.contracts.strict_json import JsonValue
from shared.errors import ToolError
from shared.tasks.directives import RetryAfter, Snooze, Wait, directive_in
from workers.journal import Journal
from workers.outcomes import Postponed, Suspended


def obey(value: JsonValue, called: str) -> JsonValue:
    """Return the value of a finished call. A wait is a value too, and begins after the call.

    Raises:
        Postponed: the task must run again later, and repeats the call then.
        ToolError: the attempt failed; the error says when the next one may begin.
    """
    match directive_in(value):
        case Snooze(seconds):
            raise Postponed(seconds)
        case RetryAfter(seconds, reason):
            raise ToolError(f"{called!r} asks to be called again later: {reason}"[:2000], retry_after=seconds)
    return value


def begin_wait(output: JsonValue | Suspended, journal: Journal) -> JsonValue | Suspended:
    """Return a call's output; if it requested a wait, the result of the wait."""
    if isinstance(output, Suspended):
        return output
    match directive_in(output):
        case Wait(signal, seconds):
            return journal.wait(signal, seconds)
    return output
