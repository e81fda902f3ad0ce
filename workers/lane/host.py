"""The main process's side of the lane: hands over messages and calls, and reports what ended.

Everything runs in the worker's event loop, but `interrupt`, `kill` and `check`, which other threads may call.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from billiard.exceptions import TimeLimitExceeded

from shared.settings import get_settings
from workers.heartbeat import WORKER_ID
from workers.lane import calls
from workers.lane.pulse import Pulse
from workers.lane.wire import Lines, line

log = structlog.get_logger(__name__)

MOST_TASKS = 250
"""Tasks that a lane runs at the same time. More messages wait in the worker, and fill its window in the broker."""
START_SECONDS = 60.0
PART = 1 << 20


@dataclass
class Call:
    """A tool call of a task, before and in its slot.

    Attributes:
        job: billiard's handle once it is in a slot.
        stopped: it was asked to stop.
    """

    number: int
    key: int
    request: str
    until: float
    job: Any = None
    stopped: bool = False


class Child:
    """A process of the lane, with the thread that writes to it: its socket may be full while it is busy."""

    def __init__(self) -> None:
        self.link, theirs = socket.socketpair()
        self.pulse = Pulse.create()
        self.born = time.monotonic()
        self.lines = Lines()
        given = (theirs.fileno(), self.pulse.file)
        with theirs:
            command = [sys.executable, "-m", "workers.lane", *map(str, given), str(WORKER_ID)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=given, start_new_session=True)
        self._unsent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="lane", daemon=True).start()

    def send(self, *words: Any) -> None:
        """Send a message soon."""
        self._unsent.put(line(*words))

    def _write(self) -> None:
        with suppress(OSError):
            while data := self._unsent.get():
                self.link.sendall(data)

    def receive(self) -> list[list[Any]] | None:
        """Return the messages that have arrived; None at the end."""
        messages: list[list[Any]] = []
        with suppress(BlockingIOError):
            while True:
                part = self.link.recv(PART, socket.MSG_DONTWAIT)
                if not part:
                    return messages or None
                messages += self.lines.feed(part)
        return messages

    def is_stuck(self) -> bool:
        """Return whether its event loop has not run for the length of a lease."""
        ticked, _ = self.pulse.read()
        patience = get_settings().lease_seconds if ticked else START_SECONDS
        return time.monotonic() - max(ticked, self.born) > patience

    def close(self) -> int:
        """Kill it and forget it. Return the key of the task that was running in it; 0: none was."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self._unsent.put(None)
        self.link.close()
        _, running = self.pulse.read()
        self.pulse.close()
        return running


