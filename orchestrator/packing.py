"""Joins short tasks to packs: one message for several tasks, which run one after the other in a slot.

Only the messages are joined; PostgreSQL has chosen the tasks and their order. There are packs only if more tasks are
dispatched than there are slots: with fewer, each task has its own slot. An agent's tasks are packed while its last
executions were short. Only workers that understand packs receive them.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from shared.tasks.lifecycle import Dispatched

MOST = 32
"""The largest number of tasks in a pack. Its message must be smaller than `workers.run_messages.LARGEST`."""
PACK_SECONDS = 0.25
"""The longest time that a pack is expected to take."""
SHORT_SECONDS = 0.1
"""The longest duration of a short task."""
ENOUGH = 8
"""Executions that must have ended before an agent's tasks are packed."""
LATEST = 24
"""The estimate of an agent version uses this many of its executions, the latest that have ended."""
REMEMBERED = 256
SAMPLES = 16
"""Tasks of a batch that are remembered for the estimate. Most of them have not begun when the next batch is made."""
SLOW_SECONDS = 0.5
"""A task that has been running for that long shows that an agent's tasks have turned slow."""
MOST_AGENTS = 1000
FRESH_SECONDS = 0.25
"""Age at which an estimate is renewed."""
SOON_SECONDS = 0.03
"""Time until the next estimate if too few executions have ended for one."""
AHEAD_SECONDS = 0.2
"""Work for each slot that is in the broker: several rounds of the dispatcher."""
LARGEST_WINDOW = 512
"""The largest window in the broker for short tasks."""
UNDERSTOOD_SINCE = (0, 3)

WORKERS = text(
    "SELECT c.name, CAST(sum(w.slots) AS integer) AS slots, bool_and(w.pool = 'prefork') AS prefork, "
    "array_agg(w.version) AS versions, (SELECT count(*) FROM task_status s "
    "WHERE s.capability = c.name AND s.state IN ('queued', 'running')) AS in_flight "
    "FROM workers w, unnest(w.capabilities) AS c (name) "
    "WHERE w.status = 'online' AND w.last_seen > now() - :lease * interval '1 s' AND c.name = ANY (:queues) "
    "GROUP BY c.name"
)
# A task that is running has taken at least that long, with the time that it waits behind others of its pack.
RAN = text(
    "SELECT CAST(extract(epoch FROM COALESCE(e.finished_at, clock_timestamp()) - e.started_at) AS double precision) "
    "AS seconds, e.finished_at IS NOT NULL AS ended "
    "FROM unnest(CAST(:tasks AS uuid[]), CAST(:claims AS integer[])) "
    "WITH ORDINALITY AS x (task, claim, place) "
    "JOIN executions e ON e.task_id = x.task AND e.claim = x.claim ORDER BY x.place DESC"
)
CALLS_MODEL = text(
    "SELECT type = 'agent' OR definition->'config'->>'router_model' IS NOT NULL FROM agent_versions WHERE id = :version"
)


