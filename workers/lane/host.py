"""The main process's side of the lane: hands over messages and calls, and reports what ended.

Everything runs in the worker's event loop, but what other threads may call says so.
"""

from __future__ import annotations

import itertools
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
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from inspect import isgenerator
from pathlib import Path
from typing import Any

import structlog
from billiard.exceptions import SoftTimeLimitExceeded, Terminated, TimeLimitExceeded
from celery.worker import state

from shared.settings import get_settings
from workers.heartbeat import WORKER_ID
from workers.lane import calls
from workers.lane.pulse import Pulse
from workers.lane.wire import Lines, line

log = structlog.get_logger(__name__)

MOST_TASKS = 1000
"""Tasks that a lane runs at the same time. More messages wait in the worker, and fill its window in the broker."""
PROGRAM = Path(__file__).with_name("__main__.py")
START_SECONDS = 60.0
PAUSE_SECONDS = 5.0
"""Until the next lane starts, after one that was never ready."""
UNEXPLAINED_DEATHS = 2
"""Deaths of the lane in a row, without the end of a task between them, in which only the running task is charged."""
LAST_RESULTS_SECONDS = 2.0
"""For the records of calls that have ended, and for slots to begin the calls that they have received."""
PART = 1 << 20


@dataclass
class Call:
    """A tool call of a task, before and in its slot.

    Attributes:
        until: the task's hard time limit, by the monotonic clock.
        job: billiard's handle once it is in a slot.
        accepted: the slot has begun it.
        wanted: the signal that ends it.
    """

    number: int
    key: int
    request: str
    until: float
    job: Any = None
    accepted: bool = False
    wanted: int | None = None

    @property
    def received(self) -> bool:
        """Return whether a slot has received a part of it. Celery forgets others when it stops or reconnects."""
        return self.job is not None and self.job._write_to is not None

    def end(self, number: int) -> None:
        """Send a signal to the slot as soon as it works on the call."""
        self.wanted = number
        if self.accepted and not self.job.ready():
            for pid in self.job.worker_pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)