class Lane:
    """The tasks that run outside the pool's slots.

    Args:
        worker: Celery's worker, whose pool makes the calls.
    """

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.child: Child | None = None
        self.requests: dict[int, Any] = {}
        self.unstarted: deque[Any] = deque()
        self.calls: dict[int, Call] = {}
        self.draining = False
        self._keys = 0

    def run(self, request: Any) -> None:
        """Run a message's task; if the lane is full, when another has ended."""
        if self.draining:
            return  # Its message returns to the queue when the worker stops.
        if len(self.requests) >= MOST_TASKS:
            self.unstarted.append(request)
            return
        self._keys += 1
        child = self.child = self.child or self._begin()
        self.requests[self._keys] = request
        request.lane, request.key = self, self._keys
        request.on_accepted(child.process.pid, time.monotonic())
        # If it is lost from here on, the claim or the next publication brings it back.
        request.acknowledge()
        child.send("run", self._keys, request.kwargs, request.time_limits)

    def signal(self, key: int, number: int) -> None:
        """Interrupt a task, or kill it: what `os.kill` is to a process. From any thread."""
        if child := self.child:
            child.send("kill" if number == signal.SIGKILL else "interrupt", key)

    def check(self) -> None:
        """Kill a lane whose event loop is stuck. From any thread."""
        if (child := self.child) and child.process.poll() is None and child.is_stuck():
            log.error("lane_stuck", why="its event loop has not run for the length of a lease")
            with suppress(ProcessLookupError):
                child.process.kill()

    # --------------------------------------------------------------------------------------------- the event loop

    def register(self, hub: Any) -> None:
        """Read from the lane in this event loop, also after it was reset."""
        if self.child:
            hub.add_reader(self.child.link.fileno(), self.read)
        # A reset event loop has dropped who waits for a slot.
        for call in self.calls.values():
            if call.job is None:
                self._queue(call)

    def _begin(self) -> Child:
        child = Child()
        self.worker.hub.add_reader(child.link.fileno(), self.read)
        return child

    def read(self) -> None:
        """Handle what has arrived from the lane."""
        child = self.child
        if child is None:
            return
        messages = child.receive()
        if messages is None:
            self._lost(child)
            return
        for what, *arguments in messages:
            getattr(self, f"_on_{what}")(*arguments)

    def _on_ready(self) -> None:
        log.info("lane_ready", pid=self.child and self.child.process.pid)

    def _on_ended(self, key: int, report: str) -> None:
        request = self.requests.pop(key)
        request.on_success((False, f"'{report}'", time.time() - request.time_start))
        self._next()

    def _on_killed(self, key: int, why: str, at_limit: bool) -> None:
        self._give_up(key, why, at_limit=at_limit)
        self._next()

    def _next(self) -> None:
        if self.unstarted and not self.draining:
            self.run(self.unstarted.popleft())

    def _give_up(self, key: int, why: str, *, charged: bool = True, at_limit: bool = False) -> None:
        self.requests.pop(key).on_lost(why, charged=charged, at_limit=at_limit)

    def _lost(self, child: Child) -> None:
        """Report the tasks of a lane that died. Only the one that was running may have been the cause."""
        self.worker.hub.remove(child.link.fileno())
        self.child = None
        running = child.close()
        log.error("lane_lost", tasks=len(self.requests), status=child.process.returncode)
        why = f"The process that ran the task died: the lane ended with status {child.process.returncode}."
        for call in [*self.calls.values()]:
            self._on_stop(call.number)
        for key in [*self.requests]:
            self._give_up(key, why, charged=key == running)
        while self.unstarted and len(self.requests) < MOST_TASKS and not self.draining:
            self.run(self.unstarted.popleft())

    # ---------------------------------------------------------------------------------------------- calls in slots

    def _on_call(self, number: int, key: int, request: str) -> None:
        hard, _ = self.requests[key].time_limits
        until = self.requests[key].time_start + hard - time.time()
        call = self.calls[number] = Call(number, key, request, time.monotonic() + until)
        if self.draining:
            self._answer(call, calls.HANDED_BACK)
        else:
            self._queue(call)

    def _queue(self, call: Call) -> None:
        self.worker._quick_acquire(self._place, call)

    def _place(self, call: Call) -> None:
        """Make a call in the slot that is free now."""
        if call.number not in self.calls:
            self.worker._quick_release()
            return
        call.job = self.worker.pool.apply_async(
            calls.make,
            (call.request,),
            callback=lambda reply: self._answer(call, reply),
            error_callback=lambda failure: self._failed(call, failure),
            accept_callback=lambda pid, _: self._accepted(call),
            timeout=max(1.0, call.until - time.monotonic()),
        )

    def _accepted(self, call: Call) -> None:
        if call.stopped:
            self._interrupt(call, signal.SIGUSR1)

    def _failed(self, call: Call, failure: Any) -> None:
        exception = getattr(failure.exception, "exc", failure.exception)
        overran = isinstance(exception, TimeLimitExceeded)
        why = (
            "The task ran longer than its hard time_limit and the slot of its tool call was killed."
            if overran
            else f"The process that ran the tool call died: {exception}"
        )
        self._answer(call, calls.lost(why, at_limit=overran))

    def _answer(self, call: Call, reply: str) -> None:
        self.calls.pop(call.number, None)
        if self.child:
            self.child.send("answer", call.number, reply)

    def _on_stop(self, number: int) -> None:
        """Stop a call: its task is interrupted or has ended."""
        call = self.calls.get(number)
        if call is None:
            return
        if call.job is None:
            self._answer(call, calls.HANDED_BACK)
        else:
            # The second time, its task has been killed.
            self._interrupt(call, signal.SIGKILL if call.stopped else signal.SIGUSR1)
            call.stopped = True

    def _interrupt(self, call: Call, number: int) -> None:
        for pid in [] if call.job.ready() else call.job.worker_pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    # ---------------------------------------------------------------------------------------------------- the end

    def drain(self) -> None:
        """Begin no more tasks and calls; what runs goes back to the queue after its current step."""
        self.draining = True
        for call in [*self.calls.values()]:
            if call.job is None:
                self._answer(call, calls.HANDED_BACK)
        if self.child:
            self.child.send("drain")

    def finish(self) -> None:
        """Wait until the last task has ended, without the event loop. No slot is busy any more."""
        while self.child and self.requests:
            select.select([self.child.link], [], [], 1.0)
            self.read()
            self.check()
        self.terminate()

    def terminate(self) -> None:
        """Kill the lane; the heartbeat hands its tasks back."""
        if self.child:
            child, self.child = self.child, None
            child.close()
