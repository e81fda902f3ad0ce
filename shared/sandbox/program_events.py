"""Messages between the run of a program and its host: events of the program, and replies to its calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shared.sandbox.outcome import SandboxFault

Cause = Literal["exception", "syntax", "limit", "policy", "unavailable"]
_CAUSES: Mapping[str, Cause] = {
    "exception": "exception",
    "invalid_output": "exception",
    "crashed": "exception",
    "syntax_error": "syntax",
    "import_denied": "policy",
    "forbidden_name": "policy",
    "security": "policy",
    "unavailable": "unavailable",
}


@dataclass(frozen=True)
class Call:
    """One call of a program.

    Attributes:
        id: 1 for the first call of the program, and so on without a gap.
        name: one of the functions.
        arguments: JSON values by parameter.
        line: the line of the program in which it is; None if the program hides it.
    """

    id: int
    name: str
    arguments: dict[str, Any]
    line: int | None


@dataclass(frozen=True)
class Calls:
    """The program waits for at least one reply.

    Attributes:
        calls: made since the last event; empty if the program waits for earlier ones.
        waiting: ids of all calls without a reply whose result the program still wants, in their order.
    """

    calls: tuple[Call, ...]
    waiting: tuple[int, ...]


@dataclass(frozen=True)
class Asleep:
    """The program sleeps, and waits for no call. To be resumed without replies, when the time has passed."""

    seconds: float


@dataclass(frozen=True)
class Finished:
    """The program ended with a value: JSON, None if it returned nothing. `stdout` is everything that it printed."""

    value: Any
    stdout: str


@dataclass(frozen=True)
class Failed:
    """The program ended without a value.

    Attributes:
        fault: `type`, `message`, and if known `line`, `column`, `traceback`, `limit`, `observed`. Types are those of
            `docs/sandbox.md`, and `too_many_calls` and `arguments_too_large`.
        stdout: the text that arrived before the end.
    """

    fault: SandboxFault
    stdout: str

    @property
    def cause(self) -> Cause:
        """The kind of end: only after "unavailable" can the same program get further when it is run again."""
        return _CAUSES.get(self.fault.type, "limit")


Event = Calls | Asleep | Finished | Failed


@dataclass(frozen=True)
class Reply:
    """The result of a call: its id and a JSON value."""

    id: int
    value: Any


@dataclass(frozen=True)
class ReplyError:
    """The failure of a call: its id, and the text of the `ToolError` that it raises in the program."""

    id: int
    message: str
