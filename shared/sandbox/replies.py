"""Parses a child's reply without trusting it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from shared.contracts.json_shape import MAX_DIGITS
from shared.contracts.strict_json import Bounds, parse
from shared.errors import InvalidInput, TooLarge
from shared.sandbox.confined import wire
from shared.sandbox.outcome import Limits, Problem, SandboxFault

MAX_TEXT = 10_000
LONGEST_SLEEP = 86_400.0
"""Seconds. asyncio's loop never waits longer at a time."""
# A function's dictionary may have the keys 1 and "1".
RETURNED = Bounds(depth=wire.MAX_DEPTH, digits=MAX_DIGITS, values=wire.MAX_VALUES, unique_keys=False)
REPORT = replace(RETURNED, depth=4)


@dataclass(frozen=True)
class Wish:
    """A call that a program wants to make: the function, the line of the program if known, and its arguments."""

    name: str
    line: int | None
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """A checked reply: a value, a fault, problems or code, and the printed text.

    One from a program may instead have the calls that it wants to make, or the seconds for which it sleeps.
    """

    value: Any = None
    fault: SandboxFault | None = None
    stdout: str = ""
    problems: tuple[Problem, ...] = ()
    code: bytes | None = None
    wishes: tuple[Wish, ...] | None = None
    asleep: float | None = None


class Inbox:
    """Collects the bytes of one reply, up to the permitted length.

    Args:
        limits: maximum lengths of the body and the printed text.
        of_program: whether the reply comes from a program.

    Attributes:
        printed: bytes of printed text that the reply has, or announces.
    """

    def __init__(self, limits: Limits, *, of_program: bool = False) -> None:
        self._limits = limits
        self._readers = _PROGRAM_READERS if of_program else _READERS
        self._bytes = bytearray()
        self._wanted: int | None = None
        self.printed = 0

    def add(self, data: bytes) -> bool:
        """Add bytes; return whether the reply is complete or invalid, so that there is nothing more to wait for."""
        self._bytes += data
        if self._wanted is None and len(self._bytes) >= wire.REPLY.size:
            kind, body, self.printed = wire.REPLY.unpack_from(self._bytes)
            if body > self._limit(kind) or self.printed > self._limits.stdout:
                self._wanted = 0
            else:
                self._wanted = wire.REPLY.size + body + self.printed
        return self._wanted is not None and len(self._bytes) >= self._wanted

    def _limit(self, kind: bytes) -> int:
        if kind == wire.CALLS:
            return self._limits.arguments
        return self._limits.output if kind in (wire.VALUE, wire.CODE) else wire.MAX_REPORT

    def reply(self) -> Reply:
        """Return the reply for whatever arrived."""
        if len(self._bytes) < wire.REPLY.size:
            return _distrust("ended without a reply" if not self._bytes else "broke off within its reply")
        kind, body_length, _ = wire.REPLY.unpack_from(self._bytes)
        if self._wanted == 0:
            return self._too_large(kind, body_length)
        if self._wanted != len(self._bytes):
            return _distrust("broke off within its reply", security=len(self._bytes) > (self._wanted or 0))
        body = bytes(self._bytes[wire.REPLY.size : wire.REPLY.size + body_length])
        stdout = _clean(self._bytes[wire.REPLY.size + body_length :].decode("utf-8", "replace"))
        return self._readers.get(kind, _unknown)(body, stdout)

    def _too_large(self, kind: bytes, length: int) -> Reply:
        limit = self._limit(kind)
        if kind in _TOO_LARGE and kind in self._readers and length > limit:
            type_, what = _TOO_LARGE[kind]
            message = f"{what} {length} bytes, the limit is {limit}"
            return Reply(fault=SandboxFault(type_, message, limit=limit, observed=length))
        return _distrust("announced a reply of an impossible length", security=True)


_TOO_LARGE = {
    wire.VALUE: ("output_too_large", "the returned value has"),
    wire.CALLS: ("arguments_too_large", "the calls that wait at the same time have"),
}


