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
the same source, seed, times and replies, delivered in the same groups, give the same calls. What still differs (the
order of a set of objects, a clock read by a preloaded package) shows as another call, and each call has its line.
"""

from __future__ import annotations

import json
import keyword
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from shared.sandbox import verdict
from shared.sandbox.confined import wire
from shared.sandbox.confined.request import Request
from shared.sandbox.exchange import ChildGone, Conversation
from shared.sandbox.fork_server import ZygoteLost
from shared.sandbox.outcome import Limits, SandboxFault
from shared.sandbox.program_events import Asleep, Call, Calls, Event, Failed, Finished, Reply, ReplyError
from shared.sandbox.replies import Inbox, Wish
from shared.sandbox.replies import Reply as Report


@dataclass(frozen=True)
class ProgramLimits:
    """Limits of one program. Time that the host takes for its replies counts to none of them.

    Attributes:
        timeout: seconds in which the program itself runs, in all: its CPU time, and its idle time after each message,
            without the first second, in which this process may have been busy.
        cpu: seconds of CPU time; None leaves it to `timeout`.
        memory: megabytes that the program may add to the interpreter.
        calls: calls in all, those that it cancels included; a sleep counts as one.
        outstanding: calls that wait for their reply at the same time. Others come with a later event.
        arguments: bytes of JSON in one call, with its name. The calls of one event have no more together, either.
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
    arguments: int = 256 << 10
    reply: int = 4 << 20
    output: int = 1 << 20
    stdout: int = 64 << 10
    source: int = 128 << 10


class Program:
    """One run of a program in a confined process. Not thread-safe. `with` kills the process in every case.

    Made by `Sandbox.program`.

    Attributes:
        duration: seconds of wall time in which the program has run.
        cpu_time: seconds of CPU time at the last event, counted by the kernel.
        peak_memory: bytes that the program added to the interpreter; known when it has ended.
    """

    def __init__(
        self,
        take: Callable[[], tuple[verdict.Server, verdict.Child]],
        attempts: int,
        request: Request,
        functions: Mapping[str, Sequence[str]],
        limits: ProgramLimits,
        refusal: SandboxFault | None,
    ) -> None:
        self._take = take
        self._attempts = attempts
        self._request = request
        self._functions = functions
        self._limits = limits
        self._refusal = refusal
        self._started = False
        cpu = limits.timeout if limits.cpu is None else limits.cpu
        self._bounds = verdict.Bounds(limits.memory, limits.timeout, cpu, "program")
        self._server: Any = None
        self._child: Any = None
        self._conversation: Conversation | None = None
        self._made = 0
        self._sleeps = 0
        self._waiting: dict[int, None] = {}
        self._is_asleep = False
        self._stdout = ""
        self._printed = 0
        self.duration = self.cpu_time = 0.0
        self.peak_memory = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Event:
        """Start the program, and return when it needs a reply or has ended.

        Raises:
            SandboxRefused: this machine cannot confine programs.
            ValueError: it was started before.
        """
        if self._started:
            raise ValueError("the program was started before: a run starts once")
        self._started = True
        if self._refusal is not None:
            return Failed(self._refusal, "")
        reason = "no process was free in time"
        for _ in range(self._attempts):
            try:
                self._server, self._child = self._take()
                self._bounds.apply(self._request, self._child)
                self._conversation = Conversation(self._child, self._bounds.timeout, self._bounds.cpu)
                return self._exchange(self._request.encode())
            except ZygoteLost as error:
                reason = str(error)
            except ChildGone:
                reason = "the parked process was gone"
            self.close()
        return Failed(verdict.unavailable(reason, "program"), "")

    def resume(self, replies: Sequence[Reply | ReplyError] = (), now: float | None = None) -> Event:
        """Deliver replies in this order, and return when the program needs another reply or has ended.

        Args:
            replies: to calls that have none yet: all of them, or at least one. None after `Asleep`.
            now: the time on the program's clocks, as POSIX seconds; it never goes back. None leaves them, and after
                `Asleep` lets the sleep pass.

        Raises:
            ValueError: there is no such call, or it has a reply already; the program does not wait; or the time is not
                a number of seconds.
            TypeError: a value is not made of JSON's types.
        """
        if self._conversation is None:
            raise ValueError("the program is not running")
        self._check(replies)
        message = _encode(None if now is None else _check_time(now), replies, self._limits.reply)
        for reply in replies:
            del self._waiting[reply.id]
        if self._conversation.is_interrupted():
            return self._end(None, _interrupted(has_ended=self._child.has_ended(0)))
        try:
            return self._exchange(message)
        except ChildGone:
            return self._end(None, _interrupted(has_ended=True))

    def close(self) -> None:
        """Kill the process. May be repeated."""
        self._conversation = None
        child, self._child = self._child, None
        if child is not None:
            self._server.end(child)

    def _check(self, replies: Sequence[Reply | ReplyError]) -> None:
        ids = [reply.id for reply in replies]
        if len(set(ids)) < len(ids) or not self._waiting.keys() >= set(ids):
            raise ValueError(f"not every reply is for a call that waits: {ids}, and {[*self._waiting]} wait")
        if not ids and not self._is_asleep:
            raise ValueError("the program waits for at least one reply")

    def _exchange(self, message: bytes) -> Event:
        """Send a message and return what the program does next."""
        conversation = self._conversation
        assert conversation is not None
        inbox = Inbox(self._sizes(), of_program=True)
        limit = conversation.exchange(message, self._server, inbox)
        self.duration, self.cpu_time = conversation.duration, self._child.cpu_time()
        if limit is not None:
            return self._end(limit, None)
        report = inbox.reply()
        self._stdout += report.stdout
        self._printed += inbox.printed
        if report.wishes is None and report.asleep is None:
            return self._end(None, report)
        fault = self._violation(report.wishes)
        if fault is not None:
            return self._end(None, Report(fault=fault))
        conversation.suspend(self._server)
        return self._pause(report)

    def _sizes(self) -> Limits:
        """Return the limits of the next report."""
        limits = self._limits
        room = max(0, limits.stdout - self._printed)
        return Limits(source=limits.source, arguments=limits.arguments, output=limits.output, stdout=room)

    def _violation(self, wishes: tuple[Wish, ...] | None) -> SandboxFault | None:
        """Return the fault of a program that asks for too much, or for what no honest program asks."""
        new = len(wishes or ())
        unknown = next((wish for wish in wishes or () if wish.name not in self._functions), None)
        if unknown is not None or (wishes == () and not self._waiting):
            return SandboxFault("security", "the program's process sent a call that no honest program makes")
        self._sleeps += wishes is None
        line = wishes[-1].line if wishes else None
        for what, number, limit in (
            ("calls", self._made + self._sleeps + new, self._limits.calls),
            ("calls at the same time", len(self._waiting) + new, self._limits.outstanding),
        ):
            if number > limit:
                message = f"the program makes more than {limit} {what}"
                return SandboxFault("too_many_calls", message, line=line, limit=limit, observed=number)
        return None

    def _pause(self, report: Report) -> Event:
        self._is_asleep = report.asleep is not None
        if report.asleep is not None:
            return Asleep(report.asleep)
        first = self._made + 1
        calls = tuple(
            Call(id, wish.name, wish.arguments, wish.line) for id, wish in enumerate(report.wishes or (), first)
        )
        self._made += len(calls)
        self._waiting.update(dict.fromkeys(call.id for call in calls))
        return Calls(calls, tuple(self._waiting))

    def _end(self, limit: str | None, report: Report | None) -> Event:
        """Judge the end, and kill the process."""
        assert self._conversation is not None
        ended = self._conversation.end(limit, report)
        fault = verdict.judge(ended, self._server, self._child, self._bounds)
        self.cpu_time, self.peak_memory = ended.usage.cpu_time, ended.usage.peak_memory
        self.close()
        if fault is None:
            assert report is not None
            return Finished(report.value, self._stdout)
        if fault.type == "stdout_too_large":
            self._stdout += f"\n… [cut after {self._limits.stdout} bytes]"
        return Failed(fault, self._stdout)