class Child:
    """A process of the lane, with the thread that writes to it: its socket may be full while it is busy."""

    def __init__(self) -> None:
        self.link, theirs = socket.socketpair()
        self.pulse = Pulse.create()
        self.ready = self.closed = False
        self._ticked, self._since, self._looked = 0.0, time.monotonic(), time.monotonic()
        self._lines = Lines()
        given = (theirs.fileno(), self.pulse.file)
        with theirs:
            # It imports what this process would, whatever there is in the current folder.
            folders = map(os.path.abspath, sys.path)
            numbers = map(str, (*given, os.getpid()))
            command = [sys.executable, "-P", str(PROGRAM), *numbers, str(WORKER_ID), *folders]
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

    def receive(self) -> Iterator[list[Any]]:
        """Yield the messages that have arrived. `closed` says whether these were the last."""
        try:
            while part := self.link.recv(PART, socket.MSG_DONTWAIT):
                yield from self._lines.feed(part)
            self.closed = True
        except BlockingIOError:
            pass
        except (OSError, ValueError):  # It died with messages unread, or in the middle of one.
            self.closed = True

    def wait(self, seconds: float) -> None:
        """Wait until there is something to receive, or a time is over."""
        poll = select.poll()
        poll.register(self.link, select.POLLIN)
        poll.poll(seconds * 1000)

    def is_stuck(self) -> bool:
        """Return whether its event loop has not run for the length of a lease, in which this process did run."""
        (ticked, _), now = self.pulse.read(), time.monotonic()
        patience = get_settings().lease_seconds if ticked else START_SECONDS
        if ticked != self._ticked or now - self._looked > patience / 2:
            self._since = now
        self._ticked, self._looked = ticked, now
        return now - self._since > patience

    def abort(self) -> None:
        """Kill it. The event loop notices that even if another process still holds its end of the socket."""
        self.process.kill()
        with suppress(OSError):
            self.link.shutdown(socket.SHUT_RDWR)

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
        self.unplaced: deque[Call] = deque()
        self.draining = False
        self._settling: set[int] = set()
        self._in_line = False
        self._keys = itertools.count(1)
        self._deaths = 0
        self._not_before = 0.0

    def busy_slots(self) -> int:
        """Return how many slots make calls. From any thread."""
        return sum(call.job is not None for call in tuple(self.calls.values()))

    def signal(self, key: int, number: int) -> None:
        """Interrupt a task, or kill it: what `os.kill` is to a process. From any thread."""
        if child := self.child:
            child.send("kill" if number == signal.SIGKILL else "interrupt", key)

    def check(self) -> None:
        """Kill a lane whose event loop is stuck. From any thread."""
        child = self.child
        with suppress(ValueError):  # Its memory is closed: it has just ended.
            if child and child.process.returncode is None and child.is_stuck():
                log.error("lane_stuck", why="its event loop has not run for the length of a lease")
                child.abort()

    # ----------------------------------------------------------------------- tasks; from here on, in the event loop

    def warm_up(self) -> None:
        """Start the lane's process before there is a task, and before there is an event loop: see `register`."""
        self.child = Child()

    def run(self, request: Any) -> None:
        """Run a message's task; if the lane is full, when another has ended."""
        self.unstarted.append(request)
        # It needs no slot, so the broker sends another message for one.
        self.worker.consumer.qos.increment_eventually()
        self._run_next()

    def _run_next(self) -> None:
        # A message that is left here while the worker stops goes back to its queue.
        while self.unstarted and not self.draining and len(self.requests) < MOST_TASKS:
            if self.child is None and not self._begin():
                return
            self.worker.consumer.qos.decrement_eventually()
            self._start(self.unstarted.popleft())

    def _start(self, request: Any) -> None:
        key, child = next(self._keys), self.child
        assert child is not None
        self.requests[key] = request
        request.lane, request.key = self, key
        request.until = time.monotonic() + request.time_limits[0]
        request.on_accepted(child.process.pid, time.monotonic())
        # If it is lost from here on, the claim or the next publication brings it back.
        request.acknowledge()
        child.send("run", key, request.kwargs, request.time_limits)

    def _begin(self) -> bool:
        """Start the lane's process. Return False if it must wait: the last one died before it was ready."""
        wait = self._not_before - time.monotonic()
        if wait > 0:
            self.worker.hub.call_later(wait, self._run_next)
            return False
        self.child = Child()
        self.worker.hub.add_reader(self.child.link.fileno(), self.read)
        return True

    def register(self, hub: Any) -> None:
        """Join an event loop that starts, at first or after the broker was away. Celery has then dropped the messages
        that wait, who waits for a slot, and the jobs that no slot had accepted.
        """
        self.unstarted.clear()
        self._in_line = False
        if self.child:
            hub.add_reader(self.child.link.fileno(), self.read)
        for call in [*self.calls.values()]:
            if call.job is not None and not call.accepted:
                self._forgotten(call)
        self._place_next()

    def read(self) -> None:
        """Handle what has arrived from the lane."""
        if (child := self.child) is None:
            return
        for what, *arguments in child.receive():
            try:
                getattr(self, f"_on_{what}")(*arguments)
            except Exception:
                log.exception("lane_message_failed", message=what)
        if child.closed:
            self._lost(child)

    def _on_ready(self) -> None:
        if self.child:
            self.child.ready = True
            log.info("lane_ready", pid=self.child.process.pid)

    def _on_ended(self, key: int, report: str) -> None:
        self._deaths = 0
        if request := self.requests.pop(key, None):
            request.on_success((False, f"'{report}'", time.time() - request.time_start))
        self._run_next()

    def _on_killed(self, key: int, why: str, charged: bool, at_limit: bool) -> None:
        if request := self.requests.pop(key, None):
            request.on_lost(why, charged=charged, at_limit=at_limit)
        self._run_next()

    def _lost(self, child: Child) -> None:
        """Report the tasks of a lane that died. Only the one that was running may have been the cause, but a lane that
        dies again and again has one that was not seen.
        """
        with suppress(Exception):  # The event loop may have ended.
            self.worker.hub.remove(child.link.fileno())
        self.child = None
        running = child.close()
        status = child.process.returncode
        log.error("lane_lost", tasks=len(self.requests), status=status)
        self._deaths += 1
        self._not_before = 0.0 if child.ready else time.monotonic() + PAUSE_SECONDS
        for call in [*self.calls.values()]:
            call.end(signal.SIGKILL)
        self.calls.clear()
        self.unplaced.clear()
        why = f"The process that ran the task died: the worker's lane ended with status {status}."
        for key, request in self.requests.items():
            request.on_lost(why, charged=key == running or self._deaths > UNEXPLAINED_DEATHS, at_limit=False)
        self.requests.clear()
        self._run_next()

    # ---------------------------------------------------------------------------------------------- calls in slots

    def _on_call(self, number: int, key: int, request: str) -> None:
        owner = self.requests.get(key)
        if owner is None or self.draining:
            self._reply(number, calls.HANDED_BACK)
            return
        call = self.calls[number] = Call(number, key, request, owner.until)
        self.unplaced.append(call)
        if scaler := getattr(self.worker, "autoscaler", None):
            scaler.maybe_scale()
        self._place_next()

    def _place_next(self) -> None:
        """Wait for a free slot, once for all calls: Celery's semaphore has its own queue of waiters."""
        if self.unplaced and not self._in_line:
            self._in_line = True
            self.worker._quick_acquire(self._place)

    def _place(self) -> None:
        """Make the next call in the slot that is free now."""
        self._in_line = False
        while self.unplaced and self.unplaced[0].number not in self.calls:
            self.unplaced.popleft()
        if not self.unplaced:
            self.worker._quick_release()
            return
        call = self.unplaced.popleft()
        call.job = self.worker.pool.apply_async(
            calls.make,
            (call.request,),
            callback=lambda reply: self._answer(call, reply),
            error_callback=lambda failure: self._failed(call, failure),
            accept_callback=lambda *_: self._accepted(call),
            timeout=max(1.0, call.until - time.monotonic()),
        )
        self._place_next()

    def _forgotten(self, call: Call) -> None:
        """Answer a call that Celery has forgotten. If a slot has received it, it may be made all the same."""
        why = "The worker stopped or lost its broker before a slot had begun the tool call."
        self._answer(call, calls.lost(why, charged=False) if call.received else calls.HANDED_BACK)

    def _accepted(self, call: Call) -> None:
        call.accepted = True
        if call.wanted is not None:
            call.end(call.wanted)

    def _failed(self, call: Call, failure: Any) -> None:
        """Answer a call whose slot died, or was interrupted before it had begun. With a slot its task is lost, so the
        task's other calls do not begin.
        """
        exception = getattr(failure.exception, "exc", failure.exception)
        if isinstance(exception, SoftTimeLimitExceeded):
            self._answer(call, calls.INTERRUPTED)
            return
        if isinstance(exception, TimeLimitExceeded):
            why = "The task ran longer than its hard time_limit, and the slot of its tool call was killed."
            reply = calls.lost(why, at_limit=True)
        else:
            stopped = isinstance(exception, Terminated) or self.draining
            reply = calls.lost(f"The process of the tool call died: {exception}", charged=not stopped)
        self._answer(call, reply)
        for other in [*self.calls.values()]:
            if other.key == call.key and other.job is None:
                self._answer(other, reply)

    def _answer(self, call: Call, reply: str) -> None:
        if self.calls.pop(call.number, None):
            if self.draining:
                self._settling.add(call.key)
            self._reply(call.number, reply)

    def _reply(self, number: int, reply: str) -> None:
        if self.child:
            self.child.send("answer", number, reply)

    def _on_stop(self, number: int) -> None:
        """Stop a call: its task is interrupted. The second time, the task has been killed."""
        call = self.calls.get(number)
        if call is None:
            return
        if call.job is None:
            self._answer(call, calls.HANDED_BACK)
        else:
            call.end(signal.SIGUSR1 if call.wanted is None else signal.SIGKILL)

    # ---------------------------------------------------------------------------------------------------- the end

    def announce(self) -> None:
        """Begin no more tasks and calls; what runs goes back to the queue after its current step. In a signal handler
        too.
        """
        self.draining = True
        if self.child:
            self.child.send("drain")

    def drain(self) -> None:
        """Do the same, and hand back the calls that no slot has. Celery forgets them, and what no slot has begun."""
        self.announce()
        self._read_results(self._are_on_their_way, LAST_RESULTS_SECONDS)
        for call in [*self.calls.values()]:
            if not call.accepted:
                self._forgotten(call)

    def abandon_calls(self) -> None:
        """Answer the calls that no slot will make any more: the pool has ended."""
        for call in [*self.calls.values()]:
            self._answer(call, calls.lost("The worker stopped before the tool call ended.", charged=False))

    def finish(self) -> None:
        """Wait until the last task has ended, or the worker must hurry. The event loop has ended."""
        while (child := self.child) and self.requests and not state.should_terminate:
            child.wait(1.0)
            self.read()
            self.check()
        self.terminate()

    def end_calls(self) -> None:
        """Kill the slots that still make calls. Nothing has read what the slots report for a while."""
        self._read_results(lambda: True, 0.0)
        for call in [*self.calls.values()]:
            if call.received:
                call.end(signal.SIGKILL)
            else:
                self._forgotten(call)

    def terminate(self) -> None:
        """Kill the lane, when it has recorded the calls that have ended. The heartbeat hands its tasks back."""
        until = time.monotonic() + LAST_RESULTS_SECONDS
        while (child := self.child) and self._settling & self.requests.keys() and until > time.monotonic():
            child.wait(until - time.monotonic())
            self.read()
        self.kill()

    def kill(self) -> None:
        """End the process."""
        if child := self.child:
            self.child = None
            child.close()

    def _are_on_their_way(self) -> bool:
        return any(call.received and not call.accepted for call in self.calls.values())

    def _read_results(self, wanted: Callable[[], bool], seconds: float) -> None:
        """Handle what the slots report, in place of the event loop, until nothing is wanted or the time is over."""
        until = time.monotonic() + seconds
        while wanted() and (ready := self._readable(max(0.0, until - time.monotonic()))):
            for read, arguments in ready:
                # A part of a report may have been read before.
                with suppress(StopIteration, OSError, EOFError, ValueError):
                    next(read) if isgenerator(read) else read(*arguments)

    def _readable(self, seconds: float) -> list[Any]:
        """Return the event loop's callbacks for the slots that have reported something."""
        poll, readers = select.poll(), self.worker.hub.readers
        for descriptor in self.worker.pool._pool._fileno_to_outq:
            if descriptor in readers:
                poll.register(descriptor, select.POLLIN)
        return [readers[descriptor] for descriptor, _ in poll.poll(seconds * 1000)]