def _distrust(what: str, security: bool = False) -> Reply:
    return Reply(fault=SandboxFault("security" if security else "crashed", f"the process {what}"))


def _clean(text: str) -> str:
    """Return text that a database can store."""
    return text.replace("\0", "\ufffd")


def _read_value(body: bytes, stdout: str) -> Reply:
    try:
        return Reply(value=parse(body, what="the returned value", bounds=RETURNED), stdout=stdout)
    except (InvalidInput, TooLarge) as error:
        return _unsuitable(error, "output_too_large", stdout)


def _unsuitable(error: InvalidInput | TooLarge, too_large: str, stdout: str) -> Reply:
    """Return the reply for a value or calls that are not strict JSON, or have too many values."""
    kind = too_large if isinstance(error, TooLarge) else "invalid_output"
    return Reply(fault=SandboxFault(kind, error.message.rstrip("."), limit=error.detail.get("limit")), stdout=stdout)


def _read_fault(body: bytes, stdout: str) -> Reply:
    try:
        facts = parse(body, bounds=REPORT)
    except (InvalidInput, TooLarge):
        facts = None
    kind = facts.get("type") if isinstance(facts, dict) else None
    if not isinstance(facts, dict) or not isinstance(kind, str) or kind not in wire.CHILD_FAULT_TYPES:
        return _distrust("sent a malformed fault", security=True)
    fault = SandboxFault(
        type=kind,
        message=_text(facts.get("message")) or "no reason given",
        line=_whole(facts.get("line")),
        column=_whole(facts.get("column")),
        traceback=_text(facts.get("traceback")),
        limit=_whole(facts.get("limit")),
        observed=_whole(facts.get("observed")),
    )
    return Reply(fault=fault, stdout=stdout)


def _read_problems(body: bytes, stdout: str) -> Reply:
    try:
        rows = parse(body, bounds=REPORT)
        problems = tuple(_problem(*row) for row in rows)
    except (InvalidInput, TooLarge, TypeError):
        return _distrust("sent malformed findings", security=True)
    return Reply(problems=problems, stdout=stdout)


def _problem(message: object, line: object, column: object, code: object) -> Problem:
    return Problem(_text(message) or "unknown", _whole(line), _whole(column), _text(code) or "unknown")


def _read_code(body: bytes, stdout: str) -> Reply:
    return Reply(code=body)


def _read_wishes(body: bytes, stdout: str) -> Reply:
    try:
        rows = parse(body, what="the list of calls", bounds=RETURNED)
        return Reply(wishes=tuple(_wish(*row) for row in rows), stdout=stdout)
    except (InvalidInput, TooLarge) as error:
        return _unsuitable(error, "arguments_too_large", stdout)
    except (TypeError, ValueError):
        return _distrust("sent malformed calls", security=True)


def _wish(name: object, line: object, arguments: object) -> Wish:
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise TypeError
    return Wish(name, _whole(line), arguments)


def _read_sleep(body: bytes, stdout: str) -> Reply:
    try:
        seconds = parse(body, bounds=REPORT)
    except (InvalidInput, TooLarge):
        seconds = None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= LONGEST_SLEEP:
        return _distrust("sent a malformed sleep", security=True)
    return Reply(asleep=float(seconds), stdout=stdout)


def _unknown(body: bytes, stdout: str) -> Reply:
    return _distrust("sent something that is not a reply", security=True)


def _text(value: object) -> str | None:
    return value[:MAX_TEXT] if isinstance(value, str) else None


def _whole(value: object) -> int | None:
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53
    return value if fits else None  # type: ignore[return-value]


_READERS = {
    wire.VALUE: _read_value,
    wire.FAULT: _read_fault,
    wire.PROBLEMS: _read_problems,
    wire.CODE: _read_code,
}
_PROGRAM_READERS = {
    wire.VALUE: _read_value,
    wire.FAULT: _read_fault,
    wire.CALLS: _read_wishes,
    wire.ASLEEP: _read_sleep,
}
