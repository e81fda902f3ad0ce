"""The lane's own process: a greenlet for each task, its time limits, and its calls in slots of the pool.

The main process starts it with the descriptors of a socket and of the pulse's memory, and its end ends the lane.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any
from uuid import UUID

import gevent
import greenlet
import structlog
from celery.exceptions import SoftTimeLimitExceeded
from gevent.event import AsyncResult
from gevent.queue import Queue
from sqlalchemy.orm import configure_mappers

from shared.contracts.strict_json import JsonValue
from shared.database.connections import share_connections
from shared.imports import without_collector
from shared.notifications import share_redis_connections
from shared.settings import get_settings
from shared.telemetry import configure
from workers import journal, llm, minion
from workers.execution import execute
from workers.lane import calls
from workers.lane.pulse import Pulse
from workers.lane.wire import Lines, line
from workers.meter import Meter
from workers.outcomes import ClaimLost
from workers.steps import StepResult
from workers.task import ClaimedTask
from workers.tools.place import PlacedTool, move_calls

log = structlog.get_logger(__name__)

PR_SET_PDEATHSIG = 1
TICK_SECONDS = 0.5
RECORD_SECONDS = 0.2
MOST_LOOKUPS = 50
PART = 1 << 20

_task: ContextVar[int] = ContextVar("task", default=0)
"""The key of the task that this greenlet, or one that it started, works on."""


def main() -> None:
    """Run until the main process ends."""
    descriptor, pulse, parent, worker_id = *map(int, sys.argv[1:4]), UUID(sys.argv[4])
    # The main process notices this one's end by the socket, so no program that a tool starts may keep it open.
    for given in (descriptor, pulse):
        os.set_inheritable(given, False)
    if sys.platform == "linux":
        # At once: no call to a model begins that nothing would wait for.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    configure(get_settings(), component="worker")
    share_connections()
    share_redis_connections()
    # Not in the first task: it would keep all others waiting, and a soft limit in the middle leaves mappers unusable.
    configure_mappers()
    with without_collector():
        llm.load()
    minion.warm_up()
    LaneProcess(socket.socket(fileno=descriptor), Pulse(pulse), worker_id).run()


class Killed(BaseException):
    """Ends a greenlet whose task did not stop in time. No `except Exception` on its way stops it.

    Attributes:
        at_limit: its hard time limit is over.
    """

    def __init__(self, why: str, *, at_limit: bool = False) -> None:
        super().__init__(why)
        self.why, self.at_limit = why, at_limit


class LaneMeter(Meter):
    """Counts the CPU time of one task. Its memory is not known: the process's belongs to all tasks."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._key, self._began_at = clock, _task.get(), time.monotonic()

    def cpu_seconds(self) -> float:
        """CPU time of the task's greenlets so far."""
        return self._clock.seconds_of(self._key)

    def peak_memory_bytes(self) -> int:
        """Nothing: see the class."""
        return 0


class Clock:
    """Counts each task's CPU time, knows its greenlets, and notes in the pulse which task is running."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._seconds: dict[int, float] = {}
        self._greenlets: dict[int, set[Any]] = {}
        self._running, self._since = 0, time.thread_time()
        greenlet.settrace(self._switched)

    def begin(self, key: int) -> None:
        """Begin to count for a task."""
        self._seconds[key], self._greenlets[key] = 0.0, set()

    def seconds_of(self, key: int) -> float:
        """CPU time of a task's greenlets so far."""
        current = time.thread_time() - self._since if self._running == key else 0.0
        return self._seconds.get(key, 0.0) + current

    def forget(self, key: int) -> list[gevent.Greenlet[..., Any]]:
        """Drop a task that has ended. Return its greenlets that have not."""
        del self._seconds[key]
        return [each for each in self._greenlets.pop(key) if isinstance(each, gevent.Greenlet) and not each.dead]

    def _switched(self, _: str, switched: tuple[Any, Any]) -> None:
        now = time.thread_time()
        if self._running in self._seconds:
            self._seconds[self._running] += now - self._since
        # This function runs in the context of the greenlet that begins.
        self._running, self._since = _task.get(), now
        self._pulse.switch(self._running)
        if self._running in self._greenlets:
            self._greenlets[self._running].add(switched[1])