@dataclass
class Agent:
    """Durations of an agent version's tasks.

    Attributes:
        recent: its last dispatched tasks, with their claims.
        seconds: the estimated duration of a task; None: its tasks are not packed.
        due_at: when the estimate is to be renewed, by the monotonic clock.
    """

    calls_model: bool
    recent: deque[tuple[UUID, int]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    seconds: float | None = None
    due_at: float = 0.0


class Packing:
    """Makes packs of the dispatcher's batches.

    Attributes:
        windows: for capabilities whose last tasks were short, the number of tasks that keeps their slots busy until
            the next rounds.
    """

    def __init__(self, lease: float) -> None:
        self.windows: dict[str, int] = {}
        self._lease = lease
        self._agents: dict[UUID | None, Agent] = {}

    def pack(self, connection: Connection, batch: Sequence[Dispatched]) -> list[list[Dispatched]]:
        """Return the tasks of each message, in the order of the batch."""
        if len(batch) == 1:
            return [[*batch]]
        queues: dict[str, list[Dispatched]] = defaultdict(list)
        for task in batch:
            queues[task.queue].append(task)
        pools = self._pools(connection, queues)
        packs = [
            pack for queue, tasks in queues.items() for pack in self._packs_of(connection, tasks, pools.get(queue))
        ]
        for task in batch[:: len(batch) // SAMPLES or 1]:
            if not (agent := self._agent(connection, task)).calls_model:
                agent.recent.append((task.task_id, task.claim + 1))
        return packs

    def _pools(self, connection: Connection, queues: Iterable[str]) -> dict[str, Row[Any]]:
        """Return the slots of each capability whose workers all understand packs, and its tasks in flight."""
        rows = connection.execute(WORKERS, {"lease": self._lease, "queues": [*queues]})
        return {row.name: row for row in rows if row.prefork and all(map(_understands, row.versions))}

    def _packs_of(
        self, connection: Connection, tasks: Sequence[Dispatched], pool: Row[Any] | None
    ) -> list[list[Dispatched]]:
        """Return the packs of one capability: no slot stays free."""
        self.windows.pop(tasks[0].queue, None)
        if pool is None or (most := _most(len(tasks), pool)) < 2:
            return [[task] for task in tasks]
        # One that has run before may be what ended its slot or its worker, and the others with it.
        seconds = [None if task.claim else self._estimate(connection, task) for task in tasks]
        if known := [each for task, each in zip(tasks, seconds, strict=True) if not task.claim]:
            self._widen(tasks[0].queue, known, pool.slots)
        return _joined(zip(tasks, seconds, strict=True), most)

    def _widen(self, queue: str, seconds: Sequence[float | None], slots: int) -> None:
        """Adapt the window of a capability whose tasks are all short: they are ready before the next round comes."""
        short = [each for each in seconds if each is not None]
        if len(short) == len(seconds):
            self.windows[queue] = min(LARGEST_WINDOW, round(AHEAD_SECONDS * slots * len(short) / sum(short)))

    def _estimate(self, connection: Connection, task: Dispatched) -> float | None:
        """Return the expected duration of a task in seconds; None if it must not be packed."""
        agent = self._agent(connection, task)
        now = time.monotonic()
        if not agent.calls_model and now >= agent.due_at:
            is_known, agent.seconds = _look(connection, agent)
            agent.due_at = now + (FRESH_SECONDS if is_known else SOON_SECONDS)
        return agent.seconds

    def _agent(self, connection: Connection, task: Dispatched) -> Agent:
        agent = self._agents.get(task.version_id)
        if agent is None:
            if len(self._agents) >= MOST_AGENTS:
                del self._agents[next(iter(self._agents))]
            # A version that is not known may call one.
            calls_model = connection.scalar(CALLS_MODEL, {"version": task.version_id}) is not False
            agent = self._agents[task.version_id] = Agent(calls_model)
        return agent


def _most(tasks: int, pool: Row[Any]) -> int:
    """Return the size of a pack, for a number of tasks that are dispatched together."""
    return MOST if pool.in_flight - tasks >= pool.slots else min(MOST, tasks // pool.slots)


def _joined(tasks: Iterable[tuple[Dispatched, float | None]], most: int) -> list[list[Dispatched]]:
    """Join tasks with an expected duration to packs of `most` at most."""
    packs: list[list[Dispatched]] = []
    open_pack: list[Dispatched] = []
    room = 0.0
    for task, seconds in tasks:
        if seconds is None:
            packs.append([task])
        elif open_pack and len(open_pack) < most and seconds <= room:
            open_pack.append(task)
            room -= seconds
        else:
            open_pack, room = [task], PACK_SECONDS - seconds
            packs.append(open_pack)
    return packs


def _look(connection: Connection, agent: Agent) -> tuple[bool, float | None]:
    """Return whether enough of an agent's executions have ended, and the estimated duration of its tasks: the median of
    the last ones, if nine of ten were short.

    Those that were given back because another task of their pack took long count as long.
    """
    if len(agent.recent) < ENOUGH:
        return False, None
    values = {"tasks": [task for task, _ in agent.recent], "claims": [claim for _, claim in agent.recent]}
    rows = connection.execute(RAN, values).all()
    # The latest ones first.
    ended = [row.seconds for row in rows if row.ended][:LATEST]
    slow = any(not row.ended and row.seconds > SLOW_SECONDS for row in rows)
    if len(ended) < ENOUGH or slow:
        return slow, None
    ended.sort()
    are_short = ended[len(ended) * 9 // 10] <= SHORT_SECONDS
    return True, max(ended[len(ended) // 2], 0.001) if are_short else None


def _understands(version: str) -> bool:
    """Return whether a worker of this release runs packs."""
    try:
        major, minor = version.split(".")[:2]
        return (int(major), int(minor)) >= UNDERSTOOD_SINCE
    except ValueError:
        return False
