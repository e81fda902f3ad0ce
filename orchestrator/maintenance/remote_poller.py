"""The remote poller: asks MCP servers about their tasks, for which ours wait without a worker.

Rows that are due are claimed for a while: several orchestrators share the work, and one that dies does not hold it up.
Each server gets a few requests at a time, each in a thread, so that one that hangs delays no other. To ask twice, or to
send an answer or a cancellation twice, does no harm.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from minions.backoff import exponential, jittered
from orchestrator.explain import duration
from orchestrator.loops.loop import Loop
from shared.contracts.documents import McpServerDefinition
from shared.database.connections import autocommit
from shared.errors import MinionError
from shared.mcp import questions, remote_tasks
from shared.mcp.client import McpClient
from shared.mcp.eras import Eras
from shared.mcp.faults import McpFault
from shared.mcp.remote_tasks import FASTEST, SLOWEST, RemoteTask
from shared.mcp.servers import connect, version_of
from shared.notifications import publish_progress
from shared.settings import Settings
from shared.tasks import remote_calls, stops
from shared.tasks.records import Stop
from shared.tasks.remote_calls import News, RemoteCall

log = structlog.get_logger(__name__)

PAUSE_SECONDS = 0.25
MOST, EACH = 16, 4
"""Requests at a time: in all, and to one server."""
LONGEST_POLL_SECONDS = 20.0
HOLD_SECONDS = 60.0
"""Longer than a poll may take. Another orchestrator makes it then."""
JITTER = 0.1
FIRST_SECONDS = 2.0
"""Until the next poll after one that failed; longer after each further one."""
PATIENCE_SECONDS = 24 * 3600.0
"""After this time away, a server is taken to have lost its tasks."""
CONFUSED_SECONDS = 3600.0
"""The same for a server that answers, but with nothing that can be read."""
EXPIRED_SECONDS = 600.0
"""A server that is away when it may forget its task (`ttlMs`) has forgotten it after this time."""
GRACE_SECONDS = 1.0
MOST_SERVERS = 1_000
MOST_ROUNDS = 20
MOST_CANCELLATIONS = 8
MAX_WHY = 500


class RemotePoller(Loop):
    """Polls tasks of MCP servers, sends them the answers of people, and cancels those that are not needed."""

    name = "remote_poller"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.settings = settings
        self.statements = autocommit(engine)
        self.threads = ThreadPoolExecutor(MOST, thread_name_prefix=self.name)
        self.eras = Eras()
        self.busy: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._servers: dict[UUID, McpServerDefinition] = {}
        self._freed = threading.Event()

    def run_once(self) -> float:
        """Start the polls that are due, as far as there is room."""
        with self._lock:
            busy = +self.busy
        room = MOST - busy.total()
        with self.statements.connect() as connection:
            due = remote_calls.claim(connection, most=room, each=EACH, busy=busy, hold=HOLD_SECONDS) if room else []
        self._freed.clear()
        for call in due:
            with self._lock:
                self.busy[_server(call)] += 1
            self.threads.submit(self._attend, call)
        if not due:
            return PAUSE_SECONDS
        # More may be due than there was room for.
        self._freed.wait(PAUSE_SECONDS)
        return 0.0

    def close(self) -> None:
        """Wait for the polls that have begun."""
        self.threads.shutdown(wait=True, cancel_futures=True)

    def _attend(self, call: RemoteCall) -> None:
        """Do what a call needs next. What fails is retried when its claim has run out."""
        try:
            if call.state == "cancelling":
                self._cancel(call)
            else:
                self._poll(call)
        except SQLAlchemyError:
            log.warning("remote_poll_not_recorded", task=str(call.task_id), step=call.step)
        except Exception:
            log.exception("failed_unexpectedly", task=str(call.task_id), step=call.step)
        finally:
            with self._lock:
                self.busy[_server(call)] -= 1
            self._freed.set()

    # ------------------------------------------------------------------------------------------------------- polls

    def _poll(self, call: RemoteCall) -> None:
        """Send an answer, or ask for the state, and record what came of it."""
        assert call.remote_id is not None
        try:
            with self._connect(call) as client:
                if call.answer is not None:
                    self._send_answer(client, call)
                else:
                    found = remote_tasks.get(client, call.remote_id, call.answered)
                    self._record(call, self._news(client, call, found))
        except MinionError as error:
            self._record(call, self._trouble(call, error))

    def _send_answer(self, client: McpClient, call: RemoteCall) -> None:
        """Send a person's answer. The server may see it a while after it has taken it."""
        assert call.remote_id is not None
        assert call.answer is not None
        assert call.requests is not None
        if (stop := self._stop_of(call)) is not None:
            self._hold(call, stop)
            return
        requests = json.loads(call.requests)
        answers = questions.responses(requests, call.answer["verdict"], call.answer["value"])
        remote_tasks.update(client, call.remote_id, answers)
        with self.statements.connect() as connection:
            remote_calls.taken(connection, call, list(requests), delay=FASTEST)
        log.info("remote_task_answered", task=str(call.task_id), step=call.step, server=call.server)

    def _news(self, client: McpClient, call: RemoteCall, found: RemoteTask) -> News:
        """Return what a server's answer means for a call."""
        if found.end is not None:
            return {"result": found.end, "message": found.message}
        if found.ttl_seconds is not None and call.age > found.ttl_seconds + GRACE_SECONDS:
            self._try_to_cancel(client, call)
            why = "its time (ttlMs) is over. It is not known whether it had an effect"
            return {"result": remote_tasks.lost(why), "message": found.message}
        news: News = {
            "state": "working" if found.questions is None else "input_required",
            "message": found.message,
            "poll_seconds": _later(found.poll_seconds),
            "ttl_seconds": found.ttl_seconds,
        }
        if found.questions is not None and not _is_known(call, found):
            if call.round >= MOST_ROUNDS:
                self._try_to_cancel(client, call)
                return {"result": remote_tasks.lost(f"it asked for input {MOST_ROUNDS} times, and would again")}
            asked = found.questions
            news["requests"] = json.dumps(asked.requests)
            news["form"] = asked.form()
            news["proposed"] = asked.proposed
            news["asks"] = f"{call.round + 1} {asked.mark}"
        return news

    def _trouble(self, call: RemoteCall, error: MinionError) -> News:
        """Return what a failed poll means for a call: another one later, or that its result will never be known."""
        why = error.message[:MAX_WHY].rstrip(".")
        is_temporary = error.temporary if isinstance(error, McpFault) else error.retryable
        longest = EXPIRED_SECONDS if call.is_expired else PATIENCE_SECONDS if is_temporary else CONFUSED_SECONDS
        if isinstance(error, McpFault) and remote_tasks.is_unknown(error):
            said = "does not know it any more" if call.answer is None else "refused a person's answer"
            why = f"the server {said} ({why}). It is not known whether it had an effect"
        elif (call.seconds_failing or 0.0) < longest:
            asked = error.retry_after if isinstance(error, McpFault) else None
            pause = exponential(call.failures + 1, first=max(FIRST_SECONDS, call.poll_seconds), longest=SLOWEST)
            # A server that is away for long fails many polls, and has an alert.
            noted = log.debug if call.failures else log.warning
            noted("remote_poll_failed", task=str(call.task_id), server=call.server, reason=why)
            return {"error": why, "poll_seconds": max(_later(pause), min(asked or 0.0, SLOWEST))}
        else:
            why = f"the server could not be asked for {duration(longest)}: {why}"
        log.error("remote_task_lost", task=str(call.task_id), server=call.server, reason=why)
        return {"result": remote_tasks.lost(why)}

    def _record(self, call: RemoteCall, news: News) -> None:
        with self.statements.connect() as connection:
            is_open = remote_calls.polled(connection, call, news)
        if is_open and ("result" in news or "requests" in news):
            publish_progress(call.task_id)

    def _stop_of(self, call: RemoteCall) -> Stop | None:
        with self.statements.connect() as connection:
            return stops.stop_of(connection, call.task_id)

    def _hold(self, call: RemoteCall, stop: Stop) -> None:
        """Keep an answer back while a stop applies to the task: it may be an effect."""
        why = f"The answer is not sent, because {stops.describe(stop)}"
        with self.statements.connect() as connection:
            remote_calls.postpone(connection, call, why, delay=remote_tasks.USUAL)

    # ----------------------------------------------------------------------------------------------- cancellations

    def _cancel(self, call: RemoteCall) -> None:
        """Cancel a task that is not needed. A server that is away for long does not receive it."""
        assert call.remote_id is not None
        why = None
        try:
            with self._connect(call) as client:
                remote_tasks.cancel(client, call.remote_id)
        except MinionError as error:
            if not isinstance(error, McpFault) or not remote_tasks.is_unknown(error):
                why = error.message[:MAX_WHY]
        with self.statements.connect() as connection:
            if why is not None and call.failures < MOST_CANCELLATIONS:
                pause = exponential(call.failures + 1, first=FIRST_SECONDS, longest=SLOWEST)
                remote_calls.cancel_later(connection, call, why, delay=_later(pause))
                return
            remote_calls.cancelled(connection, call)
        log.info("remote_task_cancelled", task=str(call.task_id), server=call.server, problem=why)

    def _try_to_cancel(self, client: McpClient, call: RemoteCall) -> None:
        assert call.remote_id is not None
        try:
            remote_tasks.cancel(client, call.remote_id)
        except MinionError as error:
            log.info("remote_task_not_cancelled", task=str(call.task_id), server=call.server, reason=error.message)

    def _connect(self, call: RemoteCall) -> McpClient:
        """Return a client for the server of a call.

        Raises:
            MinionError: its definition or its secrets cannot be read.
        """
        server = self._server_of(call.server_version_id)
        return connect(server, call.namespace, self.eras.of(call.server_version_id), remote_tasks.CAPABILITIES)

    def _server_of(self, version: UUID) -> McpServerDefinition:
        """Return a server's definition, with a limit for polls. Versions are immutable, so they are cached."""
        if (known := self._servers.get(version)) is None:
            with self.statements.connect() as connection:
                stored = version_of(connection, version)
            if len(self._servers) >= MOST_SERVERS:
                self._servers.clear()
            known = stored.model_copy(update={"timeout": min(stored.timeout, LONGEST_POLL_SECONDS)})
            self._servers[version] = known
        return known


def _server(call: RemoteCall) -> str:
    return f"{call.namespace}/{call.server}"


def _is_known(call: RemoteCall, found: RemoteTask) -> bool:
    """Return whether a person has been asked exactly this."""
    asked = found.questions
    return asked is not None and call.requests is not None and json.loads(call.requests) == asked.requests


def _later(seconds: float) -> float:
    """Return the seconds with some more, so that polls which began together do not stay together."""
    return seconds + jittered(seconds * JITTER, 1.0)
