"""Programs: untrusted Python that calls the host's functions while it runs.

    limits = ProgramLimits(timeout=10.0, calls=50)
    with sandbox.program(source, {"lookup_order": ("order",)}, seed="task 7", now=1_800_000_000.0) as program:
        event = program.start()
        while isinstance(event, Calls | Asleep):
            replies = [Reply(call.id, answer(call)) for call in event.calls] if isinstance(event, Calls) else []
            event = program.resume(replies, now=time.time())
    # Finished(value, stdout) or Failed(fault, stdout)

A program is a module whose top level may use `await` and `return`:

    order = await lookup_order(order="A-17")
    prices = await asyncio.gather(*[price_of(item=item) for item in order["items"]])
    return sum(prices)

Each function is called with `await`, and returns the value of its reply. Arguments are JSON values; those without a
name get the function's parameters in their order. A `ReplyError` raises `ToolError`, an `Exception` that the program
may catch. The value of a program is that of its `return`, else of the expression that is its last statement, else of
its variable `result`. A coroutine as the last expression is awaited, and `asyncio.run(main())` works, too.

The program runs until it can continue no further without a reply; then the host gets all calls that it has made since
the last event, in the order in which it made them. The program's clocks and random numbers come from the host, so that
the same source, seed, times and replies give the same calls. What still differs (the order of a set of objects, a
clock read by a preloaded package) shows as another call, and each call has its line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shared.sandbox.outcome import SandboxFault

Cause = Literal["exception", "syntax", "limit", "policy", "unavailable"]


@dataclass(frozen=True)
class ProgramLimits:
    """Limits of one program. Time that the host takes for its replies counts to none of them.

    Attributes:
        timeout: seconds of wall time in which the program itself runs, in all.
        cpu: seconds of CPU time; None leaves it to `timeout`.
        memory: megabytes that the program may add to the interpreter.
        calls: calls in all, those that it cancels included; a sleep counts as one.
        outstanding: calls that wait for their reply at the same time.
        arguments: bytes of JSON in the arguments of all calls of one event.
        reply: bytes of JSON in the value of one reply.
        output: bytes of JSON in the program's value.
        stdout: bytes of printed text.
        source: bytes of the program.
    """

    timeout: float = 10.0
    cpu: float | None = None
    memory: int = 128
    calls: int = 100
    outstanding: int = 20
    arguments: int = 1 << 20
    reply: int = 4 << 20
    output: int = 1 << 20
    stdout: int = 64 << 10
    source: int = 128 << 10


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


_CAUSES: Mapping[str, Cause] = {
    "exception": "exception",
    "invalid_output": "exception",
    "syntax_error": "syntax",
    "import_denied": "policy",
    "forbidden_name": "policy",
    "security": "policy",
    "crashed": "policy",
    "unavailable": "unavailable",
}


class Program:
    """One run of a program in a confined process. Not thread-safe. `with` kills the process in every case.

    Made by `Sandbox.program`.
    """

    def start(self) -> Event:
        """Start the program, and return when it needs a reply or has ended.

        Raises:
            SandboxRefused: this machine cannot confine programs.
        """
        raise NotImplementedError

    def resume(self, replies: Sequence[Reply | ReplyError] = (), now: float | None = None) -> Event:
        """Deliver replies in this order, and return when the program needs another reply or has ended.

        Args:
            replies: to calls that have none yet: all of them, or at least one. None after `Asleep`.
            now: the time on the program's clocks, as POSIX seconds; it never goes back. None leaves them, and after
                `Asleep` lets the sleep pass.

        Raises:
            ValueError: there is no such call, or it has a reply already.
            TypeError: a value is not made of JSON's types.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Kill the process. May be repeated."""
        raise NotImplementedError
