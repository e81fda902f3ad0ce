"""Calls that a program makes: they wait on the channel until the host replies.

The loop sends what the program has asked for when the program can continue no further. Each exchange is one message in
each direction: the host never has to guess whether there is more.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from . import clock, wire
from .capture import Capture
from .event_loop import Deadlock, SleepingEventLoop


class ToolError(Exception):
    """A call failed; the text says why."""


class TooLarge(Exception):
    """The arguments of one call are too large; `limit` and `observed` are bytes."""

    def __init__(self, name: str, limit: int, observed: int, line: int | None) -> None:
        super().__init__(f"the arguments of {name} have {observed} bytes, the limit is {limit}")
        self.name, self.limit, self.observed, self.line = name, limit, observed, line


class NotAwaited(Exception):
    """The program ended before one of its calls was made."""

    def __init__(self, name: str, line: int | None) -> None:
        super().__init__(f"{name} was called without await, so the call was not made: write `await {name}(…)`")
        self.line = line


@dataclass(frozen=True, slots=True)
class Line:
    """The child's end of the channel: sends bytes, and returns the bytes that have arrived next."""

    send: Callable[[bytes], object]
    receive: Callable[[], bytes]


@dataclass(slots=True, eq=False)
class _Call:
    name: str
    line: int | None
    row: bytes
    future: asyncio.Future[Any] | None = None


_Answer = tuple[Any, bool, Any]
"""A future, whether the call succeeded, and its value or the text of its error."""


class Exchange:
    """The selector of a program's loop: it waits for the host's replies.

    Args:
        line: the channel.
        capture: the printed text, which is sent with each message.
        filename: the name of the program's code, to find the line of a call.
        max_arguments: bytes of one message.
        max_waiting: calls without a reply. Others are sent when there is room.

    Attributes:
        numbers: of the program's tasks.
    """

    def __init__(self, line: Line, capture: Capture, filename: str, max_arguments: int, max_waiting: int) -> None:
        self._line = line
        self._capture = capture
        self._filename = filename
        self._max_arguments = max_arguments
        self._room = max_waiting
        self._unawaited: dict[_Call, Coroutine[Any, Any, Any]] = {}
        self._unsent: list[_Call] = []
        self._waiting: dict[int, _Call] = {}
        self._made = 0
        self.numbers = itertools.count(1)

    def function(self, name: str, parameters: Sequence[str]) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Return the function of that name for the program."""

        def call(*values: Any, **named: Any) -> Coroutine[Any, Any, Any]:
            return self._make(name, _by_name(name, parameters, values, named))

        call.__name__ = call.__qualname__ = name
        return call

    def _make(self, name: str, arguments: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        line = self._current_line()
        row = _encode(name, line, arguments)
        if (size := _FRAME + len(row) + 1) > self._max_arguments:
            raise TooLarge(name, self._max_arguments, size, line)
        call = _Call(name, line, row)
        coroutine = self._wait(call)
        self._unawaited[call] = coroutine
        return coroutine

    def _current_line(self) -> int | None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != self._filename:
            frame = frame.f_back
        return frame.f_lineno if frame else None

    async def _wait(self, call: _Call) -> Any:
        del self._unawaited[call]
        call.future = asyncio.get_running_loop().create_future()
        self._unsent.append(call)
        return await call.future

    def check_end(self) -> None:
        """Check, when the program has its value, that it has made all of its calls.

        Raises:
            NotAwaited: it has not.
        """
        forgotten = [call for call, coroutine in self._unawaited.items() if _is_unstarted(coroutine)]
        if missing := [*forgotten, *filter(_is_wanted, self._unsent)]:
            raise NotAwaited(missing[0].name, missing[0].line)

    def select(self, timeout: float | None) -> list[_Answer]:
        """Return the host's replies; nothing if the program can continue without.

        Raises:
            Deadlock: no reply and no timer could ever let it continue.
        """
        if timeout is not None and timeout <= 0:
            return []
        self._unsent = list(filter(_is_wanted, self._unsent))
        if self._unsent or any(map(_is_wanted, self._waiting.values())):
            return self._exchange(wire.CALLS, self._next_calls(), 0.0)
        if timeout is None:
            raise Deadlock
        return self._exchange(wire.ASLEEP, json.dumps(timeout).encode(), timeout)

    def _next_calls(self) -> bytes:
        """Return the calls that the host may get now: the first ones, as far as there is room."""
        rows: list[bytes] = []
        size = _FRAME
        for call in self._unsent[: self._room]:
            size += len(call.row) + 1
            if size > self._max_arguments:
                break
            rows.append(call.row)
        self._waiting.update(enumerate(self._unsent[: len(rows)], self._made + 1))
        self._made += len(rows)
        self._room -= len(rows)
        del self._unsent[: len(rows)]
        return b"[" + b",".join(rows) + b"]"

    def _exchange(self, kind: bytes, body: bytes, sleep: float) -> list[_Answer]:
        printed = self._capture.take()
        self._line.send(b"".join((wire.REPLY.pack(kind, len(body), len(printed)), body, printed)))
        now, replies = json.loads(self._receive())
        if now is None:
            clock.skip(sleep)
        else:
            clock.advance(now)
        self._room += len(replies)
        return [(self._waiting.pop(number).future, ok, value) for number, ok, value in replies]

    def _receive(self) -> bytes:
        data = bytearray()
        while len(data) < wire.RESUME.size:
            data += self._line.receive()
        (length,) = wire.RESUME.unpack_from(data)
        while len(data) < wire.RESUME.size + length:
            data += self._line.receive()
        return bytes(data[wire.RESUME.size :])


class _NumberedTask(asyncio.Task[Any]):
    """Task whose place in a set, as `asyncio.wait` returns them, does not depend on its address."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> None:
        self._number = number
        super().__init__(coroutine, loop=loop, **{"name": f"Task-{number}", **options})

    def __hash__(self) -> int:
        return self._number


