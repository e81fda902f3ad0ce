"""Values that a function or a tool may return instead of a result, to make its task wait.

    {"$snooze": 60}                        run the task again in 60 s; no attempt is charged
    {"$retry_after": 30, "reason": "…"}    this attempt failed; try again in 30 s, if attempts are left
    {"$wait": {"seconds": 3600}}           a timer; when it ends, the result of the call is {"timed_out": true}
    {"$wait": {"signal": "paid", "seconds": 86400}}
                                           a named signal; the result is {"signal", "payload", "sent_at"}

Such a value is not checked against the output schema. Neither is `{"$content": [block, …]}`: content for the model, see
`shared.contracts.content`.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.contracts.content import CONTENT
from shared.contracts.strict_json import JsonValue
from shared.errors import InvalidOutput

LONGEST_SECONDS = 366 * 86_400
MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Snooze:
    """Run the task again after `seconds`, uncharged."""

    seconds: float


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """The attempt failed; the next one begins after `seconds`."""

    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for a signal, for at most `seconds`; without a signal name, this is a plain timer."""

    signal: str | None
    seconds: float | None


Directive = Snooze | RetryAfter | Wait


def directive_in(value: JsonValue) -> Directive | None:
    """Return the directive in a returned value, or None if that is a result.

    Raises:
        InvalidOutput: the directive is invalid.
    """
    if not isinstance(value, dict) or not value or len(value) > 2:
        return None
    if set(value) == {"$snooze"}:
        return Snooze(_seconds("$snooze", value["$snooze"]))
    if "$retry_after" in value and set(value) <= {"$retry_after", "reason"}:
        return RetryAfter(_seconds("$retry_after", value["$retry_after"]), str(value.get("reason") or "asked for it"))
    if set(value) == {"$wait"}:
        return _wait(value["$wait"])
    return None


def is_result(value: JsonValue) -> bool:
    """Return whether a returned value is a result in the form of the output schema."""
    return directive_in(value) is None and not (isinstance(value, dict) and value.keys() == {CONTENT})


def _wait(asked: JsonValue) -> Wait:
    if not isinstance(asked, dict) or not asked or not set(asked) <= {"signal", "seconds"}:
        raise InvalidOutput('$wait must have {"seconds": …}, {"signal": "name"}, or both.')
    signal, seconds = asked.get("signal"), asked.get("seconds")
    if signal is not None and not (isinstance(signal, str) and 0 < len(signal) <= MAX_NAME):
        raise InvalidOutput(f"The signal of a $wait must be a name of 1 to {MAX_NAME} characters.")
    return Wait(signal, None if seconds is None else _seconds("$wait", seconds))


def _seconds(key: str, value: JsonValue) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_SECONDS:
        raise InvalidOutput(f"{key} must be 0 to {LONGEST_SECONDS} seconds, not {value!r}."[:300])
    return float(value)
