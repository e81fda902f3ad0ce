"""The number of worker processes that a capability needs, for autoscalers.

A worker's slots should be enough for what runs, and for the backlog within the wait that is wanted: in that time a slot
runs `wait / run time` tasks. The number follows at once upwards. Downwards it follows when much fewer are enough, also
for the mean load of this and the last hour: what runs in one moment says little about the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, text

from shared.errors import NotFound

MORE = 1.1
"""More workers are needed if the work exceeds the present slots by this factor: a small backlog goes by itself."""
FEWER = 0.6
"""The share of the present workers that must be enough before there are fewer."""
HALF = 0.5
"""The share of the present workers that remain at least."""
HEADROOM = 1.3
"""Slots for each task that runs in the mean."""
SHORTEST_MEAN = 600.0
"""Seconds: what ran in fewer says little about this hour."""
MOST_COUNTED = 100_000
"""Pending tasks: more make no difference to the number of workers."""

# Tasks that a pause or their conversation holds back need no worker.
LOAD = text(
    """
    WITH first AS MATERIALIZED (
        SELECT namespace, key, agent_name FROM task_status
            WHERE state = 'pending' AND capability = :capability AND rank < minion_parked() LIMIT :most
    ), lines AS (
        SELECT namespace, key, agent_name, count(*) AS tasks FROM first GROUP BY 1, 2, 3
    )
    SELECT (SELECT COALESCE(sum(l.tasks), 0)::bigint FROM lines l WHERE NOT EXISTS (
               SELECT FROM pauses x WHERE x.namespace = l.namespace AND (
                   x.scope = 'capability' AND x.name = :capability OR x.scope = 'agent' AND x.name = l.agent_name
                   OR x.scope = 'key' AND x.name = l.key))) AS pending,
           (SELECT count(*) FROM task_status WHERE state = 'queued' AND capability = :capability) AS queued,
           (SELECT count(*) FROM task_status WHERE state = 'running' AND capability = :capability) AS running,
           w.workers, w.slots,
           (SELECT sum(run_seconds) / sum(count) FROM statistics
               WHERE grain = 'hour' AND kind = 'execution' AND bucket > now() - interval '6 hours'
                 AND capability = :capability) AS run_seconds,
           d.this_hour, d.last_hour, extract(epoch FROM now() - d.began)::float8 AS elapsed,
           EXISTS (SELECT FROM workers WHERE :capability = ANY (capabilities)) OR EXISTS (
               SELECT FROM agents a JOIN agent_versions v ON v.id = a.active_version_id
                   WHERE :capability = ANY (v.capabilities)) AS known
        FROM (SELECT count(*) AS workers, COALESCE(sum(slots), 0)::bigint AS slots FROM workers
                  WHERE status = 'online' AND last_seen > now() - CAST(:lease AS interval)
                    AND :capability = ANY (capabilities)) AS w
        CROSS JOIN (SELECT began, COALESCE(sum(run_seconds) FILTER (WHERE bucket >= began), 0) AS this_hour,
                           COALESCE(sum(run_seconds) FILTER (WHERE bucket < began), 0) AS last_hour
                        FROM date_trunc('hour', now(), 'UTC') AS began LEFT JOIN statistics
                            ON grain = 'hour' AND kind = 'execution' AND capability = :capability
                               AND bucket >= began - interval '1 hour'
                        GROUP BY began) AS d
    """
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The work of one capability.

    Attributes:
        backlog: tasks that could start: pending without another reason than slots, and queued.
        running: tasks that run now.
        run_seconds: mean run time of a claim in the last hours; None if nothing has run.
        demand: see `mean_running`.
        workers: live workers.
        slots: their slots.
    """

    backlog: int
    running: int
    run_seconds: float | None
    demand: float
    workers: int
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The goals of an operator.

    Attributes:
        wait_seconds: how long tasks may wait for a slot.
        slots_per_worker: of a new worker; those of the live ones count if there are some.
        least: the fewest workers, and `most` the most.
    """

    wait_seconds: float
    slots_per_worker: int
    least: int
    most: int


def load_of(connection: Connection, capability: str, *, lease: float) -> Load:
    """Return the load of a capability.

    Raises:
        NotFound: no agent offers it, no worker has served it, and no task needs it.
    """
    values = {"capability": capability, "lease": timedelta(seconds=lease), "most": MOST_COUNTED}
    row = connection.execute(LOAD, values).one()
    if not (row.known or row.pending or row.queued or row.running):
        raise NotFound(f"There is no capability {capability!r}. `minion capabilities` lists them.")
    return Load(
        backlog=row.pending + row.queued,
        running=row.running,
        run_seconds=row.run_seconds,
        demand=mean_running(row.this_hour, row.last_hour, row.elapsed),
        workers=row.workers,
        slots=row.slots,
    )


def mean_running(this_hour: float, last_hour: float, elapsed: float) -> float:
    """Return the mean number of running tasks in this hour, or in both hours, whichever is higher.

    Args:
        this_hour: seconds for which tasks ran.
        last_hour: the same, of the hour before.
        elapsed: seconds since this hour began.
    """
    return max(this_hour / max(elapsed, SHORTEST_MEAN), (this_hour + last_hour) / (3600 + elapsed))


def desired(load: Load, wanted: Wanted) -> int:
    """Return the number of workers."""
    return min(max(_steady(load, wanted), wanted.least), wanted.most)


def _steady(load: Load, wanted: Wanted) -> int:
    """Return the number that is enough, or the present one while the difference is not worth a change."""
    each = load.slots / load.workers if load.slots else float(wanted.slots_per_worker)
    work = _work(load, wanted)
    if work > MORE * load.slots:
        return max(1, math.ceil(work / each))
    enough = math.ceil(max(work, HEADROOM * load.demand) / each)
    if enough > FEWER * load.workers:
        return load.workers
    return max(enough, math.floor(HALF * load.workers))


def _work(load: Load, wanted: Wanted) -> float:
    """Return the number of slots that are enough for the work of this moment."""
    # Without experience, a task takes as long as it may wait: too many workers rather than too few.
    run_seconds = wanted.wait_seconds if load.run_seconds is None else max(load.run_seconds, 0.001)
    return load.running + load.backlog / max(1.0, wanted.wait_seconds / run_seconds)