class LaneProcess:
    """The tasks and the calls in flight.

    Args:
        link: the socket to the main process.
        worker_id: the worker's row.
    """

    def __init__(self, link: socket.socket, pulse: Pulse, worker_id: UUID) -> None:
        self.link = link
        self.pulse = pulse
        self.worker_id = worker_id
        self.tasks: dict[int, gevent.Greenlet[..., str]] = {}
        self.calls: dict[int, tuple[int, AsyncResult[str]]] = {}
        self.clock = Clock(pulse)
        self._numbers = itertools.count(1)
        self._unsent: Queue[bytes] = Queue()

    def run(self) -> None:
        """Obey the main process until it closes the socket."""
        move_calls(self._in_slot)
        # They end tasks, and are no errors of the lane.
        hub = gevent.get_hub()
        hub.NOT_ERROR += (Killed, calls.SlotLost, SoftTimeLimitExceeded)
        # Its threads resolve names, and one that does not resolve keeps a thread for seconds.
        hub.threadpool.maxsize = MOST_LOOKUPS
        gevent.spawn(self._tick)
        gevent.spawn(self._write)
        self._send("ready")
        lines = Lines()
        while part := self.link.recv(PART):
            for what, *arguments in lines.feed(part):
                getattr(self, f"_{what}")(*arguments)
        os._exit(0)

    def _tick(self) -> None:
        while True:
            self.pulse.tick(time.monotonic())
            gevent.sleep(TICK_SECONDS)

    def _send(self, *words: Any) -> None:
        """Send a message soon. The caller does not wait, so no time limit can cut the message in two."""
        self._unsent.put(line(*words))

    def _write(self) -> None:
        while True:
            self.link.sendall(self._unsent.get())

    # ------------------------------------------------------------------------------- what the main process asks for

    def _run(self, key: int, message: dict[str, Any], limits: Sequence[float]) -> None:
        hard, soft = limits
        overran = Killed(f"The task ran longer than its hard time_limit of {hard:g} s and was killed.", at_limit=True)
        timers = [gevent.spawn_later(soft, self._interrupt, key), gevent.spawn_later(hard, self._end, key, overran)]
        self.clock.begin(key)
        task = self.tasks[key] = gevent.spawn(self._work, key, message, limits)
        # Whatever ends it, and whenever, even before it begins.
        task.link(lambda ended: self._ended(key, ended, timers))

    def _interrupt(self, key: int) -> None:
        self._end(key, SoftTimeLimitExceeded())

    def _kill(self, key: int) -> None:
        self._end(key, Killed("The task did not stop when it was asked to, and was killed."))

    def _drain(self) -> None:
        if not journal.draining.is_set():
            journal.draining.set()
            log.info("lane_drains", tasks=len(self.tasks))

    def _answer(self, number: int, reply: str) -> None:
        if call := self.calls.pop(number, None):
            call[1].set(reply)

    # --------------------------------------------------------------------------------------------------- one task

    def _work(self, key: int, message: dict[str, Any], limits: Sequence[float]) -> str:
        _task.set(key)
        return execute(**message, worker_id=self.worker_id, limits=limits, measure=lambda: LaneMeter(self.clock))

    def _end(self, key: int, reason: BaseException) -> None:
        """Raise an exception in a task where it waits."""
        if key in self.tasks:
            self.tasks[key].kill(reason, block=False)

    def _ended(self, key: int, task: gevent.Greenlet[..., str], timers: list[Any]) -> None:
        """Report a task's end to the main process, once."""
        del self.tasks[key]
        for left in self.clock.forget(key):
            # A tool call in another thread. Nothing of a task outlives it: another claim may have the task soon.
            left.kill(Killed("Its task has ended."), block=False)
        for timer in timers:
            timer.kill(block=False)
        for number, (owner, _) in [*self.calls.items()]:
            if owner == key:  # It left this call behind.
                self._send("stop", number)
        match task.exception:
            case None:
                self._send("ended", key, task.value)
            case Killed() as killed:
                self._send("killed", key, killed.why, True, killed.at_limit)
            case calls.SlotLost() as lost:
                self._send("killed", key, lost.why, lost.charged, lost.at_limit)
            case error:
                at_limit = isinstance(error, SoftTimeLimitExceeded)
                self._send("killed", key, f"The minion failed outside the task: {error!r}"[:500], True, at_limit)

    def _in_slot(self, tool: PlacedTool, arguments: JsonValue, task: ClaimedTask, step: int) -> StepResult:
        """Make a call in a slot of the pool. See `workers.lane.calls.result`."""
        number, key = next(self._numbers), _task.get()
        if key not in self.tasks:
            raise ClaimLost  # Its task has ended without it.
        reply: AsyncResult[str] = AsyncResult()
        self.calls[number] = key, reply
        self._send("call", number, key, calls.request(tool, arguments, task, step))
        try:
            return calls.result(str(reply.get()))
        except SoftTimeLimitExceeded:
            if not reply.ready():
                self._send("stop", number)
            made = calls.result(str(reply.get()))
            # The call ended before it could be interrupted. Its record is written first.
            gevent.spawn_later(RECORD_SECONDS, self._interrupt, key)
            return made
