"""The heartbeat of a worker's main process, which keeps its children's leases alive.

It registers the worker, sends heartbeats, and reports children that died. When the worker stops, it releases the tasks
that they still held, uncharged. If no heartbeat arrives for the length of a lease, the orchestrator reassigns the
tasks.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from uuid import UUID, uuid4

import structlog
from celery.worker import state as celery_state
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from shared import __version__
from shared.database.connections import is_transient, make_engine, reason
from shared.errors import MinionError
from shared.monitor_events import event_just_ended
from shared.notifications import publish_finished
from shared.sandbox import Sandbox
from shared.settings import Settings
from shared.tasks import lifecycle
from workers import time_limits
from workers.interrupter import Interrupter
from workers.memory import MemoryGauge
from workers.monitoring import Monitors, event_of_lost_child

log = structlog.get_logger(__name__)

# Generated before the pool forks, so that the children and the main process refer to the same row.
WORKER_ID: UUID = uuid4()

REGISTER = text(
    """
    INSERT INTO workers (id, name, capabilities, slots, pool, host, pid, version, packages, idle_since)
    VALUES (:id, :name, :capabilities, :slots, :pool, :host, :pid, :version, :packages, now())
    ON CONFLICT (id) DO UPDATE SET status = 'online', last_seen = now()
    """
)
BEAT = text(
    "UPDATE workers SET last_seen = now(), busy = :busy, slots = :slots, active = :active, memory_bytes = :memory, "
    "idle_since = CASE WHEN :idle THEN COALESCE(idle_since, now()) END, status = 'online' WHERE id = :id RETURNING 1"
)
STOPPED = text("UPDATE workers SET status = 'stopped', busy = 0, active = '{}', idle_since = NULL WHERE id = :id")
HELD = text("SELECT task_id, claim FROM task_status WHERE worker_id = :id AND state = 'running'")


@dataclass(frozen=True, slots=True)
class LostChild:
    """A task whose child died, the claim it ran under, and the reason.

    Attributes:
        at_limit: the message says that a time limit ended it; the task is charged only if the record agrees.
        died: False if the child has not died of it: it lives, or the task's turn in its pack had not come.
        unsaved: ends of its pack's tasks that the child may not have committed. They are recorded first, and the list
            is emptied, which all tasks of the pack share.
    """

    task_id: UUID
    claim: int
    why: str
    charged: bool
    at_limit: bool
    died: bool = True
    unsaved: list[dict[str, Any]] = field(default_factory=list)


_lost_children: queue.SimpleQueue[LostChild] = queue.SimpleQueue()
_news = threading.Event()
_still_active: set[str] = set()


def keep_active(task: str) -> None:
    """Keep a task among the active ones until its child is reported, so that it does not count as lost."""
    _still_active.add(task)


def report_lost_child(message: dict[str, Any], why: str, *, charged: bool = True, at_limit: bool = False) -> None:
    """Record that this message's task lost its child. Returns at once; the heartbeat's thread writes the record."""
    try:
        lost = LostChild(UUID(message["task_id"]), int(message["claim"]) + 1, why, charged, at_limit)
    except (KeyError, TypeError, ValueError):
        log.warning("malformed_message", message=repr(message)[:200])
    else:
        report_lost(lost)


def report_lost(child: LostChild) -> None:
    """Record a lost child as `report_lost_child` does."""
    _lost_children.put(child)
    _news.set()


class Heartbeat:
    """Thread of the main process with a separate database connection."""

    def __init__(self, settings: Settings, worker: Any) -> None:
        self.settings = settings
        self.worker = worker
        self.engine: Engine = make_engine(settings, pool_size=1)
        self.interrupter = Interrupter(settings.cancel_grace_seconds) if "prefork" in str(worker.pool_cls) else None
        self._registered = False
        self._latest_slots = 1
        self._memory = MemoryGauge()
        self.monitors = Monitors(worker)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Register the worker and start the heartbeat.

        The worker must be registered before it takes a message: claims of an unknown worker are refused.
        """
        self._registered = self._beat_once()
        self._thread.start()

    def stop(self) -> None:
        """Stop the heartbeat and release the tasks still held. Call it when no child is running any more."""
        self._stopping.set()
        _news.set()
        self._thread.join(timeout=self.settings.heartbeat_seconds)
        for duty in (self._report, self._hand_back):
            try:
                duty()
            except Exception as error:
                log.warning(
                    "hand_back_failed",
                    reason=reason(error),
                    why="the orchestrator takes the tasks away after the lease",
                )
        self.monitors.close()
        self.engine.dispose()

    def _run(self) -> None:
        while True:
            _news.wait(self.settings.heartbeat_seconds)
            _news.clear()
            if self._stopping.is_set():
                return
            self._registered = self._beat_once()

    def _beat_once(self) -> bool:
        """Send a heartbeat, then report children that died. Return False if the worker has to register first."""
        registered = self._registered
        try:
            if not registered:
                self._register()
            registered = self._beat()
        except Exception as error:
            log.warning("heartbeat_failed", reason=reason(error))
            return registered
        # A failure of one duty must not keep the other from running.
        for duty in (self._report, self._interrupt, self._check_lane):
            try:
                duty()
            except Exception as error:
                log.warning("duty_failed", duty=duty.__name__.strip("_"), reason=reason(error))
        return registered

    def _register(self) -> None:
        worker = self.worker
        values = {
            "id": WORKER_ID,
            "name": str(worker.hostname),
            "capabilities": sorted(worker.app.amqp.queues.consume_from),
            "slots": self._slots(),
            "pool": str(worker.pool_cls.__module__.rpartition(".")[2]),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "packages": self._packages,
        }
        with self.engine.begin() as connection:
            connection.execute(REGISTER, values)
        log.info("registered", worker=str(WORKER_ID), capabilities=values["capabilities"], slots=values["slots"])

    @cached_property
    def _packages(self) -> list[str] | None:
        """Packages that functions may import on this machine, determined once; None if no sandbox starts."""
        if not self.settings.sandbox_preload:
            return []
        try:
            with Sandbox(preload=self.settings.sandbox_preload) as sandbox:
                return list(sandbox.packages)
        except MinionError as error:
            log.warning("no_sandbox", reason=error.message)
            return None

    def _beat(self) -> bool:
        """Send one heartbeat. Return False if the row is gone, so that the worker registers again."""
        requests = tuple(celery_state.active_requests)
        active = [task for request in requests for task, _ in request.held]
        active += _still_active.difference(active)
        # The tasks in the lane hold no slot, but the tool calls that they make do.
        busy = sum(request.lane is None for request in requests)
        lane, slots = getattr(self.worker, "lane", None), self._slots()
        if lane:
            busy += lane.busy_slots()
        # Messages that wait for a full lane are not lost.
        idle = busy < slots and not (lane and lane.unstarted)
        values = {"id": WORKER_ID, "busy": busy, "slots": slots, "active": active, "idle": idle}
        values["memory"] = self._memory.read()
        with self.engine.begin() as connection:
            return connection.scalar(BEAT, values) is not None

    def _interrupt(self) -> None:
        """Stop tasks that are cancelled or whose claim is lost."""
        if self.interrupter is not None:
            with self.engine.connect() as connection:
                self.interrupter.check(connection, tuple(celery_state.active_requests))

    def _check_lane(self) -> None:
        """Kill a lane that is stuck."""
        if lane := getattr(self.worker, "lane", None):
            lane.check()

    def _slots(self) -> int:
        # Not `worker.concurrency`: with `--autoscale` that stays the size at the start. A pool that has shrunk to
        # nothing (`--autoscale=N,0`) grows when a message comes, so it has a free slot.
        with suppress(AttributeError):  # It has stopped; the lane has not.
            self._latest_slots = max(1, int(self.worker.pool.num_processes))
        return self._latest_slots

    def _report(self) -> None:
        """Release the tasks of children that died. A report that cannot be written is retried at the next heartbeat."""
        while not _lost_children.empty():
            child = _lost_children.get()
            try:
                self._give_back(child)
            except Exception:
                _lost_children.put(child)
                raise

    def _give_back(self, child: LostChild) -> None:
        if child.unsaved:
            self._save(child.unsaved)
            child.unsaved.clear()
        error = {"type": "child_lost", "message": child.why, "at": datetime.now(UTC).isoformat()}
        with self.engine.begin() as connection:
            charged = child.charged and (
                not child.at_limit or time_limits.overran(connection, child.task_id, child.claim)
            )
            how, delay = ("lost", 1.0) if charged else ("handed_back", 0.0)
            state = lifecycle.release(
                connection,
                child.task_id,
                child.claim,
                how=how,
                charged=charged,
                delay=delay,
                result={"error": error},
                # The child may have died before it had the claim, which another worker may hold.
                worker=WORKER_ID,
            )
            released = state is not None
            event = event_of_lost_child(connection, child.task_id, child.claim, WORKER_ID, released=released)
            if not released and not child.died:
                # It was not claimed yet.
                lifecycle.unqueue(connection, child.task_id, child.claim - 1)
        _still_active.discard(str(child.task_id))
        self.monitors.report(event)
        note, what = (log.warning, "child_lost") if child.died else (log.info, "given_back")
        note(what, task=str(child.task_id), claim=child.claim, why=child.why, state=state and str(state))

    def _save(self, ends: list[dict[str, Any]]) -> None:
        """Record tasks that have ended in a pack, together or each alone. What cannot be recorded is given back."""
        try:
            with self.engine.begin() as connection:
                saved = lifecycle.finish_pack(connection, json.dumps(ends))
        except (DBAPIError, MinionError) as error:
            if is_transient(error):
                raise
            log.warning("not_saved", reason=reason(error), tasks=[end["task"] for end in ends])
            for end in ends if len(ends) > 1 else ():
                self._save([end])
        else:
            if saved:
                publish_finished(*saved)

    def _hand_back(self) -> None:
        events = []
        with self.engine.begin() as connection:
            held = connection.execute(HELD, {"id": WORKER_ID}).all()
            for task_id, claim in held:
                lifecycle.release(connection, task_id, claim, how="handed_back", charged=False)
                events.append(event_just_ended(connection, task_id))
                log.info("handed_back", task=str(task_id), claim=claim)
            connection.execute(STOPPED, {"id": WORKER_ID})
        for event in events:
            self.monitors.report(event)