def as_completed(awaitables: Iterable[Any], *, timeout: float | None = None) -> Any:
    """Replace `asyncio.as_completed`, which starts coroutines in the order of their addresses."""
    return _AS_COMPLETED([asyncio.ensure_future(each) for each in awaitables], timeout=timeout)


_AS_COMPLETED = asyncio.as_completed


class ProgramEventLoop(SleepingEventLoop):
    """asyncio whose only events are the host's replies, and whose time is the host's."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._selector = exchange  # type: ignore[assignment]
        # The host's time is rounded.
        self._clock_resolution = 0.001
        self.set_task_factory(self._make_task)
        self._numbers = exchange.numbers

    def _make_task(self, loop: Any, coroutine: Any, **options: Any) -> _NumberedTask:
        return _NumberedTask(next(self._numbers), loop, coroutine, **options)

    def time(self) -> float:
        return clock.elapsed()

    def _process_events(self, event_list: list[Any]) -> None:
        for future, ok, value in event_list:
            if future.done():  # the program has cancelled the call
                continue
            if ok:
                future.set_result(value)
            else:
                future.set_exception(ToolError(value))


_FRAME = 1
"""Bytes of a list in which each entry takes one more."""
_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False)


def _is_wanted(call: _Call) -> bool:
    """Return True until the call has a result, or the program has cancelled it."""
    return call.future is not None and not call.future.done()


def _is_unstarted(coroutine: Coroutine[Any, Any, Any]) -> bool:
    # A task that is cancelled before its first step closes its coroutine.
    return inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED


def _encode(name: str, line: int | None, arguments: dict[str, Any]) -> bytes:
    try:
        return _ENCODER.encode([name, line, arguments]).encode()
    except RecursionError:
        raise ValueError(f"{name}: the arguments are nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError(f"{name}: an argument holds half of a surrogate pair") from None
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: the arguments must be JSON values: {error}") from None


def _by_name(name: str, parameters: Sequence[str], values: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments by name."""
    if len(values) > len(parameters):
        raise TypeError(f"{name}() takes {len(parameters)} arguments without a name, and got {len(values)}")
    arguments = dict(zip(parameters, values))  # noqa: B905 the rest is optional, or passed by name
    for given in named:
        if given in arguments:
            raise TypeError(f"{name}() got two values for the argument {given!r}")
    return arguments | named