def check_functions(functions: Mapping[str, Sequence[str]]) -> None:
    """Check the names of functions and parameters.

    Raises:
        ValueError: one is not a name in Python.
    """
    for name in (*functions, *(parameter for parameters in functions.values() for parameter in parameters)):
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"{name!r} is not a name in Python")


def _check_time(now: float) -> float:
    """Return the time.

    Raises:
        ValueError: it is not a number of seconds.
    """
    if not math.isfinite(now):
        raise ValueError("now must be a finite number of seconds")
    return now


def settings_of(functions: Mapping[str, Sequence[str]], limits: ProgramLimits, seed: str, now: float) -> bytes:
    """Return the part of a request that is for programs only."""
    parameters = {name: list(names) for name, names in functions.items()}
    settings = {
        "functions": parameters, "max_arguments": limits.arguments, "max_waiting": limits.outstanding, "seed": seed,
        "now": _check_time(now),
    }  # fmt: skip
    return json.dumps(settings).encode()


def _interrupted(*, has_ended: bool) -> Report:
    """Return the report of a program that did not wait for its replies."""
    if has_ended:
        return Report(fault=SandboxFault("crashed", "the program's process ended"))
    return Report(fault=SandboxFault("security", "the program's process sent more, though it had to wait"))


_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False)


def _encode(now: float | None, replies: Sequence[Reply | ReplyError], limit: int) -> bytes:
    """Return the message that lets a program continue."""
    rows = b",".join(_row(reply, limit) for reply in replies)
    body = b"[%s,[%s]]" % (json.dumps(now).encode(), rows)
    return wire.RESUME.pack(len(body)) + body


def _row(reply: Reply | ReplyError, limit: int) -> bytes:
    """Return one reply. A value that cannot be passed on may be of foreign origin: the call fails, nothing else."""
    if isinstance(reply, ReplyError):
        return _ENCODER.encode([reply.id, False, reply.message]).encode("utf-8", "replace")
    try:
        row = _ENCODER.encode([reply.id, True, reply.value]).encode()
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        return _row(ReplyError(reply.id, f"the result cannot be passed to the program: {reason}"), limit)
    if len(row) > limit:
        reason = f"it has {len(row)} bytes, the limit is {limit}"
        return _row(ReplyError(reply.id, f"the result cannot be passed to the program: {reason}"), limit)
    return row
